"""Look at every photo and mask once before anything is trained; what is wrong is told then."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.array_cache import cached
from core.errors import UserError
from domains.vision.class_file import VOID, Classes
from domains.vision.coco import drawn_labels
from domains.vision.masks import Labels, read_mask
from domains.vision.pairs import Pair
from domains.vision.photos import Photo, read_photo

_VERSION = 1
THREADS = 4


@dataclass(frozen=True)
class Survey:
    """What N pairs hold.

    Attributes:
        sizes: height and width (N, 2) in pixels.
        counts: pixels of each class, and of void last (N, K + 1).
        content: a hash of each photo's pixels (N,).
        notes: what was repaired, and how often.
    """

    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    content: NDArray[np.int64]
    notes: tuple[str, ...]

    def take(self, rows: NDArray[np.int64]) -> "Survey":
        """Give the part of some rows."""
        return Survey(self.sizes[rows], self.counts[rows], self.content[rows], self.notes)


def read_pair(pair: Pair, classes: Classes) -> tuple[Photo, Labels]:
    """Read a photo and its labels, of equal size.

    A photo is turned upright as its EXIF says, unless the mask fits only the photo as stored.

    Raises:
        UserError: if one is damaged, or the sizes differ.
    """
    labels = read_mask(pair.mask, classes) if pair.drawn is None else drawn_labels(pair)
    photo = read_photo(pair.image)
    if photo.pixels.shape[:2] != labels.shape and photo.stored == labels.shape:
        photo = read_photo(pair.image, upright=False)
        photo = photo._replace(notes=(*photo.notes, "not turned, as the mask is not"))
    if photo.pixels.shape[:2] != labels.shape:
        (high, wide), (mask_high, mask_wide) = photo.pixels.shape[:2], labels.shape
        raise UserError(
            f"{pair.mask}: {mask_wide}x{mask_high} pixels, but {pair.image} has {wide}x{high};"
            " a mask must have the size of its photo"
        )
    return photo, labels


def survey(pairs: Sequence[Pair], classes: Classes) -> Survey:
    """Look at all pairs; the result is kept in the cache folder.

    Raises:
        UserError: naming the first file that does not fit.
    """
    stamps = [
        [str(path.absolute()), path.stat().st_mtime_ns, path.stat().st_size]
        for pair in pairs
        for path in (pair.image, pair.mask)
        if path.is_file()
    ]
    key = ["segmentation survey", _VERSION, stamps, repr(classes)]
    arrays = cached(key, lambda: _looked(pairs, classes))
    notes = bytes(arrays["notes"]).decode()
    return Survey(
        arrays["sizes"], arrays["counts"], arrays["content"], tuple(filter(None, notes.split("\n")))
    )


def _looked(pairs: Sequence[Pair], classes: Classes) -> dict[str, NDArray[Any]]:
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(lambda pair: _row(pair, classes), pairs))
    counted: dict[str, int] = {}
    for row in rows:
        for note in row[3]:
            counted[note] = counted.get(note, 0) + 1
    told = "\n".join(f"photos: {count:,} {note}" for note, count in counted.items())
    return {
        "sizes": np.array([row[0] for row in rows], np.int64),
        "counts": np.stack([row[1] for row in rows]),
        "content": np.array([row[2] for row in rows], np.int64),
        "notes": np.frombuffer(f"\n{told}".encode(), np.uint8),
    }


def _row(pair: Pair, classes: Classes) -> tuple[Any, NDArray[np.int64], int, tuple[str, ...]]:
    photo, labels = read_pair(pair, classes)
    counts = np.bincount(labels.ravel(), minlength=VOID + 1)
    digest = hashlib.blake2b(photo.pixels.tobytes(), digest_size=7).digest()
    kept = np.concatenate([counts[: len(classes)], counts[VOID:]])
    return labels.shape, kept, int.from_bytes(digest, "little"), photo.notes
