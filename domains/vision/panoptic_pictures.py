"""Figures of panoptic segmentation: segments over photos."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from domains.vision import exit_gallery
from domains.vision.class_file import VOID, Classes
from domains.vision.pictures import STRENGTH, legend, spread

if TYPE_CHECKING:
    from domains.vision.panoptic_data import PanopticExample

SHADES = 5
"""Brightnesses that segments of one class take in turn."""


def draw(
    predictions: Path, folder: Path, classes: Classes, example: Callable[[int], "PanopticExample"]
) -> list[Path]:
    """Draw from ``predictions.parquet`` photos with their segments, and which left early.

    ``overlays`` shows photos, their segments and those found.

    Args:
        predictions: the file.
        folder: for the pictures.
        classes: of the segments.
        example: gives the photo of a row.
    """
    if not predictions.is_file():
        return []
    accuracy = pq.read_table(predictions, columns=["pixel_accuracy"])["pixel_accuracy"].to_numpy()
    chosen = spread(accuracy)
    if not len(chosen):
        return []
    table = pq.read_table(predictions, columns=["id", "mask", "labels"]).take(chosen).to_pylist()
    figure = Figure(figsize=(9, 2.9 * len(table) + 0.8), layout="constrained")
    panels = figure.subplots(len(table), 3, squeeze=False)
    seen: set[int] = set()
    for axes, row, number in zip(panels, table, chosen, strict=True):
        shown = example(int(row["id"]))
        pixels = shown.image.permute(1, 2, 0).numpy()
        codes = shown.codes.numpy()
        truth = np.where(codes == VOID, 0, codes - (codes > VOID))
        found = np.asarray(Image.open(io.BytesIO(row["mask"]))).astype(np.int64)
        labels = shown.classes.tolist()
        seen |= {*labels, *row["labels"]}
        told = (shown.id, "truth", f"found: {accuracy[number]:.0%} of pixels")
        images = (
            pixels,
            segment_overlay(pixels, truth, labels, classes),
            segment_overlay(pixels, found, row["labels"], classes),
        )
        for axis, image, title in zip(axes, images, told, strict=True):
            axis.imshow(image)
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
    legend(figure, classes, sorted(seen))
    path = folder / "overlays.png"
    figure.savefig(path, dpi=110)
    return [path, *exit_gallery.draw(predictions, folder, lambda n: example(n).image)]


def segment_overlay(
    pixels: NDArray[np.uint8], numbers: NDArray[np.int64], labels: Sequence[int], classes: Classes
) -> NDArray[np.uint8]:
    """Lay segments (H, W), numbered from 1, over a photo (H, W, 3); each has a white border.

    The colour is the class's, in another brightness for each of its segments; void stays as it is.
    """
    colors = np.zeros((len(labels) + 1, 3))
    met: dict[int, int] = {}
    for number, label in enumerate(labels, 1):
        met[label] = met.get(label, -1) + 1
        shade = 1 - 0.12 * (met[label] % SHADES)
        colors[number] = np.array(classes.colors[label]) * shade
    mixed = pixels * (1 - STRENGTH) + colors[numbers] * STRENGTH
    mixed[numbers == 0] = pixels[numbers == 0]
    border = np.zeros(numbers.shape, bool)
    border[:, 1:] |= numbers[:, 1:] != numbers[:, :-1]
    border[1:] |= numbers[1:] != numbers[:-1]
    mixed[border] = 255
    return np.rint(mixed).astype(np.uint8)
