"""GP-MoLFormer: a language model of SMILES whose attention costs the same for every token.

Ross et al., GP-MoLFormer: A Foundation Model For Molecular Generation, Digital Discovery 2025
(arXiv 2405.04912); its encoder: Ross et al., Large-Scale Chemical Language Representations Capture
Molecular Structure and Properties, Nature Machine Intelligence 2022. Its attention is linear: see
:mod:`domains.biology.linear_attention`.
Sizes: B molecules, L tokens, V vocabulary, D width, h heads of width H = D / h, F random features.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import published
from domains.biology.linear_attention import LinearAttention, Rotation, rotation
from domains.biology.molformer_published import FIRST, HUGGING_FACE, arguments


class MoLFormerState(NamedTuple):
    """What generation keeps of the tokens so far: as much for a thousand as for one.

    Attributes:
        sums: of each layer (B, h, F, H + 1), keys' features times values, and times one.
        position: (B,) the number of tokens so far.
    """

    sums: tuple[Tensor, ...]
    position: Tensor


class Layer(nn.Module):
    """Attention, then two linear maps around a GELU; a norm after each sum.

    Args:
        attention: mixes the tokens.
        width: D.
        inner: width between the linear maps.
        dropout: on both branches.
        eps: of the norms.
    """

    def __init__(
        self, attention: LinearAttention, width: int, inner: int, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.attention = attention
        self.norm_attention = nn.LayerNorm(width, eps)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm_inner = nn.LayerNorm(width, eps)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, turned: Rotation, real: Tensor | None = None) -> Tensor:
        """Encode ``x`` (B, L, D) from the beginning on."""
        return self.advance(x, turned, real, None)[0]

    def advance(
        self, x: Tensor, turned: Rotation, real: Tensor | None, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Encode the next tokens ``x`` (B, L, D) and give the sums (B, h, F, H + 1) after them."""
        mixed, state = self.attention(x, turned, real, before)
        x = self.norm_attention(x + self.drop(mixed))
        hidden = self.contract(F.gelu(self.expand(x)))
        return self.norm_inner(x + self.drop(hidden)), state


class Head(nn.Module):
    """Score the vocabulary.

    Args:
        width: D.
        vocabulary: V.
        eps: of the norm.
    """

    def __init__(self, width: int, vocabulary: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps)
        self.score = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (..., D) to logits (..., V)."""
        logits: Tensor = self.score(self.norm(F.gelu(self.dense(x))))
        return logits


class GPMoLFormer(nn.Module):
    """Predict the next token of a SMILES string, or with ``causal=False`` encode all of it.

    The random features are drawn once and kept, so that equal inputs give equal outputs, bit for
    bit; :meth:`draw_features` draws others.

    Args:
        vocabulary: V.
        width: D.
        depth: layers.
        heads: h.
        inner: width inside the feed-forward parts; as published no wider than D.
        features: F, random features a head.
        positions: the most tokens of a sequence.
        dropout: in the layers.
        embedding_dropout: on the embedded tokens.
        norm_eps: of the layer norms.
        attention_eps: bounds the sum of a token's attention weights below.
        shifted: add ``attention_eps`` to that sum instead, as the first published code does.
        padding: the token that fills up sequences; its embedding is zero.
        causal: let a token see those before it alone.
        redraw: draw the random features anew in each training pass, as published.
        block: longer sequences are worked off in blocks of so many tokens: the time of a token
            then depends on the block and not on the sequence.

    Raises:
        ValueError: if a size is below 1, or ``width`` is no even multiple of ``heads``.

    Example:
        >>> network = GPMoLFormer(60, width=32, depth=2, heads=4, inner=32)
        >>> network(torch.zeros(2, 9, dtype=torch.long)).shape
        torch.Size([2, 9, 60])
        >>> logits, state = network.step(torch.zeros(2, dtype=torch.long))
        >>> logits.shape, state.position
        (torch.Size([2, 60]), tensor([1, 1]))
    """

    def __init__(
        self,
        vocabulary: int = 2362,
        *,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        inner: int = 768,
        features: int = 32,
        positions: int = 202,
        dropout: float = 0.1,
        embedding_dropout: float = 0.2,
        norm_eps: float = 1e-12,
        attention_eps: float = 1e-6,
        shifted: bool = False,
        padding: int = 2,
        causal: bool = True,
        redraw: bool = False,
        block: int = 256,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "width": width, "depth": depth, "heads": heads}
        sizes |= {"inner": inner, "features": features, "positions": positions, "block": block}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if width % (2 * heads):
            raise ValueError(f"width={width} must be a multiple of twice heads={heads}")
        self.vocabulary = vocabulary
        self.width = width
        self.depth = depth
        self.heads = heads
        self.inner = inner
        self.features = features
        self.positions = positions
        self.dropout = dropout
        self.embedding_dropout = embedding_dropout
        self.norm_eps = norm_eps
        self.attention_eps = attention_eps
        self.shifted = shifted
        self.padding = padding
        self.causal = causal
        self.redraw = redraw
        self.block = block
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=padding)
        self.drop = nn.Dropout(embedding_dropout)
        self.layers: nn.ModuleList = nn.ModuleList(
            Layer(
                LinearAttention(
                    width,
                    heads,
                    features,
                    causal=causal,
                    redraw=redraw,
                    eps=attention_eps,
                    shifted=shifted,
                    block=block,
                ),
                width,
                inner,
                dropout,
                norm_eps,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, norm_eps)
        self.head = Head(width, vocabulary, norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from N(0, 0.02) as published; biases and the padding are zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.tokens.weight, std=0.02)
        with torch.no_grad():
            self.tokens.weight[self.padding] = 0

    @property
    def stages(self) -> list[nn.Module]:
        """The embedding, then the layers in order."""
        return [self.tokens, *self.layers]

    def draw_features(self) -> None:
        """Draw the random features of every layer anew."""
        for module in self.modules():
            if isinstance(module, LinearAttention):
                module.draw()

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Score what follows each token.

        Args:
            ids: (B, L), padded at the end.
            lengths: (B,) tokens without padding; None where there is none.

        Returns:
            Logits (B, L, V).

        Raises:
            ValueError: if there are more tokens than ``positions``.
        """
        logits: Tensor = self.head(self.encode(self.embed(ids), lengths))
        return logits

    def embed(self, ids: Tensor) -> Tensor:
        """Embed ``ids`` (B, L): (B, L, D)."""
        x: Tensor = self.drop(self.tokens(ids))
        return x

    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode embedded tokens ``x`` (B, L, D), of which a sequence has ``lengths`` (B,)."""
        if x.shape[1] > self.positions:
            raise ValueError(f"{x.shape[1]} tokens are more than positions={self.positions}")
        place = torch.arange(x.shape[1], device=x.device)[None]  # (1, L)
        turned = rotation(place, self.width // self.heads)
        real = None if lengths is None else place < lengths[:, None]
        for layer in self.layers:
            x = layer(x, turned, real)
        return self._normed(x)

    def step(
        self, ids: Tensor, state: MoLFormerState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, MoLFormerState]:
        """Score what follows the next tokens, as ``forward`` would after all tokens so far.

        Whether they are more than ``positions`` by now is not checked.

        Args:
            ids: one token a sequence (B,), or several (B, L), padded at the end.
            state: as returned for the tokens before; None at the beginning.
            lengths: (B,) tokens without padding; None where there is none.

        Returns:
            Logits (B, V) or (B, L, V), and the state after these tokens.
        """
        hidden, state = self.advance(self.embed(ids.reshape(len(ids), -1)), state, lengths)
        return self.head(hidden[:, 0] if ids.ndim == 1 else hidden), state

    def advance(
        self, x: Tensor, state: MoLFormerState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, MoLFormerState]:
        """Encode the next embedded tokens ``x`` (B, L, D); else as :meth:`step`.

        Raises:
            ValueError: if the network is not causal.
        """
        if not self.causal:
            raise ValueError("a network with causal=False sees all tokens at once, in no steps")
        count = x.new_full((len(x),), x.shape[1], dtype=torch.long)
        begun = torch.zeros_like(count) if state is None else state.position
        place = torch.arange(x.shape[1], device=x.device)
        turned = rotation(begun[:, None] + place, self.width // self.heads)
        real = None if lengths is None else place < lengths[:, None]
        sums = []
        layers: list[Any] = list(self.layers)
        for number, layer in enumerate(layers):
            before = None if state is None else state.sums[number]
            x, after = layer.advance(x, turned, real, before)
            sums.append(after)
        position = begun + (count if lengths is None else lengths)
        return self._normed(x), MoLFormerState(tuple(sums), position)

    def _normed(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "GPMoLFormer":
        """Build from a configuration and weights as in Hugging Face's form, or as first published.

        Random features stay as stored; ``deterministic_eval`` has no effect.

        Args:
            config: the options of either form.
            state_dict: the entries of either form; tables of angles may be there.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        first = "tok_emb.weight" in state_dict
        network = cls(**arguments(config, first))
        published.load(network, state_dict, FIRST if first else HUGGING_FACE, r"rotary")
        return network


def gp_molformer_small(vocabulary: int = 2362) -> GPMoLFormer:
    """Build a small size of our own, 3.65 million parameters with the published vocabulary."""
    return GPMoLFormer(vocabulary, width=256, depth=6, heads=8, inner=256)
