"""Registration of files: the results lie where they should, in every orientation."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.errors import UserError
from core.pretrained import save_pretrained
from domains.medical import linear
from domains.medical.fields import points_through, read_field, warped_image, warped_labels
from domains.medical.linear import read_itk
from domains.medical.networks.parts import RegistrationOutput
from domains.medical.networks.voxelmorph import VoxelMorph
from domains.medical.preprocessing import RegistrationFiles
from domains.medical.volumes import read_labels, read_volume
from domains.medical.warping import integrate, warp
from pleiad.predict import predict

TURN = nib.eulerangles.euler2mat(0.2, -0.1, 0.15)
FIXED = nib.affines.from_matvec(TURN @ np.diag([-2.0, 2.0, 2.0]), [20, -18, -15])
MOVING = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(-0.1, 0.1, 0) @ np.array([[0, 1.8, 0], [0, 0, -3.0], [2.2, 0, 0]]),
    [-18, 20, -19],
)


def blobs(points: Any) -> Any:
    """Give intensities at places (..., 3) in the world."""
    x, y, z = np.moveaxis(np.asarray(points, float), -1, 0)
    return (
        600 * np.exp(-((x - 3) ** 2 + (y + 2) ** 2 / 2 + z**2) / 90)
        + 300 * np.exp(-((x + 6) ** 2 + (y - 5) ** 2 + (z - 4) ** 2 * 2) / 40)
        + 100 * np.cos(x / 4) * np.exp(-(x**2 + y**2 + z**2) / 300)
    )


def scene(path: Path, affine: Any, shape: tuple[int, int, int], shift: Any = (0, 0, 0)) -> Path:
    """Write the blobs as int16, and their labels beside."""
    places = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    values = blobs(places - np.asarray(shift, float))
    nib.Nifti1Image(values.astype(np.int16), affine).to_filename(path)
    labels = ((values > 150).astype(np.int16) + (values > 350)) * 11
    nib.Nifti1Image(labels, affine).to_filename(path.with_name(f"labels_{path.name}"))
    return path


class Waves(nn.Module):
    """Answer with one smooth velocity, whatever the volumes are."""

    divisor = 4
    int_steps = 6

    def __init__(self, amplitude: float = 1.5, integrated: bool = True) -> None:
        super().__init__()
        self.amplitude = amplitude
        self.integrated = integrated

    def forward(self, moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        """Register."""
        assert moving.shape == fixed.shape
        assert not any(side % self.divisor for side in moving.shape[2:])
        assert 0 <= float(moving.min()) < float(moving.max()) <= 1
        size = moving.shape[2:]
        i, j, k = torch.meshgrid(*[torch.linspace(0, 3.14, side) for side in size], indexing="ij")
        bump = i.sin() * j.sin() * k.sin() * self.amplitude
        velocity = torch.stack([bump, -bump * i.cos(), 0.5 * bump])[None]
        flow = integrate(velocity, self.int_steps)
        return RegistrationOutput(warp(moving, flow), flow, velocity if self.integrated else None)


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    """Write a pair whose grids have nothing in common."""
    return {
        "moving": scene(tmp_path / "moving.nii.gz", MOVING, (20, 22, 14)),
        "fixed": scene(tmp_path / "fixed.nii.gz", FIXED, (18, 21, 17)),
    }


def labels_of(pair: dict[str, Path]) -> dict[str, str]:
    """Name the labels of a pair."""
    return {
        f"{name}_labels": str(path.with_name(f"labels_{path.name}")) for name, path in pair.items()
    }


def test_results_lie_on_the_grid_of_fixed_in_the_world(
    pair: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    told = RegistrationFiles("none").predict_files(Waves(), pair, out, **labels_of(pair))
    assert "inverse by exp(-v)" in told
    fixed, warped = nib.load(pair["fixed"]), nib.load(out / "warped.nii.gz")
    assert warped.shape == fixed.shape
    assert np.allclose(warped.affine, fixed.affine, atol=1e-5)
    assert warped.get_data_dtype() == np.int16
    assert nib.load(out / "warped_labels.nii.gz").get_data_dtype() == np.int16
    # by hand, without the code under test: value of moving at x + d(x), d in RAS with intent 1006
    field = nib.load(out / "displacement.nii.gz")
    assert field.shape == (*fixed.shape, 1, 3)
    assert field.header["intent_code"] == 1006
    assert np.allclose(field.affine, fixed.affine, atol=1e-5)
    moved = field.get_fdata()[:, :, :, 0]
    assert np.linalg.norm(moved, axis=-1).max() > 1.5
    places = nib.affines.apply_affine(fixed.affine, np.moveaxis(np.indices(fixed.shape), 0, -1))
    from scipy.ndimage import map_coordinates

    voxels = nib.affines.apply_affine(
        np.linalg.inv(nib.load(pair["moving"]).affine), places + moved
    )
    array = nib.load(pair["moving"]).get_fdata()
    hand = map_coordinates(array, np.moveaxis(voxels, -1, 0), order=1, mode="nearest")
    inside = ((voxels > 0) & (voxels < np.array(array.shape) - 1)).all(-1)
    assert inside.mean() > 0.4
    assert np.abs(hand - warped.get_fdata())[inside].max() < 0.6  # rounded to integers
    with np.load(out / "displacement.npz") as arrays:
        assert np.allclose(arrays["displacement"] @ fixed.affine[:3, :3].T, moved, atol=1e-3)
    assert (out / "registration.png").stat().st_size > 10_000
    scores = json.loads((out / "scores.json").read_text())
    found = np.asanyarray(nib.load(out / "warped_labels.nii.gz").dataobj) == 22
    truth = np.asanyarray(nib.load(labels_of(pair)["fixed_labels"]).dataobj) == 22
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert scores["dice/22"] == pytest.approx(dice)
    with (out / "scores.csv").open() as file:
        rows = {row["score"]: float(row["value"]) for row in csv.DictReader(file) if row["value"]}
    assert rows["folding"] == scores["folding"] == 0


@pytest.mark.parametrize("ending", ["nii.gz", "npz"])
def test_a_field_read_back_gives_the_same_results(
    pair: dict[str, Path], tmp_path: Path, ending: str
) -> None:
    out = tmp_path / "out"
    RegistrationFiles("none").predict_files(Waves(), pair, out, **labels_of(pair))
    field = read_field(out / f"displacement.{ending}")
    again = warped_image(read_volume(pair["moving"]), field)
    assert np.abs(again - read_volume(out / "warped.nii.gz").data).max() <= 0.51
    labels = warped_labels(read_labels(labels_of(pair)["moving_labels"]), field)
    assert (labels != read_labels(out / "warped_labels.nii.gz").data).mean() < 1e-3
    back = read_field(out / f"inverse_displacement.{ending}")
    assert back.grid.shape == read_volume(pair["moving"]).data.shape
    points = np.array([[0.0, 0, 0], [3, -2, 1], [-5, 4, 3]])
    assert np.abs(points_through(points_through(points, field), back) - points).max() < 0.1


@pytest.mark.parametrize("reader", ["SimpleITK", "ants"])
def test_other_programs_apply_the_field_alike(
    pair: dict[str, Path], tmp_path: Path, reader: str
) -> None:
    module: Any = pytest.importorskip(reader)
    out = tmp_path / "out"
    RegistrationFiles("none").predict_files(Waves(), pair, out)
    if reader == "ants":
        still, moved = (module.image_read(str(pair[name])) for name in ("fixed", "moving"))
        field = str(out / "displacement.nii.gz")
        least = float(moved.min())
        found = module.apply_transforms(still, moved, [field], defaultvalue=least).numpy()
    else:
        still, moved = (
            module.ReadImage(str(pair[name]), module.sitkFloat32) for name in ("fixed", "moving")
        )
        field = module.ReadImage(str(out / "displacement.nii.gz"), module.sitkVectorFloat64)
        transform = module.DisplacementFieldTransform(field)
        least = float(module.GetArrayFromImage(moved).min())
        warped = module.Resample(moved, still, transform, module.sitkLinear, least)
        found = module.GetArrayFromImage(warped).T
    ours = nib.load(out / "warped.nii.gz").get_fdata()
    assert (np.abs(found - ours) < 0.6).mean() > 0.995  # apart where outside begins
    assert np.corrcoef(found.ravel(), ours.ravel())[0, 1] > 0.999


def test_a_field_without_a_velocity_is_inverted(pair: dict[str, Path], tmp_path: Path) -> None:
    told = RegistrationFiles("none").predict_files(Waves(integrated=False), pair, tmp_path / "out")
    assert "inverse by fixed point, off by at most 0.0" in told
    field, back = (
        read_field(tmp_path / "out" / f"{name}displacement.nii.gz") for name in ("", "inverse_")
    )
    points = np.array([[0.0, 0, 0], [3, -2, 1], [-5, 4, 3]])
    assert np.abs(points_through(points_through(points, field), back) - points).max() < 0.1


def test_a_linear_file_and_the_field_are_one(pair: dict[str, Path], tmp_path: Path) -> None:
    matrix = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0, -0.2), [4, -3, 2])
    linear.write_itk(tmp_path / "affine.txt", matrix)
    assert np.allclose(read_itk(tmp_path / "affine.txt"), matrix)
    out = tmp_path / "out"
    given = {"affine": str(tmp_path / "affine.txt")}
    RegistrationFiles().predict_files(Waves(0.0), pair, out, **given)
    field = read_field(out / "displacement.nii.gz")
    points = np.array([[0.0, 0, 0], [3, -2, 1], [-5, 4, 3]])
    linearly = nib.affines.apply_affine(matrix, points)
    assert np.allclose(points_through(points, field), linearly, atol=1e-3)
    back = read_field(out / "inverse_displacement.nii.gz")
    assert np.allclose(points_through(linearly, back), points, atol=1e-3)
    sitk: Any = pytest.importorskip("SimpleITK")
    transform = sitk.ReadTransform(str(out / "affine.txt"))
    flip = np.array([-1, -1, 1.0])
    for point, wanted in zip(points, linearly, strict=True):
        assert np.allclose(np.array(transform.TransformPoint(point * flip)) * flip, wanted)


class Shift(nn.Module):
    """Answer with one displacement in voxels."""

    def forward(self, moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        """Register."""
        flow = torch.tensor([1.0, -0.5, 0.25]).view(1, 3, 1, 1, 1).expand(1, 3, *moving.shape[2:])
        return RegistrationOutput(warp(moving, flow), flow)


def test_the_field_of_another_spacing_returns_to_the_grid_of_fixed(
    pair: dict[str, Path], tmp_path: Path
) -> None:
    given = {"spacing": "3", "mask": labels_of(pair)["fixed_labels"]}
    told = RegistrationFiles("none").predict_files(Shift(), pair, tmp_path / "out", **given)
    assert "registered at 3 mm, 12 x 14 x 12 voxels" in told
    field = read_field(tmp_path / "out" / "displacement.nii.gz")
    fixed = read_volume(pair["fixed"])
    assert field.grid.shape == fixed.data.shape
    wanted = fixed.affine[:3, :3] / 2 @ np.array([3, -1.5, 0.75])
    assert np.allclose(field.displacement, wanted[:, None, None, None], atol=1e-4)


def test_refinement_makes_the_pair_more_alike(tmp_path: Path) -> None:
    pair = {
        "moving": scene(tmp_path / "moving.nii.gz", FIXED, (18, 20, 17), (1.5, 1, 0)),
        "fixed": scene(tmp_path / "fixed.nii.gz", FIXED, (18, 20, 17)),
    }
    for network in (Waves(0.01), Waves(0.01, integrated=False)):
        out = tmp_path / str(network.integrated)
        told = RegistrationFiles("none").predict_files(network, pair, out, refine="12")
        assert "refined in 12 steps" in told
        scores = json.loads((out / "scores.json").read_text())
        assert scores["ncc"] > scores["ncc_before"] + 0.02


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"refine": "many"}, "--refine=many"),
        ({"spacing": "0"}, "--spacing=0"),
        ({"affine": "best"}, "--affine=best: give auto, none, centre"),
        ({"moving_labels": "fixed_labels"}, "label map has another grid"),
    ],
)
def test_wrong_options_are_told(
    pair: dict[str, Path], tmp_path: Path, options: dict[str, str], told: str
) -> None:
    options = {key: labels_of(pair).get(value, value) for key, value in options.items()}
    with pytest.raises(UserError, match=told):
        RegistrationFiles("none").predict_files(Waves(), pair, tmp_path / "out", **options)


def test_files_without_a_place_need_one_shape(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", vol=rng.random((8, 9, 12)))
    np.savez(tmp_path / "b.npz", vol=rng.random((8, 9, 12)))
    np.savez(tmp_path / "c.npz", vol=rng.random((9, 8, 12)))
    files = RegistrationFiles("none")
    told = files.predict_files(
        Waves(), {"moving": tmp_path / "a.npz", "fixed": tmp_path / "b.npz"}, tmp_path / "out"
    )
    assert "does not say where it lies" in told
    with pytest.raises(UserError, match="axes are swapped"):
        files.predict_files(
            Waves(), {"moving": tmp_path / "c.npz", "fixed": tmp_path / "b.npz"}, tmp_path / "out"
        )


def test_preprocessing_travels() -> None:
    files = RegistrationFiles("centre", 2.0, 16, "percentile")
    assert RegistrationFiles.from_json(json.loads(json.dumps(files.to_json()))) == files
    for wrong in ({"affine": "some"}, {"divisor": 0}, {"other": 1}):
        with pytest.raises(UserError, match=r"preprocessing\.json"):
            RegistrationFiles.from_json(wrong)


def model(folder: Path) -> Path:
    """Write a small model."""
    torch.manual_seed(0)
    network = VoxelMorph((4, 4), (4, 4), int_steps=3)
    with torch.no_grad():
        network.head[0].bias.copy_(torch.tensor([0.6, -0.4, 0.3]))  # type: ignore[operator]
    save_pretrained(network, folder, preprocessing=RegistrationFiles("none", divisor=4))
    return folder


def test_predict_answers_on_a_pair_and_on_a_table(pair: dict[str, Path], tmp_path: Path) -> None:
    own = model(tmp_path / "model")
    rest = [f"--{name}={path}" for name, path in pair.items()]
    outcome = predict(own, None, tmp_path / "one", rest=rest)
    assert "ncc_before" in outcome.text
    (tmp_path / "pairs.csv").write_text(
        "moving,fixed,moving_labels\n"
        "moving.nii.gz,fixed.nii.gz,labels_moving.nii.gz\n"
        "fixed.nii.gz,moving.nii.gz,\n"
        "fixed.nii.gz,gone.nii.gz,\n"
    )
    table = [f"--pairs={tmp_path / 'pairs.csv'}"]
    outcome = predict(own, None, tmp_path / "all", rest=table)
    assert outcome.failed == 1
    assert "no such file" in outcome.faults[0]
    first = tmp_path / "all" / "moving_to_fixed"
    assert (first / "warped_labels.nii.gz").is_file()
    assert (tmp_path / "all" / "fixed_to_moving" / "warped.nii.gz").is_file()
    one, other = (nib.load(folder / "warped.nii.gz") for folder in (tmp_path / "one", first))
    assert np.array_equal(one.get_fdata(), other.get_fdata())
    again = predict(own, None, tmp_path / "all", rest=table)
    assert "2 there already" in again.text


def test_predict_tells_what_is_missing(pair: dict[str, Path], tmp_path: Path) -> None:
    own, out = model(tmp_path / "model"), tmp_path / "out"
    moving = f"--moving={pair['moving']}"
    cases: list[tuple[list[str] | None, list[str], str]] = [
        (None, [moving], "--fixed is missing"),
        (None, [moving, "--fixed=gone.nii"], "--fixed gone.nii: no such file"),
        ([str(pair["moving"])], [], "this model takes --moving and --fixed"),
        (None, [moving, "--pairs=a.csv"], "takes the place"),
        (None, [moving, "--fixd=a.nii"], "did you mean --fixed"),
    ]
    for given, rest, told in cases:
        with pytest.raises(UserError, match=told):
            predict(own, given, out, rest=rest)
    for text, told in {
        "moving,fixed\na.nii,\n": ":2: has no fixed",
        "moving\na.nii\n": "has no column fixed",
        "moving,fixed\n": "has no row",
        "moving,fixed,age\na,b,3\n": "a column age",
    }.items():
        (tmp_path / "pairs.csv").write_text(text)
        with pytest.raises(UserError, match=told):
            predict(own, None, out, rest=[f"--pairs={tmp_path / 'pairs.csv'}"])
