"""The sequence models of FlowTransformer: its two blocks, and encoders of transformers.

Sizes: B windows of W flows, D width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
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


class Memory(NamedTuple):
    """What is attended to: keys and values (B, heads, W, size).

    Where ``maps`` are there both are the flows themselves, and the maps do what is left to do: the
    weight (heads D, D) and bias of the queries, and the weight (D, heads D) and bias of the output.
    """

    keys: Tensor
    values: Tensor
    maps: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


class Attention(nn.Module):
    """Multi-head attention whose heads have a size of their own, whatever the width.

    A head that is larger than half the width maps the flows to more numbers than they have. Without
    a gradient its maps are then multiplied with one another first: those of queries and keys, and
    those of values and output. The answer is the same but for rounding, for a part of the work.

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

    def memory(self, x: Tensor) -> Memory:
        """Make of ``x`` (B, W, D) what is attended to."""
        if self._folds():
            flows = x[:, None].expand(-1, self.heads, -1, -1)  # (B, heads, W, D)
            return Memory(flows, flows, self._maps())
        return Memory(self._split(self.key(x)), self._split(self.value(x)))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Attend from ``x`` (B, Q, D) to a memory; give (B, Q, D)."""
        keys, values, maps = memory
        if maps is None:
            mixed = F.scaled_dot_product_attention(self._split(self.query(x)), keys, values)
            joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
            return joined
        query, query_bias, out, out_bias = maps
        queries = self._split(F.linear(x, query, query_bias))
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
        return F.linear(mixed.transpose(1, 2).flatten(2), out, out_bias)

    def _folds(self) -> bool:
        """Say whether maps may be multiplied: they are plain, and it saves work."""
        layers = (self.query, self.key, self.value, self.out)
        plain = all(type(layer) is nn.Linear and "forward" not in vars(layer) for layer in layers)
        return plain and self.query.in_features < 2 * self.size and not torch.is_grad_enabled()

    def _maps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Multiply the maps of each head.

        A score is (Q x + q) (K y + k) = x Q'K y + q'K y, and what all y share, which softmax takes
        no notice of; weights that sum to 1 leave the bias of the values as it is.
        """
        query, key, value = (
            layer.weight.unflatten(0, (self.heads, self.size))  # type: ignore[no-untyped-call]
            for layer in (self.query, self.key, self.value)
        )  # (heads, size, D)
        out = self.out.weight.view(-1, self.heads, self.size).permute(1, 2, 0)  # (heads, size, D)
        key = key.mT * self.size**-0.5  # (heads, D, size)
        bias = key @ self.query.bias.view(self.heads, self.size, 1)  # (heads, D, 1)
        mix = (value.mT @ out).flatten(0, 1)  # (heads D, D)
        return (key @ query).flatten(0, 1), bias.flatten(), mix.T, self.out(self.value.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, heads, Q, size)


class Block(nn.Module):
    """What the two published blocks are made of.

    Args:
        width: D.
        size: of an attention head.
        inner: width of the feed-forward part.
        heads: number of heads.
        dropout: on every branch.
    """

    def __init__(self, width: int, size: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, size)
        self.norm_attention = nn.LayerNorm(width, EPS)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm_inner = nn.LayerNorm(width, EPS)
        self.drop = nn.Dropout(dropout)
        glorot(self.expand)
        glorot(self.contract)


class EncoderBlock(Block):
    """The published encoder block; arguments but ``size`` are those of :class:`Block`."""

    def __init__(self, width: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__(width, inner, inner, heads, dropout)  # a head is as wide as all of inner

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Encode ``x`` (B, W, D), or of it only ``rows`` (B, Q, D)."""
        rows = x if rows is None else rows
        attended = self.drop(self.attention(rows, self.attention.memory(x)))
        hidden = F.relu(self.expand(self.norm_attention(rows + attended)))
        hidden = F.relu(self.contract(hidden))  # the second map has a ReLU too
        # The residual is what attention gave: not the norm's output, and x comes no further.
        encoded: Tensor = self.norm_inner(attended + self.drop(hidden))
        return encoded


class DecoderBlock(Block):
    """The published decoder block; arguments but ``size`` are those of :class:`Block`."""

    def __init__(self, width: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__(width, width, inner, heads, dropout)  # a head is as wide as a flow

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Decode ``x`` (B, W, D), or of it only ``rows`` (B, Q, D), without a mask."""
        rows = x if rows is None else rows
        memory = self.attention.memory(x)
        first = self.norm_attention(rows + self.drop(self.attention(rows, memory)))
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
