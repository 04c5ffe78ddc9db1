"""The sequence models of FlowTransformer: its two blocks, and encoders of transformers.

Sizes: B windows of W flows, D width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from core.networks.hugging_face import HuggingFace

EPS = 1e-6


def glorot(layer: nn.Module) -> None:
    """Draw a linear map as Keras does."""
    assert isinstance(layer, nn.Linear)
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Attention(nn.Module):
    """Multi-head attention whose heads have a size of their own, whatever the width.

    Args:
        width: D.
        heads: number of heads.
        size: of a head.
    """

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.size = size
        self.query = nn.Linear(width, heads * size)
        self.key = nn.Linear(width, heads * size)
        self.value = nn.Linear(width, heads * size)
        self.out = nn.Linear(heads * size, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw as published."""
        for layer in (self.query, self.key, self.value, self.out):
            glorot(layer)
        # Keras takes the axes (D, heads, size) for those of a convolution: a much smaller bound.
        bound = (6 / (self.query.in_features * (self.heads + self.size))) ** 0.5
        for layer in (self.query, self.key, self.value):
            nn.init.uniform_(layer.weight, -bound, bound)

    def memory(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give the keys and the values (B, heads, W, size) of ``x`` (B, W, D)."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Attend from ``x`` (B, W, D) to a memory, or to ``x`` itself."""
        keys, values = self.memory(x) if memory is None else memory
        mixed = F.scaled_dot_product_attention(self._split(self.query(x)), keys, values)
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (B, W, D)
        return joined

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.size).transpose(1, 2)  # (B, heads, W, size)


class EncoderBlock(nn.Module):
    """The published encoder block; every head is as wide as the feed-forward part.

    Args:
        width: D.
        inner: width of the feed-forward part, and of each head.
        heads: number of heads.
        dropout: on both branches.
    """

    def __init__(self, width: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, inner)  # each head as wide as all of inner
        self.norm_attention = nn.LayerNorm(width, EPS)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm_inner = nn.LayerNorm(width, EPS)
        self.drop = nn.Dropout(dropout)
        glorot(self.expand)
        glorot(self.contract)

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x`` (B, W, D)."""
        attended = self.drop(self.attention(x))
        hidden = F.relu(self.expand(self.norm_attention(x + attended)))
        hidden = F.relu(self.contract(hidden))  # the second map has a ReLU too
        # The residual is what attention gave: not the norm's output, and x comes no further.
        encoded: Tensor = self.norm_inner(attended + self.drop(hidden))
        return encoded


class DecoderBlock(nn.Module):
    """The published decoder block: one attention used twice, and no mask.

    Args:
        width: D, and the size of each head.
        inner: width of the feed-forward part.
        heads: number of heads.
        dropout: on the three branches.
    """

    def __init__(self, width: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width)  # each head as wide as the whole flow
        self.norm_attention = nn.LayerNorm(width, EPS)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm_inner = nn.LayerNorm(width, EPS)
        self.drop = nn.Dropout(dropout)
        glorot(self.expand)
        glorot(self.contract)

    def forward(self, x: Tensor) -> Tensor:
        """Decode ``x`` (B, W, D)."""
        memory = self.attention.memory(x)
        first = self.norm_attention(x + self.drop(self.attention(x, memory)))
        # The "cross" attention has the same weights, and looks at the block's own input again.
        second = self.norm_inner(first + self.drop(self.attention(first, memory)))
        hidden = self.contract(F.relu(self.expand(second)))
        decoded: Tensor = self.norm_inner(second + self.drop(hidden))  # the same norm once more
        return decoded


class PretrainedEncoder(nn.Module):
    """An encoder of transformers in place of the blocks; flows stand where tokens would.

    Args:
        config: the published configuration, as in ``config.json``.
        width: of what comes in; mapped to the width of the encoder's tokens where that differs.
        rows: the length of a window.

    Raises:
        UserError: if transformers cannot build it.
        ValueError: if it has fewer positions than a window has rows.
    """

    def __init__(self, config: dict[str, Any], width: int, rows: int) -> None:
        super().__init__()
        self.transformer = HuggingFace(config)
        model: Any = self.transformer.model
        positions = getattr(model.config, "max_position_embeddings", rows)
        if rows > positions - self.transformer.unused_positions:
            raise ValueError(f"window={rows} is longer than the {positions} positions of config")
        entry = model.get_input_embeddings().embedding_dim
        model.set_input_embeddings(nn.Identity())  # a table of tokens that nothing would train
        self.width: int = model.config.hidden_size
        self.enter: nn.Module = nn.Identity()
        if entry != width:
            self.enter = nn.Linear(width, entry)
            glorot(self.enter)

    @property
    def stages(self) -> list[nn.Module]:
        """What comes before the layers, as one module, and the layers in order."""
        return self.transformer.stages

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x`` (B, W, D) to (B, W, width)."""
        states: Tensor = self.transformer.model(inputs_embeds=self.enter(x)).last_hidden_state
        return states


class Size(NamedTuple):
    """A published block, and how many of which size."""

    kind: type[EncoderBlock | DecoderBlock]
    layers: int
    inner: int
    heads: int
    dropout: float


SIZES: Mapping[str, Size] = {
    "encoder": Size(EncoderBlock, 2, 128, 2, 0.1),
    "decoder": Size(DecoderBlock, 2, 128, 2, 0.1),
    "bert": Size(EncoderBlock, 12, 768, 12, 0.02),
    "gpt": Size(DecoderBlock, 12, 768, 12, 0.02),
}
