"""Find a user's scans: in a folder, or in a CSV of scans or of pairs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from core.errors import UserError
from core.split_columns import listed
from domains.medical.scans import Scan
from domains.medical.volumes import SUFFIXES

IMAGE_FOLDERS = ("images", "imagesTr", "image", "scans")
LABEL_FOLDERS = ("labels", "labelsTr", "label", "segmentations", "masks")
ENDINGS = ("_labels", "_label", "_seg", "_dseg", "_segmentation")
"""What the name of a label map may have more than that of its scan."""


class Found(NamedTuple):
    """Scans; and the pairs that a CSV lists, by their numbers, None where it lists scans."""

    scans: list[Scan]
    pairs: list[tuple[int, int]] | None = None
    facts: Sequence[Mapping[str, str]] = ()


def find_scans(given: Path) -> Found:
    """Find scans.

    Args:
        given: a folder of scans, or one with ``images`` and ``labels`` inside; a CSV with the
            column ``image``, or ``moving`` and ``fixed``. Label maps are the columns ``labels``,
            ``moving_labels`` and ``fixed_labels``, masks ``mask``, ``moving_mask`` and
            ``fixed_mask``; other columns are there to split by. Paths are below the CSV's folder.

    Raises:
        UserError: if there is none, or a partner is missing.
    """
    if given.is_file() and given.suffix.lower() == ".csv":
        return _from_table(given)
    if not given.is_dir():
        raise UserError(f"{given}: no such folder; give a folder of scans, or a CSV of pairs")
    inside = {path.name: path for path in given.iterdir() if path.is_dir()}
    images = next((inside[name] for name in IMAGE_FOLDERS if name in inside), given)
    labels = next((inside[name] for name in LABEL_FOLDERS if name in inside), None)
    scans = _files(images, without=labels)
    apart = {key for key in scans if any(key == _cut(key) + ending for ending in ENDINGS)}
    maps = {_cut(key): path for key, path in (_files(labels) if labels else {}).items()}
    maps |= {_cut(key): scans.pop(key) for key in sorted(apart) if _cut(key) in scans}
    if not scans:
        raise UserError(f"{images}: holds no scan ({', '.join(SUFFIXES)})")
    if lacking := sorted(maps.keys() - scans.keys()):
        raise UserError(
            f"{maps[lacking[0]]}: there is no scan of its name in {images} ({len(lacking):,} lack"
            " one); add it, or take the file away"
        )
    if maps and (lacking := sorted(scans.keys() - maps.keys())):
        raise UserError(
            f"{scans[lacking[0]]}: has no label map of its name ({len(lacking):,} lack one); add"
            " it, or take all label maps away"
        )
    found = [Scan(key, path, maps.get(key), facts=facts_of(key)) for key, path in scans.items()]
    return Found(found)


def facts_of(key: str) -> dict[str, str]:
    """Name what scans are kept together by: their folder, and the start of their name.

    ``subject`` is the name up to the first ``_``; of a name without one, the name.
    """
    folder, _, stem = key.rpartition("/")
    return {"folder": folder or ".", "subject": stem.partition("_")[0] or stem}


def stem_of(path: Path) -> str:
    """Give a file's name without its ending, which may be two words."""
    return re.sub(r"(\.nii\.gz|\.[^.]+)$", "", path.name, flags=re.IGNORECASE)


def _cut(key: str) -> str:
    return next((key.removesuffix(ending) for ending in ENDINGS if key.endswith(ending)), key)


def _files(folder: Path, without: Path | None = None) -> dict[str, Path]:
    """List the volumes below a folder by their path without its ending."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        hidden = path.name.startswith(".") or (without is not None and without in path.parents)
        if hidden or not path.name.lower().endswith(SUFFIXES) or not path.is_file():
            continue
        key = (path.relative_to(folder).parent / stem_of(path)).as_posix()
        if key in found:
            raise UserError(f"{path}: there is {found[key].name} too; keep one file a name")
        found[key] = path
    return found


def _from_table(path: Path) -> Found:
    try:
        frame = pd.read_csv(path, dtype=str)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from None
    paired = {"moving", "fixed"} <= set(frame)
    if not paired and "image" not in frame:
        raise UserError(
            f"{path}: has neither the column 'image' nor 'moving' and 'fixed'; it has"
            f" {listed(map(str, frame.columns))}"
        )
    if not len(frame):
        raise UserError(f"{path}: holds no row")
    scans: dict[Scan, int] = {}
    pairs: list[tuple[int, int]] = []
    facts: list[dict[str, str]] = []
    for line, row in enumerate(frame.to_dict("records"), 2):
        own = {str(key): str(value) for key, value in row.items() if isinstance(value, str)}
        numbers = []
        for role in ("moving", "fixed") if paired else ("image",):
            prefix = f"{role}_" if paired else ""
            scan = _scan(path, line, own, role, prefix)
            numbers.append(scans.setdefault(scan, len(scans)))
        if paired:
            if (again := (numbers[0], numbers[1])) in pairs:
                raise UserError(
                    f"{path}:{line}: the same pair stands in line {pairs.index(again) + 2}; keep"
                    " one of them"
                )
            pairs.append(again)
            facts.append({**facts_of(stem_of(Path(own["moving"]))), **own})
    return Found(list(scans), pairs if paired else None, facts)


def _scan(table: Path, line: int, row: Mapping[str, str], role: str, prefix: str) -> Scan:
    """Read the cells that name a scan's files."""
    files: list[Path | None] = []
    for name in (role, f"{prefix}labels", f"{prefix}mask"):
        value = row.get(name)
        if value is None:
            if name == role:
                raise UserError(f"{table}:{line}: {name} is empty; name its file, or drop the row")
            files.append(None)
            continue
        file = table.parent / value
        if not file.is_file():
            raise UserError(f"{table}:{line}: {name} {value!r}: no such file")
        files.append(file)
    image, labels, mask = files
    assert image is not None
    key = (Path(row[role]).parent / stem_of(image)).as_posix()
    return Scan(key, image, labels, mask, {**facts_of(key), **row})
