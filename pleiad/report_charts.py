"""The curves of a run's page, as SVG paths."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from pleiad.report_text import figure

POINTS = 400
"""The most points drawn of one curve."""


class Line(NamedTuple):
    """A curve in a square of 100 x 100, y downward: an SVG path, and marked points (x, y, text)."""

    name: str
    path: str
    points: list[tuple[float, float, str]]
    thinned: int


class Chart(NamedTuple):
    """Curves over one axis; ticks are (position in per cent, label)."""

    name: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    summary: str


def charts(curves: Mapping[str, Sequence[tuple[float, float]]]) -> list[Chart]:
    """Draw one chart a quantity, all over the same steps."""
    finite = {
        name: [point for point in points if all(map(math.isfinite, point))]
        for name, points in curves.items()
    }
    span = _span([x for points in finite.values() for x, _ in points] or [0.0])
    return [
        _chart(topic, {name: finite[name] for name in names}, span)
        for (_, topic), names in groupby(sorted(finite, key=_topic), key=_topic)
    ]


def _chart(
    topic: str, curves: Mapping[str, Sequence[tuple[float, float]]], span: tuple[float, float]
) -> Chart:
    values = [y for points in curves.values() for _, y in points]
    if all(len(points) < 2 for points in curves.values()):
        told = [f"{name} {figure(points[0][1])}" for name, points in curves.items() if points]
        return Chart(topic, [], [], [], ", ".join(told) or "no finite value was logged")
    left, right = span
    y_ticks = _ticks(*_span(values), whole=False)
    low, high = min(y_ticks[0], *values), max(y_ticks[-1], *values)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(100 * (x - left) / (right - left), 2), round(
            100 * (high - y) / (high - low), 2
        )

    lines = []
    for name, points in curves.items():
        stride = math.ceil(len(points) / POINTS)
        drawn = [*points[:-1:stride], *points[-1:]] if points else []
        placed = [place(*point) for point in drawn]
        marks = [
            (*place(x, y), f"{name} {figure(y)} at step {x:,.0f}")
            for x, y in drawn
            if len(drawn) <= 40
        ]
        path = "M" + "L".join(f"{x} {y}" for x, y in placed) if placed else ""
        lines.append(Line(name, path, marks, stride))
    return Chart(
        name=topic,
        lines=lines,
        x_ticks=[
            (place(x, low)[0], f"{x:,.0f}")
            for x in _ticks(left, right, whole=True)
            if left <= x <= right
        ],
        y_ticks=[(place(left, y)[1], f"{y:.6g}") for y in y_ticks],
        summary="; ".join(
            f"{name}: {len(points)} values from {figure(points[0][1])} to {figure(points[-1][1])}"
            for name, points in curves.items()
            if points
        ),
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Give the range of ``values``, widened where it is a single point."""
    low, high = min(values), max(values)
    if low < high:
        return low, high
    margin = abs(low) * 0.05 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, whole: bool) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(nbins=4, integer=whole).tick_values(low, high)]


def _topic(column: str) -> tuple[bool, str]:
    """Sort ``train/loss`` and ``val/loss`` under ``loss``, which comes first."""
    name = column.split("/", 1)[-1]
    return name != "loss", name
