"""A user's own scans: what is found, paired and resampled, and what is refused."""

import nibabel as nib
import numpy as np
import pytest
import torch

from core.errors import UserError
from domains.medical.networks.voxelmorph import VoxelMorph
from domains.medical.own_data import OwnRegistrationData


def write(path, data, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    nib.Nifti1Image(data, affine).to_filename(path)


def blob(shape, centre, width=3.0):
    places = np.indices(shape).astype(np.float32)
    apart = sum((p - c) ** 2 for p, c in zip(places, centre, strict=True))
    return np.exp(-apart / (2 * width**2)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Ten scans with labels, each of its own subject."""
    for number in range(10):
        image = 100 * blob((12, 14, 10), (5 + number / 5, 7, 5))
        write(tmp_path / f"scans/images/s{number}_T1.nii.gz", image)
        write(tmp_path / f"scans/labels/s{number}_T1.nii.gz", (image > 50).astype(np.uint8))
    return tmp_path / "scans"


def module(train, **given):
    made = OwnRegistrationData(str(train), **{"affine": "none", **given})
    made.setup()
    return made


def subjects(dataset):
    return {dataset.scans[n].facts["subject"] for pair in dataset.pairs for n in pair}


def test_every_scan_is_paired_with_every_other_of_its_part(folder):
    data = module(folder, test_fraction=0.3, val_fraction=0.2)
    parts = [subjects(part) for part in (data.train_set, data.val_set, data.test_set)]
    assert not parts[0] & parts[2]
    assert not parts[1] & (parts[0] | parts[2])
    n = len(parts[0])
    assert len(data.train_set) == n * (n - 1)
    assert len(data.test_set) == len(parts[2])
    assert data.label_names == {1: "1"}
    example = data.test_set[0]
    assert example.moving.shape == (12, 14, 10)
    assert 0 <= example.moving.min() < example.moving.max() <= 1
    assert set(example.fixed_labels.unique().tolist()) == {0, 1}


def test_the_network_s_divisor_fills_up_and_is_told(folder):
    data = module(folder, test_fraction=0.3, val_fraction=0.2)
    data.check(VoxelMorph())
    assert any("12 x 14 x 10 voxels are filled up to 16 x 16 x 16" in own for own in data.notes)
    batch = next(iter(data.test_dataloader()))
    assert batch.fixed.shape == (1, 1, 16, 16, 16)
    assert batch.sizes.tolist() == [[12, 14, 10]]


def test_the_order_of_training_follows_the_seed(folder):
    data = module(folder, test_fraction=0.3, val_fraction=0.2, pairs_per_epoch=4, seed=3)
    plan = data.plan()
    assert len(plan) == 4
    assert plan(3, 0) == plan(3, 0) != plan(3, 1)


def test_an_atlas_is_fixed_and_another_grid_is_resampled_in_the_world(folder, tmp_path):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    write(tmp_path / "atlas.nii.gz", blob((6, 7, 5), (3, 3.5, 2.5), 1.5), affine)
    data = module(folder, atlas=str(tmp_path / "atlas.nii.gz"), test_fraction=0.3, val_fraction=0.2)
    example = data.test_set[0]
    assert example.fixed.shape == (6, 7, 5)
    assert example.spacing.tolist() == [2, 2, 2]
    peak = np.unravel_index(int(example.moving.argmax()), example.moving.shape)
    number = int(example.id[1])  # its centre lies at 5 + n / 5, 7, 5 mm
    assert np.allclose(np.array(peak) * 2, [5 + number / 5, 7, 5], atol=1.5)
    back = module(
        folder,
        **{"atlas": str(tmp_path / "atlas.nii.gz"), "atlas_moves": True},
        **{"test_fraction": 0.3, "val_fraction": 0.2},
    )
    assert back.test_set[0].fixed.shape == (12, 14, 10)


def test_pairs_listed_in_a_csv_with_swapped_axes_lie_on_each_other(tmp_path):
    image = blob((12, 14, 10), (4, 9, 6))
    turned = np.ascontiguousarray(image.transpose(2, 0, 1)[:, ::-1])
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3], affine[0, 3] = 1, -1, 1, 1, 11
    write(tmp_path / "a.nii.gz", image)
    for n in range(6):
        write(tmp_path / f"b{n}.nii.gz", turned, affine)
    rows = "".join(f"b{n}.nii.gz,a.nii.gz,p{n}\n" for n in range(6))
    (tmp_path / "pairs.csv").write_text("moving,fixed,subject\n" + rows)
    data = module(tmp_path / "pairs.csv", val_fraction=0.3, test_fraction=0.3)
    example = data.test_set[0]
    assert torch.allclose(example.moving, example.fixed, atol=1e-4)


def test_voxels_that_are_no_cubes_become_cubes(tmp_path):
    for number in range(6):
        write(tmp_path / f"s/x{number}.nii", blob((12, 12, 6), (6, 6, 3)), np.diag([1, 1, 3, 1.0]))
    data = module(tmp_path / "s", val_fraction=0.3, test_fraction=0.3)
    assert any("not cubes" in note for note in data.notes)
    assert data.test_set[0].spacing.tolist() == pytest.approx([3 ** (1 / 3)] * 3)
    coarse = module(tmp_path / "s", val_fraction=0.3, test_fraction=0.3, spacing=2)
    assert coarse.test_set[0].spacing.tolist() == [2, 2, 2]
    assert coarse.test_set[0].fixed.shape == (6, 6, 9)


def test_scans_of_one_subject_are_paired_within_it(tmp_path):
    for number in range(8):
        for kind in ("T1", "T2"):
            path = tmp_path / f"s/sub-{number}_{kind}.nii.gz"
            write(path, blob((8, 8, 8), (4, 4, 3 + number / 4)))
    data = module(tmp_path / "s", pairs="within", val_fraction=0.2, test_fraction=0.3)
    for part in (data.train_set, data.val_set, data.test_set):
        for a, b in part.pairs:
            assert part.scans[a].facts["subject"] == part.scans[b].facts["subject"]


@pytest.mark.parametrize(
    ("spoil", "given", "message"),
    [
        (lambda f: (f / "labels/s3_T1.nii.gz").unlink(), {}, "has no label map of its name"),
        (lambda f: (f / "images/s3_T1.nii.gz").unlink(), {}, "there is no scan of its name"),
        (lambda f: (f / "images/s3_T1.nii.gz").write_bytes(b"no"), {}, "s3_T1.nii.gz"),
        (lambda f: None, {"labels": "1,9"}, "no label map holds 9"),
        (lambda f: None, {"test_fraction": 1.5}, "must be shares"),
        (lambda f: None, {"atlas_labels": "x.nii"}, "needs data.atlas"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(folder, spoil, given, message):
    spoil(folder)
    with pytest.raises(UserError, match=message):
        module(folder, **given)


def test_a_list_of_pairs_without_a_partner_and_grids_without_an_affine(tmp_path):
    write(tmp_path / "a.nii.gz", blob((8, 8, 8), (4, 4, 4)))
    (tmp_path / "pairs.csv").write_text("moving,fixed\na.nii.gz,a.nii.gz\na.nii.gz,\n")
    with pytest.raises(UserError, match=r"pairs.csv:3: fixed is empty"):
        module(tmp_path / "pairs.csv")
    (tmp_path / "pairs.csv").write_text("moving,fixed\na.nii.gz,gone.nii.gz\n")
    with pytest.raises(UserError, match=r"pairs.csv:2: fixed 'gone.nii.gz': no such file"):
        module(tmp_path / "pairs.csv")
    (tmp_path / "pairs.csv").write_text("moving,fixed\n" + 2 * "a.nii.gz,a.nii.gz\n")
    with pytest.raises(UserError, match=r"pairs.csv:3: the same pair stands in line 2"):
        module(tmp_path / "pairs.csv")
    for n in range(6):
        np.savez(tmp_path / f"b{n}.npz", vol=blob((8, 9, 8), (4, 4, 4)))
    rows = "b{0}.npz,a.nii.gz,{0}\n"
    text = "moving,fixed,subject\n" + "".join(rows.format(n) for n in range(6))
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UserError, match="does not say where it lies"):
        module(tmp_path / "pairs.csv", val_fraction=0.3, test_fraction=0.3)
