"""Figures of segmentation: masks over photos, confusions, scores by class."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from domains.vision.class_file import VOID, Classes
from domains.vision.examples import SegmentationSet

STRENGTH = 0.55
"""How much of a pixel of an overlay is the colour of its class."""
SHOWN = 4
MOST = 30
"""Classes that a figure shows."""


def draw(predictions: Path, folder: Path, classes: Classes, photos: SegmentationSet) -> list[Path]:
    """Draw from ``predictions.parquet``: ``iou_by_class``, ``confusion`` and ``overlays``."""
    if not predictions.is_file():
        return []
    table = pq.read_table(predictions, columns=["truth", "predicted", "pixels", "pixel_accuracy"])
    counts = np.zeros((len(classes), len(classes)), np.int64)
    columns = (table[name].combine_chunks().flatten().to_numpy() for name in table.column_names[:3])
    truth, found, pixels = columns
    np.add.at(counts, (truth, found), pixels)
    paths = []
    figures = {"iou_by_class": _scores(counts, classes), "confusion": _confusion(counts, classes)}
    accuracy = table["pixel_accuracy"].to_numpy()
    chosen = spread(accuracy)
    masks = pq.read_table(predictions, columns=["mask"])["mask"]
    rows = [(int(n), Image.open(io.BytesIO(masks[int(n)].as_py())), accuracy[n]) for n in chosen]
    figures["overlays"] = _gallery(
        [(photos, number, np.asarray(mask), score) for number, mask, score in rows], classes
    )
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def spread(accuracy: NDArray[np.float64]) -> NDArray[np.intp]:
    """Choose photos from the best to the worst; those without a labelled pixel have none."""
    order = np.argsort(-accuracy)[: np.isfinite(accuracy).sum()]
    chosen: NDArray[np.intp] = order[
        np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)
    ]
    return chosen


def overlay(
    pixels: NDArray[np.uint8], labels: NDArray[np.uint8], classes: Classes
) -> NDArray[np.uint8]:
    """Lay the colours of labels (H, W) over a photo (H, W, 3); void stays as it is."""
    table = np.zeros((VOID + 1, 3), np.uint16)
    table[: len(classes)] = classes.colors
    share = round(256 * STRENGTH)
    mixed = (pixels.astype(np.uint16) * (256 - share) + table[labels] * share) >> 8
    void = labels == VOID
    mixed[void] = pixels[void]
    return mixed.astype(np.uint8)


def _scores(counts: NDArray[np.int64], classes: Classes) -> Figure:
    right = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - right
    there = np.flatnonzero(union)
    score = right[there] / union[there]
    order = np.argsort(-score)[:MOST][::-1]
    shares = counts.sum(1)[there] / max(counts.sum(), 1)
    figure = Figure(figsize=(6.5, 1.2 + 0.3 * len(order)), layout="constrained")
    axis = figure.subplots()
    names = [f"{classes.names[there[n]]} ({shares[n]:.1%})" for n in order]
    colors = [np.array(classes.colors[there[n]]) / 255 for n in order]
    bars = axis.barh(names, score[order], color=colors, edgecolor="#555555", linewidth=0.6)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axis.set_xlim(0, 1.08)
    axis.set_xlabel("intersection over union (share of the pixels)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _confusion(counts: NDArray[np.int64], classes: Classes) -> Figure:
    chosen = np.argsort(-counts.sum(1), kind="stable")[:MOST]
    own = counts[np.ix_(chosen, chosen)]
    shares = own / np.maximum(counts.sum(1)[chosen], 1)[:, None]
    names = [classes.names[n] for n in chosen]
    size = 2.6 + 0.42 * len(names)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    for row, column in np.argwhere(shares >= 0.01):
        share = shares[row, column]
        axis.text(
            *(column, row, f"{100 * share:.0f}"),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if share > 0.5 else "black",
        )
    axis.set_xlabel("predicted")
    axis.set_ylabel("in the test")
    figure.colorbar(image, label="share of the row (numbers: percent)", shrink=0.7)
    return figure


def _gallery(
    rows: Sequence[tuple[SegmentationSet, int, NDArray[np.uint8], float]], classes: Classes
) -> Figure:
    figure = Figure(figsize=(11, 2.9 * len(rows) + 0.8), layout="constrained")
    panels = figure.subplots(len(rows), 3, squeeze=False)
    seen: set[int] = set()
    for axes, (photos, number, mask, score) in zip(panels, rows, strict=True):
        example = photos[number]
        pixels = example.image.permute(1, 2, 0).numpy()
        truth = example.labels.numpy()
        seen |= set(np.unique(truth).tolist()) | set(np.unique(mask).tolist())
        told = (example.id, "truth", f"prediction: {score:.0%} of pixels")
        shown = (pixels, overlay(pixels, truth, classes), overlay(pixels, mask, classes))
        for axis, image, title in zip(axes, shown, told, strict=True):
            axis.imshow(image)
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    legend(figure, classes, sorted(seen - {VOID}))
    return figure


def legend(figure: Figure, classes: Classes, labels: Sequence[int]) -> None:
    """Name the colours of labels below a figure."""
    patches = [
        Patch(color=np.array(classes.colors[n]) / 255, label=classes.names[n])
        for n in labels[:MOST]
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def sample_picture(path: Path, photos: SegmentationSet, shares: NDArray[np.float64]) -> None:
    """Draw photos of a set under their masks, and the share of the pixels of each class."""
    classes = photos.classes
    figure = Figure(figsize=(11, 8), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(2, 1))
    upper, lower = halves
    chosen = np.linspace(0, len(photos) - 1, min(6, len(photos))).astype(int).tolist()
    panels = upper.subplots(2, 3, squeeze=False).ravel()
    for axis in panels:
        axis.set_axis_off()
    for axis, number in zip(panels, chosen, strict=False):
        example = photos[number]
        pixels = example.image.permute(1, 2, 0).numpy()
        axis.imshow(overlay(pixels, example.labels.numpy(), classes))
        axis.set_title(example.id, fontsize=8)
    axis = lower.subplots()
    order = np.argsort(-shares[:-1], kind="stable")[:MOST]
    bars = axis.bar(
        [classes.names[n] for n in order],
        100 * shares[order],
        color=[np.array(classes.colors[n]) / 255 for n in order],
        edgecolor="#555555",
        linewidth=0.6,
    )
    axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axis.tick_params(axis="x", rotation=60)
    axis.set_ylabel(f"% of pixels (void {shares[-1]:.1%})")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
