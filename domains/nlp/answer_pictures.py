"""A figure of where answers are right."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

F1, EXACT = "#0072B2", "#D55E00"  # Okabe and Ito
LENGTHS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, None))
"""Words in the gold answer: the groups of the first panel."""


def draw(predictions: Path, folder: Path) -> list[Path]:
    """Draw F1 and exact match by the length of the answer and of the text.

    Args:
        predictions: ``predictions.parquet`` of the task.
        folder: where the picture goes.
    """
    if not predictions.is_file():
        return []
    columns = ["gold", "exact_match", "f1", "context_characters"]
    frame = pd.read_parquet(predictions, columns=columns)
    frame = frame[frame["gold"] != ""]
    if frame.empty:
        return []
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, frame, _by_answer(frame), "words in the gold answer")
    _panel(right, frame, _by_context(frame), "characters in the text")
    left.set_ylabel("mean over questions")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", frameon=False, ncols=2)
    figure.suptitle(
        "Answers by length (whiskers: twice the standard error)", x=0.01, ha="left", fontsize=11
    )
    path = folder / "answers.png"
    figure.savefig(path, dpi=110)
    return [path]


def _by_answer(frame: pd.DataFrame) -> "pd.Series[str]":
    """Name the group of each question by the words of its answer."""
    words = frame["gold"].map(lambda gold: len(gold.split()))
    names = pd.Series("", frame.index)
    for low, high in LENGTHS:
        name = f"{low}+" if high is None else (f"{low}" if low == high else f"{low}-{high}")
        names[(words >= low) & (words <= (high or np.inf))] = name
    return names


def _by_context(frame: pd.DataFrame) -> "pd.Series[str]":
    """Name the group of each question by its text's length: fifths of the questions."""
    length = frame["context_characters"]
    edges = np.unique(np.quantile(length, np.linspace(0, 1, 6)).astype(int))
    place = np.searchsorted(edges[1:-1], length, side="left")
    firsts = [edges[0], *(edges[1:-1] + 1)]
    names = [f"{a:,}-{b:,}" for a, b in zip(firsts, edges[1:], strict=False)]
    return pd.Series([names[n] if names else f"{edges[0]:,}" for n in place], frame.index)


def _panel(axis: Axes, frame: pd.DataFrame, groups: "pd.Series[str]", label: str) -> None:
    """Draw the means of each group, in the order of the lengths."""
    order = {name: float(name.split("-")[0].strip("+").replace(",", "")) for name in groups}
    names = sorted(order, key=lambda name: order[name])
    places = np.arange(len(names))
    for offset, column, colour in ((-0.19, "f1", F1), (0.19, "exact_match", EXACT)):
        grouped = frame[column].groupby(groups)
        mean, error = grouped.mean()[names], (2 * grouped.sem().fillna(0))[names]
        name = {"f1": "F1", "exact_match": "exact match"}[column]
        axis.bar(places + offset, mean, 0.36, color=colour, label=name)
        axis.errorbar(places + offset, mean, error, fmt="none", ecolor="#333333", elinewidth=1)
    counts = groups.value_counts()
    axis.set_xticks(places, [f"{name}\nn={counts[name]:,}" for name in names], fontsize=8)
    axis.set_xlabel(label)
    axis.set_ylim(0, 1)
    axis.spines[["top", "right"]].set_visible(False)
