"""Regions of a mask in COCO's JSON: polygons, and run lengths where a region has holes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

LEAST_AREA = 16
"""Pixels of the smallest region that is written."""


def regions(labels: NDArray[np.uint8], names: Sequence[str], image: str) -> dict[str, Any]:
    """Describe labels (H, W) as one image of a COCO file, an annotation a connected region.

    Regions of fewer than 16 pixels are left out; ``score`` is not given, as there is none.
    """
    height, width = labels.shape
    annotations: list[dict[str, Any]] = []
    for label in np.unique(labels[labels < len(names)]).tolist():
        for outline, holes in _outlines(labels == label):
            area = _area(outline) - sum(_area(hole) for hole in holes)
            if area < LEAST_AREA:
                continue
            low, high = outline.min(0), outline.max(0)
            found: Any = [outline.ravel().round(1).tolist()]
            if holes:
                found = run_lengths(_filled(outline, holes, (height, width)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 1,
                    "category_id": label + 1,
                    "segmentation": found,
                    "area": round(float(area), 1),
                    "bbox": [*low.round(1).tolist(), *(high - low).round(1).tolist()],
                    "iscrowd": 1 if holes else 0,
                }
            )
    return {
        "images": [{"id": 1, "file_name": image, "height": height, "width": width}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
        "annotations": annotations,
    }


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Write a mask (H, W) as COCO's uncompressed run lengths, down the columns, zeros first.

    Example:
        >>> run_lengths(np.array([[False, True], [True, True]]))
        {'size': [2, 2], 'counts': [1, 3]}
    """
    flat = mask.T.ravel()
    borders = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    ends = np.concatenate([[0], borders, [len(flat)]])
    counts = np.diff(ends).tolist()
    if len(flat) and flat[0]:
        counts = [0, *counts]
    return {"size": list(mask.shape), "counts": counts}


def _outlines(mask: NDArray[np.bool_]) -> list[tuple[NDArray[Any], list[NDArray[Any]]]]:
    """Trace the regions of a mask: their outlines (n, 2) in pixels x, y, and those of holes."""
    framed = np.pad(mask, 1).astype(np.float32)
    tracer = contour_generator(z=framed, fill_type=FillType.OuterOffset)
    traced: Any = tracer.filled(0.5, 2.0)
    found = []
    for own, ends in zip(*traced, strict=True):
        parts = [own[a:b] - 0.5 for a, b in pairwise(ends)]
        found.append((parts[0][:-1], [part[:-1] for part in parts[1:]]))
    return found


def _area(outline: NDArray[Any]) -> float:
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _filled(
    outline: NDArray[Any], holes: Sequence[NDArray[Any]], size: tuple[int, int]
) -> NDArray[np.bool_]:
    from PIL import Image, ImageDraw

    image = Image.new("1", (size[1], size[0]))
    pen = ImageDraw.Draw(image)
    pen.polygon([tuple(point) for point in (outline - 0.5).tolist()], fill=1)
    for hole in holes:
        pen.polygon([tuple(point) for point in (hole - 0.5).tolist()], fill=0)
    return np.asarray(image)
