"""Read COCO's JSON: regions as polygons or run lengths, and panoptic PNGs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from core.errors import UserError
from core.openers import read_text
from domains.vision.class_file import VOID, Classes, make_classes
from domains.vision.masks import read_values
from domains.vision.pairs import Pair

LIMIT_BYTES = 2**31
"""The largest annotation file that is read."""
BACKGROUND = "background"
FINE = 5
"""Steps a pixel in which polygons are filled, of which the middle one counts."""


class Region(NamedTuple):
    """A segment of one image: its class, whether it is a crowd, and its outline or number."""

    label: int
    crowd: bool
    shape: Any


def read_coco(path: Path, images: Path | None = None) -> tuple[Classes, list[Pair]]:
    """Read an annotation file of COCO, of instances or panoptic.

    Pixels without an annotation are of a class ``background``, which is put first, whether the file
    has it or not; in a panoptic file they are void.

    Args:
        path: the JSON; of a panoptic one the PNGs lie in the folder of the same name.
        images: the folder of the photos; None takes ``images`` beside the file, or its folder.

    Raises:
        UserError: if the file is no such JSON, or an image or a category is missing.
    """
    content = _content(path)
    folder = images or next((p for p in (path.parent / "images",) if p.is_dir()), path.parent)
    panoptic = any("segments_info" in each for each in content["annotations"])
    categories = sorted(
        content["categories"],
        key=lambda each: (not panoptic and each.get("name") != BACKGROUND, int(each["id"])),
    )
    names = [str(each["name"]) for each in categories]
    things = [bool(each.get("isthing", True)) for each in categories]
    added = not panoptic and BACKGROUND not in names
    if added:
        names, things = [BACKGROUND, *names], [False, *things]
    elif not panoptic:
        things[0] = False
    classes = make_classes(names, things=things)
    label_of = {int(each["id"]): n + added for n, each in enumerate(categories)}
    regions: dict[Any, list[Region]] = {each["id"]: [] for each in content["images"]}
    for each in content["annotations"]:
        if each.get("image_id") not in regions:
            raise UserError(f"{path}: an annotation is of image {each.get('image_id')!r}, unknown")
        for part in each["segments_info"] if panoptic else [each]:
            if part.get("category_id") not in label_of:
                raise UserError(f"{path}: the category {part.get('category_id')!r} is unknown")
            shape = part["id"] if panoptic else part.get("segmentation")
            crowd = bool(part.get("iscrowd", 0))
            regions[each["image_id"]].append(Region(label_of[part["category_id"]], crowd, shape))
    masks = {each["image_id"]: each.get("file_name") for each in content["annotations"]}
    pairs = []
    for image in content["images"]:
        own = folder / image["file_name"]
        if not own.is_file():
            raise UserError(f"{own}: no such file, though {path} names it; see --data.images")
        mask = path.with_suffix("") / str(masks.get(image["id"])) if panoptic else path
        drawn = (int(image["height"]), int(image["width"]), tuple(regions[image["id"]]))
        key = Path(image["file_name"]).with_suffix("").as_posix()
        pairs.append(Pair(key, own, mask, {"folder": str(Path(key).parent)}, drawn))
    if not pairs:
        raise UserError(f"{path}: names no image")
    return classes, pairs


def drawn_labels(pair: Pair) -> NDArray[np.uint8]:
    """Draw the labels (H, W) of a pair; smaller regions lie over larger ones, crowds are void.

    Raises:
        UserError: if a region is out of form.
    """
    numbers, regions = drawn_segments(pair)
    void = np.uint8(VOID if pair.mask.suffix.lower() == ".png" else 0)
    table = np.array([void, *(VOID if r.crowd else r.label for r in regions)], np.uint8)
    return table[numbers]


def drawn_segments(pair: Pair) -> tuple[NDArray[np.int32], tuple[Region, ...]]:
    """Draw the number of each pixel's region (H, W), from 1; 0 where there is none."""
    assert pair.drawn is not None
    height, width, regions = pair.drawn
    numbers = np.zeros((height, width), np.int32)
    if pair.mask.suffix.lower() == ".png":
        colors = read_values(pair.mask).astype(np.int64)
        ids = colors if colors.ndim == 2 else colors @ np.array([1, 256, 65536])
        for number, region in enumerate(regions, 1):
            numbers[ids == region.shape] = number
        return numbers, regions
    shapes = [_mask(region.shape, (height, width), pair) for region in regions]
    for number in sorted(range(len(shapes)), key=lambda n: -int(shapes[n].sum())):
        numbers[shapes[number]] = number + 1
    return numbers, regions


def _mask(shape: Any, size: tuple[int, int], pair: Pair) -> NDArray[np.bool_]:
    """Fill polygons, or undo run lengths."""
    if isinstance(shape, Mapping):
        counts = shape.get("counts")
        runs = unpacked(counts) if isinstance(counts, str) else list(counts or ())
        if list(shape.get("size", ())) != list(size) or sum(runs) != size[0] * size[1]:
            raise UserError(
                f"{pair.mask}: run lengths of {pair.id} do not fill {size[1]}x{size[0]} pixels"
            )
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        return flat.reshape(size[::-1]).T.astype(bool)
    mask = np.zeros(size, bool)
    for polygon in shape if isinstance(shape, Sequence) else ():
        if len(polygon) < 6 or len(polygon) % 2:
            raise UserError(f"{pair.mask}: a polygon of {pair.id} has {len(polygon)} numbers")
        points = np.array(polygon, float).reshape(-1, 2)  # x, y
        left, top = np.floor(points.min(0)).astype(int).clip(0).tolist()
        right, bottom = np.ceil(points.max(0)).astype(int).clip(max=size[::-1]).tolist()
        if right <= left or bottom <= top:
            continue
        canvas = Image.new("1", (FINE * (right - left), FINE * (bottom - top)))
        moved = FINE * (points - (left, top)) - 0.5
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in moved.tolist()], fill=1)
        middle = slice(FINE // 2, None, FINE)
        mask[top:bottom, left:right] |= np.asarray(canvas)[middle, middle]
    return mask


def unpacked(text: str) -> list[int]:
    """Undo the compression of COCO's run lengths: 5 bits a letter, differences from the third on.

    Example:
        >>> unpacked("13")
        [1, 3]
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text.encode():
        code = letter - 48
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path, LIMIT_BYTES))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid JSON ({error})") from None
    wanted = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(k), list) for k in wanted):
        raise UserError(f"{path}: is no COCO file; it needs the lists {', '.join(wanted)}")
    return content
