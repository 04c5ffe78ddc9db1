"""Volumes in files keep their place in the world, their header and their type."""

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from domains.medical.volumes import (
    native,
    native_affine,
    on_grid,
    read_labels,
    read_volume,
    same_grid,
    write_volume,
)

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.3, 0.1) @ np.diag([-1.0, 1.2, 3.0]), [5, -20, 7]
)


def save(path: Path, array: Any, affine: Any = OBLIQUE) -> Path:
    """Write a NIfTI file; without an affine it does not say where it lies."""
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    if affine is None:
        image.header.set_zooms((1, 1.2, 3))
    image.to_filename(path)
    return path


def values(seed: int = 0, shape: tuple[int, ...] = (4, 5, 6)) -> Any:
    """Draw an image."""
    return np.random.default_rng(seed).integers(-900, 1000, shape).astype(np.int16)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_any_orientation_becomes_canonical_and_is_restored(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    turned = np.eye(4)
    turned[:3, :3] = OBLIQUE[:3, :3][:, list(order)] * signs
    turned[:3, 3] = OBLIQUE[:3, 3]
    array = values()
    volume = read_volume(save(tmp_path / "a.nii.gz", array, turned))
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    place = np.array([1, 2, 3])
    world = nib.affines.apply_affine(turned, place)
    canonical = nib.affines.apply_affine(np.linalg.inv(volume.affine), world).round().astype(int)
    assert volume.data[tuple(canonical)] == array[tuple(place)]
    assert np.array_equal(native(volume.data, volume), array)
    assert np.allclose(native_affine(volume), turned, atol=1e-5)
    write_volume(tmp_path / "b.nii.gz", volume.data, volume, volume.dtype)
    written = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), array)
    assert written.get_data_dtype() == np.int16
    assert np.allclose(written.affine, turned, atol=1e-5)


def test_the_header_of_the_grid_is_kept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), None)
    image.set_qform(OBLIQUE, 1)
    image.set_sform(OBLIQUE, 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"] = 500
    image.to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    write_volume(tmp_path / "b.nii", volume.data / 2, volume, np.dtype(np.float32))
    header = nib.load(tmp_path / "b.nii").header
    assert (header["qform_code"], header["sform_code"], header["cal_max"]) == (1, 4, 0)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert np.allclose(header.get_qform(), OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "int64"])
def test_labels_keep_their_integers(tmp_path: Path, kind: str) -> None:
    array = (values() > 0).astype(kind) * np.iinfo(kind).max
    labels = read_labels(save(tmp_path / "a.nii.gz", array))
    write_volume(tmp_path / "b.nii.gz", labels.data, labels, labels.dtype, labels=True)
    written = nib.load(tmp_path / "b.nii.gz")
    assert written.get_data_dtype() == np.dtype(kind)
    assert np.array_equal(np.asanyarray(written.dataobj), array)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz", ".mgh", ".npz"])
def test_every_format_is_read_as_it_was_written(tmp_path: Path, ending: str) -> None:
    volume = read_volume(save(tmp_path / "a.nii", values()))
    path = tmp_path / f"b{ending}"
    write_volume(path, volume.data, volume, volume.dtype)
    again = read_volume(path)
    assert np.array_equal(again.data, volume.data)
    assert same_grid(again, volume)
    assert again.placed
    write_volume(tmp_path / "c.nii", again.data, again, again.dtype)
    assert np.allclose(nib.load(tmp_path / "c.nii").affine, OBLIQUE, atol=1e-4)


def test_integers_are_rounded_and_kept_in_range(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "a.nii", values()))
    write_volume(tmp_path / "b.nii", volume.data + 0.6, volume, np.dtype(np.uint8))
    found = np.asanyarray(nib.load(tmp_path / "b.nii").dataobj)
    assert np.array_equal(found, np.clip(values().astype(int) + 1, 0, 255))


def test_a_labelled_npz_holds_both(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", vol=values() / 3, seg=(values() > 0) * 7)
    assert read_volume(tmp_path / "a.npz").data.dtype == np.float32
    assert set(np.unique(read_labels(tmp_path / "a.npz").data)) == {0, 7}


def test_repairs_are_told(tmp_path: Path) -> None:
    array = values().astype(np.float32)
    array[0, 0, :2] = np.nan
    array[1, 1, 1] = np.inf
    volume = read_volume(save(tmp_path / "a.nii", array))
    assert "3 voxels are not finite" in volume.repairs[0]
    assert np.isfinite(volume.data).all()
    labels = read_labels(save(tmp_path / "b.nii", (values() > 0).astype(np.float64) * 300))
    assert labels.dtype == np.int16
    assert "float64 are taken as int16" in labels.repairs[0]
    four = read_volume(save(tmp_path / "c.nii", values()[..., None, None]))
    assert four.data.shape == (4, 5, 6)
    assert four.repairs
    loose = read_volume(save(tmp_path / "d.nii", values(), None))
    assert not loose.placed
    assert "does not say where it lies" in loose.repairs[0]
    assert np.allclose(loose.affine, np.diag([1, 1.2, 3, 1]), atol=1e-5)


def test_a_qform_that_differs_is_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), None)
    image.set_qform(np.eye(4), 1)
    image.set_sform(OBLIQUE, 1)
    image.to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert "sform and qform differ" in volume.repairs[0]
    assert np.allclose(native_affine(volume), OBLIQUE, atol=1e-5)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((4, 5, 6, 2), np.float32), "4 axes, 4 x 5 x 6 x 2"),
        (np.ones((4, 5, 6), np.float32), "every voxel is 1"),
        (np.full((4, 5, 6), np.nan, np.float32), "no voxel is a finite number"),
        (np.arange(20, dtype=np.float32).reshape(4, 5), "is flat"),
        (np.ones((4, 5, 6), np.complex64), "complex64 voxels"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, array: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_volume(save(tmp_path / "a.nii", array))


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"no volume" * 99))
    (tmp_path / "b.nii.gz").write_text("no gzip")
    whole = save(tmp_path / "c.nii.gz", values(shape=(20, 20, 20))).read_bytes()
    (tmp_path / "c.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d.npz").write_bytes(b"no zip")
    (tmp_path / "e.pkl").write_bytes(b"")
    np.savez(tmp_path / "f.npz", vol=np.array([[[{}, 1], [2, 3]], [[1, 2], [3, 4]]], object))
    for name, told in {
        "a.nii.gz": "is not a NIfTI file",
        "b.nii.gz": "is not a NIfTI file",
        "c.nii.gz": "is damaged",
        "d.npz": "is damaged",
        "e.pkl": "a pickle can run code",
        "f.npz": "is damaged",
        "g.nii": "no such file",
    }.items():
        with pytest.raises(UserError, match=told):
            read_volume(tmp_path / name)


def test_what_is_no_label_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a label map"):
        read_labels(save(tmp_path / "a.nii", values() / 7))
    with pytest.raises(UserError, match="there is no label"):
        read_labels(save(tmp_path / "b.nii", values() * 0))


def test_a_flat_affine_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), None)
    image.set_sform(np.diag([1, 1, 0, 1]), 1)
    image.to_filename(tmp_path / "a.nii")
    with pytest.raises(UserError, match="no space"):
        read_volume(tmp_path / "a.nii")


def test_companions_must_lie_on_the_grid(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "a.nii", values()))
    labels = read_labels(save(tmp_path / "b.nii", (values() > 0).astype(np.uint8)))
    assert on_grid(labels, volume) is labels
    moved = OBLIQUE.copy()
    moved[0, 3] += 1
    other = read_labels(save(tmp_path / "c.nii", (values() > 0).astype(np.uint8), moved))
    with pytest.raises(UserError, match="label map has another grid"):
        on_grid(other, volume, "label map")
    turned = read_labels(save(tmp_path / "d.nii", np.ones((5, 4, 6), np.uint8)))
    with pytest.raises(UserError, match="axes are swapped, 5 x 4 x 6"):
        on_grid(turned, volume)


def test_a_companion_without_a_place_lies_as_its_volume(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "a.nii", values()))
    np.savez(tmp_path / "b.npz", seg=values())
    labels = on_grid(read_labels(tmp_path / "b.npz"), volume)
    assert np.array_equal(labels.data, volume.data)  # turned as the volume is
    np.savez(tmp_path / "c.npz", seg=values(shape=(4, 6, 5)))
    with pytest.raises(UserError, match="axes are swapped"):
        on_grid(read_labels(tmp_path / "c.npz"), volume)


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*[st.integers(2, 5)] * 3),
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    sides=st.tuples(*[st.floats(0.3, 4)] * 3),
)
def test_native_and_canonical_are_one_place(
    tmp_path_factory: pytest.TempPathFactory, shape: Any, angles: Any, sides: Any
) -> None:
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(*angles) * sides, [1, 2, 3])
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    path = save(tmp_path_factory.mktemp("volumes") / "a.nii", array, affine)
    volume = read_volume(path)
    assert np.array_equal(native(volume.data, volume), array)
    assert np.allclose(native_affine(volume), affine, atol=1e-4)
