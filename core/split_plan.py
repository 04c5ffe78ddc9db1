"""What a split is: the plan that places rows, the rows placed, and the file that keeps both."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.errors import UserError
from core.openers import write_atomic

PARTS = ("train", "val", "test")
UNUSED = -1
_FORMAT = b"pleiad_split"

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How rows are placed.

    Attributes:
        rule: as it is written, such as ``group:patient``.
        ids: the column of ids; None where a row is known by its content.
        fractions: shares of train, val and test.
        seed: of the hash.
        folds: K, the number of folds; None for a single split.
        fold: which of them is the test.
        borders: with ``time:``, the times at which the blocks after the first begin.

    Raises:
        UserError: if the fractions are no shares, or there is no such fold.
    """

    rule: str
    ids: str | None
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0
    folds: int | None = None
    fold: int = 0
    borders: tuple[int | float | str, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers."""
        shares, folds, fold = self.fractions, self.folds, self.fold
        if len(shares) != 3 or min(shares) < 0 or not shares[0] or abs(sum(shares) - 1) > 1e-6:
            raise UserError(
                f"the fractions {shares} of --data.split must be the shares of train, val and"
                " test, summing to 1, with some left to train"
            )
        if folds is None and fold != 0:
            raise UserError(f"--data.fold={fold} needs --data.folds")
        if folds is not None and folds < 3:
            raise UserError(
                f"--data.folds={folds} must be at least 3: to test, to validate, to train"
            )
        if folds is not None and not 0 <= fold < folds:
            raise UserError(f"--data.fold={fold} must lie from 0 to {folds - 1}")

    @property
    def kind(self) -> str:
        """The rule's first word."""
        return self.rule.partition(":")[0]

    @property
    def column(self) -> str:
        """The column that the rule names; empty where it names none."""
        return self.rule.partition(":")[2]

    @property
    def hashed(self) -> bool:
        """Whether rows are placed by hash."""
        return self.kind in ("random", "stratified", "group")

    @property
    def order(self) -> Sequence[int]:
        """The places that need a row, the most needed first."""
        if self.folds is not None:
            return range(self.folds)
        return [part for part in (0, 2, 1) if self.fractions[part] > 0]

    def parts(self, place: Codes) -> Codes:
        """Turn places (N,), which are parts or folds, into parts (N,)."""
        if self.folds is None:
            return place
        if self.kind == "time":
            part = np.clip(place - self.fold, 0, 3)
            return np.where(part == 3, UNUSED, part)
        ahead = (place - self.fold) % self.folds
        return np.where(
            place == UNUSED, UNUSED, np.where(ahead == 0, 2, np.where(ahead == 1, 1, 0))
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Which rows train, validate and test.

    Attributes:
        plan: how they were placed.
        keys: the id of each of N rows, or a hash of its content.
        place: each row's part (0 train, 1 val, 2 test), fold, or block of time; -1 is unused.
        notes: what the user should know, in plain sentences.
    """

    plan: Plan
    keys: NDArray[np.object_]
    place: Codes
    notes: tuple[str, ...] = ()

    @cached_property
    def part(self) -> Codes:
        """Each row's part: 0 train, 1 val, 2 test, -1 none."""
        return self.plan.parts(self.place)

    @property
    def rule(self) -> str:
        """The rule as it is written."""
        return self.plan.rule

    @property
    def train(self) -> Codes:
        """Rows to train on, ascending from 0."""
        return np.flatnonzero(self.part == 0)

    @property
    def val(self) -> Codes:
        """Rows to validate on, ascending."""
        return np.flatnonzero(self.part == 1)

    @property
    def test(self) -> Codes:
        """Rows to test on, ascending."""
        return np.flatnonzero(self.part == 2)

    def save(self, path: Path) -> None:
        """Write ``id``, ``part`` and, of folds, ``fold`` as parquet, whole or not at all."""
        names = np.array([*PARTS, "unused"], dtype=object)
        columns = {"id": self.keys, "part": names[self.part]}
        if self.plan.folds is not None:
            columns["fold"] = self.place
        about = {_FORMAT: json.dumps({**asdict(self.plan), "notes": self.notes})}
        buffer = io.BytesIO()
        table = pa.table(columns).replace_schema_metadata(about)
        pq.write_table(table, buffer, compression="zstd")
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Read what :meth:`save` wrote; its rows are those of the data it was made for.

        Raises:
            UserError: if the file is missing, damaged or none of ours.
        """
        try:
            table = pq.read_table(path, partitioning=None)
            about = json.loads(table.schema.metadata[_FORMAT])
            notes = tuple(about.pop("notes"))
            about["fractions"], about["borders"] = (
                tuple(about["fractions"]),
                tuple(about["borders"]),
            )
            plan = Plan(**about)
            keys = table["id"].to_numpy().astype(object)
            codes = {**{name: code for code, name in enumerate(PARTS)}, "unused": UNUSED}
            part = [codes[name] for name in table["part"].to_pylist()]
            place = np.array(part if plan.folds is None else table["fold"].to_pylist(), np.int64)
        except FileNotFoundError:
            raise UserError(f"--data.split={path}: there is no such file") from None
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            why = (
                f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else "damaged"
            )
            raise UserError(f"--data.split={path}: not a saved split ({why})") from None
        return cls(plan, keys, place, notes)
