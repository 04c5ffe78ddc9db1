"""Figures of registered pairs: three orthogonal slices of each, and scores before and after."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from domains.medical.deformation import jacobian_determinant
from domains.medical.pairs import PairBatch
from domains.medical.warping import warp

SHOWN = 4
"""Pairs whose slices are kept and drawn."""
LINES = 24
"""Lines of a deformation grid along an axis."""
CHECKS = 6
"""Fields of a checkerboard along the shorter axis."""
TITLES = (
    *("fixed", "moving", "warped", "difference before", "difference after"),
    *("checkerboard", "deformation", "volume change"),
)
_AXES = ("i", "j", "k")


def slices(batch: PairBatch, flow: Tensor, at: int) -> bytes:
    """Keep what is drawn of a pair: of the middle plane of each axis, volumes and displacements."""
    d, h, w = batch.sizes[at].tolist()
    inside = (slice(at, at + 1), slice(None), slice(d), slice(h), slice(w))
    own = flow[inside].float()
    volumes = {
        "moving": batch.moving[inside],
        "fixed": batch.fixed[inside],
        "warped": warp(batch.moving, flow)[inside],
    }
    kept: dict[str, NDArray[Any]] = {}
    determinant = jacobian_determinant(own)[0].cpu()
    for axis, size in enumerate((d, h, w)):
        middle = size // 2
        for name, volume in volumes.items():
            plane = volume[0, 0].select(axis, middle).clamp(0, 1).mul(255).round()
            kept[f"{name}_{axis}"] = plane.to(torch.uint8).cpu().numpy()
        across = [other for other in range(3) if other != axis]
        plane = own[0, across].select(axis + 1, middle)
        kept[f"flow_{axis}"] = plane.cpu().numpy().astype(np.float16)
        kept[f"jacobian_{axis}"] = determinant.select(axis, middle).numpy().astype(np.float16)
    kept["spacing"] = batch.spacing[at].cpu().numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **kept)  # type: ignore[arg-type]
    return buffer.getvalue()


def draw(predictions: Path, folder: Path, labels: Sequence[str]) -> list[Path]:
    """Draw from ``predictions.parquet``: ``registration_N`` of the first pairs, and ``dice``."""
    if not predictions.is_file():
        return []
    table = pq.read_table(predictions)
    figures: dict[str, Figure] = {}
    names = table["name"].to_pylist()
    for number, packed in enumerate(table["slices"].to_pylist()):
        if not packed:
            continue
        with np.load(io.BytesIO(packed), allow_pickle=False) as kept:
            figures[f"registration_{number}"] = _panels(dict(kept), names[number])
    if "dice" in table.column_names:
        before, after = (table[name].to_numpy() for name in ("dice_before", "dice"))
        by_label = np.array(table["dice_by_label"].to_pylist(), float)
        figures["dice"] = _scores(before, after, by_label, labels)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def draw_pair(batch: PairBatch, flow: Tensor, path: Path, name: str) -> None:
    """Draw the first pair of a batch."""
    with np.load(io.BytesIO(slices(batch, flow, 0)), allow_pickle=False) as kept:
        _panels(dict(kept), name).savefig(path, dpi=110)


def _panels(kept: dict[str, NDArray[Any]], name: str) -> Figure:
    """Draw one row a plane: volumes, what they differ by, and how space is deformed."""
    figure = Figure(figsize=(17, 7), layout="constrained")
    panels = figure.subplots(3, len(TITLES))
    changes = [np.abs(kept[f"jacobian_{axis}"].astype(float) - 1).max() for axis in range(3)]
    spread = max(0.25, *changes)
    for axis, row in enumerate(panels):
        # rows of a picture run down, so the second axis of a plane is turned upwards
        planes = {
            key: kept[f"{key}_{axis}"].astype(float).T for key in ("fixed", "moving", "warped")
        }
        across = [other for other in range(3) if other != axis]
        aspect = kept["spacing"][across[1]] / kept["spacing"][across[0]]
        shared: dict[str, Any] = {"origin": "lower", "aspect": aspect}
        gray = {**shared, "cmap": "gray", "vmin": 0, "vmax": 255}
        apart = {**shared, "cmap": "RdBu_r", "vmin": -255, "vmax": 255}
        for cell, key in zip(row, ("fixed", "moving", "warped"), strict=False):
            cell.imshow(planes[key], **gray)
        row[3].imshow(planes["moving"] - planes["fixed"], **apart)
        row[4].imshow(planes["warped"] - planes["fixed"], **apart)
        row[5].imshow(_checkered(planes["fixed"], planes["warped"]), **gray)
        _grid(row[6], kept[f"flow_{axis}"].astype(float), aspect)
        shown = row[7].imshow(
            kept[f"jacobian_{axis}"].astype(float).T,
            **{**shared, "cmap": "PuOr_r", "vmin": 1 - spread, "vmax": 1 + spread},
        )
        for cell in row:
            cell.set_xticks([])
            cell.set_yticks([])
        row[0].set_ylabel(f"middle of axis {_AXES[axis]}", fontsize=9)
    for cell, title in zip(panels[0], TITLES, strict=True):
        cell.set_title(title, fontsize=9)
    figure.colorbar(shown, ax=panels[:, -1], label="determinant (1: none, 0 or less: folds)")
    figure.suptitle(name, fontsize=10)
    return figure


def _checkered(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lay two planes in turn on the fields of a board."""
    rows, columns = np.indices(a.shape)
    side = max(1, min(a.shape) // CHECKS)
    return np.where((rows // side + columns // side) % 2, a, b)


def _grid(axis: Any, flow: NDArray[np.float64], aspect: float) -> None:
    """Draw lines of fixed where they come from in moving; ``flow`` (2, X, Y)."""
    x, y = np.indices(flow.shape[1:]) + flow
    step = max(1, max(flow.shape[1:]) // LINES)
    style: dict[str, Any] = {"color": "#1f4e79", "linewidth": 0.6}
    for number in range(0, x.shape[0], step):
        axis.plot(x[number], y[number], **style)
    for number in range(0, x.shape[1], step):
        axis.plot(x[:, number], y[:, number], **style)
    axis.set_aspect(aspect)
    axis.set_xlim(-0.5, flow.shape[1] - 0.5)
    axis.set_ylim(-0.5, flow.shape[2] - 0.5)


def _scores(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    by_label: NDArray[np.float64],
    labels: Sequence[str],
) -> Figure:
    """Draw the overlap of each pair before and after, and of each label after."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    order = np.argsort(before)
    place = np.arange(len(order))
    left.vlines(place, before[order], after[order], color="#999999", linewidth=1)
    left.plot(place, before[order], "o", color="#b35806", markersize=4, label="before")
    left.plot(place, after[order], "o", color="#1f4e79", markersize=4, label="after")
    left.set_xlabel("pairs of the test, by their overlap before")
    left.set_ylabel("Dice, mean over labels")
    left.set_xticks([])
    left.legend(frameon=False)
    known = [column[np.isfinite(column)] for column in by_label.T]
    right.boxplot(known, tick_labels=list(labels), medianprops={"color": "#1f4e79"})
    right.tick_params(axis="x", rotation=60 if len(labels) > 8 else 0)
    right.set_ylabel("Dice after")
    right.set_xlabel("labels")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure
