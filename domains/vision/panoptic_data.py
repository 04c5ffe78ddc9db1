"""Photos with their segments: things one by one, and stuff."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data_module import Baseline, whole_batch
from core.errors import UserError
from domains.vision import panoptic_pictures
from domains.vision.augmentation import normalised, resized
from domains.vision.class_file import VOID, Classes
from domains.vision.coco import drawn_segments
from domains.vision.data import SegmentationData
from domains.vision.examples import SegmentationSet, read_whole
from domains.vision.masks import read_values
from domains.vision.metrics import Segments
from domains.vision.pairs import Pair
from domains.vision.panoptic_files import PanopticFiles

INSTANCE = 1000
"""Values of a Cityscapes mask of instances from here on are 1000 times the id, and the number."""


class PanopticBatch(NamedTuple):
    """B photos with their segments, filled up at the right and below where sizes differ.

    ``images`` (B, 3, H, W) normalised; ``labels`` (B, H, W) int64, 255 is void; ``ids`` their
    names; ``rows`` (B,) their places in the split; ``sizes`` (B, 2) the true heights and widths;
    ``masks`` a list of (n, H, W) bool and ``mask_classes`` of (n,): the segments but for crowds;
    ``segments`` (B, H, W) the number of each pixel's segment, from 1, with crowds;
    ``segment_classes`` and ``crowds`` lists of (m,).
    """

    images: Tensor
    labels: Tensor
    ids: list[str]
    rows: Tensor
    sizes: Tensor
    masks: list[Tensor]
    mask_classes: list[Tensor]
    segments: Tensor
    segment_classes: list[Tensor]
    crowds: list[Tensor]

    def truth(self, at: int) -> Segments:
        """Give the true segments of one photo, at its own size."""
        height, width = self.sizes[at].tolist()
        own = self.segments[at, :height, :width]
        return Segments(own, self.segment_classes[at], self.crowds[at])


class PanopticExample(NamedTuple):
    """One photo (3, H, W), the codes of its segments (H, W), their classes and crowds (m,).

    A code is the number of a segment, from 1 on, and one more from ``VOID`` on, which is none.
    """

    image: Tensor
    codes: Tensor
    id: str
    row: int
    classes: Tensor
    crowds: Tensor


class PanopticSet(SegmentationSet):
    """Photos with segments; see :class:`SegmentationSet`."""

    def segmented(self, index: int) -> PanopticExample:
        """Read an item with its segments."""
        row = int(index) % len(self)
        pair = self.pairs[row]
        pixels, _ = read_whole(pair, self.classes)
        numbers, labels, crowds = segments_of(pair, self.classes)
        codes = torch.from_numpy(np.where(numbers == 0, VOID, numbers + (numbers >= VOID)))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if self.size is not None:
            image, codes = resized(image, codes, self.size)
        if self.augmentation is not None:
            image, codes = self.augmentation(image, codes, getattr(index, "seed", 0))
        found = torch.tensor(labels, dtype=torch.int64), torch.tensor(crowds, dtype=torch.bool)
        return PanopticExample(image, codes.long(), pair.id, row, *found)

    def __getitems__(self, indices: Sequence[int]) -> PanopticBatch:
        """Read a batch."""
        return together([self.segmented(index) for index in indices])


def together(examples: Sequence[PanopticExample]) -> PanopticBatch:
    """Fill up with void to the largest height and width; segments that are gone are dropped."""
    sizes = torch.tensor([example.codes.shape for example in examples])
    height, width = sizes.amax(0).tolist()
    images = torch.zeros(len(examples), 3, height, width)
    labels = torch.full((len(examples), height, width), VOID, dtype=torch.int64)
    numbers = torch.zeros(len(examples), height, width, dtype=torch.int64)
    masks, mask_classes, segment_classes, crowds = [], [], [], []
    for at, example in enumerate(examples):
        high, wide = example.codes.shape
        images[at, :, :high, :wide] = normalised(example.image)
        kept = torch.unique(example.codes)
        kept = kept[kept != VOID]  # (m,) codes that are left
        own = torch.searchsorted(kept, example.codes.clamp(max=int(kept[-1]) if len(kept) else 0))
        numbers[at, :high, :wide] = torch.where(example.codes == VOID, 0, own + 1)
        places = kept - (kept > VOID).long() - 1
        kinds, crowd = example.classes[places], example.crowds[places]
        table = torch.cat([torch.tensor([VOID]), kinds.masked_fill(crowd, VOID)])
        labels[at] = table[numbers[at]]
        single = (~crowd).nonzero()[:, 0]
        masks.append(numbers[at] == single[:, None, None] + 1)
        mask_classes.append(kinds[single])
        segment_classes.append(kinds)
        crowds.append(crowd)
    rows = torch.tensor([example.row for example in examples])
    names = [example.id for example in examples]
    return PanopticBatch(
        *(images, labels, names, rows, sizes, masks, mask_classes),
        *(numbers, segment_classes, crowds),
    )


def segments_of(pair: Pair, classes: Classes) -> tuple[NDArray[np.int64], list[int], list[bool]]:
    """Give the number of each pixel's segment (H, W) from 1, and their classes and crowds.

    Raises:
        UserError: if the mask of a pair tells no instances apart.
    """
    if pair.drawn is not None:
        numbers, regions = drawn_segments(pair)
        kinds = [region.label for region in regions]
        return np.asarray(numbers, np.int64), kinds, [region.crowd for region in regions]
    path = pair.mask.with_name(pair.mask.name.replace("_labelIds", "_instanceIds"))
    if path == pair.mask:
        raise UserError(
            f"{pair.mask}: tells no instances apart; panoptic data are COCO files or Cityscapes"
        )
    values = read_values(path).astype(np.int64)
    own = classes.table[np.where(values >= INSTANCE, values // INSTANCE, values)]
    kept = np.unique(values[own < len(classes)])
    found = np.where(own < len(classes), np.searchsorted(kept, values) + 1, 0)
    ids = np.where(kept >= INSTANCE, kept // INSTANCE, kept)
    labels: list[int] = classes.table[ids].astype(int).tolist()
    pairs = zip(labels, kept.tolist(), strict=True)
    return found, labels, [classes.things[n] and value < INSTANCE for n, value in pairs]


class PanopticData(SegmentationData):
    """A set with segments: Cityscapes or COCO; arguments as in ``SegmentationData``.

    Crowds are not learnt; in the test they make no prediction wrong.
    """

    train_set: PanopticSet
    val_set: PanopticSet
    test_set: PanopticSet

    def setup(self, stage: str | None = None) -> None:
        """Look at every photo and mask; done once.

        Raises:
            UserError: naming the file that does not fit.
        """
        if self.layout is not None:
            return
        super().setup(stage)
        self.collate = whole_batch
        for name in ("train_set", "val_set", "test_set"):
            plain = getattr(self, name)
            own = PanopticSet(plain.pairs, plain.classes, plain.size, plain.augmentation)
            setattr(self, name, own)

    @property
    def things(self) -> tuple[bool, ...]:
        """Whether each class has instances."""
        return self.classes.things

    @property
    def preprocessing(self) -> PanopticFiles | None:
        """The classes, and the size of the network."""
        plain = super().preprocessing
        return None if plain is None else PanopticFiles(plain.classes, plain.size)

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw segments over photos."""
        return panoptic_pictures.draw(predictions, folder, self.classes, self.test_set.segmented)

    def baselines(self) -> dict[str, Baseline]:
        """None: no segment is found without a network."""
        return {}
