"""What the outputs of a classifier mean: one head or several, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from core.errors import UserError

Kind = Literal["single", "multi", "regression"]
KINDS = ("single", "multi", "regression")
UNKNOWN = -1.0
"""The target of a label that is not known; such an item does not count for its head."""


class Head(NamedTuple):
    """One question about an item, and the places of its answers.

    Attributes:
        name: empty where there is one head alone.
        kind: ``single`` (one label an item), ``multi`` (any number) or ``regression``.
        labels: one an output; of a regression, the name of the quantity.
        outputs: the columns of the network's outputs.
        targets: the columns of the targets: one for ``single``, else one a label.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    outputs: slice
    targets: slice

    def metric(self, name: str) -> str:
        """Name a metric of this head."""
        return f"{name}_{self.name}" if self.name else name

    def known(self, targets: Tensor) -> Tensor:
        """Say of which items (B,) the answer is known, from all targets (B, T)."""
        own = targets[:, self.targets]
        return own.isfinite().all(1) if self.kind == "regression" else (own >= 0).all(1)

    def target(self, targets: Tensor) -> Tensor:
        """Take this head's targets: (B,) classes, else (B, K) values."""
        own = targets[:, self.targets]
        return own[:, 0].long() if self.kind == "single" else own


def read_heads(described: Sequence[Mapping[str, Any]]) -> list[Head]:
    """Place heads, described by ``name``, ``kind`` and ``labels``, side by side.

    Raises:
        UserError: if there is none, or a kind is not known.
    """
    if not described:
        raise UserError("a classifier needs heads: name, kind and labels of each")
    return list(_placed(described))


def _placed(described: Sequence[Mapping[str, Any]]) -> Iterator[Head]:
    output = target = 0
    for each in described:
        kind, labels = each["kind"], tuple(map(str, each["labels"]))
        if kind not in KINDS or not labels:
            name = each["name"]
            raise UserError(f"head {name!r}: kind={kind!r} must be one of {KINDS}, with labels")
        wide = 1 if kind == "single" else len(labels)
        yield Head(
            each["name"],
            kind,
            labels,
            slice(output, output + len(labels)),
            slice(target, target + wide),
        )
        output, target = output + len(labels), target + wide


def width(heads: Sequence[Head]) -> int:
    """Count the columns of the targets."""
    return int(heads[-1].targets.stop)


def unknown(heads: Sequence[Head]) -> Tensor:
    """Give the targets (T,) of an item of which nothing is known."""
    values = torch.full((width(heads),), UNKNOWN)
    for head in heads:
        if head.kind == "regression":
            values[head.targets] = torch.nan
    return values
