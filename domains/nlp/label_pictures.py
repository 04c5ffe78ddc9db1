"""Pictures of a classifier's test: what was taken for what, and how far to trust it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.confusion_picture import confusion_figure
from core.tasks.heads import Head

MOST = 25
"""Labels that a table of confusions shows, the most frequent ones."""


def draw(heads: Sequence[Head], predictions: Path, folder: Path) -> list[Path]:
    """Draw the pictures of each head from ``predictions.parquet``."""
    if not predictions.is_file():
        return []
    frame = pd.read_parquet(predictions)
    made = []
    for head in heads:
        rows = frame[frame[head.metric("label")].notna()]
        if not len(rows):
            continue
        name = head.name.replace("/", "_").replace(" ", "_")
        ending = f"_{name}" if name else ""
        if head.kind == "single":
            made.append(_confusion(head, rows, folder / f"confusion{ending}.png"))
        if head.kind == "multi":
            made.append(_per_label(head, rows, folder / f"f1_by_label{ending}.png"))
        if head.kind == "regression":
            made.append(_scatter(head, rows, folder / f"predicted{ending}.png"))
        else:
            made.append(_reliability(head, rows, folder / f"reliability{ending}.png"))
    return made


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _confusion(head: Head, rows: pd.DataFrame, path: Path) -> Path:
    truth, told = rows[head.metric("label")], rows[head.metric("prediction")]
    frequent = pd.concat([truth, told]).value_counts().index[:MOST]
    labels = [label for label in head.labels if label in frequent]
    table = pd.crosstab(truth, told).reindex(index=labels, columns=labels, fill_value=0).to_numpy()
    figure = confusion_figure(table, labels, "predicted", "true")
    figure.savefig(path, dpi=120)
    return path


def _per_label(head: Head, rows: pd.DataFrame, path: Path) -> Path:
    truth = [set(cell) for cell in rows[head.metric("label")]]
    told = [set(cell) for cell in rows[head.metric("prediction")]]
    scores = []
    for label in head.labels:
        hits = sum(label in a and label in b for a, b in zip(truth, told, strict=True))
        size = sum(label in a for a in truth)
        given = sum(label in b for b in told)
        scores.append((2 * hits / max(size + given, 1), label, size))
    scores.sort()
    figure, axes = _figure(6, max(2.0, 0.4 * len(scores) + 1))
    axes.barh([f"{label} ({size:,})" for _, label, size in scores], [score for score, *_ in scores])
    axes.set_xlim(0, 1)
    axes.set_xlabel("F1 on the test (texts that have the label)")
    figure.savefig(path, dpi=120)
    return path


def _reliability(head: Head, rows: pd.DataFrame, path: Path) -> Path:
    """Draw the accuracy of answers beside their probability, in ten bins of equal size."""
    truth, told = rows[head.metric("label")], rows[head.metric("prediction")]
    right = np.array([_same(a, b) for a, b in zip(truth, told, strict=True)])
    sure = rows[head.metric("probability")].to_numpy()
    bins = np.array_split(np.argsort(sure), min(10, len(sure)))
    figure, axes = _figure(4.2, 4)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    axes.plot([sure[b].mean() for b in bins], [right[b].mean() for b in bins], marker="o")
    low = max(0.0, float(min(sure.min(), min(right[b].mean() for b in bins))) - 0.03)
    axes.set_xlim(low, 1.01)
    axes.set_ylim(low, 1.01)
    axes.set_xlabel("probability of the answer, after temperature")
    axes.set_ylabel("share of right answers (test)")
    figure.savefig(path, dpi=120)
    return path


def _scatter(head: Head, rows: pd.DataFrame, path: Path) -> Path:
    truth, told = rows[head.metric("label")], rows[head.metric("prediction")]
    figure, axes = _figure(4.2, 4)
    axes.scatter(truth, told, s=8, alpha=0.5)
    ends = [float(min(truth.min(), told.min())), float(max(truth.max(), told.max()))]
    axes.plot(ends, ends, color="grey", linewidth=1, linestyle="--")
    axes.set_xlabel(f"{head.labels[0]} (true)")
    axes.set_ylabel("predicted")
    figure.savefig(path, dpi=120)
    return path


def _same(a: Any, b: Any) -> bool:
    return sorted(a) == sorted(b) if hasattr(a, "__len__") and not isinstance(a, str) else a == b
