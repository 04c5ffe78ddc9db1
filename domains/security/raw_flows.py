"""Flows in memory before they are encoded: numbers, and numbers in place of texts.

Sizes: R flows, N numeric fields, C categorical fields.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from core.errors import UserError
from core.split_columns import listed
from domains.security.flow_files import read_flows
from domains.security.preprocessing import (
    LEVELS,
    Context,
    FlowPreprocessing,
    host_columns,
    host_keys,
    levels_of,
    numbers,
)
from domains.security.progress import counted
from domains.security.specification import FlowSpecification

MOST_LEVELS = 2**20
"""The most levels of a column: one of more names flows, not kinds of them."""
_STEP = 65_536


@dataclass(frozen=True, eq=False)
class RawFlows:
    """R flows of one or more tables, one after the other.

    Attributes:
        specification: the fields.
        numeric: (R, N) float32, as :func:`domains.security.preprocessing.numbers` gives it.
        texts: by column, categorical or other, (R,) the place of each flow's text among its texts.
        names: by column, the texts.
        keys: (R,) of the hosts; None where windows are of the file.
        starts: the first flow of each table, and R.
        repairs: what was mended in the files.
    """

    specification: FlowSpecification
    numeric: NDArray[np.float32]
    texts: dict[str, NDArray[np.int32]]
    names: dict[str, list[str]]
    keys: NDArray[np.uint64] | None
    starts: tuple[int, ...]
    repairs: Counter[str]

    def __len__(self) -> int:
        """Count the flows, R."""
        return len(self.numeric)

    def column(self, name: str) -> pd.Series:
        """Give a column of texts as pandas has it; an empty cell is missing."""
        names = self.names[name]
        codes = self.texts[name]
        if "" in names:
            codes = np.where(codes == names.index(""), -1, codes)
            codes = codes - (codes > names.index(""))
            names = [each for each in names if each]
        return pd.Series(pd.Categorical.from_codes(codes, names), name=name)  # type: ignore[call-overload]


class _Growing:
    """An array that grows by blocks of rows, in place."""

    def __init__(self, dtype: Any, *shape: int) -> None:
        self.rows = 0
        self.array = np.empty((0, *shape), dtype)

    def add(self, block: NDArray[Any]) -> None:
        need = self.rows + len(block)
        if need > len(self.array):
            self.array.resize(
                (max(need, 3 * len(self.array) // 2), *block.shape[1:]), refcheck=False
            )
        self.array[self.rows : need] = block
        self.rows = need

    def done(self) -> NDArray[Any]:
        self.array.resize((self.rows, *self.array.shape[1:]), refcheck=False)
        return self.array


def read_raw(
    tables: Sequence[Sequence[Path]],
    specification: FlowSpecification,
    *,
    also: Sequence[str] = (),
    context: Context = "file",
    faithful: bool = False,
) -> RawFlows:
    """Read flows to train on; of text only its place in a list of levels is kept.

    Args:
        tables: the files of each table, such as those to train and to test.
        specification: names the fields.
        also: further columns to keep, the label and those of a split.
        context: whose flows a window holds.
        faithful: the published mode.

    Raises:
        UserError: naming what cannot be read, or a column of too many levels.
    """
    hosts = host_columns(specification, context)
    kept = tuple(dict.fromkeys((*specification.categorical, *also)))
    numeric = _Growing(np.float32, len(specification.numeric))
    texts = {name: _Growing(np.int32) for name in kept}
    known: dict[str, dict[str, int]] = {name: {} for name in kept}
    keys = _Growing(np.uint64)
    starts, repairs = [0], Counter[str]()
    for paths in tables:
        for piece in _pieces(paths, specification, (*also, *hosts), repairs):
            numeric.add(numbers(piece, specification.numeric, faithful))
            for name in kept:
                texts[name].add(_placed(piece[name], known[name], name))
            if hosts:
                keys.add(host_keys(piece, hosts))  # type: ignore[arg-type]
        starts.append(numeric.rows)
    return RawFlows(
        specification,
        numeric.done(),
        {name: own.done() for name, own in texts.items()},
        {name: list(own) for name, own in known.items()},
        keys.done() if hosts else None,
        tuple(starts),
        repairs,
    )


def _pieces(
    paths: Sequence[Path],
    specification: FlowSpecification,
    also: Sequence[str],
    repairs: Counter[str],
) -> Iterator[pa.Table]:
    for path in paths:
        yield from counted(read_flows(path, specification, also=also, repairs=repairs), path)


def _placed(column: pa.ChunkedArray, known: dict[str, int], name: str) -> NDArray[np.int32]:
    indices, found = levels_of(column)
    places = [known.setdefault(text, len(known)) for text in found]
    if len(known) > MOST_LEVELS:
        raise UserError(
            f"column {name!r} holds more than {MOST_LEVELS:,} different texts, so it names single"
            " flows; leave it out, or name it among the numeric fields"
        )
    return np.array(places, np.int32)[indices] if places else np.zeros(0, np.int32)


def fit(
    raw: RawFlows,
    rows: NDArray[np.int64],
    *,
    classes: Sequence[str] = ("benign", "attack"),
    window: int = 8,
    context: Context = "file",
    faithful: bool = False,
) -> FlowPreprocessing:
    """Fit the preprocessing on some of the flows: those of training.

    Raises:
        UserError: if there are none.
    """
    if not len(rows):
        raise UserError("no flow is left to train on")
    low = np.full(raw.numeric.shape[1], np.inf, np.float32)
    high = -low
    for start in range(0, len(rows), _STEP):
        block = raw.numeric[rows[start : start + _STEP]]
        finite = np.isfinite(block)
        low = np.minimum(low, np.where(finite, block, np.inf).min(0))
        high = np.maximum(high, np.where(finite, block, -np.inf).max(0))
    empty = low > high  # a field without a number
    levels, rare = [], []
    for name in raw.specification.categorical:
        counts = np.bincount(raw.texts[name][rows], minlength=len(raw.names[name]))
        order = np.argsort(-counts, kind="stable")[:LEVELS]
        order = order[counts[order] > 0]
        levels.append(tuple(raw.names[name][place] for place in order))
        rare.append(1 - counts[order].sum() / len(rows))
    return FlowPreprocessing(
        raw.specification,
        np.where(empty, 0, low).astype(np.float32),
        np.where(empty, 0, high).astype(np.float32),
        tuple(levels),
        np.array(rare, np.float64),
        tuple(classes),
        window,
        context,
        faithful,
    )


def encode(
    raw: RawFlows, preprocessing: FlowPreprocessing
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Encode all flows: (R, N) scaled in place of the raw numbers, and codes (R, C)."""
    codes = np.empty((len(raw), len(preprocessing.levels)), np.uint8)
    for place, name in enumerate(raw.specification.categorical):
        ranks = preprocessing.ranks(preprocessing.levels[place], raw.names[name])
        codes[:, place] = preprocessing.codes(ranks)[raw.texts[name]]
    for start in range(0, len(raw), _STEP):
        block = raw.numeric[start : start + _STEP]
        block[:] = preprocessing.scaled(block)
    return raw.numeric, codes


def benign_name(raw: RawFlows) -> str:
    """Give the label value that is benign: the one stated, or the one that is usually called so.

    Raises:
        UserError: if no flow has it, listing the values there are.
    """
    usual = ("benign", "normal", "background", "legitimate", "none", "no", "false", "0", "-")
    stated, label = raw.specification.benign, raw.specification.label
    assert label is not None
    names = raw.names[label]
    if stated is not None:
        if stated in names:
            return stated
        same = [name for name in names if name.lower() == stated.lower()]
        hint = f" (did you mean {same[0]!r}?)" if same else ""
        raise UserError(
            f"no flow has the benign value {stated!r} in column {label!r}{hint}; it holds"
            f" {listed(map(repr, names))}; set --data.benign=VALUE"
        )
    for word in usual:
        for name in names:
            if name.lower() == word:
                return name
    raise UserError(
        f"which value of column {label!r} is benign? It holds {listed(map(repr, names))}; set"
        " --data.benign=VALUE"
    )
