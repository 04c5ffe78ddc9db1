"""Count rows that stand in two parts of a split: what is tested was then seen in training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from core.row_keys import contents
from core.split_columns import column_named
from core.split_plan import PARTS, Split


class Duplicates(NamedTuple):
    """Rows of ``part`` whose content stands in ``other`` too; ``first`` is such a pair, from 0."""

    part: str
    other: str
    rows: int
    first: tuple[int, int]

    @property
    def note(self) -> str:
        """A sentence for the user."""
        stand = "1 row stands" if self.rows == 1 else f"{self.rows:,} rows stand"
        first, second = (row + 1 for row in self.first)
        return (
            f"{stand} in {self.part} and, equal in every cell, in {self.other} too (first: row"
            f" {first} = row {second}); keep such rows together by --data.split=group:COLUMN, or"
            " drop them"
        )


def duplicates(
    frame: pd.DataFrame, split: Split, columns: Sequence[str] | None = None
) -> list[Duplicates]:
    """Count the rows that stand in two parts with the same content, by pair of parts.

    Args:
        frame: the N rows that were split.
        split: their parts.
        columns: what to compare; None takes all but the ids and the column of the rule. A column
            of hashes compares files.

    Raises:
        UserError: if a column does not exist or cannot be compared.
    """
    if columns is None:
        left_out = (split.plan.ids, split.plan.column)
        places = [i for i, name in enumerate(frame.columns) if str(name) not in left_out]
        compared = frame.iloc[:, places]
    else:
        compared = pd.concat([column_named(frame, name, split.rule) for name in columns], axis=1)
    if compared.shape[1] == 0:
        return []
    codes, distinct = pd.factorize(contents(compared))
    found = []
    for part, other in ((2, 0), (1, 0), (2, 1)):
        rows, others = np.flatnonzero(split.part == part), np.flatnonzero(split.part == other)
        first = np.full(len(distinct), -1)
        first[codes[others[::-1]]] = others[::-1]
        if len(shared := rows[first[codes[rows]] >= 0]):
            pair = int(shared[0]), int(first[codes[shared[0]]])
            found.append(Duplicates(PARTS[part], PARTS[other], len(shared), pair))
    return found
