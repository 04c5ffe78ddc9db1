"""FlowTransformer: exchangeable encodings, transformer blocks and heads for windows of flows.

Manocchio et al., FlowTransformer: A Transformer Framework for Flow-based Network Intrusion
Detection Systems, Expert Systems with Applications 241, 2024, arXiv 2304.14746. The last flow of a
window is judged. There are no positions and no mask, not even in the "decoder".
Sizes: B windows of W flows, N numeric and C categorical fields, D width of an encoded flow, K
classes.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.early_exit.stages import ExitStage
from core.wrapped_forward import wrapped_by
from domains.security import flow_transformer_published as published
from domains.security.networks.flow_blocks import SIZES, PretrainedEncoder, Size, glorot
from domains.security.networks.flow_encodings import FieldEncoding, LookupEncoding, RecordEncoding

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
