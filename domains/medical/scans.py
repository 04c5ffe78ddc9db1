"""Scans of patients: what a file holds, and its volume brought to a grid, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to, smooth_image
from numpy.typing import NDArray

from core.array_cache import cached
from domains.medical.volumes import (
    Volume,
    native,
    native_affine,
    on_grid,
    read_labels,
    read_volume,
)

Normalise = Literal["minmax", "percentile"]
CUBIC = 0.01
"""Sides of voxels that differ by less than this share are those of a cube."""
PERCENTILES = (0.5, 99.5)
SCAN_CACHE = 50 * 2**30
"""The most bytes of volumes in the cache folder."""
HELD = 512
"""Volumes that a process keeps mapped."""


@dataclass(frozen=True)
class Scan:
    """One volume.

    Attributes:
        id: its name in results.
        image: its file.
        labels: the file of its labels; None without any.
        mask: the file of where it counts: values above 0; None for everywhere.
        facts: columns that a split may go by.
    """

    id: str
    image: Path
    labels: Path | None = None
    mask: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)

    @property
    def stamps(self) -> list[list[Any]]:
        """What tells a change of its files."""
        files = (self.image, self.labels, self.mask)
        found = [(str(path.absolute()), path.stat()) for path in files if path is not None]
        return [[name, stat.st_mtime_ns, stat.st_size] for name, stat in found]


class Grid(NamedTuple):
    """Places of voxels: the affine (4, 4) to mm in the world, as nested tuples, and the shape."""

    affine: tuple[tuple[float, ...], ...]
    shape: tuple[int, int, int]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The affine as an array."""
        return np.array(self.affine)

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Sides (3,) of a voxel in mm."""
        sides: NDArray[np.float64] = nib.affines.voxel_sizes(self.matrix)
        return sides


def grid_of(affine: NDArray[np.float64], shape: tuple[int, ...]) -> Grid:
    """Make a grid."""
    i, j, k = shape
    return Grid(tuple(tuple(row) for row in np.asarray(affine, float).tolist()), (i, j, k))


class Survey(NamedTuple):
    """What the files of a scan hold: grid, values of labels, whether it is placed, and repairs.

    ``native`` (4, 4) is the affine in the order of the file's axes, ``native_shape`` its sides.
    """

    grid: Grid
    native: tuple[tuple[float, ...], ...]
    native_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    placed: bool
    repairs: tuple[str, ...]


def survey(scan: Scan) -> Survey:
    """Read a scan's files and check that they fit together; what was found is kept.

    Raises:
        UserError: if one cannot be registered, see :func:`domains.medical.volumes.read_volume`.
    """

    def make() -> dict[str, NDArray[Any]]:
        image, labels, _ = _read(scan)
        repairs = [
            f"{part.path.name}: {text}" for part in (image, labels) if part for text in part.repairs
        ]
        return {
            "affine": image.affine,
            "shape": np.array(image.data.shape),
            "native": native_affine(image),
            "native_shape": np.array(native(image.data, image).shape),
            "labels": np.unique(labels.data) if labels else np.zeros(0, np.int64),
            "placed": np.array(image.placed),
            "repairs": np.array(repairs, dtype=str),
        }

    found = cached(["survey of a scan", 2, scan.stamps], make)
    return Survey(
        grid_of(found["affine"], tuple(found["shape"].tolist())),
        *grid_of(found["native"], tuple(found["native_shape"].tolist())),
        tuple(value for value in found["labels"].tolist() if value != 0),
        bool(found["placed"]),
        tuple(found["repairs"].tolist()),
    )


def cubic(grid: Grid, spacing: float | None = None) -> Grid:
    """Give a grid of cubic voxels over the same space, turned as it is, about its middle.

    Args:
        grid: is kept where its voxels are cubes of the wanted size.
        spacing: their side in mm; None takes the cube of equal volume.
    """
    sides = grid.spacing
    side = float(np.cbrt(sides.prod())) if spacing is None else spacing
    if np.abs(sides / side - 1).max() < CUBIC:
        return grid
    times = side / sides
    shape = np.maximum(np.ceil(np.array(grid.shape) / times - CUBIC), 2).astype(int)
    first = (np.array(grid.shape) - 1) / 2 - times * (shape - 1) / 2
    affine = grid.matrix @ np.diag([*times, 1.0])
    affine[:3, 3] = grid.matrix[:3] @ [*first, 1.0]
    return grid_of(affine, tuple(shape.tolist()))


def centred(grid: Grid, shape: tuple[int, int, int]) -> Grid:
    """Give a grid of that shape with the same voxels, in whose middle the old one lies."""
    before = [(new - old) // 2 for new, old in zip(shape, grid.shape, strict=True)]
    shift = np.eye(4)
    shift[:3, 3] = [-offset for offset in before]
    return grid_of(grid.matrix @ shift, shape)


@lru_cache(maxsize=HELD)
def placed(scan: Scan, grid: Grid, normalise: Normalise = "minmax") -> Mapping[str, NDArray[Any]]:
    """Bring a scan to a grid, once: ``image`` float32 in [0, 1], ``labels`` int32, ``mask`` bool.

    Volumes are interpolated linearly, and smoothed before where the voxels become larger; labels
    and masks take the nearest voxel. ``image`` and ``labels`` are 0 outside of the scan, and so is
    the mask. All lie in the cache folder and are mapped into memory.

    Args:
        scan: what to bring.
        grid: where to, in the world of the scan.
        normalise: to [0, 1] from the least and largest value, or from two percentiles.
    """

    def make() -> dict[str, NDArray[Any]]:
        image, labels, mask = _read(scan)
        affine = image.affine
        own = smoothed(normalised(image.data, normalise), grid_of(affine, image.data.shape), grid)
        moved = _resampled(own, affine, grid, 1)
        whole = np.ones(image.data.shape, np.uint8) if mask is None else mask > 0
        return {
            "image": moved.clip(0, 1).astype(np.float32),
            "labels": np.zeros(grid.shape, np.int32)
            if labels is None
            else _resampled(labels.data.astype(np.int32), affine, grid, 0),
            "mask": _resampled(whole.astype(np.uint8), affine, grid, 0) > 0,
        }

    key = ["scan on a grid", 1, scan.stamps, [list(row) for row in grid.affine], list(grid.shape)]
    return cached([*key, normalise], make, limit=SCAN_CACHE)


def smoothed(data: NDArray[np.float32], own: Grid, grid: Grid) -> NDArray[np.float32]:
    """Smooth a volume for a grid whose voxels are larger than its own."""
    coarser = np.where(grid.spacing > own.spacing * (1 + CUBIC), grid.spacing, 0.0)
    if not coarser.any():
        return data
    image: Any = smooth_image(nib.Nifti1Image(data, own.matrix), coarser)
    found: NDArray[np.float32] = image.get_fdata(dtype=np.float32)
    return found


def normalised(data: NDArray[np.float32], how: Normalise) -> NDArray[np.float32]:
    """Map the values to [0, 1]."""
    low, high = (data.min(), data.max()) if how == "minmax" else np.percentile(data, PERCENTILES)
    if low == high:
        low, high = data.min(), data.max()
    scaled: NDArray[np.float32] = ((data - low) / (high - low)).clip(0, 1).astype(np.float32)
    return scaled


def _resampled(
    data: NDArray[Any], affine: NDArray[np.float64], grid: Grid, order: int
) -> NDArray[Any]:
    if grid.shape == data.shape and np.allclose(grid.matrix, affine, atol=1e-4):
        return data
    image = nib.Nifti1Image(data, affine, dtype=data.dtype)
    moved = resample_from_to(image, (grid.shape, grid.matrix), order, mode="constant", cval=0.0)
    return np.asarray(moved.dataobj).astype(data.dtype)


def _read(scan: Scan) -> tuple[Volume, Volume | None, NDArray[Any] | None]:
    image = read_volume(scan.image)
    labels = None
    if scan.labels is not None:
        labels = on_grid(read_labels(scan.labels), image, "label map")
    mask = None
    if scan.mask is not None:
        mask = on_grid(read_labels(scan.mask), image, "mask").data
    return image, labels, mask
