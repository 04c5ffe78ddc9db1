"""Regions of a mask in COCO's JSON: polygons, and run lengths where a region has holes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from scipy import ndimage

LEAST_AREA = 16
"""Pixels of the smallest region that is written."""


def regions(labels: NDArray[np.uint8], names: Sequence[str], image: str) -> dict[str, Any]:
    """Describe labels (H, W) as one image of a COCO file, an annotation a connected region.

    Regions of fewer than 16 pixels are left out; ``score`` is not given, as there is none.
    """
    height, width = labels.shape
    annotations: list[dict[str, Any]] = []
    for label in np.unique(labels[labels < len(names)]).tolist():
        numbered, _ = ndimage.label(labels == label)
        for number, box in enumerate(ndimage.find_objects(numbered), 1):
            mask = numbered[box] == number
            if (area := int(mask.sum())) < LEAST_AREA:
                continue
            top, left = box[0].start, box[1].start
            outlines = _outlines(mask, left, top)
            whole = [outline for outline, holes in outlines if not holes]
            found: Any = [outline.ravel().tolist() for outline in whole]
            if len(whole) < len(outlines):
                found = run_lengths(numbered == number)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 1,
                    "category_id": label + 1,
                    "segmentation": found,
                    "area": area,
                    "bbox": [left, top, mask.shape[1], mask.shape[0]],
                    "iscrowd": 0,  # COCO's crowds are not learnt, run lengths of others are
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


def _outlines(mask: NDArray[np.bool_], left: int, top: int) -> list[tuple[NDArray[Any], bool]]:
    """Trace a region: its outlines (n, 2) in pixels x, y, and whether they have holes."""
    tracer = contour_generator(z=np.pad(mask, 1).astype(np.float32), fill_type=FillType.OuterOffset)
    traced: Any = tracer.filled(0.5, 2.0)
    shift = np.array([left - 0.5, top - 0.5])
    return [(own[: ends[1] - 1] + shift, len(ends) > 2) for own, ends in zip(*traced, strict=True)]
