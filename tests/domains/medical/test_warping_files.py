"""Fields in files: applied by the command, inverted, and refused where they are none."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import UserError
from domains.medical.fields import (
    Field,
    composed,
    field_of,
    inverse_residual,
    inverted,
    read_field,
    resample,
    write_field,
)
from domains.medical.pair_on_grid import grid_on
from domains.medical.scans import Grid, grid_of
from domains.medical.volumes import read_volume
from domains.medical.warping import integrate, spline_points, spline_upsample
from pleiad.command import run

AFFINE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, -0.2, 0.05) @ np.diag([-2.0, 2.5, 3.0]), [4, -6, 8]
)
SIZE = (14, 12, 10)


def smooth_velocity(size: tuple[int, int, int], std: float = 1.0) -> torch.Tensor:
    """Draw a velocity of control points six voxels apart."""
    points = spline_points(size, (6, 6, 6))
    drawn = torch.randn(1, 3, *points, generator=torch.Generator().manual_seed(0)) * std
    return spline_upsample(drawn, (6, 6, 6), size)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Write an image, its labels and a field on its grid."""
    values = np.random.default_rng(0).integers(0, 900, SIZE).astype(np.int16)
    nib.Nifti1Image(values, AFFINE).to_filename(tmp_path / "image.nii.gz")
    nib.Nifti1Image((values > 500).astype(np.uint8) * 3, AFFINE).to_filename(
        tmp_path / "labels.nii.gz"
    )
    volume = read_volume(tmp_path / "image.nii.gz")
    flow = integrate(smooth_velocity(volume.data.shape, 0.8), 6)[0]
    write_field(tmp_path / "field.nii.gz", field_of(flow, grid_on(volume)), volume)
    return tmp_path / "image.nii.gz"


def test_exponentials_of_opposite_velocities_are_inverse() -> None:
    velocity = smooth_velocity((24, 20, 22))
    grid = grid_on_voxels((24, 20, 22))
    forth, back = (field_of(integrate(sign * velocity, 7)[0], grid) for sign in (1, -1))
    inner = (slice(None), *[slice(5, -5)] * 3)
    both = Field(back.displacement + sampled(forth, back), grid).displacement[inner]
    assert float(both.square().sum(0).sqrt().mean()) < 0.05
    found, residual = inverted(forth)
    assert residual < 0.05
    assert residual == pytest.approx(inverse_residual(forth, found), abs=1e-4)
    apart = (found.displacement - back.displacement)[inner]
    assert float(apart.abs().mean()) < 0.05


def grid_on_voxels(shape: tuple[int, int, int]) -> Grid:
    """Give a grid whose voxels are places in the world."""
    return grid_of(np.eye(4), shape)


def sampled(field: Field, by: Field) -> torch.Tensor:
    """Give the displacements of a field at the places that another leads to."""
    return resample(field.displacement, np.eye(4), field.grid, field=by, outside=None)


def test_a_field_that_folds_says_that_it_has_no_inverse() -> None:
    flow = 3 * torch.randn(3, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    assert inverted(field_of(flow, grid_on_voxels((12, 12, 12))))[1] > 1


def test_the_command_warps_images_labels_and_points(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = image.parent
    field = f"--field={folder / 'field.nii.gz'}"
    out = folder / "warped.nii.gz"
    assert run(["warp", field, f"--input={image}", f"--output={out}", f"--like={image}"]) == 0
    warped = nib.load(out)
    assert np.allclose(warped.affine, AFFINE, atol=1e-5)
    assert warped.get_data_dtype() == np.int16
    run(["warp", field, f"--input={folder / 'labels.nii.gz'}", f"--output={out}", "--labels"])
    labels = nib.load(out)
    assert set(np.unique(np.asanyarray(labels.dataobj))) == {0, 3}
    assert labels.get_data_dtype() == np.uint8
    places = nib.affines.apply_affine(AFFINE, [[6.0, 6, 5], [7, 5, 4]])
    table = pd.DataFrame(places, columns=["x", "y", "z"]).assign(name=["a", "b"])
    table.to_csv(folder / "points.csv", index=False)
    there, back = folder / "there.csv", folder / "back.csv"
    run(["warp", field, f"--input={folder / 'points.csv'}", f"--output={there}", "--points"])
    moved = pd.read_csv(there)
    vectors = nib.load(folder / "field.nii.gz").get_fdata()[[6, 7], [6, 5], [5, 4], 0]
    assert np.allclose(moved[["x", "y", "z"]], places + vectors, atol=1e-4)
    assert list(moved["name"]) == ["a", "b"]
    run(["warp", field, f"--input={there}", f"--output={back}", "--points", "--inverse"])
    assert np.abs(pd.read_csv(back)[["x", "y", "z"]] - places).to_numpy().max() < 0.1
    assert "inverse by fixed point" in capsys.readouterr().out


def test_fields_of_ants_are_read(image: Path) -> None:
    path = image.parent / "field.nii.gz"
    ours = nib.load(path)
    data = ours.get_fdata(dtype=np.float32) * np.array([-1, -1, 1], np.float32)
    theirs = nib.Nifti1Image(data, ours.affine)
    theirs.header.set_intent(1007)
    theirs.to_filename(image.parent / "ants.nii.gz")
    assert torch.allclose(
        read_field(image.parent / "ants.nii.gz").displacement, read_field(path).displacement
    )


def test_what_is_no_field_is_refused(image: Path) -> None:
    (image.parent / "a.nii").write_text("no field")
    np.savez(image.parent / "b.npz", vol=np.zeros(3))
    for name in ("image.nii.gz", "a.nii", "b.npz", "gone.nii.gz"):
        with pytest.raises(UserError, match=r"not a displacement field|no such file"):
            read_field(image.parent / name)
    field = f"--field={image.parent / 'field.nii.gz'}"
    with pytest.raises(UserError, match="is not a CSV with numbers"):
        run(["warp", field, f"--input={image}", "--output=a.csv", "--points"])
    with pytest.raises(UserError, match="is the input file"):
        run(["warp", field, f"--input={image}", f"--output={image}"])


def test_composition_with_nothing_is_the_field(image: Path) -> None:
    field = read_field(image.parent / "field.nii.gz")
    assert composed(field, field.grid) is field
    turned = composed(field, field.grid, after=np.eye(4))
    assert torch.allclose(turned.displacement, field.displacement, atol=1e-4)
