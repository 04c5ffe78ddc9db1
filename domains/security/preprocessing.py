"""Scale the numbers of flows and code their levels, by what training has held.

FlowTransformer (Manocchio et al., Expert Systems with Applications 241, 2024): a number v becomes
ln(v - low + 1) / ln(high - low + 1), with the bounds of training, and a level its rank by frequency
in training, of which the first 32 are kept. Two modes:

- fixed, the default: what lies outside the bounds is clipped to them, infinite values too; what is
  missing is 0; a level that is not kept has a code of its own.
- ``faithful``, as it was published: what is missing, infinite or beyond 1e9 in size is 0; nothing
  is clipped, so that a value above the bounds gives more than 1, and one more than 1 below them has
  no logarithm and gives NaN; a level that is not kept has the code of the most frequent one. The
  published codes are counted from 1, ours from 0.

Sizes: R flows, N numeric fields, C categorical fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from core.errors import UserError
from domains.security.specification import FlowSpecification

Context = Literal["file", "source", "destination", "pair"]
LEVELS = 32
"""Levels that are kept of a categorical field."""
_LARGEST = 1e9  # of a published value


class Encoded(NamedTuple):
    """Flows as a network takes them.

    Attributes:
        numeric: (R, N) float32.
        codes: (R, C) int64, from 0; see :class:`domains.security.flows.FlowBatch`.
        unseen: (C,) how many flows have a level that is not kept.
        outside: (N,) how many flows have a number outside the bounds, or an infinite one.
    """

    numeric: NDArray[np.float32]
    codes: NDArray[np.int64]
    unseen: NDArray[np.int64]
    outside: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FlowPreprocessing:
    """What a network of flows needs besides its weights; it travels in ``model/``.

    Attributes:
        specification: the fields.
        low: (N,) the least number of each numeric field in training.
        high: (N,) the largest.
        levels: of each categorical field, those kept, the most frequent first.
        rare: (C,) the share of training with a level that is not kept.
        classes: the names of the classes; the first is benign.
        window: W, flows in a window.
        context: whose flows a window holds: all of the ``file``, those of the same ``source`` or
            ``destination``, or those between the ``pair`` of them.
        faithful: the published mode.
    """

    specification: FlowSpecification
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    levels: tuple[tuple[str, ...], ...]
    rare: NDArray[np.float64]
    classes: tuple[str, ...] = ("benign", "attack")
    window: int = 8
    context: Context = "file"
    faithful: bool = False

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes of a network: ``numeric``, ``levels`` (codes a field), ``window``, ``classes``.

        A field whose levels were all unknown in training still has one code.
        """
        spare = 0 if self.faithful else 1
        return {
            "numeric": len(self.low),
            "levels": [max(len(own) + spare, 1) for own in self.levels],
            "window": self.window,
            "classes": len(self.classes),
        }

    @property
    def also(self) -> tuple[str, ...]:
        """The columns that :meth:`hosts` needs besides the fields."""
        return host_columns(self.specification, self.context)

    def encode(self, table: pa.Table) -> Encoded:
        """Encode flows as :func:`domains.security.flow_files.read_flows` gives them."""
        values = numbers(table, self.specification.numeric, self.faithful)
        outside = self.outside(values)
        codes = np.empty((table.num_rows, len(self.levels)), np.int64)
        unseen = np.zeros(len(self.levels), np.int64)
        for place, (name, kept) in enumerate(
            zip(self.specification.categorical, self.levels, strict=True)
        ):
            indices, texts = levels_of(table[name])
            known = self.ranks(kept, texts)
            unseen[place] = (known[indices] < 0).sum() if (known < 0).any() else 0
            codes[:, place] = self.codes(known)[indices]
        return Encoded(self.scaled(values), codes, unseen, outside)

    def hosts(self, table: pa.Table) -> NDArray[np.uint64] | None:
        """Give the key of each flow's host (R,); None where windows are of all the file."""
        return host_keys(table, self.also)

    @staticmethod
    def ranks(kept: Sequence[str], texts: Sequence[str]) -> NDArray[np.int64]:
        """Give the place of each text among the levels kept; -1 where it is not one of them."""
        places = {text: place for place, text in enumerate(kept)}
        return np.array([places.get(text, -1) for text in texts], np.int64)

    def codes(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Turn places among the levels, -1 for none, into codes."""
        return np.maximum(ranks, 0) if self.faithful else ranks + 1

    def outside(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Count (N,) what lies outside the bounds, of numbers (R, N)."""
        counts: NDArray[np.int64] = ((values < self.low) | (values > self.high)).sum(0)
        return counts

    def scaled(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale numbers (R, N), as :func:`numbers` gives them."""
        if not self.faithful:
            values = np.clip(np.where(np.isnan(values), 0, values), self.low, self.high)
        spread = self.high - self.low
        with np.errstate(divide="ignore", invalid="ignore"):
            logs: NDArray[np.float32] = np.log1p(values - self.low)
        logs /= np.where(spread > 0, np.log1p(spread), np.float32(1))
        logs[:, spread == 0] = 0
        return logs

    def drift(
        self, unseen: NDArray[np.int64], outside: NDArray[np.int64], flows: int
    ) -> tuple[float, float]:
        """Give the shares of levels that training had not, and of numbers out of its bounds.

        Levels that were left out of the codes for being rare in training count only beyond their
        share of training.

        Args:
            unseen: (C,) summed over what was encoded.
            outside: (N,) the same.
            flows: how many were encoded.
        """
        more = np.clip(unseen / max(flows, 1) - self.rare, 0, 1)
        shares = outside / max(flows, 1)
        return float(more.mean()) if len(more) else 0.0, float(shares.mean()) if len(
            shares
        ) else 0.0

    def to_json(self) -> dict[str, Any]:
        """Give plain values, from which :meth:`from_json` rebuilds it."""
        return {
            "specification": self.specification.to_json(),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "levels": [list(own) for own in self.levels],
            "rare": self.rare.tolist(),
            "classes": list(self.classes),
            "window": self.window,
            "context": self.context,
            "faithful": self.faithful,
        }

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "FlowPreprocessing":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: naming what is unknown, missing or of a wrong size.
        """
        where = "preprocessing.json"
        wanted = cls.__dataclass_fields__.keys()
        if not isinstance(mapping, Mapping) or mapping.keys() != wanted:
            raise UserError(f"{where}: must hold {', '.join(wanted)}")
        specification = FlowSpecification.from_json(mapping["specification"], where)
        try:
            found = cls(
                specification,
                np.array(mapping["low"], np.float32),
                np.array(mapping["high"], np.float32),
                tuple(tuple(map(str, own)) for own in mapping["levels"]),
                np.array(mapping["rare"], np.float64),
                tuple(map(str, mapping["classes"])),
                int(mapping["window"]),
                mapping["context"],
                bool(mapping["faithful"]),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {error}") from None
        counts = (len(found.low), len(found.high), len(found.levels), len(found.rare))
        numeric, categorical = len(specification.numeric), len(specification.categorical)
        if counts != (numeric, numeric, categorical, categorical):
            raise UserError(
                f"{where}: low, high, levels and rare must hold {numeric}, {numeric},"
                f" {categorical} and {categorical} entries, not {counts}"
            )
        host_columns(specification, found.context)
        return found


def numbers(table: pa.Table, names: Sequence[str], faithful: bool) -> NDArray[np.float32]:
    """Give the numbers (R, N) of the named columns; see the module for what is replaced.

    Without ``faithful`` a missing number is NaN here, and replaced when it is scaled.
    """
    columns = np.empty((len(names), table.num_rows), np.float32)
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        for place, name in enumerate(names):
            column = table[name].to_numpy()
            if faithful:
                column = np.where(np.abs(column) <= _LARGEST, column, 0)
            columns[place] = column
    return np.ascontiguousarray(columns.T)


def levels_of(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[str]]:
    """Give for each flow (R,) the index of its text, and the texts.

    ``6.0`` is the same as 6, and spaces around a text do not count; so a text may stand twice.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no rows
        return np.zeros(0, np.int32), []
    return array.indices.to_numpy(), [level(text) for text in array.dictionary.to_pylist()]


def level(text: str) -> str:
    """Write a level in one way."""
    text = text.strip()
    whole, point, fraction = text.partition(".")
    return whole if point and not fraction.strip("0") and whole.lstrip("-").isdigit() else text


def host_columns(specification: FlowSpecification, context: str) -> tuple[str, ...]:
    """Name the columns of the hosts whose flows form a window.

    Raises:
        UserError: if there is no such context, or the specification names no such host.
    """
    needed = {
        "file": (),
        "source": ("source",),
        "destination": ("destination",),
        "pair": ("source", "destination"),
    }
    if context not in needed:
        raise UserError(f"data.context={context}: must be {', '.join(needed)}")
    found = []
    for key in needed[context]:
        name = getattr(specification, key)
        if name is None:
            raise UserError(
                f"data.context={context}: the specification names no {key} host; add"
                f" `{key}: COLUMN` to it, or give --data.{key}=COLUMN"
            )
        found.append(name)
    return tuple(found)


def host_keys(table: pa.Table, columns: Sequence[str]) -> NDArray[np.uint64] | None:
    """Give the key of each flow's host (R,), or of its pair in either direction; None for none."""
    keys: NDArray[np.uint64] | None = None
    for name in columns:
        indices, texts = levels_of(table[name])
        own = pd.util.hash_array(np.array(texts, object), categorize=False)[indices]
        keys = own if keys is None else keys + own
    return keys
