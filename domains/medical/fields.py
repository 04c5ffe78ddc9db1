"""Displacement fields in the world: applied, composed, inverted, and in files.

Sizes: a grid of D x H x W voxels. World coordinates are mm right, front and top (RAS+), as NIfTI
has them; ITK's are mm left, back and top (LPS+).
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from torch import Tensor

from core.errors import UserError
from domains.medical.scans import Grid, grid_of
from domains.medical.volumes import Volume, native, native_affine
from domains.medical.warping import Mode

Matrix = NDArray[np.floating[Any]]
SLAB = 2**21
"""Voxels that are computed at a time."""
DISPLACEMENT, VECTOR = 1006, 1007
"""Intents of NIfTI: what has the first lies in RAS, what has the other, as ANTs writes it, in LPS;
so do ITK 5.4 and later read them."""
ROUNDS = 50
"""The most rounds of an inversion."""
ENOUGH = 0.01
"""Voxels from which on a field counts as inverted."""


class Field(NamedTuple):
    """Displacements (3, D, H, W) in mm of the world at the voxels of a grid.

    An image is warped by taking, at every place x, its value at x + displacement(x).
    """

    displacement: Tensor
    grid: Grid


def field_of(flow: Tensor, grid: Grid) -> Field:
    """Make a field of displacements (3, D, H, W) in the voxels of its grid."""
    return Field(_turned(grid.matrix[:3, :3], flow), grid)


def flow_of(field: Field) -> Tensor:
    """Give the displacements (3, D, H, W) in the voxels of the grid."""
    return _turned(np.linalg.inv(field.grid.matrix[:3, :3]), field.displacement)


def sample(
    values: Tensor, places: Tensor, mode: Mode = "bilinear", outside: float | None = None
) -> Tensor:
    """Sample at places in voxels.

    Args:
        values: (C, D, H, W); ``nearest`` keeps their type.
        places: (3, ...), in the order of the axes.
        mode: ``bilinear`` is linear along the three axes.
        outside: the value at places more than half a voxel from every voxel; None takes that of
            the nearest voxel.

    Returns:
        (C, ...).
    """
    sides = places.new_tensor(values.shape[1:]).view(3, *[1] * (places.dim() - 1))
    if mode == "nearest":
        i, j, k = (places + 0.5).floor().clamp_min(0).minimum(sides - 1).long()
        found = values[:, i, j, k]
    else:
        scaled = 2 * places / (sides - 1) - 1
        grid = scaled.flip(0).movedim(0, -1).reshape(1, -1, 1, 1, 3)  # (1, N, 1, 1, 3)
        found = F.grid_sample(
            values[None], grid.to(values.dtype), "bilinear", "border", align_corners=True
        ).view(len(values), *places.shape[1:])
    if outside is not None:
        inside = ((places >= -0.5) & (places <= sides - 0.5)).all(0)
        found = torch.where(inside, found, torch.full((), outside, dtype=found.dtype))
    return found


def resample(
    values: Tensor,
    affine: Matrix,
    grid: Grid,
    *,
    field: Field | None = None,
    mode: Mode = "bilinear",
    outside: float | None = 0.0,
) -> Tensor:
    """Bring values to a grid, through a field or where they lie; they are interpolated once.

    Args:
        values: (C, I, J, K).
        affine: (4, 4) of their voxels.
        grid: where to.
        field: displacements at the voxels of ``grid``.
        mode: as of :func:`sample`.
        outside: as of :func:`sample`.

    Returns:
        (C, D, H, W).
    """
    found = values.new_empty(len(values), *grid.shape)
    inverse = np.linalg.inv(affine)
    for rows in slabs(grid.shape):
        places = voxels(inverse @ grid.matrix, grid.shape, rows)
        if field is not None:
            places = places + _turned(inverse[:3, :3], field.displacement[:, rows])
        found[:, rows] = sample(values, places, mode, outside)
    return found


def warped_image(moving: Volume, field: Field) -> NDArray[np.float32]:
    """Bring an image through a field, interpolated once; outside it has its least value."""
    values, outside = torch.from_numpy(moving.data)[None], float(moving.data.min())
    found = resample(values, moving.affine, field.grid, field=field, outside=outside)
    warped: NDArray[np.float32] = found[0].numpy()
    return warped


def warped_labels(labels: Volume, field: Field) -> NDArray[np.int64]:
    """Bring labels through a field; each voxel takes the nearest label, and outside it is 0."""
    values = torch.from_numpy(labels.data.astype(np.int64))[None]
    found = resample(values, labels.affine, field.grid, field=field, mode="nearest")
    warped: NDArray[np.int64] = found[0].numpy()
    return warped


def composed(
    field: Field | None, grid: Grid, *, before: Matrix | None = None, after: Matrix | None = None
) -> Field:
    """Give, on a grid, the field that maps x to after(y + d(y)) with y = before(x).

    Args:
        field: d; 0 if None. Where it does not reach, its nearest displacement counts.
        grid: of the result.
        before: (4, 4) in the world; nothing if None.
        after: as ``before``.
    """
    first, last = (np.eye(4) if matrix is None else matrix for matrix in (before, after))
    if field is not None and field.grid == grid and before is None and after is None:
        return field
    found = torch.empty(3, *grid.shape)
    for rows in slabs(grid.shape):
        total = voxels(last @ first @ grid.matrix - grid.matrix, grid.shape, rows)
        if field is not None:
            into = np.linalg.inv(field.grid.matrix) @ first @ grid.matrix
            moved = sample(field.displacement, voxels(into, grid.shape, rows))
            total = total + _turned(last[:3, :3], moved)
        found[:, rows] = total
    return Field(found, grid)


def inverted(field: Field) -> tuple[Field, float]:
    """Invert a field on its grid by the fixed point of v(x) = -u(x + v(x)).

    Chen et al., A simple fixed-point approach to invert a deformation field, Medical Physics 2008.
    Rounds end when nothing is off by more than a hundredth of a voxel; the best is kept. Where
    space folds there is no inverse, and the residual tells it.

    Returns:
        the inverse, and the largest |v(x) + u(x + v(x))|, in voxels.
    """
    flow, grid = flow_of(field), field.grid
    best = -flow
    found, least, before = best, float("inf"), float("inf")
    for _ in range(ROUNDS):
        wanted = torch.empty_like(flow)
        worst = 0.0
        for rows in slabs(grid.shape):
            places = voxels(np.eye(4), grid.shape, rows) + found[:, rows]
            wanted[:, rows] = -sample(flow, places)
            apart = (wanted[:, rows] - found[:, rows]).square().sum(0).amax().sqrt()
            worst = max(worst, float(apart))
        if worst < least:
            best, least = found, worst
        if worst < ENOUGH or worst > 2 * before:
            break
        found, before = wanted, worst
    return field_of(best, grid), least


def inverse_residual(field: Field, inverse: Field) -> float:
    """Give the largest |v(x) + u(x + v(x))| of two fields on one grid, in voxels."""
    flow, back = flow_of(field), flow_of(inverse)
    worst = 0.0
    for rows in slabs(field.grid.shape):
        places = voxels(np.eye(4), field.grid.shape, rows) + back[:, rows]
        apart = back[:, rows] + sample(flow, places)
        worst = max(worst, float(apart.square().sum(0).amax().sqrt()))
    return worst


def points_through(points: NDArray[np.float64], field: Field) -> NDArray[np.float64]:
    """Move points (N, 3) in mm of the world by the field at each; outside by its nearest voxel."""
    into = np.linalg.inv(field.grid.matrix)
    places = torch.from_numpy((points @ into[:3, :3].T + into[:3, 3]).T)  # (3, N)
    moved: NDArray[np.float64] = sample(field.displacement, places).double().numpy().T
    return points + moved


def write_field(path: Path, field: Field, like: Volume) -> None:
    """Write a field on the grid of a volume, in its file's orientation.

    Args:
        path: ends in ``.nii`` or ``.nii.gz`` for a vector image (I, J, K, 1, 3) of intent 1006 in
            mm, which ITK reads as LPS; or in ``.npz`` for ``displacement`` (I, J, K, 3) in voxels
            of the file, along its axes, and its ``affine``.
        field: on the canonical grid of ``like``.
        like: gives the orientation, the affine and its codes.
    """
    whole = native(field.displacement.movedim(0, -1).numpy(), like)  # (I, J, K, 3)
    if path.name.endswith(".npz"):
        affine = native_affine(like)
        turn = np.linalg.inv(affine[:3, :3]).astype(np.float32)
        np.savez_compressed(path, displacement=whole @ turn.T, affine=affine)
        return
    header = like.header.copy()
    header.set_data_dtype(np.float32)
    header["cal_min"] = header["cal_max"] = 0
    image = nib.Nifti1Image(whole[:, :, :, None], None, header)
    if not like.placed:
        image.set_sform(native_affine(like), 1)
    image.header.set_intent(DISPLACEMENT, name="displacement")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"mm, RAS; read by ITK as LPS"
    image.to_filename(path)


def read_field(path: Path) -> Field:
    """Read a field as :func:`write_field` writes it, or as ANTs does (intent 1007, LPS).

    Raises:
        UserError: if it is neither.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    fault = f"{path}: is not a displacement field, a vector image (I, J, K, 1, 3) or an npz"
    try:
        if path.name.endswith(".npz"):
            with np.load(path, allow_pickle=False) as arrays:
                affine = np.asarray(arrays["affine"], float)
                data = arrays["displacement"] @ affine[:3, :3].T
        else:
            image: Any = nib.load(path, mmap=False)
            affine, intent = image.affine, int(image.header["intent_code"])
            data = image.get_fdata(dtype=np.float32)
            if data.ndim == 5 and data.shape[3] == 1:
                data = data[:, :, :, 0]
            if intent not in (DISPLACEMENT, VECTOR):
                raise UserError(f"{fault} (its intent is {intent}, not {DISPLACEMENT})")
            if intent == VECTOR:
                data = data * np.array([-1, -1, 1], np.float32)
    except UserError:
        raise
    except (nib.filebasedimages.ImageFileError, OSError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{fault} ({error})") from None
    except zipfile.BadZipFile:
        raise UserError(f"{path}: is damaged; bring the whole file") from None
    if data.ndim != 4 or data.shape[3] != 3 or not np.isfinite(data).all():
        raise UserError(f"{fault} of finite numbers; it holds {data.shape}")
    orientation = io_orientation(affine)
    turned = np.ascontiguousarray(apply_orientation(data, orientation), np.float32)
    grid = grid_of(affine @ inv_ornt_aff(orientation, data.shape[:3]), turned.shape[:3])
    return Field(torch.from_numpy(turned).movedim(-1, 0).contiguous(), grid)


def slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    """Cut the first axis so that a slab has not too many voxels."""
    step = max(1, SLAB // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def voxels(matrix: Matrix, shape: tuple[int, int, int], rows: slice) -> Tensor:
    """Map the voxels of some rows by an affine (4, 4): (3, n, H, W)."""
    i = torch.arange(rows.start, rows.stop, dtype=torch.float64).view(-1, 1, 1)
    j = torch.arange(shape[1], dtype=torch.float64).view(-1, 1)
    k = torch.arange(shape[2], dtype=torch.float64)
    axes = [m[0] * i + m[1] * j + m[2] * k + m[3] for m in matrix[:3].tolist()]
    return torch.stack(axes).float()


def _turned(matrix: Matrix, vectors: Tensor) -> Tensor:
    """Multiply vectors (3, ...) by a matrix (3, 3)."""
    return torch.einsum("ab,b...->a...", torch.tensor(matrix, dtype=vectors.dtype), vectors)
