"""Figures of a test: confusions, what a threshold costs, which kinds of attacks are found."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from core.confusion_picture import confusion_figure

MOST = 40
"""Kinds that a figure shows, the most frequent ones."""
POINTS = 500
"""The most points of a curve."""


def draw(
    predictions: Path, folder: Path, classes: Sequence[str], unseen: Sequence[str]
) -> list[Path]:
    """Draw from ``predictions.parquet``, and write ``recall_by_attack.csv``.

    Args:
        predictions: what the test left.
        folder: takes ``confusion``, ``thresholds`` and ``recall_by_attack``.
        classes: the names of the classes, benign first.
        unseen: the attacks that training lacks.

    Returns:
        The pictures; of ``recall_by_attack`` there is none where no attack was tested.
    """
    if not predictions.is_file():
        return []
    frame = pq.read_table(predictions).to_pandas()
    figures = {
        "confusion": _confusion(frame, classes),
        "thresholds": _thresholds(frame, classes[0]),
    }
    table = by_attack(frame, classes[0], unseen)
    if len(table):
        with (folder / "recall_by_attack.csv").open("w", encoding="utf-8", newline="") as file:
            table.to_csv(file, float_format="%.6g", quoting=csv.QUOTE_MINIMAL)
        figures["recall_by_attack"] = _recalls(table.iloc[:MOST])
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def by_attack(frame: pd.DataFrame, benign: str, unseen: Sequence[str]) -> pd.DataFrame:
    """Count for each kind of attack in a test how much of it was found.

    Args:
        frame: the columns of ``predictions.parquet``.
        benign: the name of the benign class.
        unseen: the attacks that training lacks.

    Returns:
        By falling number of ``flows``: ``recall`` at the threshold 0.5, ``recall_at_budget``, and
        whether the kind is ``in_training``.
    """
    attacks = frame[frame["label"] != benign]
    found = (attacks["prediction"] != benign).groupby(attacks["attack"].astype(str))
    table = pd.DataFrame(
        {
            "flows": found.size(),
            "recall": found.mean(),
            "recall_at_budget": attacks["alert"].groupby(attacks["attack"].astype(str)).mean(),
        }
    )
    table["in_training"] = ~table.index.isin(list(unseen))
    return table.sort_values("flows", ascending=False, kind="stable")


def _recalls(table: pd.DataFrame) -> Figure:
    shown = table[::-1]
    figure = Figure(figsize=(6.8, 1.4 + 0.24 * len(shown)), layout="constrained")
    axis = figure.subplots()
    colors = np.where(shown["in_training"], "#4477aa", "#ee7733")
    names = [
        f"{name}{'' if row.in_training else ' *'} ({row.flows:,})"
        for name, row in zip(shown.index, shown.itertuples(), strict=True)
    ]
    bars = axis.barh(names, shown["recall"], color=colors)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
    axis.plot(shown["recall_at_budget"], names, "k|", markersize=9, label="at the budget")
    axis.set_xlim(0, 1.1)
    axis.set_xlabel("share found at the threshold 0.5 (* not in training, orange)")
    axis.tick_params(axis="y", labelsize=8)
    axis.legend(loc="lower right", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _confusion(frame: pd.DataFrame, classes: Sequence[str]) -> Figure:
    truth, told = (pd.Categorical(frame[key], list(classes)) for key in ("label", "prediction"))
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (truth.codes, told.codes), 1)
    chosen = np.sort(np.argsort(-counts.sum(1), kind="stable")[:MOST])
    names = [classes[n] for n in chosen]
    shown = counts[np.ix_(chosen, chosen)]
    figure: Figure = confusion_figure(shown, names, "taken for (threshold 0.5)", "in the test")
    return figure


def _thresholds(frame: pd.DataFrame, benign: str) -> Figure:
    """Draw precision over recall, and recall and false alarms over the threshold."""
    attack = (frame["label"] != benign).to_numpy()
    score = frame["score"].to_numpy()
    order = np.argsort(-score, kind="stable")
    score, attack = score[order], attack[order]
    ends = np.flatnonzero(np.append(score[1:] != score[:-1], True))
    if len(ends) > POINTS:
        ends = ends[np.linspace(0, len(ends) - 1, POINTS).round().astype(int)]
    found, false = np.cumsum(attack)[ends], np.cumsum(~attack)[ends]
    recall, alarms = found / max(attack.sum(), 1), false / max((~attack).sum(), 1)
    logit = np.log(score[ends].clip(1e-12)) - np.log((1 - score[ends]).clip(1e-12))
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(recall, found / (found + false), color="#4477aa")
    left.axhline(attack.mean(), color="#999999", linewidth=0.8, linestyle=":")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    right.plot(logit, recall, color="#4477aa", label="recall (detection rate)")
    right.plot(logit, alarms, color="#ee7733", label="false alarm rate")
    right.axvline(0, color="#555555", linewidth=0.8, label="threshold 0.5")
    quiet = frame.loc[~frame["alert"], "score"]
    if 0 < (highest := quiet.max()) < 1:
        right.axvline(
            np.log(highest / (1 - highest)),
            *(0, 1),
            color="#555555",
            linewidth=0.8,
            linestyle="--",
            label="budget",
        )
    right.set(xlabel="threshold (logit of the score)", ylim=(0, 1.02))
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure
