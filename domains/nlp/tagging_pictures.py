"""Figures of tags: how well each type is found, what is taken for what."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from domains.nlp.spans import NO_TAG, SpanScore, marks_spans

PRECISION, RECALL, F1 = "#56B4E9", "#E69F00", "#0072B2"  # Okabe and Ito
MOST = 25
"""Types or tags that a figure shows."""


def draw(predictions: Path, folder: Path, heads: Sequence[tuple[str, Sequence[str]]]) -> list[Path]:
    """Draw a figure for each head from ``predictions.parquet``.

    Args:
        predictions: rows with lists of ``gold`` and ``predicted`` tags.
        folder: where the pictures go.
        heads: the name and the labels of each.
    """
    if not predictions.is_file():
        return []
    paths = []
    for name, labels in heads:
        end = f"_{name}" if name else ""
        table = pq.read_table(predictions, columns=[f"gold{end}", f"predicted{end}"])
        gold, found = (column.to_pylist() for column in table.columns)
        spans = marks_spans(labels)
        figure = _types(gold, found, labels) if spans else _confusion(gold, found)
        path = folder / f"{'f1_by_type' if spans else 'confusion'}{end}.png"
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def count_picture(path: Path, counts: Mapping[str, Counter[str]]) -> None:
    """Draw how often each tag or type was given, a panel a head."""
    height = sum(1.1 + 0.28 * min(len(counter), MOST) for counter in counts.values())
    figure = Figure(figsize=(7, max(height, 1.6)), layout="constrained")
    panels = figure.subplots(len(counts), 1, squeeze=False)[:, 0]
    for axis, (name, counter) in zip(panels, counts.items(), strict=True):
        shown = counter.most_common(MOST)[::-1]
        bars = axis.barh([tag for tag, _ in shown], [count for _, count in shown], color=F1)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9)
        axis.margins(x=0.12)
        axis.set_title(f"{name} given", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _types(
    gold: Sequence[Sequence[str | None]],
    found: Sequence[Sequence[str]],
    labels: Sequence[str],
) -> Figure:
    """Show precision, recall and F1 of each type of span, the most frequent first."""
    score = SpanScore(labels)
    number: dict[str | None, int] = {label: index for index, label in enumerate(labels)}
    for truth, guess in zip(gold, found, strict=True):
        target = torch.tensor([[number.get(tag, NO_TAG) for tag in truth]])
        score.update(torch.tensor([[number[tag] for tag in guess]]), target)
    types = sorted(score.per_type().items(), key=lambda item: -item[1]["spans"])[:MOST]
    figure = Figure(figsize=(max(4.0, 1.6 + 1.1 * len(types)), 3.8), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(types))
    for shift, key, color in ((-1, "precision", PRECISION), (0, "recall", RECALL), (1, "f1", F1)):
        heights = [values[key] for _, values in types]
        bars = axis.bar(places + 0.27 * shift, heights, 0.25, color=color, label=key)
        if key == "f1":
            axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axis.set_xticks(places, [f"{name}\n{int(values['spans']):,}" for name, values in types])
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("type, and how many there are in the test")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def _confusion(gold: Sequence[Sequence[str | None]], found: Sequence[Sequence[str]]) -> Figure:
    """Show what share of the words of a tag is given which tag, the most frequent tags first."""
    pairs = Counter(
        (truth, guess)
        for truths, guesses in zip(gold, found, strict=True)
        for truth, guess in zip(truths, guesses, strict=True)
        if truth is not None
    )
    support: Counter[str] = Counter()
    for (truth, _), count in pairs.items():
        support[truth] += count
    given = {guess for _, guess in pairs} - support.keys()
    rows = [tag for tag, _ in support.most_common(MOST)]
    columns = rows + sorted(given)[: MOST - len(rows)]
    shares: NDArray[np.float64] = np.array(
        [[pairs[truth, guess] / support[truth] for guess in columns] for truth in rows]
    ).reshape(len(rows), len(columns))
    size = 2.4 + 0.42 * len(columns)
    figure = Figure(figsize=(size + 0.8, 1.6 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(columns)), columns, rotation=90)
    axis.set_yticks(range(len(rows)), [f"{tag} ({support[tag]:,})" for tag in rows])
    for row, column in np.argwhere(shares >= 0.01):
        share = shares[row, column]
        color = "white" if share > 0.5 else "black"
        told = f"{100 * share:.0f}"
        axis.text(column, row, told, ha="center", va="center", fontsize=7, color=color)
    axis.set_xlabel("predicted")
    axis.set_ylabel("in the test")
    figure.colorbar(image, label="share of the row (numbers: percent)", shrink=0.8)
    return figure
