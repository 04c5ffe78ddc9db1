"""Which threshold keeps to a budget of false alarms, measured on validation data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STEPS = 256
"""The most thresholds of a curve."""


class Point(NamedTuple):
    """A threshold, the share of benign flows and the share of attacks that lie above it."""

    threshold: float
    false_alarm_rate: float
    recall: float


def threshold_within(
    scores: NDArray[np.float64], attack: NDArray[np.bool_], budget: float
) -> float | None:
    """Give the lowest threshold above which at most a share of the benign flows lies.

    Args:
        scores: (N,) of an attack.
        attack: (N,) whether it is one.
        budget: the share.

    Returns:
        None where no flow is benign.
    """
    benign = scores[~attack]
    if not len(benign):
        return None
    above = min(int(budget * len(benign) + 1e-9), len(benign) - 1)
    return float(np.partition(benign, -1 - above)[-1 - above])


def budget_curve(
    scores: NDArray[np.float64], attack: NDArray[np.bool_], budget: float
) -> list[Point]:
    """Measure thresholds from no false alarm on, ever closer to where there are few.

    Args:
        scores: (N,) of an attack.
        attack: (N,) whether it is one.
        budget: a share of false alarms whose threshold is among them.

    Returns:
        By falling threshold, at most ``STEPS``; empty where no flow is benign.
    """
    benign, attacks = np.sort(scores[~attack]), np.sort(scores[attack])
    if not len(benign):
        return []
    places = np.geomspace(1, len(benign), STEPS - 1).round().astype(int)
    kept = threshold_within(scores, attack, budget)
    cuts = np.unique([*benign[len(benign) - places], kept])[::-1]

    def above(values: NDArray[np.float64]) -> NDArray[np.float64]:
        count = len(values) - np.searchsorted(values, cuts, side="right")
        return count / max(len(values), 1)

    rows = zip(cuts, above(benign), above(attacks), strict=True)
    return [Point(*map(float, row)) for row in rows]


def at_rate(curve: Sequence[Sequence[float]], rate: float) -> Point:
    """Give the lowest threshold of a curve that keeps to a rate of false alarms."""
    return min(Point(*row) for row in curve if row[1] <= rate)
