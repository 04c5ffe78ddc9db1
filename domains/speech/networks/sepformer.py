"""SepFormer: transformers along short chunks of frames, then across the chunks.

Subakan et al., Attention is All You Need in Speech Separation, ICASSP 2021, arXiv 2010.13154. The
sums follow SpeechBrain's. Sizes: B mixtures, C speakers, S frames, N width, P frames of a chunk, M
chunks, each half over the next.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import published
from core.layers.wide import wide
from domains.speech.masking import KERNEL, MaskingSeparator, frequencies
from domains.speech.published import arguments, joined


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward part, each after its norm.

    Args:
        width: N.
        heads: number of heads.
        inner: width inside the feed-forward part.
        dropout: on the attention weights, inside the feed-forward part and after both.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (rows, tokens, N)."""
        heads = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (rows, heads, tokens, N / heads)
        dropout = self.drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        x = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        inner = F.relu(self.expand(self.norm2(x)))
        out: Tensor = x + self.drop(self.contract(self.drop(inner)))
        return out


class Transformer(nn.Module):
    """Layers on tokens that know their place, and a norm over the utterance at the end.

    Args:
        width: N.
        depth: number of layers.
        heads: attention heads.
        inner: width inside the feed-forward parts.
        dropout: inside the layers.
    """

    def __init__(self, width: int, depth: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, inner, dropout) for _ in range(depth)
        )
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)
        self.norm = nn.GroupNorm(1, width, eps=1e-8)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of each row of ``x`` (B, rows, tokens, N)."""
        places = torch.arange(x.shape[2], dtype=wide(x).dtype, device=x.device)[:, None]
        angles = places * frequencies(x.shape[3], places)
        positions = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)  # (tokens, N)
        y = (x + positions.to(x.dtype)).flatten(0, 1)  # (B rows, tokens, N)
        for layer in self.layers:
            y = layer(y)
        y = self.layer_norm(y).view(len(x), -1, x.shape[3])
        normed: Tensor = self.norm(y.mT)
        return normed.mT.view(x.shape)


class DualPath(nn.Module):
    """One transformer along each chunk, one across the chunks at each place in them.

    Args:
        width: N.
        depth: layers of each of the two.
        heads: attention heads.
        inner: width inside the feed-forward parts.
        dropout: inside the layers.
    """

    def __init__(self, width: int, depth: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.intra = Transformer(width, depth, heads, inner, dropout)
        self.inter = Transformer(width, depth, heads, inner, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, M, P, N)."""
        x = self.intra(x) + x
        out: Tensor = self.inter(x.transpose(1, 2)).transpose(1, 2) + x
        return out


class SepFormer(MaskingSeparator):
    """Separate the voices of a mixture of any length; the sizes are the published ones.

    Args:
        speakers: C.
        width: N.
        chunk: P, even.
        blocks: how often both paths are gone.
        depth: layers of each transformer, of which a block has two.
        heads: attention heads.
        inner: width inside the feed-forward parts.
        dropout: inside the layers.

    Raises:
        ValueError: if a size is below 1, ``chunk`` or ``width`` is odd, or ``width`` is no multiple
            of ``heads``.

    Example:
        >>> network = SepFormer(width=16, chunk=20, depth=1, heads=2, inner=32)
        >>> network(torch.zeros(3, 1000)).shape
        torch.Size([3, 2, 1000])
    """

    def __init__(
        self,
        speakers: int = 2,
        *,
        width: int = 256,
        chunk: int = 250,
        blocks: int = 2,
        depth: int = 8,
        heads: int = 8,
        inner: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(speakers, width)
        if min(blocks, depth, inner) < 1:
            raise ValueError(f"blocks={blocks}, depth={depth}, inner={inner} must be at least 1")
        if chunk < 2 or chunk % 2:
            raise ValueError(f"chunk={chunk} must be even, and at least 2")
        if heads < 1 or width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.chunk = chunk
        self.blocks = blocks
        self.depth = depth
        self.heads = heads
        self.inner = inner
        self.dropout = dropout
        self.layers = nn.ModuleList(
            DualPath(width, depth, heads, inner, dropout) for _ in range(blocks)
        )

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks of two transformers, in order."""
        return self.layers

    def features_by_voice(self, x: Tensor) -> Tensor:
        """Map the frames ``x`` (B, S, N) to what each voice's mask is made of, (B, S, C, N)."""
        frames, hop = x.shape[1], self.chunk // 2
        gap = self.chunk - (hop + frames % self.chunk) % self.chunk
        padded = F.pad(x, (0, 0, hop, hop + gap))
        y = padded.unfold(1, self.chunk, hop).mT  # (B, M, P, N)
        for layer in self.layers:
            y = layer(y)
        y = self.by_voice(self.act(y))  # (B, M, P, C N)
        first, second = y[:, 1:, :hop], y[:, :-1, hop:]  # both halves of each hop
        whole: Tensor = (first + second).flatten(1, 2)[:, :frames]  # (B, S, C N)
        return whole.view(*x.shape[:2], self.speakers, self.width)

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Any]
    ) -> "SepFormer":
        """Build from SpeechBrain's options and parameter names.

        Args:
            config: keywords of its ``SepformerWrapper``; what is left out is as there.
            state_dict: its entries; or the three parts that are released as files of their own, by
                the names ``encoder``, ``decoder`` and ``masknet``.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        network = cls(**arguments("SepFormer", config, _NAMES, _FIXED, ()))
        entries = {
            name: tensor.flatten(2) if tensor.ndim == 4 else tensor
            for name, tensor in joined(state_dict, {}).items()
        }
        published.load(network, entries, _RULES, r"pos_enc\.pe$", _POINTWISE)
        return network


_NAMES = {
    **{"encoder_out_nchannels": "width", "masknet_chunksize": "chunk"},
    **{"masknet_numlayers": "blocks", "masknet_numspks": "speakers"},
    **{"intra_numlayers": "depth", "inter_numlayers": "depth"},
    **{"intra_nhead": "heads", "inter_nhead": "heads"},
    **{"intra_dffn": "inner", "inter_dffn": "inner"},
}
_FIXED = {
    **{"encoder_kernel_size": KERNEL, "encoder_in_nchannels": 1, "masknet_norm": "ln"},
    **{"masknet_useextralinearlayer": False, "masknet_extraskipconnection": True},
    **{"intra_use_positional": True, "inter_use_positional": True},
    **{"intra_norm_before": True, "inter_norm_before": True},
}
_POINTWISE = r"^masknet\.(conv1d|conv2d|end_conv1x1|output\.0|output_gate\.0)\.weight$"
_RULES = (
    (r"^encoder\.", "encoder.conv1d."),
    (r"^norm\.", "masknet.norm."),
    (r"^project_in\.", "masknet.conv1d."),
    (r"^layers\.(\d+)\.(intra|inter)\.norm\.", r"masknet.dual_mdl.\1.\2_norm."),
    (r"^layers\.(\d+)\.(intra|inter)\.", r"masknet.dual_mdl.\1.\2_mdl.mdl."),
    (r"\.layer_norm\.", ".norm.norm."),
    (r"\.(norm[12])\.", r".\1.norm."),
    (r"\.qkv\.", ".self_att.att.in_proj_"),
    (r"\.out\.", ".self_att.att.out_proj."),
    (r"\.expand\.", ".pos_ffn.ffn.0."),
    (r"\.contract\.", ".pos_ffn.ffn.3."),
    (r"^act\.", "masknet.prelu."),
    (r"^by_voice\.", "masknet.conv2d."),
    (r"^signal\.", "masknet.output.0."),
    (r"^gate\.", "masknet.output_gate.0."),
    (r"^project_out\.", "masknet.end_conv1x1."),
)
