"""Which photos leave a network early: a gallery in the order of their exit."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

MOST = 4
"""Photos that a row shows of each stretch of depths."""
ROWS = 8


def draw(predictions: Path, folder: Path, image: Callable[[int], Tensor]) -> list[Path]:
    """Draw ``exit_depth`` from ``predictions.parquet``: photos by exit, the earliest on top.

    A row shows photos of one exit, or of neighbouring ones where there are many; the first of a
    row are those in which most pixels were right. Nothing is drawn where all left at one exit.

    Args:
        predictions: the file.
        folder: for the picture.
        image: gives the photo (3, H, W) of a row of the test.
    """
    if not predictions.is_file() or "exit" not in pq.read_schema(predictions).names:
        return []
    table = pq.read_table(predictions, columns=["id", "exit", "pixel_accuracy"])
    frame = (
        table.to_pandas().dropna().sort_values(["exit", "pixel_accuracy"], ascending=[True, False])
    )
    depths = frame["exit"].to_numpy(float)
    if not len(depths) or depths[0] == depths[-1]:
        return []
    groups = grouped(depths)
    figure = Figure(figsize=(2.8 * MOST, 2.6 * len(groups)), layout="constrained")
    parts = np.atleast_1d(np.array(figure.subfigures(len(groups), 1), dtype=object))
    for part, group in zip(parts, groups, strict=True):
        own = frame.iloc[group]
        low, high = own["exit"].min(), own["exit"].max()
        told = f"{low:g}" if low == high else f"{low:.2f} to {high:.2f}"
        right = own["pixel_accuracy"].mean()
        part.suptitle(
            f"exit {told}: {len(own):,} of {len(frame):,} photos, {right:.0%} of pixels right",
            fontsize=10,
        )
        axes = part.subplots(1, MOST)
        for axis in axes:
            axis.set_axis_off()
        shown = np.linspace(0, len(own) - 1, min(MOST, len(own))).astype(int)
        for axis, (_, row) in zip(axes, own.iloc[shown].iterrows(), strict=False):
            axis.imshow(image(int(row["id"])).permute(1, 2, 0).numpy())
            axis.set_title(f"exit {row['exit']:.3g}, {row['pixel_accuracy']:.0%}", fontsize=9)
    path = folder / "exit_depth.png"
    figure.savefig(path, dpi=100)
    return [path]


def grouped(depths: NDArray[np.float64]) -> Sequence[NDArray[np.intp]]:
    """Put sorted depths (n,) into at most 8 groups: one a depth, or as many photos in each.

    Example:
        >>> [group.tolist() for group in grouped(np.array([1.0, 1.0, 3.0]))]
        [[0, 1], [2]]
    """
    distinct, counts = np.unique(depths, return_counts=True)
    places = np.arange(len(depths))
    if len(distinct) <= ROWS:
        return np.split(places, np.cumsum(counts)[:-1])
    return np.array_split(places, ROWS)
