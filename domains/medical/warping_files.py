"""``pleiad warp``: a displacement field applied to an image, to labels, or to points."""

from pathlib import Path

import numpy as np
import pandas as pd

from core.errors import UserError
from domains.medical.fields import (
    Field,
    composed,
    inverted,
    points_through,
    read_field,
    warped_image,
    warped_labels,
)
from domains.medical.pair_on_grid import grid_on
from domains.medical.volumes import Volume, read_labels, read_volume, write_volume

_AXES = ["x", "y", "z"]


def warp_file(
    field: Path,
    input: Path,
    output: Path,
    like: Path | None = None,
    inverse: bool = False,
    labels: bool = False,
    points: bool = False,
) -> str:
    """Apply a displacement field.

    Args:
        field: a NIfTI or npz of displacements, or the folder that ``pleiad predict`` wrote.
        input: an image or label map, or with ``points`` a CSV with columns x, y, z in mm of the
            world (right, front, top); its other columns are kept.
        output: the result.
        like: a volume whose grid the result takes; that of the field if not given.
        inverse: apply the inverse: that in the folder or beside the file, or else the fixed point.
        labels: the input is a label map: each voxel takes the nearest label.
        points: move points. They go against the image: the field that brings moving onto fixed
            takes points of fixed to moving, and its inverse those of moving to fixed.

    Returns:
        One line about what was done.

    Raises:
        UserError: if a file cannot be read or the options do not go together.
    """
    if points and (labels or like is not None):
        raise UserError("warp: --points takes neither --labels nor --like")
    if output.exists() and input.exists() and output.samefile(input):
        raise UserError(f"--output {output} is the input file; give another name")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    found, notes = _field(field, inverse)
    if points:
        notes.append(_points(input, output, found))
        return f"{output}: {'; '.join(notes)}"
    volume = read_labels(input) if labels else read_volume(input)
    target = read_volume(like) if like is not None else None
    if target is not None:
        found = composed(found, grid_on(target))
    grid = target or _placed(volume, found)
    whole = warped_labels(volume, found) if labels else warped_image(volume, found)
    write_volume(output, whole, grid, volume.dtype, labels=labels)
    sides = " x ".join(map(str, whole.shape))
    return f"{output}: {'; '.join([f'{sides} voxels', *notes, *volume.repairs])}"


def _field(path: Path, inverse: bool) -> tuple[Field, list[str]]:
    """Read a field or its inverse, and say where that comes from."""
    folder, name = (path, "displacement.nii.gz") if path.is_dir() else (path.parent, path.name)
    kept = folder / f"inverse_{name}"
    if not inverse:
        return read_field(folder / name), []
    if kept.is_file():
        return read_field(kept), [f"by {kept.name}"]
    found, residual = inverted(read_field(folder / name))
    return found, [f"inverse by fixed point, off by at most {residual:.3f} voxels"]


def _placed(volume: Volume, field: Field) -> Volume:
    """Give the grid of a field as a volume, of canonical orientation."""
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape(field.grid.shape)
    header.set_sform(field.grid.matrix, 1)
    header.set_qform(field.grid.matrix, 1)
    header.set_xyzt_units("mm")
    whole = np.zeros(field.grid.shape, np.uint8)
    native = nib.orientations.io_orientation(field.grid.matrix)
    return Volume(
        *(volume.path, whole, field.grid.matrix, header, native, volume.dtype), placed=True
    )


def _points(path: Path, output: Path, field: Field) -> str:
    try:
        table = pd.read_csv(path)
        places = table[_AXES].to_numpy(float)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: is not a CSV with numbers in columns x, y and z ({error})"
        ) from None
    if not np.isfinite(places).all():
        raise UserError(f"{path}: row {int(np.argmin(np.isfinite(places).all(1))) + 2} has a gap")
    table[_AXES] = points_through(places, field)
    table.to_csv(output, index=False)
    return f"{len(table):,} points"
