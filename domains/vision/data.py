"""Photos with a mask each: sets of published layouts."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import data as catalogue
from core.batch_plan import Plan
from core.data_module import Baseline, DataModule
from core.errors import UserError
from core.split_plan import PARTS
from domains.vision import exit_gallery, pictures
from domains.vision.augmentation import Augmentation
from domains.vision.baselines import MajorityClass, PlacePrior
from domains.vision.class_file import Classes
from domains.vision.examples import Collate, SegmentationSet, cut, origins
from domains.vision.files import SegmentationFiles
from domains.vision.layouts import Layout, read_layout
from domains.vision.rare_plan import RarePlan, repeats
from domains.vision.survey import Survey, survey

PRIOR_PHOTOS = 500
"""Photos of training that the baseline of places is fitted on at most."""


class PhotoData(DataModule):
    """What all data of photos and masks share.

    A subclass gives :meth:`read`; the other arguments are those of its own.
    """

    linked: ClassVar[tuple[str, ...]] = ("classes",)
    train_set: SegmentationSet
    val_set: SegmentationSet
    test_set: SegmentationSet

    def __init__(
        self,
        size: tuple[int, int] | None,
        augmentation: Augmentation,
        window: int,
        rare: float,
        tile_above: float | None,
        loader: tuple[int, int, int, int | None],
    ) -> None:
        super().__init__(*loader)
        if size is not None and min(size) < 8:
            raise UserError(f"data.size={list(size)} must be a height and a width of 8 or more")
        if window < 0 or not 0 <= rare <= 1:
            raise UserError(f"data.window={window} must be at least 0, and data.rare={rare} 0 to 1")
        self.size = size
        self.augmentation = augmentation
        self.window = window
        self.rare = rare
        self.tile_above = tile_above
        self.collate: Callable[[Any], Any] = Collate(window)
        self.layout: Layout | None = None
        self.surveys: list[Survey] = []
        self.counts = np.zeros((0, 0), np.int64)  # of each item of training

    def read(self) -> Layout:
        """Find classes and pairs."""
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    def setup(self, stage: str | None = None) -> None:
        """Look at every photo and mask, and lay out the items; done once.

        Raises:
            UserError: naming the file that does not fit.
        """
        if self.layout is not None:
            return
        layout = self.read()
        self.surveys = [survey(part, layout.classes) for part in layout.parts]
        self._check_labels(layout)
        tiles = self._tiles(layout)
        same = (layout.classes, self.size)
        train, val, test = layout.parts
        self.train_set = SegmentationSet(train, *same, self.augmentation, tiles, self.window)
        self.val_set = SegmentationSet(val, *same)
        self.test_set = SegmentationSet(test, *same)
        self._check_sizes(layout)
        self.layout = layout

    def plain_train_set(self) -> SegmentationSet:
        """Give the items of training without augmentation."""
        plain = copy.copy(self.train_set)
        plain.augmentation = None
        return plain

    def plan(self) -> Plan:
        """Draw items with rare classes more often, where that is asked for."""
        if not self.rare:
            return super().plan()
        try:
            return RarePlan(repeats(self.counts, self.rare), self.batch_size)
        except ValueError as error:
            raise UserError(f"data.batch_size: {error}") from None

    @property
    def classes(self) -> Classes:
        """The classes."""
        return self._read().classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.classes.names

    def class_pixels(self) -> Tensor:
        """Count the pixels (K,) of each class in training."""
        self._read()
        return torch.from_numpy(self.surveys[0].counts[:, :-1].sum(0))

    def summary(self) -> list[str]:
        """Say what was read and what is made of it."""
        layout = self._read()
        parts = ", ".join(
            f"{len(part):,} for {what}"
            for part, what in zip(layout.parts, ("training", "validation", "the test"), strict=True)
        )
        sizes = np.concatenate([own.sizes for own in self.surveys])
        (low, left), (high, right) = sizes.min(0), sizes.max(0)
        told = f"{left}x{low}" + (f" to {right}x{high}" if (low, left) != (high, right) else "")
        lines = [f"photos: {parts}; {told} pixels"]
        pixels = self.surveys[0].counts.sum(0)
        shares = pixels / pixels.sum()
        each = [
            f"{name} {share:.1%}" for name, share in zip(self.class_names, shares, strict=False)
        ]
        shown = each[:20] + (["..."] if len(each) > 20 else [])
        lines.append(f"{len(each)} classes in training: {', '.join(shown)}; void {shares[-1]:.1%}")
        if len(self.train_set) > len(layout.parts[0]):
            lines.append(f"large photos are trained in {len(self.train_set):,} tiles")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    @property
    def notes(self) -> list[str]:
        """What the user should know."""
        layout = self._read()
        found = dict.fromkeys([*layout.notes, *(n for own in self.surveys for n in own.notes)])
        blank = sum(int((own.counts[:, :-1].sum(1) == 0).sum()) for own in self.surveys)
        if blank:
            found[f"photos whose mask is void throughout: {blank:,}"] = None
        lacking = [
            name
            for name, count in zip(self.class_names, self.class_pixels().tolist(), strict=True)
            if not count
        ]
        if lacking:
            found[f"classes that training lacks: {', '.join(lacking[:10])}"] = None
        return list(found)

    def fingerprint(self) -> str:
        """Identify photos and parts."""
        self._read()
        found = hashlib.sha256(repr(self.classes).encode())
        for own in self.surveys:
            found.update(own.content.tobytes() + own.counts.tobytes())
        return found.hexdigest()[:32]

    @property
    def preprocessing(self) -> SegmentationFiles | None:
        """The classes, and the size and window of the network."""
        if self.layout is None:
            return None
        return SegmentationFiles(self.layout.classes, self.size, self.window)

    def baselines(self) -> dict[str, Baseline]:
        """Fit the most frequent class, everywhere and at each place."""
        step = -(-len(self._read().parts[0]) // PRIOR_PHOTOS)
        whole = SegmentationSet(self.layout.parts[0][::step], self.classes, self.size)  # type: ignore[union-attr]

        def masks() -> Iterator[Tensor]:
            for number in range(len(whole)):
                yield whole[number].labels

        return {
            "most frequent class": MajorityClass(self.class_pixels()),
            "most frequent class at a place": PlacePrior(masks(), len(self.classes)),
        }

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw confusions, scores by class, masks over photos, and which of them left early."""
        drawn = pictures.draw(predictions, folder, self.classes, self.test_set)
        return drawn + exit_gallery.draw(predictions, folder, lambda n: self.test_set[n].image)

    def _read(self) -> Layout:
        self.setup()
        assert self.layout is not None
        return self.layout

    def _tiles(self, layout: Layout) -> Any:
        """Cut large photos of training into tiles; count the pixels of each item."""
        own = self.surveys[0]
        large = np.zeros(len(own.sizes), bool)
        if self.window and self.tile_above is not None and self.size is None:
            large = own.sizes.prod(1) > self.tile_above * 1e6
        if not large.any():
            self.counts = own.counts[:, :-1]
            return None
        rows, counts = [], []
        for number, pair in enumerate(layout.parts[0]):
            if not large[number]:
                rows.append([number, -1])
                counts.append(own.counts[number])
                continue
            kept = cut(pair, layout.classes, self.window)["counts"]
            height, width = own.sizes[number].tolist()
            for part in range(len(origins(height, width, self.window))):
                rows.append([number, part])
                counts.append(np.asarray(kept[part]))
        self.counts = np.stack(counts)[:, :-1]
        return np.array(rows, np.int64)

    def _check_labels(self, layout: Layout) -> None:
        """Refuse a part of which nothing can be learnt or judged."""
        for name, pairs, own in zip(PARTS, layout.parts, self.surveys, strict=True):
            if not own.counts[:, :-1].any():
                raise UserError(
                    f"{pairs[0].mask}: this mask and all others of {name} are void throughout;"
                    " see the class file, --data.classes and --data.void"
                )

    def _check_sizes(self, layout: Layout) -> None:
        """Refuse photos of several sizes that no crop makes equal."""
        if self.size is not None or self.augmentation.crop is not None:
            return
        sizes = self.surveys[0].sizes
        if self.batch_size > 1 and (sizes != sizes[0]).any():
            raise UserError(
                "the photos of training differ in size, and a batch needs one; give"
                " --data.crop=[512,512], or --data.size=[HEIGHT,WIDTH]"
            )


class SegmentationData(PhotoData):
    """A set of a published layout: CamVid, Cityscapes, ADE20K or COCO.

    Args:
        dataset: a set of the catalogue: ``camvid``, ``camvid_full``, ``cityscapes``,
            ``ade20k`` or ``coco_panoptic``.
        size: height and width that photos and masks are resized to, for training and judging
            alike; None keeps their own.
        scale: bounds of the random scale of training; None for none.
        crop: height and width of the random crop of training; None takes whole photos.
        flip: mirror every second photo of training.
        jitter: most relative change of brightness, contrast and saturation in training.
        window: side of the windows in which larger photos are judged; 0 judges them whole.
        rare: draw photos with classes that a smaller share of them has more often; 0 for not.
        batch_size: photos in a training batch, over all processes together.
        eval_batch_size: photos in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes order and augmentation; None takes the run's seed.
    """

    def __init__(
        self,
        dataset: str,
        size: tuple[int, int] | None = None,
        scale: tuple[float, float] | None = None,
        crop: tuple[int, int] | None = None,
        flip: bool = True,
        jitter: float = 0.0,
        window: int = 0,
        rare: float = 0.0,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            *(size, Augmentation(scale, crop, flip, jitter), window, rare, None),
            (batch_size, eval_batch_size, num_workers, seed),
        )
        self.dataset = dataset

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """State the number of classes."""
        return {"classes": len(read_layout(_located(config["dataset"])).classes)}

    @property
    def facts(self) -> dict[str, Any]:
        """The set, its setting, licence and citation."""
        entry = catalogue.entry(self.dataset)
        setting = {"images": len(self._read().parts[2])}
        if self.size is not None:
            setting |= {"height": self.size[0], "width": self.size[1]}
        return {
            "dataset": self.dataset,
            "setting": setting,
            "licence": entry.licence,
            "citation": entry.citation,
            "notes": self.notes if self.layout else [],
        }

    def read(self) -> Layout:
        """Find the set's classes and pairs."""
        return read_layout(_located(self.dataset))


def _located(dataset: str) -> Path:
    entry = catalogue.entry(dataset)
    if entry.domain != "vision" or entry.facts.get("task") not in ("segmentation", None):
        raise UserError(f"data.dataset={dataset!r} is no set of photos with masks")
    found = catalogue.locate(dataset)
    return found if found.is_dir() else found.parent
