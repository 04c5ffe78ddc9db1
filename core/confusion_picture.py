"""The picture of what a classifier took for what."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion_figure(counts: NDArray[np.int64], names: Sequence[str], given: str, true: str) -> Any:
    """Draw counts with the share of their row as colour.

    Args:
        counts: (K, K), a row a true class.
        names: of the K classes.
        given: what the columns are.
        true: what the rows are.

    Returns:
        A figure of matplotlib.
    """
    from matplotlib.figure import Figure

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(3.5, 0.55 * len(names) + 2)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel(given)
    axes.set_ylabel(true)
    figure.colorbar(image, ax=axes, label="share of the row")
    return figure
