"""Statistics of the training rows: what values and covariates are standardised by."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from domains.time_series.series import Array


class Moments(NamedTuple):
    """Mean, standard deviation, and error of repeating the last season: (S, C) each.

    The standard deviation is 1 where a channel is constant; the error is NaN where it is zero or
    cannot be told.
    """

    mean: Array
    std: Array
    naive: Array


def moments(
    values: Array,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    season: int,
    lookback: int,
) -> Moments:
    """Find the moments of each series' training rows.

    Args:
        values: (T, C), NaN where missing.
        starts: (S + 1,), the first row of each series.
        ends: (S, 3), where training, validation and test end.
        season: steps in a season.
        lookback: rows at its start by which a series without a training row is standardised; the
            error of its last season is that of all its rows.
    """
    found = []
    for series, (first, last) in enumerate(zip(starts[:-1], ends[:, 0], strict=True)):
        if last > first:
            found.append(of_rows(values[first:last], season))
            continue
        whole = values[first : ends[series, 2]]
        found.append(of_rows(whole[:lookback], season)._replace(naive=of_rows(whole, season).naive))
    return Moments(*(np.stack(part) for part in zip(*found, strict=True)))


def of_rows(values: Array, season: int) -> Moments:
    """Find the moments (C,) of the rows (N, C) of one series, NaN left out."""
    change = np.abs(values[season:] - values[:-season])
    if not len(values) or np.isnan(values).any():
        return Moments(*(_without_gaps(part, values, change) for part in Moments._fields))
    spread = values.std(axis=0)
    naive = change.mean(axis=0) if len(change) else np.full(values.shape[1], np.nan)
    return Moments(
        values.mean(axis=0), np.where(spread > 0, spread, 1.0), np.where(naive > 0, naive, np.nan)
    )


def _without_gaps(part: str, values: Array, change: Array) -> Array:
    result = np.full(values.shape[1], {"mean": 0.0, "std": 1.0, "naive": np.nan}[part])
    for column in range(values.shape[1]):
        known = change[:, column] if part == "naive" else values[:, column]
        known = known[~np.isnan(known)]
        if len(known):
            number = known.std() if part == "std" else known.mean()
            result[column] = number if part == "mean" or number > 0 else result[column]
    return result


class Standard(NamedTuple):
    """Mean and standard deviation of F columns of covariates."""

    mean: Array
    std: Array

    @classmethod
    def fit(cls, values: Array) -> "Standard":
        """Measure the rows (N, F), NaN left out."""
        known = of_rows(values, 1)
        return cls(known.mean, known.std)

    def __call__(self, values: Array) -> Array:
        """Standardise (N, F); the mean stands for what is missing."""
        scaled: Array = np.nan_to_num((values - self.mean) / self.std)
        return scaled

    def to_json(self) -> dict[str, Any]:
        """Give plain lists."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}
