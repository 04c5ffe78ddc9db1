"""Volumes in files: NIfTI, MGH and npz, in a canonical orientation within, in their own on disk.

Within, the axes of a volume run as near as they can to the right, front and top of the patient
(RAS+); an oblique grid stays oblique. What is written has the axes, the affine and the codes of the
file that its grid comes from. A repair is never silent: it stands in ``Volume.repairs``.
"""

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from core.errors import UserError

Array = NDArray[Any]
SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".npz")
RAS = np.array([[0, 1], [1, 1], [2, 1]])
"""The canonical orientation, as nibabel writes orientations."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume and where it lies.

    Attributes:
        path: its file.
        data: (I, J, K), canonical: float32, or integers for labels.
        affine: (4, 4), from places i, j, k of ``data`` to mm right, front and top in the world.
        header: how a NIfTI file of the grid begins, in the file's own orientation.
        native: that orientation (3, 2), as nibabel writes it.
        dtype: of the values in the file; that of labels is whole.
        placed: whether the file says where it lies; if not, ``affine`` has its spacing alone.
        repairs: what was changed or taken for granted.
    """

    path: Path
    data: Array
    affine: NDArray[np.float64]
    header: nib.Nifti1Header
    native: Array
    dtype: np.dtype[Any]
    placed: bool
    repairs: tuple[str, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The sides of a voxel in mm, in the order of the axes."""
        i, j, k = (float(side) for side in voxel_sizes(self.affine))
        return i, j, k


def read_volume(path: str | Path) -> Volume:
    """Read an image; values that are not finite become the least finite one.

    Raises:
        UserError: if it is not one volume of the formats that are read, is damaged, has more than
            three axes, lies in no space, is constant, or has no finite value.
    """
    volume = _read(Path(path), "vol")
    data = volume.data.astype(np.float32)
    finite = np.isfinite(data)
    if not (whole := bool(finite.all())):
        count = int(data.size - finite.sum())
        if count == data.size:
            raise UserError(f"{path}: no voxel is a finite number; give another volume")
        least = data[finite].min()
        data = np.where(finite, data, least)
        note = f"{count:,} voxels are not finite: they became {least:g}, the least value"
    if data.min() == data.max():
        raise UserError(f"{path}: every voxel is {data.flat[0]:g}, nothing can be aligned to it")
    repairs = volume.repairs if whole else (*volume.repairs, note)
    return replace(volume, data=data, repairs=repairs)


def read_labels(path: str | Path) -> Volume:
    """Read a label map; of an npz with an image, the array ``seg``.

    Whole numbers that are stored as floats become integers.

    Raises:
        UserError: as :func:`read_volume`, and if a value is no whole number, or all are 0.
    """
    volume = _read(Path(path), "seg")
    data, dtype, repairs = volume.data, volume.dtype, volume.repairs
    if not np.issubdtype(data.dtype, np.integer):
        off = ~(np.isfinite(data) & (data == np.round(data)))
        if off.any():
            raise UserError(
                f"{path}: is not a label map: it holds {data[off].flat[0]:g}, and a label is a"
                " whole number"
            )
        dtype = next(
            np.dtype(kind)
            for kind in (np.uint8, np.int16, np.int32, np.int64)
            if np.iinfo(kind).min <= data.min() and data.max() <= np.iinfo(kind).max
        )
        data = data.astype(dtype)
        repairs = (*repairs, f"labels stored as {volume.dtype} are taken as {dtype}")
    if not data.any():
        raise UserError(f"{path}: every voxel is 0, so there is no label; give a label map")
    return replace(volume, data=data, dtype=dtype, repairs=repairs)


def same_grid(volume: Volume, other: Volume) -> bool:
    """Say whether two volumes have the same voxels, within a hundredth of one."""
    if volume.data.shape != other.data.shape:
        return False
    apart = np.linalg.solve(other.affine, volume.affine) - np.eye(4)
    return bool(np.abs(apart @ [*volume.data.shape, 1]).max() < 0.01)


def on_grid(volume: Volume, other: Volume, what: str = "volume") -> Volume:
    """Give a volume that must lie on the grid of another, such as its labels or its mask.

    Where a file does not say where it lies, it lies as the other does if it has its shape.

    Raises:
        UserError: if it has another grid; the message says where only the axes are swapped.
    """
    if not (volume.placed and other.placed):
        volume = placed_as(volume, other)
    if not same_grid(volume, other):
        told = _swapped(volume, other) or (
            f"{_shape(volume)} voxels, and those of {other.path} are {_shape(other)} voxels"
            " or lie elsewhere"
        )
        raise UserError(f"{volume.path}: the {what} has another grid: {told}; resample it")
    return volume


def placed_as(volume: Volume, other: Volume) -> Volume:
    """Let a volume of which one file does not say where it lies lie as another does.

    Raises:
        UserError: if the two have different shapes.
    """
    if _native_shape(volume) != _native_shape(other):
        missing = volume if not volume.placed else other
        told = _swapped(volume, other) or f"{_shape(volume)} and {_shape(other)} voxels"
        raise UserError(
            f"{missing.path}: does not say where it lies, and {volume.path} and {other.path} have"
            f" different grids: {told}; give files with an affine"
        )
    data = apply_orientation(native(volume.data, volume), other.native)
    note = f"takes the place of {other.path.name}, which has its shape"
    return replace(
        volume,
        data=np.ascontiguousarray(data),
        affine=other.affine,
        header=other.header,
        native=other.native,
        repairs=(*volume.repairs, note),
    )


def native(data: Array, like: Volume) -> Array:
    """Bring an array (I, J, K, ...) on a canonical grid back to the axes of the file."""
    return np.asarray(apply_orientation(data, ornt_transform(RAS, like.native)))


def native_affine(like: Volume) -> NDArray[np.float64]:
    """Give the affine (4, 4) of the grid in the axes of the file."""
    shape = like.data.shape[:3]
    found: NDArray[np.float64] = like.affine @ inv_ornt_aff(ornt_transform(RAS, like.native), shape)
    return found


def write_volume(
    path: Path, data: Array, like: Volume, dtype: np.dtype[Any], *, labels: bool = False
) -> None:
    """Write an array on the grid of a volume, in its file's orientation, with its affine.

    Args:
        path: ends in one of ``SUFFIXES``.
        data: (I, J, K) on the canonical grid of ``like``.
        like: gives the grid, the affine and its codes.
        dtype: of the values in the file; integers are rounded and kept within their range.
        labels: name the array ``seg`` in an npz.

    Raises:
        UserError: if the file's ending is not known.
    """
    dtype = np.dtype(np.uint8) if dtype == np.bool_ else dtype
    dtype = np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")
    data = native(data, like)
    if np.issubdtype(dtype, np.integer) and not np.issubdtype(data.dtype, np.integer):
        bounds = np.iinfo(dtype)
        data = np.clip(np.rint(data), bounds.min, bounds.max)
    data = data.astype(dtype)
    ending = _ending(path)
    if ending == ".npz":
        arrays: dict[str, Any] = {"seg" if labels else "vol": data}
        if like.placed:
            arrays["affine"] = native_affine(like)
        np.savez_compressed(path, **arrays)
    elif ending in (".mgz", ".mgh"):
        if dtype not in (np.uint8, np.int16, np.int32, np.float32):
            data = data.astype(np.int32 if np.issubdtype(dtype, np.integer) else np.float32)
        nib.MGHImage(data, native_affine(like)).to_filename(path)
    else:
        header = like.header.copy()
        header["cal_min"] = header["cal_max"] = 0
        nib.Nifti1Image(data, None, header, dtype=dtype).to_filename(path)


def _read(path: Path, key: str) -> Volume:
    ending = _ending(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return _read_npz(path, key) if ending == ".npz" else _read_image(path)
    except (ImageFileError, HeaderDataError) as error:
        kind = "MGH" if ending in (".mgz", ".mgh") else "NIfTI"
        raise UserError(f"{path}: is not a {kind} file ({_first_line(error)})") from None
    except UserError:
        raise
    except (EOFError, OSError, ValueError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        told = _first_line(error)
        raise UserError(f"{path}: is damaged ({told}); bring the whole file") from None


def _read_image(path: Path) -> Volume:
    if _ending(path) in (".mgz", ".mgh"):  # nibabel's load leaves these files open
        with ImageOpener(path) as file:
            image: Any = nib.MGHImage.from_bytes(file.read())
    else:
        image = nib.load(path, mmap=False)
    shape, repairs = image.shape, []
    if len(shape) > 3 and all(side == 1 for side in shape[3:]):
        repairs.append(f"its {len(shape)} axes are taken as three: the others have one place each")
    array = np.asanyarray(image.dataobj)
    header = image.header
    placed = True
    if isinstance(header, nib.Nifti1Header):
        placed = bool(header["qform_code"] > 0 or header["sform_code"] > 0)
        if header["qform_code"] > 0 and header["sform_code"] > 0:
            apart = header.get_qform() - header.get_sform()
            if np.abs(apart @ [*shape[:3], 1]).max() > 0.1 * min(header.get_zooms()[:3]):
                repairs.append("its sform and qform differ: the sform counts")
    else:
        header = nib.Nifti1Header.from_header(header)
        header.set_sform(image.affine, 1)
        header.set_qform(image.affine, 1)
    affine = image.affine if placed else np.diag([*header.get_zooms()[:3], 1.0])
    return _volume(path, array, affine, header, placed, tuple(repairs))


def _read_npz(path: Path, key: str) -> Volume:
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name != "affine"]
        if key not in names and len(names) != 1:
            raise UserError(f"{path}: has no array {key!r} among {', '.join(names)}; name it so")
        array = arrays[key if key in names else names[0]]
        placed = "affine" in arrays.files
        affine = np.asarray(arrays["affine"], float) if placed else np.eye(4)
    header = nib.Nifti1Header()
    if affine.shape != (4, 4):
        raise UserError(f"{path}: its affine is {affine.shape}, not (4, 4)")
    if placed:
        header.set_sform(affine, 1)
    return _volume(path, array, affine, header, placed, ())


def _volume(
    path: Path,
    array: Array,
    affine: NDArray[np.float64],
    header: nib.Nifti1Header,
    placed: bool,
    repairs: tuple[str, ...],
) -> Volume:
    """Check what was read, and turn it into the canonical orientation."""
    shape = array.shape
    if len(shape) > 3 and any(side > 1 for side in shape[3:]):
        raise UserError(
            f"{path}: has {len(shape)} axes, {_times(shape)}; one volume has three: write the one"
            f" that counts to a file, such as `nib.four_to_three(nib.load({path.name!r}))[0]`"
        )
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise UserError(f"{path}: is flat ({_times(shape)}); volumes of three axes are registered")
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: holds {array.dtype} voxels, not one number each")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(f"{path}: its affine maps voxels onto no space; set its sform anew")
    array = array.reshape(shape[:3])
    orientation = io_orientation(affine)
    header.set_data_shape(array.shape)
    if placed is False:
        header.set_zooms(voxel_sizes(affine))
        repairs = (*repairs, "does not say where it lies: its axes are taken as they stand")
    return Volume(
        path,
        np.ascontiguousarray(apply_orientation(array, orientation)),
        affine @ inv_ornt_aff(orientation, array.shape),
        header,
        orientation,
        array.dtype,
        placed,
        repairs,
    )


def _ending(path: Path) -> str:
    """Give the ending of a file, which must be one that is known."""
    for ending in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(ending):
            return ending
    advice = "; a pickle can run code when it is opened, so write it as npz" * (
        path.suffix.lower() in (".pkl", ".pickle")
    )
    raise UserError(f"{path}: is not a volume that is read: {', '.join(SUFFIXES)}{advice}")


def _swapped(volume: Volume, other: Volume) -> str:
    """Say so if two shapes differ by the order of the axes alone."""
    one, two = _native_shape(volume), _native_shape(other)
    if one == two or sorted(one) != sorted(two):
        return ""
    return f"its axes are swapped, {_times(one)} where {other.path.name} has {_times(two)}"


def _native_shape(volume: Volume) -> tuple[int, ...]:
    order = ornt_transform(RAS, volume.native)[:, 0].astype(int)
    sides = [0, 0, 0]
    for axis, place in enumerate(order):
        sides[place] = volume.data.shape[axis]
    return tuple(sides)


def _shape(volume: Volume) -> str:
    return _times(_native_shape(volume))


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
