"""The items of segmentation: photos, or tiles of large ones, in batches."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from core.array_cache import cached
from domains.vision.augmentation import Augmentation, normalised, resized
from domains.vision.class_file import VOID, Classes
from domains.vision.pairs import Pair
from domains.vision.survey import read_pair

TILE_CACHE = 50 * 2**30
"""The most bytes of tiles in the cache folder."""


class SegmentationBatch(NamedTuple):
    """B photos with their labels, filled up at the right and below with void where sizes differ.

    ``images`` (B, 3, H, W) normalised; ``labels`` (B, H, W) int64, 255 is void; ``ids`` their
    names; ``rows`` (B,) their places in the split; ``sizes`` (B, 2) the true heights and widths;
    ``window`` the side of the windows in which larger photos are judged, 0 for none.
    """

    images: Tensor
    labels: Tensor
    ids: list[str]
    rows: Tensor
    sizes: Tensor
    window: int = 0


class Example(NamedTuple):
    """One photo (3, H, W) of 8 bits, its labels (H, W), name and place."""

    image: Tensor
    labels: Tensor
    id: str
    row: int


class SegmentationSet(Dataset[Example]):
    """Photos with labels, or tiles of them.

    An index beyond the last item is one of another repetition of all items.

    Args:
        pairs: the photos.
        classes: of their masks.
        size: height and width to resize to; None keeps them.
        augmentation: what training does; None for validation and test.
        tiles: the photo and the number of the tile of each item (T, 2), -1 for a whole photo.
        tile: the side of a tile.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Classes,
        size: tuple[int, int] | None = None,
        augmentation: Augmentation | None = None,
        tiles: NDArray[np.int64] | None = None,
        tile: int = 0,
    ) -> None:
        self.pairs = pairs
        self.classes = classes
        self.size = size
        self.augmentation = augmentation
        self.tiles = tiles
        self.tile = tile
        self._cut: dict[int, Mapping[str, NDArray[Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Travel to a worker process without the tiles, which lie in files."""
        return {**self.__dict__, "_cut": {}}

    def __len__(self) -> int:
        """Count the items."""
        return len(self.pairs) if self.tiles is None else len(self.tiles)

    def __getitem__(self, index: int) -> Example:
        """Read an item; training changes it by the seed that comes with its index."""
        row = int(index) % len(self)
        number, part = (row, -1) if self.tiles is None else self.tiles[row].tolist()
        pair = self.pairs[number]
        if part < 0:
            pixels, mask = read_whole(pair, self.classes)
        else:
            if number not in self._cut:
                self._cut[number] = cut(pair, self.classes, self.tile)
            found = self._cut[number]
            pixels, mask = np.array(found["images"][part]), np.array(found["labels"][part])
        image, labels = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(mask)
        if self.size is not None:
            image, labels = resized(image, labels, self.size)
        if self.augmentation is not None:
            image, labels = self.augmentation(image, labels, getattr(index, "seed", 0))
        return Example(image, labels, pair.id, row)


def read_whole(pair: Pair, classes: Classes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the pixels (H, W, 3) and labels (H, W) of a pair."""
    photo, labels = read_pair(pair, classes)
    return np.ascontiguousarray(photo.pixels).copy(), labels.astype(np.uint8)


class Collate:
    """Put examples into a batch.

    Args:
        window: the side of the windows in which larger photos are judged.
    """

    def __init__(self, window: int = 0) -> None:
        self.window = window

    def __call__(self, examples: Sequence[Example]) -> SegmentationBatch:
        """Fill up with void to the largest height and width."""
        sizes = torch.tensor([example.labels.shape for example in examples])
        height, width = sizes.amax(0).tolist()
        images = torch.zeros(len(examples), 3, height, width)
        labels = torch.full((len(examples), height, width), VOID, dtype=torch.int64)
        for at, example in enumerate(examples):
            high, wide = example.labels.shape
            images[at, :, :high, :wide] = normalised(example.image)
            labels[at, :high, :wide] = example.labels
        rows = torch.tensor([example.row for example in examples])
        return SegmentationBatch(
            images, labels, [example.id for example in examples], rows, sizes, self.window
        )


def origins(height: int, width: int, tile: int) -> list[tuple[int, int]]:
    """Give the upper left corners of tiles that cover a photo; the last ones are moved inwards."""

    def along(length: int) -> list[int]:
        count = -(-length // tile)
        return [min(n * tile, max(length - tile, 0)) for n in range(count)]

    return [(top, left) for top in along(height) for left in along(width)]


def cut(pair: Pair, classes: Classes, tile: int) -> Mapping[str, NDArray[Any]]:
    """Cut a photo into tiles, once: ``images`` (T, S, S, 3), ``labels`` (T, S, S), ``counts``.

    They lie in the cache folder and are mapped into memory. Where a photo is smaller than a tile
    the rest is void.
    """
    stamps = [[str(p.absolute()), p.stat().st_mtime_ns] for p in (pair.image, pair.mask)]

    def make() -> dict[str, NDArray[Any]]:
        pixels, mask = read_whole(pair, classes)
        corners = origins(mask.shape[0], mask.shape[1], tile)
        images = np.zeros((len(corners), tile, tile, 3), np.uint8)
        labels = np.full((len(corners), tile, tile), VOID, np.uint8)
        for at, (top, left) in enumerate(corners):
            part = mask[top : top + tile, left : left + tile]
            labels[at, : part.shape[0], : part.shape[1]] = part
            images[at, : part.shape[0], : part.shape[1]] = pixels[
                top : top + tile, left : left + tile
            ]
        counts = np.stack([np.bincount(own.ravel(), minlength=VOID + 1) for own in labels])
        kept = np.concatenate([counts[:, : len(classes)], counts[:, VOID:]], 1)
        return {"images": images, "labels": labels, "counts": kept}

    return cached(["segmentation tiles", 1, stamps, repr(classes), tile], make, limit=TILE_CACHE)
