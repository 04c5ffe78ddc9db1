"""Figures of a study: quality against memory, and against time, with the spread over seeds."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from pleiad.report import lower_is_better
from pleiad.study_report import Found

MEGABYTE = 1e6
SIZE = (5.6, 3.8)
"""Inches: a figure is as wide as the text of a paper."""
MARKERS = "osD^vP*Xhd<>"
MOST = 12
"""Of more methods only those are named that none of less cost is as good as."""


class Point(NamedTuple):
    """A method's place in a figure, in the units of its axes, and the spread over its seeds."""

    name: str
    x: float
    y: float
    spread: float
    colour: str


def draw(found: Found, folder: Path) -> list[Path]:
    """Draw the figures of each task as PDF and PNG; give their paths.

    ``TASK-memory`` has kept bytes on its axis where they were measured, else the peak; the metric
    is the first of the table.
    """
    written = []
    for task, rows in found.rows.groupby("task", sort=False):
        own = rows[(rows.metric == rows.metric.iloc[0]) & rows["mean"].notna()]
        for name, column, label, unit in _axes(own):
            shown = own[own[column].notna()]
            if len(shown) < 2:
                continue
            folder.mkdir(exist_ok=True)
            figure = _figure(shown, column, label, unit)
            figure.axes[0].set_title(str(task), loc="left", fontsize=10)
            for suffix in ("pdf", "png"):
                path = folder / f"{task}-{name}.{suffix}"
                stamp = {"CreationDate": None} if suffix == "pdf" else {}
                figure.savefig(path, dpi=200, metadata=stamp)
                written.append(path)
    return written


def _axes(rows: pd.DataFrame) -> Iterator[tuple[str, str, str, float]]:
    """Give name, column, label and unit of each figure's horizontal axis."""
    if "saved_bytes" in rows and rows.saved_bytes.notna().sum() > 1:
        yield "memory", "saved_bytes", "kept for the backward pass (MB)", MEGABYTE
    elif "peak_memory_bytes" in rows:
        yield "memory", "peak_memory_bytes", "peak memory (MB)", MEGABYTE
    if "fit_seconds" in rows:
        yield "seconds", "fit_seconds", "seconds of fit", 1.0


def _figure(rows: pd.DataFrame, column: str, label: str, unit: float) -> Figure:
    figure = Figure(SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    metric = rows.metric.iloc[0]
    better = "lower" if lower_is_better(metric) else "higher"
    axes.set_xlabel(label)
    axes.set_ylabel(f"{metric.removeprefix('test/')} ({better} is better)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.18)
    points = []
    for number, row in enumerate(rows.to_dict("records")):
        x, y = row[column] / unit, row["mean"]
        spread = 0.0 if pd.isna(row["sd"]) else row["sd"]
        colour = f"C{number % 10}"
        axes.errorbar(
            x, y, spread, fmt=MARKERS[number % len(MARKERS)], color=colour, capsize=3, markersize=6
        )
        points.append(Point(row["method"], x, y, spread, colour))
    figure.draw_without_rendering()
    _label(axes, points, _front(points, lower_is_better(metric)) if len(points) > MOST else points)
    return figure


def _front(points: Sequence[Point], lower: bool) -> list[Point]:
    """Give the points that none further left is as good as."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y if lower else -p.y)):
        if not front or (point.y < front[-1].y if lower else point.y > front[-1].y):
            front.append(point)
    return front


def _label(axes: Axes, points: Sequence[Point], named: Sequence[Point]) -> None:
    """Write methods' names where they cover no point, bar or other name, as near as may be."""
    figure: Any = axes.figure
    renderer = figure.canvas.get_renderer()
    taken = []
    for point in points:
        ends = [(point.x, point.y - point.spread), (point.x, point.y + point.spread)]
        (left, low), (_, high) = axes.transData.transform(ends)
        taken.append(Bbox.from_extents(left - 6, low - 6, left + 6, high + 6))
    frame = axes.get_window_extent(renderer)
    for point in named:
        note: Any = axes.annotate(
            point.name,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=point.colour,
            arrowprops={"arrowstyle": "-", "color": point.colour, "alpha": 0.5, "linewidth": 0.6},
        )
        note.set_in_layout(False)
        for distance, (right, up) in product(range(6, 200, 6), DIRECTIONS):
            note.set_position((right * distance, up * distance))
            note.set_ha("right" if right < 0 else "left" if right > 0 else "center")
            note.set_va("top" if up < 0 else "bottom" if up > 0 else "center")
            box = _extent(note, renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(_extent(note, renderer))


DIRECTIONS = (
    *((1, 0.3), (1, -0.3), (-1, 0.3), (-1, -0.3), (1, 1), (1, -1), (-1, 1), (-1, -1)),
    *((0.4, 1), (0.4, -1), (-0.4, 1), (-0.4, -1)),
)
"""Where a name may stand beside its point."""


def _extent(note: Any, renderer: Any) -> Bbox:
    """Give the box of a name without the line that leads to it, in pixels."""
    from matplotlib.text import Text

    note.update_positions(renderer)
    return Text.get_window_extent(note, renderer).padded(2)
