"""A user's own photos and masks, bound to no benchmark."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.duplicates import duplicates
from core.errors import UserError
from core.split_columns import listed
from core.split_plan import PARTS, Split
from core.splits import split
from domains.vision.augmentation import Augmentation
from domains.vision.class_file import VOID, Classes, make_classes, read_classes
from domains.vision.coco import read_coco
from domains.vision.data import PhotoData
from domains.vision.layouts import Layout
from domains.vision.masks import read_values
from domains.vision.pairs import Pair, find_pairs
from domains.vision.survey import survey

CLASS_FILES = ("classes.csv", "classes.txt")


class OwnSegmentationData(PhotoData):
    """Your own photos, each with a mask of the same name.

    Args:
        train: a folder with ``images`` and ``masks`` inside, a folder of photos, a CSV with the
            columns ``image`` and ``mask``, or a COCO file, ``.json``, of instances or panoptic.
        images: the folder of the photos of a COCO file; None takes ``images`` beside it.
        masks: the folder of masks, where ``train`` is one of photos.
        val: the same as ``train`` for validation; without it photos of ``train`` are taken.
        test: the same for the test.
        classes: the class file, a ``.txt`` or ``.csv`` with names, values and colours; without it
            ``classes.csv`` or ``classes.txt`` of the folder, or else the values of the masks.
        void: a value of the masks that is void, besides 255.
        split: how ``train`` is divided where a folder is not given: ``random``, ``group:folder``,
            ``group:prefix`` (names up to their number), ``group:NAME`` or ``column:NAME`` of a CSV,
            or a ``splits.parquet`` of another run. Photos of one flight, patient or street belong
            into one group.
        val_fraction: share of photos for validation, where no folder is given.
        test_fraction: share of photos for the test, where no folder is given.
        tile_above: photos of more million pixels are cut once into tiles of ``window`` for
            training.
        size: height and width that photos and masks are resized to; None keeps their own.
        scale: bounds of the random scale of training; None for none.
        crop: height and width of the random crop of training; None takes whole photos.
        flip: mirror every second photo of training.
        jitter: most relative change of brightness, contrast and saturation in training.
        window: side of the tiles, and of the windows in which larger photos are judged; 0 judges
            them whole.
        rare: draw photos and tiles with classes that a smaller share of them has more often; 0 for
            not.
        batch_size: photos in a training batch, over all processes together.
        eval_batch_size: photos in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes order and augmentation; None takes the run's seed.
    """

    def __init__(
        self,
        train: str,
        images: str | None = None,
        masks: str | None = None,
        val: str | None = None,
        test: str | None = None,
        classes: str | None = None,
        void: int | None = None,
        split: str = "random",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        tile_above: float = 4.0,
        size: tuple[int, int] | None = None,
        scale: tuple[float, float] | None = None,
        crop: tuple[int, int] | None = None,
        flip: bool = True,
        jitter: float = 0.0,
        window: int = 1024,
        rare: float = 0.0,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            *(size, Augmentation(scale, crop, flip, jitter), window, rare, tile_above),
            (batch_size, eval_batch_size, num_workers, seed),
        )
        self.config: dict[str, Any] = {
            **{"train": train, "images": images, "masks": masks, "val": val, "test": test},
            **{"classes": classes, "void": void, "split": split},
            **{"val_fraction": val_fraction, "test_fraction": test_fraction},
        }

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """State the number of classes."""
        return {"classes": len(own_layout(config).classes)}

    @property
    def facts(self) -> dict[str, Any]:
        """The folder's name; no published setting."""
        return {
            "dataset": Path(str(self.config["train"])).name,
            "setting": {},
            "notes": self.notes if self.layout else [],
        }

    def read(self) -> Layout:
        """Find classes and pairs, and divide them."""
        return own_layout(self.config)

    def keep(self, folder: Path) -> None:
        """Write which photos train, validate and test, where a folder had to be divided."""
        if (made := _divided(_key(self.config))[1]) is not None:
            made.save(folder / "splits.parquet")


def own_layout(config: Mapping[str, Any]) -> Layout:
    """Read what the arguments of ``OwnSegmentationData`` name; the last is kept.

    Raises:
        UserError: naming what does not fit.
    """
    return _divided(_key(config))[0]


def _key(config: Mapping[str, Any]) -> tuple[Any, ...]:
    if not config.get("train"):
        raise UserError("--data.train=FOLDER is needed, a folder of photos and masks")
    return (
        *(config.get(name) for name in ("train", "images", "masks", "val", "test")),
        *(config.get(name) for name in ("classes", "void")),
        *(config.get("split", "random"), config.get("val_fraction", 0.1)),
        config.get("test_fraction", 0.2),
    )


@lru_cache(maxsize=2)
def _divided(key: tuple[Any, ...]) -> tuple[Layout, Split | None]:
    train, images, masks, val, test, class_file, void, rule, val_share, test_share = key
    notes: list[str] = []
    if Path(train).suffix.lower() == ".json":
        classes, given = _from_coco([train, val, test], images)
    else:
        given = [find_pairs(Path(train), Path(masks) if masks else None)]
        given += [find_pairs(Path(path)) if path else [] for path in (val, test)]
        classes, notes = _classes(Path(train), class_file, void, [p for own in given for p in own])
    shares = [0.0 if path else share for path, share in ((val, val_share), (test, test_share))]
    if min(val_share, test_share) <= 0 or sum(shares) >= 1:
        raise UserError(
            f"data.val_fraction={val_share} and data.test_fraction={test_share} must be shares"
            " that leave photos to train on"
        )
    made = None
    parts = given
    if sum(shares):
        made = split(
            _frame(given[0]), rule, ids="image", fractions=(1 - sum(shares), shares[0], shares[1])
        )
        taken = [[given[0][row] for row in rows] for rows in (made.train, made.val, made.test)]
        parts = [taken[0], given[1] or taken[1], given[2] or taken[2]]
        notes += made.notes
    for name, part in zip(PARTS, parts, strict=True):
        if not part:
            raise UserError(f"{train}: no photo is left for {name}; see --data.split")
    notes += _repeated(parts, classes)
    return Layout(classes, (parts[0], parts[1], parts[2]), tuple(notes)), made


def _from_coco(paths: Sequence[str | None], images: str | None) -> tuple[Classes, list[list[Pair]]]:
    """Read COCO files, all of them with the categories of the first."""
    found = [read_coco(Path(p), Path(images) if images else None) if p else None for p in paths]
    assert found[0] is not None
    classes = found[0][0]
    for path, own in zip(paths, found, strict=True):
        if own is not None and own[0] != classes:
            raise UserError(f"{path}: has not the categories of {paths[0]}")
    return classes, [own[1] if own else [] for own in found]


def _frame(pairs: Sequence[Pair]) -> pd.DataFrame:
    return pd.DataFrame([{"image": pair.id, **pair.facts} for pair in pairs])


def _classes(
    train: Path, given: str | None, void: int | None, pairs: Sequence[Pair]
) -> tuple[Classes, list[str]]:
    """Read the class file, or take the values that the masks have."""
    folder = train if train.is_dir() else train.parent
    path = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    if given or path:
        read = read_classes(Path(given) if given else path)  # type: ignore[arg-type]
        if void is not None and void in read.values:
            raise UserError(f"--data.void={void} is a class of the class file")
        extra = () if void is None else (void,)
        return Classes(**{**vars(read), "void": (*read.void, *extra)}), []
    values: set[int] = set()
    for pair in pairs:
        found = read_values(pair.mask)
        if found.ndim == 3:
            raise UserError(
                f"{pair.mask}: is RGB; name its colours in a class file,"
                f" {folder / CLASS_FILES[0]} with the header name,r,g,b"
            )
        values |= set(np.unique(found).tolist())
    binary = values == {0, VOID}
    kept = sorted(values) if binary else sorted(values - {VOID, void})
    if len(kept) < 2:
        raise UserError(f"{pairs[0].mask}: the masks hold the values {listed(map(str, kept))} only")
    names = ["background", "object"] if len(kept) == 2 else [f"class {value}" for value in kept]
    if binary:
        made = make_classes(names, values=kept)
        note = "the masks hold 0 and 255 alone: background and object, no void"
    else:
        made = make_classes(names, values=kept, void=() if void is None else (void,))
        note = "no class file: the classes are the values of the masks"
    return made, [note]


def _repeated(parts: Sequence[Sequence[Pair]], classes: Classes) -> list[str]:
    """Tell of photos that stand in two parts, pixel by pixel."""
    content = [survey(part, classes).content for part in parts]
    frame = pd.DataFrame(
        {
            "content": np.concatenate(content),
            "part": np.repeat(PARTS, [len(own) for own in content]),
        }
    )
    found = duplicates(frame, split(frame, "column:part"), ["content"])
    return [
        f"photos of {pair.part} that stand in {pair.other} too: {pair.rows:,}" for pair in found
    ]
