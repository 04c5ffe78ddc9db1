"""A set of drawn photos: discs, squares and triangles before a background, each a segment.

It is drawn from a seed, so that it needs no files; it is small enough for panoptic segmentation to
be learnt in minutes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from core.data_module import DataModule, whole_batch
from core.errors import UserError
from domains.vision import panoptic_pictures
from domains.vision.augmentation import Augmentation
from domains.vision.class_file import VOID, Classes, make_classes
from domains.vision.panoptic_data import PanopticBatch, PanopticExample, together
from domains.vision.panoptic_files import PanopticFiles

SIDE = 96
"""Pixels of a side of a photo."""
PARTS = {"training": 800, "validation": 100, "test": 100}
MOST_SHAPES = 4
RADII = (11.0, 22.0)
"""Least and most pixels from the middle of a shape to its edge."""
LEAST_SEEN = 80
"""Pixels of a shape that others must leave to be seen, or it is not drawn."""
COLORS = ((205, 65, 60), (70, 165, 80), (65, 95, 205))
"""Red, green, blue of discs, squares and triangles where the class can be told by colour."""
CLASSES = make_classes(
    ("disc", "square", "triangle", "background"),
    colors=(*COLORS, (150, 150, 150)),
    things=(True, True, True, False),
)
BACKGROUND = 3


class Drawing(NamedTuple):
    """Pixels (H, W, 3) of 8 bits, the number of each pixel's segment (H, W), and classes (m,).

    Segment 0 is the background; the others are shapes from the back to the front.
    """

    pixels: NDArray[np.uint8]
    segments: NDArray[np.int64]
    labels: NDArray[np.int64]


class ShapesSet(Dataset[PanopticExample]):
    """Photos of one part of the set; each depends on seed, part and its place alone.

    Args:
        part: ``training``, ``validation`` or ``test``.
        count: the number of photos.
        seed: fixes them.
        coloured: the class of a shape tells its colour, but for noise.
        augmentation: what training does; None for validation and test.
    """

    def __init__(
        self,
        part: str,
        count: int,
        seed: int = 0,
        coloured: bool = True,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.part = part
        self.count = count
        self.seed = seed
        self.coloured = coloured
        self.augmentation = augmentation

    def __len__(self) -> int:
        """Count the photos."""
        return self.count

    def __getitem__(self, index: int) -> PanopticExample:
        """Draw a photo; an index beyond the last is one of another repetition."""
        row = int(index) % self.count
        drawn = draw(self.seed, list(PARTS).index(self.part), row, self.coloured)
        image = torch.from_numpy(drawn.pixels).permute(2, 0, 1)
        codes = torch.from_numpy(drawn.segments) + 1
        if self.augmentation is not None:
            image, codes = self.augmentation(image, codes, getattr(index, "seed", 0))
        labels = torch.from_numpy(drawn.labels)
        crowds = torch.zeros(len(labels), dtype=torch.bool)
        return PanopticExample(image, codes, f"{self.part} {row}", row, labels, crowds)

    def __getitems__(self, indices: Sequence[int]) -> PanopticBatch:
        """Draw a batch."""
        return together([self[index] for index in indices])

    def labels(self) -> Iterator[Tensor]:
        """Give the classes of the pixels (H, W) of every photo."""
        for row in range(self.count):
            example = self[row]
            void = example.codes == VOID
            yield torch.where(void, VOID, example.classes[example.codes.masked_fill(void, 1) - 1])


class ShapesData(DataModule):
    """Drawn photos of 96x96 pixels with 1 to 4 shapes of 3 classes before a background.

    800 photos train, 100 validate and 100 test, unless told otherwise.

    Args:
        coloured: the class of a shape tells its colour, but for noise; without this only its form
            does, and learning takes several times as long.
        train_photos: photos of training.
        eval_photos: photos of validation, and of the test.
        flip: mirror every second photo of training.
        drawing_seed: fixes the photos; the order of training has its own seed.
        batch_size: photos in a training batch, over all processes together.
        eval_batch_size: photos in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes order and augmentation; None takes the run's seed.
    """

    linked: ClassVar[tuple[str, ...]] = ("classes",)
    train_set: ShapesSet
    val_set: ShapesSet
    test_set: ShapesSet

    def __init__(
        self,
        coloured: bool = True,
        train_photos: int = PARTS["training"],
        eval_photos: int = PARTS["test"],
        flip: bool = False,
        drawing_seed: int = 0,
        batch_size: int = 8,
        eval_batch_size: int = 50,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if min(train_photos, eval_photos) < 1 or drawing_seed < 0:
            raise UserError(
                f"data.train_photos={train_photos} and data.eval_photos={eval_photos} must be at"
                f" least 1, and data.drawing_seed={drawing_seed} at least 0"
            )
        self.coloured = coloured
        self.train_photos = train_photos
        self.eval_photos = eval_photos
        self.flip = flip
        self.drawing_seed = drawing_seed
        self.collate = whole_batch
        same = (drawing_seed, coloured)
        changed = Augmentation(flip=True) if flip else None
        self.train_set = ShapesSet("training", train_photos, *same, changed)
        self.val_set = ShapesSet("validation", eval_photos, *same)
        self.test_set = ShapesSet("test", eval_photos, *same)

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """State the number of classes."""
        return {"classes": len(CLASSES)}

    @property
    def classes(self) -> Classes:
        """The classes."""
        return CLASSES

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return CLASSES.names

    @property
    def things(self) -> tuple[bool, ...]:
        """Whether each class has instances."""
        return CLASSES.things

    @property
    def facts(self) -> dict[str, Any]:
        """The set and its setting."""
        setting = {"images": self.eval_photos, "height": SIDE, "width": SIDE}
        return {"dataset": "shapes", "setting": {**setting, "coloured": self.coloured}}

    @property
    def preprocessing(self) -> PanopticFiles:
        """The classes, and the size of the network."""
        return PanopticFiles(CLASSES, (SIDE, SIDE))

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw segments over photos."""
        return panoptic_pictures.draw(predictions, folder, CLASSES, self.test_set.__getitem__)

    def class_pixels(self) -> Tensor:
        """Count the pixels (K,) of each class in training."""
        total = torch.zeros(len(CLASSES), dtype=torch.int64)
        for labels in self.plain_train_set().labels():
            total += torch.bincount(labels.flatten(), minlength=len(CLASSES))
        return total

    def summary(self) -> list[str]:
        """Say what was drawn."""
        pixels = self.class_pixels().double()
        shares = [
            f"{name} {share:.1%}"
            for name, share in zip(self.class_names, (pixels / pixels.sum()).tolist(), strict=True)
        ]
        counts = f"{self.train_photos:,} for training, {self.eval_photos:,} for validation"
        return [
            f"photos: {counts}, {self.eval_photos:,} for the test; {SIDE}x{SIDE} pixels, drawn",
            f"{len(CLASSES)} classes in training: {', '.join(shares)}",
        ]

    def fingerprint(self) -> str:
        """Identify the photos."""
        return f"shapes {self.drawing_seed} {self.coloured} {self.train_photos} {self.eval_photos}"

    def plain_train_set(self) -> ShapesSet:
        """Give the photos of training as they are drawn."""
        return ShapesSet("training", self.train_photos, self.drawing_seed, self.coloured)


def draw(seed: int, part: int, row: int, coloured: bool = True) -> Drawing:
    """Draw a photo.

    Args:
        seed: of the set.
        part: 0 for training, 1 for validation, 2 for the test.
        row: the place of the photo in its part.
        coloured: the class of a shape tells its colour, but for noise.
    """
    random = np.random.default_rng([seed, part, row])
    pixels = _ground(random)
    segments = np.zeros((SIDE, SIDE), np.int64)
    labels = [BACKGROUND]
    for _ in range(random.integers(1, MOST_SHAPES + 1)):
        label = int(random.integers(len(COLORS)))
        inside = _shape(random, label)
        color = COLORS[label] if coloured else random.uniform(40, 220, 3)
        shade = np.asarray(color) + random.normal(0, 18, 3)
        over = np.where(inside, len(labels), segments)
        seen = np.bincount(over.ravel(), minlength=len(labels) + 1)
        if seen[1:].min() < LEAST_SEEN:
            continue  # it would hide another, or lie outside
        segments = over
        labels.append(label)
        pixels[inside] = shade
    pixels += random.normal(0, 9, pixels.shape)
    whole = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return Drawing(whole, segments, np.array(labels, np.int64))


def _ground(random: np.random.Generator) -> NDArray[np.float64]:
    """Draw a grey slope (H, W, 3)."""
    down, right = np.mgrid[-0.5 : 0.5 : SIDE * 1j, -0.5 : 0.5 : SIDE * 1j]
    slopes = random.uniform(-70, 70, 2)
    grey = random.uniform(90, 165) + slopes[0] * down + slopes[1] * right
    tint: NDArray[np.float64] = grey[..., None] + random.normal(0, 6, 3)
    return tint


def _shape(random: np.random.Generator, label: int) -> NDArray[np.bool_]:
    """Draw the pixels (H, W) of a disc, a square or a triangle, turned by any angle."""
    middle = random.uniform(0.12 * SIDE, 0.88 * SIDE, 2)
    radius = random.uniform(*RADII)
    angle = random.uniform(0, 2 * np.pi)
    down, right = np.mgrid[:SIDE, :SIDE] - middle[:, None, None]
    if label == 0:
        return np.asarray(np.hypot(down, right) <= radius)
    corners = 4 if label == 1 else 3
    turns = angle + 2 * np.pi * np.arange(corners) / corners
    # inside of a regular polygon is on the near side of each of its edges
    reach = np.cos(turns)[:, None, None] * right + np.sin(turns)[:, None, None] * down
    return np.asarray(reach.max(0) <= radius * np.cos(np.pi / corners))
