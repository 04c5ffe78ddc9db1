"""Columns of labels: which question each asks, and what its cells say."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from core.errors import UserError
from core.tasks.heads import Head, unknown

KindGiven = Literal["auto", "single", "multi", "regression"]
MOST = 1_000
"""The most labels of a column; more are no labels."""
MEASURE = 20
"""Different numbers from which on a column of numbers is a measure, if it holds fractions."""


def describe_head(
    cells: pd.Series, name: str, kind: KindGiven, separator: str, key: str = "label"
) -> dict[str, Any]:
    """Find the kind and the labels of a column, from its training part.

    Args:
        cells: of the training part; None where there is no answer.
        name: of the head; empty where it is the only one.
        kind: or ``auto``: lists are ``multi``, fractions of many values ``regression``.
        separator: what stands between several labels of a cell.
        key: the column, for errors.

    Raises:
        UserError: if there is nothing to learn: no answer, or one label only.
    """
    present = cells[[not is_missing(cell) for cell in cells]]
    if not len(present):
        raise UserError(f"column {key!r}: no row of the training part has a value")
    if kind == "auto":
        kind = "multi" if any(isinstance(cell, list) for cell in present) else "single"
        if kind == "single" and _is_measure(present):
            kind = "regression"
    if kind == "regression":
        for row, cell in present.items():
            _number(cell, key, "training", int(str(row)))
        return {"name": name, "kind": kind, "labels": [str(key)]}
    if kind == "multi":
        found = {label for cell in present for label in split_labels(cell, separator)}
    else:
        found = {_plain(cell, key) for cell in present}
    labels = sorted(found, key=_order)
    if kind == "single" and len(labels) < 2:
        raise UserError(
            f"column {key!r}: the training part has one class alone ({labels[0]!r}); there is"
            " nothing to tell apart"
        )
    if not labels:
        raise UserError(f"column {key!r}: no row of the training part has a label")
    if len(labels) > MOST:
        raise UserError(
            f"column {key!r}: {len(labels):,} different values are no labels; name another column"
            " by --data.label, or take --data.kind=regression for numbers"
        )
    return {"name": name, "kind": kind, "labels": labels}


def targets_of(
    frame: pd.DataFrame, heads: Sequence[Head], columns: Sequence[str], separator: str, part: str
) -> Tensor:
    """Write the answers of N rows as targets (N, T) of all heads.

    Raises:
        UserError: naming a label that the training part lacks, or a value that is no number.
    """
    targets = unknown(heads).repeat(len(frame), 1)
    for head, column in zip(heads, columns, strict=True):
        place = {label: number for number, label in enumerate(head.labels)}
        strange: dict[str, int] = {}
        for row, cell in enumerate(frame[column]):
            if is_missing(cell):
                continue
            if head.kind == "regression":
                targets[row, head.targets] = _number(cell, column, part, row)
                continue
            multi = head.kind == "multi"
            names = split_labels(cell, separator) if multi else [_plain(cell, column)]
            for name in names:
                if name not in place:
                    strange.setdefault(name, row)
            known = [place[name] for name in names if name in place]
            if head.kind == "multi":
                targets[row, head.targets] = 0
                for number in known:
                    targets[row, head.targets.start + number] = 1
            elif known:
                targets[row, head.targets] = known[0]
        if strange:
            raise UserError(_never_seen(strange, column, part, head.labels))
    return targets


def split_labels(cell: Any, separator: str) -> list[str]:
    """Give the labels of a cell, each once, in its order."""
    if cell is None:
        return []
    parts: Iterable[Any] = cell if isinstance(cell, list) else str(cell).split(separator)
    return list(dict.fromkeys(text for part in parts if (text := str(part).strip())))


def counts_of(targets: Tensor, heads: Sequence[Head]) -> list[Tensor]:
    """Count the labels of each head: (K,) items a class, or (2, K) with and without each label."""
    counts = []
    for head in heads:
        own = head.target(targets[head.known(targets)])
        if head.kind == "single":
            counts.append(torch.bincount(own, minlength=len(head.labels)).float())
        elif head.kind == "multi":
            having = own.sum(0)
            counts.append(torch.stack([having, len(own) - having]))
        else:
            counts.append(torch.ones(len(head.labels)))
    return counts


def _never_seen(strange: dict[str, int], column: str, part: str, known: Sequence[str]) -> str:
    told = ", ".join(f"{name!r} (row {row + 1})" for name, row in list(strange.items())[:5])
    more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return (
        f"column {column!r}: the {part} part has labels that training never saw: {told}{more};"
        f" known are {listed}; correct them, leave such rows out, or add them to training"
    )


def is_missing(cell: Any) -> bool:
    """Say whether a cell holds no answer; an empty list is one."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _plain(cell: Any, column: str) -> str:
    if isinstance(cell, list):
        raise UserError(f"column {column!r}: holds lists of labels; set --data.kind=multi")
    return str(cell).strip()


def _is_measure(cells: pd.Series) -> bool:
    numbers = pd.to_numeric(cells, errors="coerce")
    return bool(numbers.notna().all() and (numbers % 1 != 0).any() and numbers.nunique() > MEASURE)


def _number(cell: Any, column: str, part: str, row: int) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"column {column!r}: row {row + 1} of the {part} part holds {cell!r}, no number"
        )
    return value


def _order(label: str) -> tuple[int, float, str]:
    """Sort numbers by value, then words."""
    try:
        value = float(label)
    except ValueError:
        return 1, 0.0, label
    return (0, value, label) if math.isfinite(value) else (1, 0.0, label)
