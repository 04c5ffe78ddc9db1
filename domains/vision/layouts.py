"""The folder layouts of published sets: CamVid (as SegNet ships it), Cityscapes, ADE20K and COCO.

Cityscapes, ADE20K and COCO publish no labels of their test part: as in the papers, networks are
chosen and judged on the validation part.
"""

from pathlib import Path
from typing import NamedTuple

import data as catalogue
from core.errors import UserError
from core.openers import read_text
from core.split_plan import PARTS
from domains.vision.class_file import Classes, make_classes
from domains.vision.coco import read_coco
from domains.vision.pairs import Pair

CAMVID_COLORS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222)),
    *((128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
CITYSCAPES = {
    **{"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17},
    **{"traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23},
    **{"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31},
    **{"motorcycle": 32, "bicycle": 33},
}
"""The 19 classes that count, with their ids in the masks."""
FIRST_THING = 24
CITYSCAPES_COLORS = (
    *((128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153)),
    *((153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)),
    *((70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100)),
    *((0, 80, 100), (0, 0, 230), (119, 11, 32)),
)


class Layout(NamedTuple):
    """A set's classes, its pairs of train, val and test, and what the user should know."""

    classes: Classes
    parts: tuple[list[Pair], list[Pair], list[Pair]]
    notes: tuple[str, ...] = ()


CHOSEN = "chosen and judged on the validation part, as published: the test part has no labels"


def detect(root: Path) -> str | None:
    """Say which layout a folder has: ``camvid``, ``cityscapes``, ``ade20k``, ``coco`` or none."""
    if (root / "trainannot").is_dir() and (root / "train").is_dir():
        return "camvid"
    if (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir():
        return "cityscapes"
    if (root / "images/training").is_dir() and (root / "annotations/training").is_dir():
        return "ade20k"
    if (root / "annotations/panoptic_val2017.json").is_file():
        return "coco"
    return None


def read_layout(root: Path) -> Layout:
    """Read the pairs of a published set.

    Raises:
        UserError: if the folder has no known layout, or a partner is missing.
    """
    readers = {"camvid": _camvid, "cityscapes": _cityscapes, "ade20k": _ade20k, "coco": _coco}
    found = detect(root)
    if found is None:
        raise UserError(f"{root}: has not the layout of CamVid, Cityscapes, ADE20K or COCO")
    layout = readers[found](root)
    for name, pairs in zip(PARTS, layout.parts, strict=True):
        if not pairs:
            raise UserError(f"{root}: holds no picture for {name}")
        for pair in pairs:
            for path in (pair.image, pair.mask):
                if not path.is_file():
                    raise UserError(f"{path}: is missing, though the {found} set has it")
    return layout


def _camvid(root: Path) -> Layout:
    """Follow the lists; those of the subset where it is one."""
    facts = catalogue.entry("camvid").facts
    whole = all((root / f"{part}.txt").is_file() for part in PARTS)
    subset = all((root / f"subset_{part}.txt").is_file() for part in PARTS)
    if not whole and not subset:
        raise UserError(f"{root}: lacks train.txt, val.txt and test.txt")
    parts = []
    for part in PARTS:
        lines = read_text(root / f"{'subset_' if subset else ''}{part}.txt").splitlines()
        names = [Path(line.split()[0]).name for line in lines if line.strip()]
        parts.append(
            [
                Pair(
                    f"{part}/{Path(name).stem}",
                    root / part / name,
                    root / f"{part}annot" / name,
                    {"folder": part, "prefix": name.split("_")[0]},
                )
                for name in names
            ]
        )
    classes = make_classes(facts["classes"], colors=CAMVID_COLORS, void=[facts["ignore_index"]])
    official = facts["full"]
    counts = ", ".join(
        f"{len(own)} of {official[name]}" for own, name in zip(parts, PARTS, strict=True)
    )
    notes = (f"a subset: {counts} images; not comparable with published scores",) if subset else ()
    return Layout(classes, (parts[0], parts[1], parts[2]), notes)


def _cityscapes(root: Path) -> Layout:
    def pairs(part: str) -> list[Pair]:
        found = []
        for image in sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.png")):
            stem = image.name.removesuffix("_leftImg8bit.png")
            city = image.parent.name
            mask = root / "gtFine" / part / city / f"{stem}_gtFine_labelIds.png"
            found.append(Pair(stem, image, mask, {"folder": city, "prefix": city}))
        return found

    values = list(CITYSCAPES.values())
    classes = make_classes(
        list(CITYSCAPES),
        values=values,
        colors=CITYSCAPES_COLORS,
        things=[value >= FIRST_THING for value in values],
        void=sorted(set(range(34)) - set(values)),
    )
    val = pairs("val")
    return Layout(classes, (pairs("train"), val, val), (CHOSEN,))


def _ade20k(root: Path) -> Layout:
    def pairs(part: str) -> list[Pair]:
        return [
            Pair(image.stem, image, root / "annotations" / part / f"{image.stem}.png")
            for image in sorted((root / "images" / part).glob("*.jpg"))
        ]

    info = root / "objectInfo150.txt"
    names = [f"class {n}" for n in range(1, 151)]
    if info.is_file():
        rows = [line.split("\t") for line in read_text(info).splitlines()[1:] if line.strip()]
        names = [f"{row[-1].split(',')[0].strip()}" for row in rows]
        names = [n if names.count(n) == 1 else f"{n} {k}" for k, n in enumerate(names, 1)]
    classes = make_classes(names, values=range(1, len(names) + 1), void=[0])
    val = pairs("validation")
    return Layout(classes, (pairs("training"), val, val), (CHOSEN,))


def _coco(root: Path) -> Layout:
    folder = root / "annotations"
    (classes, train), (_, val) = (
        read_coco(folder / f"panoptic_{part}2017.json", root / f"{part}2017")
        for part in ("train", "val")
    )
    return Layout(classes, (train, val, val), (CHOSEN,))
