"""Flows ready to be put into batches: encoded, with a class each, divided, with their windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from core.errors import UserError
from core.split_plan import PARTS
from domains.security.flow_splits import Division
from domains.security.flows import FlowBatch, FlowTable
from domains.security.preprocessing import Context, FlowPreprocessing
from domains.security.raw_flows import RawFlows, benign_name, encode, fit
from domains.security.specification import near
from domains.security.windows import Keys, Rows, Windows, previous_rows

ClassesOf = Literal["binary", "multi"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """R flows ready for batches.

    Attributes:
        table: the encoded flows.
        windows: of the table's numbers and codes.
        rows: the flows that are judged, by part, ascending.
        preprocessing: fitted on those of training.
        attacks: the label values; the first is benign.
        division: how they were divided.
        notes: what the user should know.
    """

    table: FlowTable
    windows: Windows
    rows: tuple[Rows, Rows, Rows]
    preprocessing: FlowPreprocessing
    attacks: tuple[str, ...]
    division: Division
    notes: tuple[str, ...]

    @property
    def new_attacks(self) -> tuple[str, ...]:
        """The attacks of the test that training has not seen."""
        seen, tested = (np.unique(self.table.attacks[self.rows[part]]) for part in (0, 2))
        return tuple(self.attacks[place] for place in np.setdiff1d(tested, seen))


class FlowSet:
    """Windows of the flows of one part; an index, or a list of them, gives a batch.

    Args:
        prepared: the flows.
        rows: those that are judged.
    """

    def __init__(self, prepared: Prepared, rows: Rows) -> None:
        self.prepared = prepared
        self.rows = rows

    def __len__(self) -> int:
        """Count the flows that are judged."""
        return len(self.rows)

    def __getitem__(self, index: int) -> FlowBatch:
        """Give a batch of one window."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> FlowBatch:
        """Gather a whole batch at once."""
        rows = self.rows[np.asarray(indices, np.int64)]
        numeric, codes = self.prepared.windows.at(rows)
        table = self.prepared.table
        return FlowBatch(
            torch.from_numpy(numeric),
            torch.from_numpy(codes.astype(np.int64)),
            torch.from_numpy(table.labels[rows]),
            torch.from_numpy(table.attacks[rows]),
            torch.from_numpy(rows),
        )


def prepare(
    raw: RawFlows,
    division: Division,
    *,
    window: int,
    context: Context,
    classes: ClassesOf,
    faithful: bool,
) -> Prepared:
    """Name the classes, fit the preprocessing on training flows, and encode all.

    The raw numbers are encoded in place.

    Raises:
        UserError: if a flow has no label or an unknown one, or a class does not train.
    """
    if window < 1:
        raise UserError(f"data.window={window} must be at least 1")
    attacks, of_flow = _attacks(raw)
    known, val, test = (np.flatnonzero(division.part == part) for part in range(3))
    train = known
    if faithful:  # the published framework trains on no window at the ends of its file
        train = train[(train >= window) & (train < raw.starts[1] - window)]
    rows = train, val, test
    labels, names = _classes(raw, attacks, of_flow, rows, classes)
    preprocessing = fit(
        raw, known, classes=names, window=window, context=context, faithful=faithful
    )
    notes = [*division.notes, *(f"{what}: {count:,}" for what, count in raw.repairs.items())]
    notes += _numbers_told(raw, known)
    numeric, codes = encode(raw, preprocessing)
    if faithful and (lost := int((~np.isfinite(numeric)).sum())):
        notes.append(f"numbers too far below those of training, not finite as published: {lost:,}")
    notes += _repeated(numeric, codes, rows)
    table = FlowTable(numeric, codes, labels, of_flow)
    windows = Windows((numeric, codes), window, _previous(raw, division))
    return Prepared(table, windows, rows, preprocessing, attacks, division, tuple(notes))


def _attacks(raw: RawFlows) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Give the label values, benign first, and that of each flow (R,)."""
    label = raw.specification.label
    assert label is not None
    names, codes = raw.names[label], raw.texts[label]
    if "" in names and (lacking := codes == names.index("")).any():
        first = int(np.argmax(lacking))
        raise UserError(
            f"flows without a label in column {label!r}: {int(lacking.sum()):,}, the first is flow"
            f" {first + 1:,}; fill it in, or leave them out"
        )
    benign = benign_name(raw)
    attacks = (benign, *sorted(name for name in names if name not in (benign, "")))
    if len(attacks) < 2:
        raise UserError(f"column {label!r} holds {benign!r} alone, so there is no attack to learn")
    places = np.array([attacks.index(name) if name else -1 for name in names], np.int64)
    return attacks, places[codes]


def _classes(
    raw: RawFlows,
    attacks: tuple[str, ...],
    of_flow: NDArray[np.int64],
    rows: tuple[Rows, ...],
    classes: ClassesOf,
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Give the class of each flow (R,), and the classes' names."""
    groups = raw.specification.classes
    home = {value: name for name, own in groups.items() for value in own}
    if groups and (unknown := [name for name in attacks[1:] if name not in home]):
        count = int((of_flow == attacks.index(unknown[0])).sum())
        raise UserError(
            f"column {raw.specification.label!r} holds {unknown[0]!r} (flows: {count:,}), which the"
            f" specification puts into no class{near(unknown[0], (*home, attacks[0]))}; mend the"
            " label, or add it to `classes`"
        )
    if classes == "binary":
        names: tuple[str, ...] = ("benign", "attack")
        of_attack = np.minimum(np.arange(len(attacks)), 1)
    else:
        own = [home.get(name, name) for name in attacks[1:]]
        names = ("benign", *(dict.fromkeys(groups or own)))
        names = tuple(name for name in names if name == "benign" or name in own)
        of_attack = np.array([0, *(names.index(name) for name in own)])
    labels = of_attack[of_flow]
    _check_trained(labels, names, rows)
    return labels, names


def _check_trained(
    labels: NDArray[np.int64], names: tuple[str, ...], rows: tuple[Rows, ...]
) -> None:
    counts = np.stack([np.bincount(labels[own], minlength=len(names)) for own in rows])
    lacking = np.flatnonzero(counts[0] == 0)
    if not len(lacking):
        return
    where = ", ".join(
        f"{counts[part, lacking[0]]:,} in {PARTS[part]}" for part in (1, 2) if len(rows[part])
    )
    fix = "divide otherwise, as by --data.split=stratified"
    if len(names) > 2:
        fix += ", put it into a class of the specification, or set --data.classes=binary"
    raise UserError(f"no flow of class {names[lacking[0]]!r} is left to train on ({where}); {fix}")


def _numbers_told(raw: RawFlows, train: Rows) -> list[str]:
    """Tell of missing and infinite numbers in training, and what was made of them."""
    missing = infinite = 0
    for start in range(0, len(train), 65_536):
        block = raw.numeric[train[start : start + 65_536]]
        missing += int(np.isnan(block).sum())
        infinite += int(np.isinf(block).sum())
    told = {"missing numbers, taken as 0": missing, "infinite numbers, clipped": infinite}
    return [f"{what}: {count:,} in training" for what, count in told.items() if count]


def _repeated(
    numeric: NDArray[np.float32], codes: NDArray[np.uint8], rows: tuple[Rows, ...]
) -> list[str]:
    """Tell how much of the test stands in training too, equal in every field."""
    if not len(rows[2]):
        return []
    frame = pd.DataFrame(numeric, copy=False)
    keys = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    keys = keys + pd.util.hash_pandas_object(pd.DataFrame(codes), index=False).to_numpy()
    share = float(np.isin(keys[rows[2]], keys[rows[0]]).mean())
    return (
        [f"of the test, {share:.1%} stand in training too, equal in every field"] if share else []
    )


def _previous(raw: RawFlows, division: Division) -> Rows | None:
    """Give the flow before each one (R,); tables, and parts where asked for, are kept apart."""
    tables = np.repeat(np.arange(len(raw.starts) - 1), np.diff(raw.starts))
    group: Keys = (4 * tables + (division.part + 1 if division.apart else 0)).astype(np.uint64)
    if raw.keys is not None:
        return previous_rows(raw.keys + group * np.uint64(0x9E37_79B9_7F4A_7C15), len(raw))
    if not group.any():
        return None
    return previous_rows(group, len(raw), memory=None)
