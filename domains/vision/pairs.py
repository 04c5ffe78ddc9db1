"""Pair photos with their masks: two folders, or a table of files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import UserError
from core.split_columns import listed
from domains.vision.photos import SUFFIXES

IMAGE_FOLDERS = ("images", "image", "imgs", "photos", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
ENDINGS = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_L")
"""What the name of a mask may have more than that of its photo."""


@dataclass(frozen=True)
class Pair:
    """A photo and its mask.

    Attributes:
        id: its name in results.
        image: the photo.
        mask: the mask.
        facts: columns that a split may go by.
        drawn: height, width and the regions of a photo whose mask is drawn from a COCO file.
    """

    id: str
    image: Path
    mask: Path
    facts: Mapping[str, str] = field(default_factory=dict)
    drawn: tuple[int, int, tuple[Any, ...]] | None = None


def find_pairs(given: Path, masks: Path | None = None) -> list[Pair]:
    """Pair what a folder or a table holds.

    Args:
        given: a CSV with the columns ``image`` and ``mask``, paths below its folder, and any others
            to split by; a folder that holds ``images`` and ``masks``; or a folder of photos.
        masks: the folder of masks, where it is another.

    Raises:
        UserError: if there is none, or a partner is missing.
    """
    if given.is_file() and given.suffix.lower() == ".csv":
        return _from_table(given)
    if not given.is_dir():
        raise UserError(f"{given}: no such folder; give a folder of photos and masks, or a CSV")
    images = given
    if masks is None:
        images, masks = _below(given)
    elif not masks.is_dir():
        raise UserError(f"{masks}: no such folder of masks")
    photos, found = _files(images), _files(masks)
    if not photos or not found:
        raise UserError(
            f"{masks if photos else images}: holds no picture ({', '.join(SUFFIXES)});"
            " give a folder of photos and one of masks"
        )
    return _joined(images, photos, masks, found)


def _below(folder: Path) -> tuple[Path, Path]:
    inside = {path.name: path for path in folder.iterdir() if path.is_dir()}
    images = next((inside[name] for name in IMAGE_FOLDERS if name in inside), None)
    masks = next((inside[name] for name in MASK_FOLDERS if name in inside), None)
    if images is None or masks is None:
        there = f"it holds {listed(sorted(inside))}" if inside else "it holds no folder"
        raise UserError(
            f"{folder}: needs the folders images and masks inside ({there}); or name the masks by"
            " --data.masks"
        )
    return images, masks


def _files(folder: Path) -> dict[str, Path]:
    """List the pictures below a folder by their path without its ending."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise UserError(f"{path}: there is {found[key].name} too; keep one file a name")
        found[key] = path
    return found


def _joined(
    images: Path, photos: Mapping[str, Path], masks: Path, found: Mapping[str, Path]
) -> list[Pair]:
    if not photos.keys() & found.keys():
        for ending in ENDINGS:
            cut = {key.removesuffix(ending): path for key, path in found.items()}
            if len(cut) == len(found) and cut.keys() & photos.keys():
                found = cut
                break
    for here, there, where, what in (
        (photos, found, masks, "mask"),
        (found, photos, images, "photo"),
    ):
        if lacking := sorted(here.keys() - there.keys()):
            raise UserError(
                f"{here[lacking[0]]}: has no {what} of its name in {where} ({len(lacking):,} lack"
                " one); add it, or take the file away"
            )
    return [Pair(key, path, found[key], _facts(key)) for key, path in photos.items()]


def _facts(key: str) -> dict[str, str]:
    """Name what photos may be kept together by: their folder, and the start of their name."""
    folder, _, stem = key.rpartition("/")
    return {"folder": folder or ".", "prefix": re.sub(r"[\W_]*\d+\D*$", "", stem) or stem}


def _from_table(path: Path) -> list[Pair]:
    try:
        frame = pd.read_csv(path, dtype=str)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from None
    for name in ("image", "mask"):
        if name not in frame:
            raise UserError(
                f"{path}: has no column {name!r}; it has {listed(map(str, frame.columns))}"
            )
    if not len(frame):
        raise UserError(f"{path}: holds no row")
    pairs = []
    for line, row in enumerate(frame.to_dict("records"), 2):
        for name in ("image", "mask"):
            if not isinstance(row[name], str) or not (path.parent / row[name]).is_file():
                raise UserError(f"{path}:{line}: {name} {row[name]!r}: no such file")
        facts = {str(k): str(v) for k, v in row.items() if k not in ("image", "mask")}
        image = Path(row["image"])
        more = _facts(image.with_suffix("").as_posix())
        pairs.append(
            Pair(row["image"], path.parent / image, path.parent / row["mask"], {**more, **facts})
        )
    return pairs
