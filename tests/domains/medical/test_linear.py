"""The linear stage finds known transforms, and is kept by the content of the files."""

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from core.errors import UserError
from domains.medical import linear
from domains.medical.fields import resample
from domains.medical.linear import align, aligned, read_itk, write_itk
from domains.medical.scans import grid_of
from domains.medical.volumes import Volume, read_volume

DATA = os.environ.get("PLEIAD_DATA", "")


def known(centre: Any, *, rigid: bool) -> Any:
    """Make a transform about a centre."""
    turn = nib.eulerangles.euler2mat(0.15, -0.1, 0.2)
    if not rigid:
        turn = turn @ np.array([[1.1, 0.05, 0], [0, 0.93, -0.04], [0.02, 0, 1.05]])
    about = nib.affines.from_matvec(np.eye(3), centre)
    return about @ nib.affines.from_matvec(turn, [8, -6, 5]) @ np.linalg.inv(about)


def placed(source: Volume, path: Path, grid: Any, matrix: Any, *, negative: bool = False) -> Volume:
    """Write a volume that lies where ``matrix`` takes it."""
    data = resample(torch.from_numpy(source.data)[None], matrix @ source.affine, grid)[0].numpy()
    data = data.max() - data if negative else data
    nib.Nifti1Image(data, grid.matrix).to_filename(path)
    return read_volume(path)


def off(found: Any, truth: Any, fixed: Volume) -> float:
    """Give the largest distance of two transforms in the inner half of a volume, in mm."""
    corners = np.stack(np.meshgrid(*[[0.25, 0.75]] * 3), -1).reshape(-1, 3) * fixed.data.shape
    world = nib.affines.apply_affine(fixed.affine, corners)
    apart = nib.affines.apply_affine(found, world) - nib.affines.apply_affine(truth, world)
    return float(np.linalg.norm(apart, axis=1).max())


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rigid", "affine", "another contrast"])
def test_a_known_transform_of_a_brain_is_found(tmp_path: Path, kind: str) -> None:
    source = read_volume(Path(DATA) / "medical" / "ANTsPy" / "ch2.nii.gz")
    three = grid_of(source.affine @ np.diag([3, 3, 3, 1.0]), (60, 72, 60))
    fixed = placed(source, tmp_path / "fixed.nii.gz", three, np.eye(4))
    truth = known((fixed.affine @ [30, 36, 30, 1])[:3], rigid=kind == "rigid")
    other = np.array([[-2.5, 0, 0, 100], [0, 3, 0, -130], [0, 0, 3.5, -85], [0, 0, 0, 1]])
    negative = kind == "another contrast"
    grid = grid_of(other, (80, 80, 64))
    moving = placed(source, tmp_path / "moving.nii.gz", grid, truth, negative=negative)
    found = align(moving, fixed, rigid=kind == "rigid")
    assert off(np.eye(4), truth, fixed) > 15
    assert off(found.matrix, truth, fixed) < (0.5 if negative else 0.2)
    assert found.after > found.before
    if kind == "rigid":
        assert np.allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-4)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Volume, Volume, Any]:
    """Write two small volumes, one turned."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 1, 5, 5, 5)))
    data = torch.nn.functional.interpolate(coarse, (20, 20, 20), mode="trilinear")[0, 0].numpy()
    data *= np.hanning(20)[:, None, None] * np.hanning(20)[:, None] * np.hanning(20)
    nib.Nifti1Image(data.astype(np.float32), np.diag([3.0, 3, 3, 1])).to_filename(
        tmp_path / "fixed.nii.gz"
    )
    fixed = read_volume(tmp_path / "fixed.nii.gz")
    truth = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.05, 0, 0.1), [3, -2, 1])
    grid = grid_of(fixed.affine, fixed.data.shape)
    return placed(fixed, tmp_path / "moving.nii.gz", grid, truth), fixed, truth


def test_a_known_transform_is_found_once(
    small: tuple[Volume, Volume, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    moving, fixed, truth = small
    monkeypatch.setattr("pooch.os_cache", lambda _: tmp_path / "cache")
    found = aligned(moving, fixed, rigid=True)
    assert off(found.matrix, truth, fixed) < 0.5
    monkeypatch.setattr(linear, "align", None)
    again = aligned(moving, fixed, rigid=True)  # of the cache
    assert np.array_equal(again.matrix, found.matrix)
    assert (again.before, again.after) == (found.before, found.after)
    nib.Nifti1Image(moving.data * 2, moving.affine).to_filename(moving.path)
    with pytest.raises(TypeError):  # another content is aligned anew
        aligned(read_volume(moving.path), fixed, rigid=True)


def test_files_of_itk_come_back(tmp_path: Path) -> None:
    matrix = known((1, 2, 3), rigid=False)
    write_itk(tmp_path / "a.txt", matrix)
    assert np.allclose(read_itk(tmp_path / "a.txt"), matrix)
    text = (tmp_path / "a.txt").read_text()
    (tmp_path / "b.txt").write_text(
        text.replace("FixedParameters: 0 0 0", "FixedParameters: 5 6 7")
    )
    centred = read_itk(tmp_path / "b.txt")
    assert np.allclose(
        centred @ [-5, -6, 7, 1], linear.LPS @ [5, 6, 7, 1] + matrix @ [0, 0, 0, 1] - [0, 0, 0, 1]
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("AffineTransform_double", "Euler3DTransform_double"), "is a Euler3DTransform"),
        (("#Transform 0", "Transform: AffineTransform_double_3_3"), "with one transform"),
        (("Parameters: ", "Parameters: x "), "12 parameters"),
        (("Parameters: ", "Parameters: 1 2 3 4 5 6 7 8 9 10 11 12 13 "), "12 parameters"),
    ],
)
def test_other_transforms_are_refused(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    write_itk(tmp_path / "a.txt", np.eye(4))
    text = (tmp_path / "a.txt").read_text()
    (tmp_path / "a.txt").write_text(text.replace(*change, 1))
    with pytest.raises(UserError, match=told):
        read_itk(tmp_path / "a.txt")
