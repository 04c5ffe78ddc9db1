"""How sure a difference between two methods is: the paired bootstrap over items and seeds.

Both methods are judged on the same resampled test items, and by the same resampled seeds, since
both vary: which items the test happens to hold, and how training happens to go. Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pleiad.study_scores import Array, Items, Score

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 2**22
"""Numbers of one table of draws."""


class Interval(NamedTuple):
    """A percentile interval, of so many matched items in so many groups that were drawn."""

    low: float
    high: float
    items: int
    groups: int


def compare(
    ours: Sequence[Items],
    theirs: Sequence[Items],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval | None:
    """Give an interval for the mean over seeds of ours minus theirs; None where no item matches.

    Args:
        ours: the items of one method, one entry a seed.
        theirs: those of the other, with the same seeds in the same order.
        resamples: how many.
        level: of the interval.
        seed: of the draws.
    """
    common = ours[0].ids
    for items in (*ours, *theirs):
        common = np.intersect1d(common, items.ids)
    if not len(common):
        return None
    _, group = np.unique(_at(ours[0], common)[1], return_inverse=True)
    count = int(group.max()) + 1
    scores = [
        [_grouped(_at(items, common)[0], group, count) for items in m] for m in (ours, theirs)
    ]
    draw = np.random.default_rng(seed)
    found = [
        _differences(draw, min(size, resamples - start), count, *scores)
        for size in [max(1, AT_ONCE // count)]
        for start in range(0, resamples, size)
    ]
    edges = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.nanquantile(np.concatenate(found), edges)
    return Interval(float(low), float(high), len(common), count)


def _at(items: Items, ids: NDArray[np.int64]) -> tuple[Score, NDArray[np.int64]]:
    rows = np.searchsorted(items.ids, ids)  # they are sorted
    return items.score.at(rows), items.groups[rows]


def _grouped(score: Score, group: NDArray[np.int64], count: int) -> Score:
    """Sum the parts of each group: it is drawn as a whole."""
    sums = np.zeros((count, score.parts.shape[1]))
    np.add.at(sums, group, score.parts)
    return Score(sums, score.of)


def _differences(
    draw: np.random.Generator,
    resamples: int,
    groups: int,
    ours: Sequence[Score],
    theirs: Sequence[Score],
) -> Array:
    """Draw groups and seeds, and give the mean difference of each draw."""
    times = draw.multinomial(groups, np.full(groups, 1 / groups), resamples).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.stack(
            [
                one.of(times @ one.parts) - other.of(times @ other.parts)
                for one, other in zip(ours, theirs, strict=True)
            ],
            1,
        )  # (resamples, seeds)
    seeds = each.shape[1]
    chosen = draw.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    mean: Array = (each * chosen).sum(1) / seeds
    return mean
