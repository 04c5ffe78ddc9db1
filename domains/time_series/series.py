"""Regular series in memory: one multivariate, or many of any lengths, one after the other."""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]
Gaps = Literal["error", "mask", "zero", "interpolate", "ffill", "keep"]


class Covariates(NamedTuple):
    """Numbers beside the series: K known in advance, P known up to now, Q of a series as a whole.

    ``known`` (T, K) and ``past`` (T, P) follow the rows of the series; ``static`` (S, Q) has one
    row a series. ``names`` are their columns in this order.
    """

    known: Array
    past: Array
    static: Array
    names: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] = ((), (), ())


@dataclass(frozen=True, eq=False)
class Series:
    """S series of C channels, T rows together.

    Attributes:
        values: (T, C), in the unit of the file; NaN where masked.
        time: the T steps.
        columns: C names.
        freq: the step as pandas names it, such as ``h``.
        repairs: what was mended or taken for granted.
        source: the file.
        time_column: the name of the date column.
        id_column: the name of the column of ids; empty where the file has one column a series.
        ids: S names; one empty name where all channels belong to one series.
        starts: (S + 1,), the first row of each series, and T.
        covariates: None where there are none.
        groups: what group each series belongs to; empty where that was not asked for.
        ends: (S, 2), the rows at which training and validation end; None where no file says so.
    """

    values: Array
    time: pd.DatetimeIndex
    columns: tuple[str, ...]
    freq: str
    repairs: tuple[str, ...]
    source: str
    time_column: str
    id_column: str = ""
    ids: tuple[str, ...] = ("",)
    starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    covariates: Covariates | None = None
    groups: tuple[str, ...] = ()
    ends: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Take all rows as one series where no others are told apart."""
        if not len(self.starts):
            object.__setattr__(self, "starts", np.array([0, len(self.values)]))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The rows of each series (S,)."""
        return np.diff(self.starts)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The series of each row (T,)."""
        return np.repeat(np.arange(len(self.ids)), self.lengths)

    def ordered(self) -> "Series":
        """Sort the channels by name, so that the order of columns in a file changes nothing."""
        order = sorted(range(len(self.columns)), key=lambda place: self.columns[place])
        columns = tuple(self.columns[place] for place in order)
        values = np.ascontiguousarray(self.values[:, order])  # its layout sets how sums are rounded
        return replace(self, values=values, columns=columns)

    def apart(self, column: str = "value") -> "Series":
        """Make a series of its own of each channel, with the same covariates."""
        rows, channels = self.values.shape
        shared = self.covariates
        if shared is not None:
            shared = shared._replace(
                known=np.tile(shared.known, (channels, 1)),
                past=np.tile(shared.past, (channels, 1)),
                static=np.repeat(shared.static, channels, 0),
            )
        return replace(
            self,
            values=self.values.T.reshape(-1, 1),
            time=pd.DatetimeIndex(np.tile(self.time.to_numpy(), channels)),
            columns=(column,),
            ids=self.columns,
            starts=np.arange(channels + 1) * rows,
            covariates=shared,
            ends=None if self.ends is None else self.ends + np.arange(channels)[:, None] * rows,
        )

    def together(self) -> "Series":
        """Make channels of series that cover the same steps."""
        rows = int(self.lengths[0])
        return replace(
            self,
            values=self.values.reshape(len(self.ids), rows).T.copy(),
            time=self.time[:rows],
            columns=self.ids,
            ids=("",),
            starts=np.array([0, rows]),
        )

    @property
    def aligned(self) -> bool:
        """Whether all series cover the same steps."""
        first, last = self.time[self.starts[:-1]], self.time[self.starts[1:] - 1]
        return bool((first == first[0]).all() and (last == last[0]).all())


def carried(values: Array, starts: NDArray[np.int64]) -> Array:
    """Put the last known value, or else the next one, in place of each NaN, within its series."""
    if not np.isnan(values).any():
        return values
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    groups = pd.DataFrame(values).groupby(owner, sort=False)
    filled = groups.ffill()
    if filled.isna().to_numpy().any():
        filled = filled.groupby(owner, sort=False).bfill()
    return filled.to_numpy()


def interpolated(values: Array, starts: NDArray[np.int64]) -> Array:
    """Draw a line over each gap, within its series; the ends are repeated outwards."""
    result = values.copy()
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    for series in np.unique(owner[np.isnan(values).any(1)]):
        rows = slice(starts[series], starts[series + 1])
        frame = pd.DataFrame(values[rows])
        result[rows] = frame.interpolate(limit_direction="both").to_numpy()
    return result
