"""MossFormer: gated attention that joins exact local and linear global attention in one head.

Zhao and Ma, MossFormer: Pushing the Performance Limit of Monaural Speech Separation Using Gated
Single-Head Transformer with Convolution-Augmented Joint Self-Attentions, ICASSP 2023, arXiv
2302.11824. The sums follow the released network. It normalises over the whole utterance, so that
padding, cutting or joining changes every output. It looks ahead: it cannot stream.
Sizes: B mixtures of L samples, C speakers, S frames, N width, D width of queries and keys, P frames
of a chunk.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from core import published
from core.layers.wide import wide
from domains.speech.masking import KERNEL, STRIDE, MaskingSeparator, frequencies
from domains.speech.published import arguments, joined

TAPS = 17  # frames that the convolution along time sees
ROTATED = 32  # features of queries and keys that carry the frame's place
_WORK = 1 << 19  # products that are summed at a time: on a CPU about what its caches hold


class DepthwiseConv(nn.Module):
    """Add to each feature a convolution of it along time, with zeros beyond both ends.

    Args:
        width: N.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, TAPS))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as torch draws those of a convolution."""
        nn.init.uniform_(self.weight, -(TAPS**-0.5), TAPS**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, S, N)."""
        weight = self.weight.to(x.dtype)
        if x.device.type == "cpu":
            convolved: Tensor = _Convolved.apply(x, weight)  # type: ignore[no-untyped-call]
            return convolved
        return x + F.conv1d(x.mT, weight, padding=TAPS // 2, groups=len(weight)).mT


class ConvModule(nn.Module):
    """A scaled norm, a linear map, SiLU and a convolution along time.

    Args:
        inputs: features before.
        outputs: features after.
        dropout: after the convolution.
    """

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.linear = nn.Linear(inputs, outputs)
        self.conv = DepthwiseConv(outputs)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, S, inputs) to (B, S, outputs)."""
        length = torch.linalg.vector_norm(wide(x), dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
        scaled = x * (self.gain / length.clamp_min(1e-5)).to(x.dtype)
        mapped = self.linear(scaled)  # (B, S, outputs)
        mixed: Tensor = self.drop(self.conv(F.silu(mapped, inplace=not torch.is_grad_enabled())))
        return mixed


class MossFormerBlock(nn.Module):
    """Joint attention of one head, gated by what it attends to.

    Args:
        width: N.
        key: D.
        chunk: P.
        dropout: after each convolution module, and on the local weights.
    """

    def __init__(self, width: int, key: int, chunk: int, dropout: float) -> None:
        super().__init__()
        self.chunk = chunk
        self.to_hidden = ConvModule(width, 4 * width, dropout)
        self.to_qk = ConvModule(width, key, dropout)
        self.gamma = nn.Parameter(torch.empty(4, key))
        self.beta = nn.Parameter(torch.empty(4, key))
        self.to_out = ConvModule(2 * width, width, dropout)
        self.drop = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the scales of queries and keys as published; all else is as torch draws it."""
        nn.init.normal_(self.gamma, std=0.02)
        nn.init.zeros_(self.beta)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Map ``x`` (B, S, N).

        Args:
            x: the state of each frame.
            rotation: cosine and sine of each frame's angles, (1, S, 1, pairs, 2).
        """
        frames, half = x.shape[1], x.shape[2] // 2
        before = F.pad(x[:, :-1, :half], (0, 0, 1, 0))
        shifted = torch.cat([before, x[..., half:]], 2)  # (B, S, N)
        hidden = self.to_hidden(shifted)  # (B, S, 4N): values, then gates
        shared = self.to_qk(shifted).unsqueeze(2) * self.gamma + self.beta  # (B, S, 4, D)
        local_q, global_q, local_k, global_k = _rotated(shared, rotation).unbind(2)
        summary = (global_k / frames).mT @ hidden  # (B, D, 4N)
        parts = (local_q / self.chunk, local_k, global_q, hidden)
        chunks = zip(*(part.split(self.chunk, 1) for part in parts), strict=True)
        gated = torch.cat([self._gated(q, k, g, h, summary) for q, k, g, h in chunks], 1)
        out: Tensor = x + self.to_out(gated)
        return out

    def _gated(
        self, local_q: Tensor, local_k: Tensor, global_q: Tensor, hidden: Tensor, summary: Tensor
    ) -> Tensor:
        """Attend within one chunk and to the summary of all frames; give the gate (B, P, 2N)."""
        weights = self.drop((local_q @ local_k.mT).relu().square())  # (B, P, P)
        attended = (global_q @ summary).baddbmm_(weights, hidden)  # (B, P, 4N)
        v, u = hidden.chunk(2, 2)
        attended_v, attended_u = attended.chunk(2, 2)
        return attended_u * v * torch.sigmoid(attended_v * u)


class MossFormer(MaskingSeparator):
    """Separate the voices of a mixture of any length; the sizes are those of the published L.

    Args:
        speakers: C.
        width: N, even.
        depth: number of blocks.
        key: D, even.
        chunk: P, the frames that attend to each other exactly; weights hold for theirs alone.
        dropout: inside the blocks.
        gradient_checkpointing: compute each block again in the backward pass instead of keeping
            what it needs: a third more time, a fraction of the memory.

    Raises:
        ValueError: if a size is below 1, or ``width`` or ``key`` is odd.

    Example:
        >>> network = MossFormer(speakers=2, width=16, depth=2, key=16)
        >>> network(torch.zeros(3, 1000)).shape
        torch.Size([3, 2, 1000])
    """

    def __init__(
        self,
        speakers: int = 2,
        *,
        width: int = 512,
        depth: int = 24,
        key: int = 128,
        chunk: int = 256,
        dropout: float = 0.1,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(speakers, width)
        if min(depth, chunk) < 1:
            raise ValueError(f"depth={depth} and chunk={chunk} must be at least 1")
        if key < 2 or key % 2:
            raise ValueError(f"key={key} must be even, and at least 2")
        self.depth = depth
        self.key = key
        self.chunk = chunk
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.position_scale = nn.Parameter(torch.ones(1))
        self.layers = nn.ModuleList(
            MossFormerBlock(width, key, chunk, dropout) for _ in range(depth)
        )
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)
        self.stack_norm = nn.GroupNorm(1, width, eps=1e-8)

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks, in order."""
        return self.layers

    def features_by_voice(self, x: Tensor) -> Tensor:
        """Map the frames ``x`` (B, S, N) to what each voice's mask is made of, (B, S, C, N)."""
        frames = torch.arange(x.shape[1], dtype=wide(x).dtype, device=x.device)[:, None]
        angles = frames * frequencies(self.width, frames)  # (S, N/2)
        positions = torch.cat([angles.sin(), angles.cos()], 1).to(x.dtype)
        x = x + self.position_scale * positions
        angles = frames * frequencies(min(ROTATED, self.key), frames)
        rotation = torch.stack([angles.cos(), angles.sin()], 2)[None, :, None].to(x.dtype)
        y = x
        for layer in self.layers:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                y = checkpoint(layer, y, rotation, use_reentrant=False)
            else:
                y = layer(y, rotation)
        y = self.stack_norm(self.layer_norm(y).mT).mT + x
        voices: Tensor = self.by_voice(self.act(y))
        return voices.view(*x.shape[:2], self.speakers, self.width)

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Any]
    ) -> "MossFormer":
        """Build from the official sizes and parameter names, of ModelScope or of ClearerVoice.

        Args:
            config: the official options, or their short names N, R, d, P, C.
            state_dict: the official entries; or the three parts that are released as files of their
                own, by the names ``encoder``, ``decoder`` and ``masknet``.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        needed = ("width", "depth", "key", "chunk", "speakers")
        network = cls(**arguments("MossFormer", config, _NAMES, _FIXED, needed))
        entries = {
            published.renamed(name, _OTHER_NAMES): tensor
            for name, tensor in joined(state_dict, {"masknet": "mask_net"}).items()
        }
        published.load(network, entries, _RULES, _TABLES, _POINTWISE)
        return network


def mossformer_s(speakers: int = 2) -> MossFormer:
    """Build S: 10.8 million parameters; depth and width are inferred from that number."""
    return MossFormer(speakers, width=256, depth=23)


def mossformer_m(speakers: int = 2) -> MossFormer:
    """Build M: 25.2 million parameters; depth and width are inferred from their number."""
    return MossFormer(speakers, width=384, depth=25)


def mossformer_l(speakers: int = 2) -> MossFormer:
    """Build L: 42.1 million parameters."""
    return MossFormer(speakers)


class _Convolved(torch.autograd.Function):
    """``x`` (B, S, N) plus its convolution along time, with features adjacent in memory.

    On a CPU both passes are several times as fast as with time adjacent.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolved(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        by_x = _convolved(g, weight.to(g.dtype).flip(2)) if ctx.needs_input_grad[0] else None
        by_weight = _by_taps(g, x).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return by_x, by_weight


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    kernel = weight.clone()
    kernel[:, 0, TAPS // 2] += 1  # x itself
    image = x.mT.unsqueeze(2)  # (B, N, 1, S), channels last
    mixed = F.conv2d(image, kernel.unsqueeze(2), padding=(0, TAPS // 2), groups=len(weight))
    return mixed.squeeze(2).mT


def _by_taps(g: Tensor, x: Tensor) -> Tensor:
    """Sum over time the products of ``g`` (B, S, N) and of ``x`` at each tap: (N, 1, taps)."""
    frames, width = g.shape[1:]
    padded = F.pad(wide(x), (0, 0, TAPS // 2, TAPS // 2))
    sums = padded.new_zeros(TAPS, width)
    block = max(1, _WORK // (len(g) * width))
    for start in range(0, frames, block):
        part = wide(g[:, start : start + block])
        for tap, total in enumerate(sums):
            at = start + tap
            total += (part * padded[:, at : at + part.shape[1]]).sum((0, 1))
    return sums.T.unsqueeze(1)


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the first pairs of features of ``x`` (B, S, 4, D) by each frame's angles."""
    cosine, sine = rotation.unbind(-1)
    rotated = 2 * cosine.shape[-1]
    a, b = x[..., :rotated:2], x[..., 1:rotated:2]  # (B, S, 4, pairs)
    pairs = torch.stack([a * cosine - b * sine, b * cosine + a * sine], -1)
    return torch.cat([pairs.flatten(-2), x[..., rotated:]], -1)


_NAMES = {
    **{"N": "width", "R": "depth", "d": "key", "P": "chunk", "C": "speakers"},
    **{"in_channels": "width", "out_channels": "width", "d_model": "width"},
    **{"num_blocks": "depth", "query_key_dim": "key", "group_size": "chunk"},
    **{"num_spks": "speakers", "attn_dropout": "dropout"},
}
_FIXED = {
    **{"kernel_size": KERNEL, "stride": STRIDE, "causal": False, "norm": "ln"},
    **{"expansion_factor": 4.0, "bias": False},
}
_TABLES = r"(rotary_pos_emb\.freqs|pos_enc\.inv_freq)$"
_POINTWISE = r"(conv1d_encoder|conv1d_out|conv1_decoder|output(_gate)?\.0)\.weight$"
_OTHER_NAMES = (
    (r"^model\.", ""),
    (r"^enc\.conv1d\.", "encoder.conv1d."),
    (r"^dec\.", "decoder."),
    (r"\.mdl\.intra_norm\.", ".mdl.att_norm."),
    (r"\.mdl\.intra_mdl\.norm\.", ".mdl.att_mdl.norm.norm."),
    (r"\.mdl\.intra_mdl\.", ".mdl.att_mdl."),
)
_BLOCK = r"mask_net.mdl.att_mdl.mossformerM.layers.\1."
_RULES = (
    (r"^encoder\.", "encoder.conv1d."),
    (r"^norm\.", "mask_net.norm."),
    (r"^project_in\.", "mask_net.conv1d_encoder."),
    (r"^position_scale$", "mask_net.pos_enc.scale"),
    (r"^layers\.(\d+)\.", _BLOCK),
    (r"\.gain$", ".mdl.0.g"),
    (r"\.linear\.", ".mdl.1."),
    (r"\.conv\.weight$", ".mdl.3.sequential.1.conv.weight"),
    (r"\.(gamma|beta)$", r".qk_offset_scale.\1"),
    (r"^layer_norm\.", "mask_net.mdl.att_mdl.norm.norm."),
    (r"^stack_norm\.", "mask_net.mdl.att_norm."),
    (r"^act\.", "mask_net.prelu."),
    (r"^by_voice\.", "mask_net.conv1d_out."),
    (r"^signal\.", "mask_net.output.0."),
    (r"^gate\.", "mask_net.output_gate.0."),
    (r"^project_out\.", "mask_net.conv1_decoder."),
)
