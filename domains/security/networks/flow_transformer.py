"""FlowTransformer: exchangeable encodings, transformer blocks and heads for windows of flows.

Manocchio et al., FlowTransformer: A Transformer Framework for Flow-based Network Intrusion
Detection Systems, Expert Systems with Applications 241, 2024, arXiv 2304.14746. The last flow of a
window is judged. There are no positions and no mask, not even in the "decoder".
Sizes: B windows of W flows, N numeric and C categorical fields, D width of an encoded flow, K
classes.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.early_exit.stages import ExitStage
from core.networks.hugging_face import HuggingFace
from core.wrapped_forward import wrapped_by
from domains.security import flow_transformer_published as published

Encoding = Literal[
    "none",
    "record_dense",
    "record_projection",
    "categorical_dense",
    "categorical_projection",
    "categorical_lookup",
]
Block = Literal["encoder", "decoder", "bert", "gpt"]
Head = Literal["last", "flatten", "average", "featurewise", "featurewise_projection", "cls"]
WIDTHS = {"record": 64, "categorical": 16}
"""The published widths of an encoded record and of an encoded field."""
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


class PublishedBlock(nn.Module):
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


class EncoderBlock(PublishedBlock):
    """The published encoder block; arguments but ``size`` are those of :class:`PublishedBlock`."""

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


class DecoderBlock(PublishedBlock):
    """The published decoder block; arguments but ``size`` are those of :class:`PublishedBlock`."""

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


class OneHot(nn.Module):
    """Mark the level of every categorical field.

    Args:
        levels: the number of levels of each field.
    """

    field: Tensor
    level: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        columns = [(field, n) for field, count in enumerate(levels) for n in range(count)]
        field, level = torch.tensor(columns, dtype=torch.long).view(-1, 2).unbind(1)
        self.register_buffer("field", field, persistent=False)
        self.register_buffer("level", level, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Map ``codes`` (B, W, C) to bool (B, W, sum of levels)."""
        return codes.index_select(2, self.field) == self.level


class RecordEncoding(nn.Module):
    """Put numeric fields and one-hot levels side by side, and map them to ``width``.

    Args:
        numeric: N.
        levels: the number of levels of each field.
        width: D; None leaves them as they are.
        bias: of the map.
    """

    def __init__(self, numeric: int, levels: Sequence[int], width: int | None, bias: bool) -> None:
        super().__init__()
        self.one_hot = OneHot(levels)
        self.width = numeric + sum(levels) if width is None else width
        self.embed = None
        if width is not None:
            self.embed = nn.Linear(numeric + sum(levels), width, bias)
            glorot(self.embed)

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Encode (B, W, N) and (B, W, C) to (B, W, D)."""
        record = torch.cat([numeric, self.one_hot(codes).to(numeric.dtype)], 2)
        return record if self.embed is None else self.embed(record)


class FieldEncoding(nn.Module):
    """Map the one-hot levels of each field by themselves, beside the numeric fields as they are.

    Args:
        numeric: N.
        levels: the number of levels of each field.
        width: of an encoded field.
        bias: of the maps.
    """

    def __init__(self, numeric: int, levels: Sequence[int], width: int, bias: bool) -> None:
        super().__init__()
        self.levels = list(levels)
        self.one_hot = OneHot(levels)
        self.width = numeric + width * len(levels)
        self.embed = nn.ModuleList(nn.Linear(count, width, bias) for count in levels)
        for layer in self.embed:
            glorot(layer)

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Encode (B, W, N) and (B, W, C) to (B, W, D)."""
        marks = self.one_hot(codes).to(numeric.dtype).split(self.levels, 2)
        encoded = (embed(mark) for embed, mark in zip(self.embed, marks, strict=True))
        return torch.cat([numeric, *encoded], 2)


class LookupEncoding(nn.Module):
    """Look the code of each field up in a table of its own, beside the numeric fields as they are.

    Args:
        numeric: N.
        levels: the number of levels of each field.
        width: of an encoded field.
    """

    def __init__(self, numeric: int, levels: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = numeric + width * len(levels)
        # A row more than there are codes: the published codes are counted from 1.
        self.embed = nn.ModuleList(nn.Embedding(count + 1, width) for count in levels)
        for table in self.embed:
            nn.init.uniform_(table.weight, -0.05, 0.05)  # type: ignore[arg-type]

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Encode (B, W, N) and (B, W, C) to (B, W, D)."""
        encoded = (table(code) for table, code in zip(self.embed, codes.unbind(2), strict=True))
        return torch.cat([numeric, *encoded], 2)


class FlowTransformer(nn.Module):
    """Classify the last flow of a window of flows in file order.

    Args:
        numeric: N.
        levels: the number of codes of each categorical field.
        window: W.
        classes: K; two have one logit, that of an attack.
        encoding: ``none`` puts numeric fields and one-hot levels side by side, ``record_*`` maps
            them all together, ``categorical_*`` the levels of each field by themselves, as a map
            with a bias (``dense``), without (``projection``) or as a table (``lookup``).
        block: ``encoder``, ``decoder``, or these in the sizes of BERT and GPT, ``bert`` and
            ``gpt``.
        head: what of the encoded window (B, W, D) is judged: the ``last`` flow, all (``flatten``),
            the mean (``average``), one number a flow (``featurewise``; ``featurewise_projection``
            has no bias) or a row of its own (``cls``).
        width: of what the encoding maps to; None takes 64 for a record, 16 for a field.
        layers: blocks; None takes those of ``block``, as do ``inner``, ``heads`` and ``dropout``.
        inner: width of the feed-forward part.
        heads: attention heads.
        mlp: widths of the layers after the head.
        dropout: in the blocks.
        mlp_dropout: after each layer of ``mlp``.
        probabilities: give probabilities instead of logits, as published.
        config: of an encoder of transformers, as in its ``config.json``, in place of the blocks;
            ``--checkpoint FOLDER`` fills it in.

    Raises:
        ValueError: if a size is out of range or a part is not known.
        UserError: if transformers cannot build ``config``.

    Example:
        >>> network = FlowTransformer(numeric=3, levels=[4, 2], window=8)
        >>> network(torch.zeros(5, 8, 3), torch.ones(5, 8, 2, dtype=torch.long)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        numeric: int,
        levels: Sequence[int],
        window: int = 8,
        classes: int = 2,
        *,
        encoding: Encoding = "record_dense",
        block: Block = "encoder",
        head: Head = "last",
        width: int | None = None,
        layers: int | None = None,
        inner: int | None = None,
        heads: int | None = None,
        mlp: Sequence[int] = (128,),
        dropout: float | None = None,
        mlp_dropout: float = 0.1,
        probabilities: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.numeric = numeric
        self.levels = [int(count) for count in levels]
        self.window = window
        self.classes = classes
        self.encoding = encoding
        self.block = block
        self.head = head
        self.width = width
        self.layers = layers
        self.inner = inner
        self.heads = heads
        self.mlp = [int(size) for size in mlp]
        self.dropout = dropout
        self.mlp_dropout = mlp_dropout
        self.probabilities = probabilities
        self.config = config
        self._check()
        self.encode = self._encoding()
        rows, wide = window + (head == "cls"), self.encode.width + (head == "cls")
        self.blocks: nn.Sequential | PretrainedEncoder
        if config is None:
            self.blocks = self._blocks(wide)
        else:
            self.blocks = PretrainedEncoder(config, wide, rows)
            wide = self.blocks.width
        if self._featurewise:
            self.featurewise = nn.Linear(wide, 1, bias=head == "featurewise")
            glorot(self.featurewise)
        judged = {"flatten": rows * wide, "featurewise": rows, "featurewise_projection": rows}
        self.classifier = self._classifier(judged.get(head, wide))

    def _check(self) -> None:
        """Refuse what does not exist, or is out of range."""
        for name, kinds in (("encoding", Encoding), ("block", Block), ("head", Head)):
            if (given := getattr(self, name)) not in get_args(kinds):
                raise ValueError(f"{name}={given!r} must be one of {', '.join(get_args(kinds))}")
        sizes = {name: getattr(self, name) for name in ("window", "width", *Size._fields[1:4])}
        sizes |= {f"levels.{n}": count for n, count in enumerate(self.levels)}
        sizes |= {f"mlp.{n}": size for n, size in enumerate(self.mlp)}
        for name, given in sizes.items():
            if given is not None and given < 1:
                raise ValueError(f"{name}={given} must be at least 1")
        if self.numeric < 0 or self.numeric + len(self.levels) < 1:
            raise ValueError(f"numeric={self.numeric}, levels={self.levels}: no field is left")
        if self.classes < 2:
            raise ValueError(f"classes={self.classes} must be at least 2")

    def _encoding(self) -> RecordEncoding | FieldEncoding | LookupEncoding:
        fields = self.numeric, self.levels
        kind, _, form = self.encoding.partition("_")
        if kind == "none":
            return RecordEncoding(*fields, None, bias=False)
        width = self.width or WIDTHS[kind]
        if form == "lookup":
            return LookupEncoding(*fields, width)
        if kind == "categorical":
            return FieldEncoding(*fields, width, form == "dense")
        return RecordEncoding(*fields, width, form == "dense")

    def _blocks(self, width: int) -> nn.Sequential:
        size = SIZES[self.block]
        dropout = size.dropout if self.dropout is None else self.dropout
        inner, heads = self.inner or size.inner, self.heads or size.heads
        count = self.layers or size.layers
        return nn.Sequential(*(size.kind(width, inner, heads, dropout) for _ in range(count)))

    def _classifier(self, width: int) -> nn.Sequential:
        widths = [width, *self.mlp]
        outputs = 1 if self.classes == 2 else self.classes
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(self.mlp_dropout)]
        layers.append(nn.Linear(widths[-1], outputs))
        for layer in layers[::3]:
            glorot(layer)
        return nn.Sequential(*layers)

    @property
    def stages(self) -> Sequence[nn.Module] | nn.Sequential:
        """The blocks in order."""
        return self.blocks if isinstance(self.blocks, nn.Sequential) else self.blocks.stages

    @property
    def head_parts(self) -> list[nn.Module]:
        """What follows the blocks."""
        return [self.featurewise, self.classifier] if self._featurewise else [self.classifier]

    @property
    def _featurewise(self) -> bool:
        return self.head in ("featurewise", "featurewise_projection")

    def _encoded(self, x: Tensor) -> Tensor:
        """Encode a window (B, W, D); of the last block only what is judged, where that is a row."""
        encoded: Tensor
        if isinstance(self.blocks, PretrainedEncoder) or self.head not in ("last", "cls"):
            encoded = self.blocks(x)
            return encoded
        *first, last = self.blocks
        for block in first:
            x = block(x)
        exits = wrapped_by(last, ExitStage) is not None  # whose states are all of one shape
        encoded = last(x) if exits else last(x, x[:, -1:])
        return encoded

    def forward(self, numeric: Tensor, codes: Tensor) -> Tensor:
        """Judge the last flow of each window.

        Args:
            numeric: (B, W, N) scaled values.
            codes: (B, W, C) from 0 to ``levels[c] - 1``.

        Returns:
            (B, 1) logits of an attack, or (B, K); probabilities where that was asked for.
        """
        needed = (self.window, self.numeric), (self.window, len(self.levels))
        if (numeric.shape[1:], codes.shape[1:]) != needed:
            raise ValueError(
                f"numeric is {tuple(numeric.shape)} and codes {tuple(codes.shape)}, needed"
                f" (B, {self.window}, {self.numeric}) and (B, {self.window}, {len(self.levels)})"
            )
        x = self.encode(numeric, codes)  # (B, W, D)
        if self.head == "cls":  # no learnt token: a row of zeros that a column of its own marks
            mark = x.new_zeros(len(x), 1, x.shape[2] + 1)
            mark[..., -1] = 1
            x = torch.cat([F.pad(x, (0, 1)), mark], 1)  # (B, W + 1, D + 1)
        logits: Tensor = self.classifier(self._judged(self._encoded(x)))
        if not self.probabilities:
            return logits
        return logits.sigmoid() if self.classes == 2 else logits.softmax(1)

    def _judged(self, x: Tensor) -> Tensor:
        """Take from an encoded window (B, W, D) what is judged."""
        if self.head == "flatten":
            return x.flatten(1)  # (B, W D)
        if self.head == "average":
            return x.mean(1)  # (B, D)
        if self._featurewise:
            numbers: Tensor = self.featurewise(x)  # (B, W, 1)
            return numbers.flatten(1)  # (B, W)
        return x[:, -1]  # (B, D)

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Any]
    ) -> "FlowTransformer":
        """Build from sizes and the published weights, in the order of the published network.

        The network gives probabilities then.

        Args:
            config: arguments of this class; a head ``featurewise`` has a bias or not as the weights
                have it.
            state_dict: tensors or arrays by their published names, such as ``embed/kernel:0``.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        faults = [f"unknown {name}" for name in config if name not in published.ARGUMENTS]
        faults += [f"missing {name}" for name in ("numeric", "levels") if name not in config]
        if faults:
            raise ValueError(f"FlowTransformer config: {'; '.join(faults)}")
        given = {"probabilities": True, **config}
        heads = [given.get("head", "last")]
        if heads == ["featurewise"]:
            heads.append("featurewise_projection")
        networks = [cls(**given | {"head": head}) for head in heads]
        nearest = min(networks, key=lambda network: len(published.faults(network, state_dict)))
        published.load(nearest, state_dict)
        return nearest
