"""The task: its loss, what it learns, and the figures of a run."""

import pytest
import torch
from lightning.pytorch import Trainer

from core.errors import UserError
from domains.medical.data import PairData, RegistrationData
from domains.medical.losses import diffusion, local_ncc
from domains.medical.metrics import label_dice
from domains.medical.networks.parts import RegistrationOutput
from domains.medical.networks.voxelmorph import VoxelMorph
from domains.medical.pairs import Collate
from domains.medical.pictures import draw
from domains.medical.registration import Registration
from domains.medical.synthetic import WarpedPairs
from domains.medical.warping import resize, warp


def scene(count, seed):
    """An ellipsoid with two labels, warped."""
    places = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    apart = (places - 7.5) / torch.tensor([3.0, 4.0, 5.0]).view(3, 1, 1, 1)
    fixed = torch.exp(-apart.square().sum(0) / 2)
    labels = (fixed > 0.3).long() + (fixed > 0.7)
    same = {"points": 3, "amplitude": 2.0}
    return WarpedPairs(fixed, labels, torch.ones(3), count, seed=seed, **same)


class Tiny(PairData):
    def __init__(self, labels=True):
        super().__init__(None, None, (1, 2, 0, 0))
        self.with_labels = labels

    def read(self):
        self.train_set, self.val_set, self.test_set = scene(1, 2), scene(2, 1), scene(1, 2)
        self.label_names = {1: "outer", 2: "inner"} if self.with_labels else {}


class Free(torch.nn.Module):
    """One displacement for every pair, free at 8 x 8 x 8 points."""

    def __init__(self):
        super().__init__()
        self.points = torch.nn.Parameter(torch.zeros(1, 3, 8, 8, 8))

    def forward(self, moving, fixed):
        flow = resize(self.points, fixed.shape[2:]).expand(len(moving), -1, -1, -1, -1)
        return RegistrationOutput(warp(moving, flow), flow)


def small(**given):
    return VoxelMorph((8, 8), (8, 8, 8), int_steps=4, **given)


def trainer(steps, folder):
    return Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def batch():
    return Collate(4)([scene(1, 5)[0]])


@pytest.mark.parametrize("regularise", ["field", "displacement", "warped"])
def test_the_loss_is_that_of_the_images_and_of_what_is_kept_smooth(regularise):
    torch.manual_seed(0)
    task = Registration(small(), regularise=regularise, smoothness=0.5, window=5)
    torch.nn.init.normal_(task.network.flow.weight, std=0.1)
    given = batch()
    output = task(given)
    assert output.velocity.shape[-1] * 2 == output.flow.shape[-1]
    rough = {
        "field": 2 * diffusion(output.velocity),
        "displacement": diffusion(output.flow),
        "warped": diffusion(output.warped),
    }[regularise]
    expected = local_ncc(output.warped, given.fixed, 5) + 0.5 * rough
    assert torch.allclose(task.step(given).loss, expected)


def test_both_directions_are_learnt_from():
    torch.manual_seed(0)
    given = batch()
    swapped = given._replace(moving=given.fixed, fixed=given.moving)
    plain, both = (Registration(small(), symmetric=way) for way in (False, True))
    both.load_state_dict(plain.state_dict())
    expected = (plain.step(given).loss + plain.step(swapped).loss) / 2
    assert torch.allclose(both.step(given).loss, expected)
    inverse = Registration(small(bidir=True))
    inverse.load_state_dict(plain.state_dict())
    torch.nn.init.normal_(inverse.network.flow.weight, std=0.1)
    output = inverse(given)
    images = local_ncc(output.warped, given.fixed) + local_ncc(output.warped_fixed, given.moving)
    found = inverse.step(given).loss
    assert torch.allclose(found, images / 2 + 2 * diffusion(output.velocity))


def test_a_mask_says_where_images_count():
    given = batch()
    task = Registration(small(), image_loss="mse", smoothness=0)
    mask = torch.zeros_like(given.mask)
    mask[..., :5, :, :] = True
    error = (task(given).warped - given.fixed).square()
    found = task.step(given._replace(mask=mask)).loss
    assert torch.allclose(found, error[..., :5, :, :].mean())


def test_a_run_learns_and_tells_every_score(tmp_path):
    torch.manual_seed(0)
    data = Tiny()
    adam = lambda parameters: torch.optim.Adam(parameters, 0.1)  # noqa: E731
    task = Registration(Free(), adam, image_loss="mse", smoothness=0.01, dice_weight=0.5)
    run = trainer(40, tmp_path)
    run.fit(task, datamodule=data)
    (scores,) = run.test(task, datamodule=data, verbose=False)
    assert scores["test/dice"] > scores["test/dice_before"]
    assert scores["test/ncc"] > scores["test/ncc_before"]
    names = ("hd95", "hd95_surfel", "hd95_before", "ssim", "sdlogj", "sdlogj_plain", "folding")
    assert {f"test/{name}" for name in (*names, "dice/outer", "dice/inner")} <= set(scores)
    assert scores["test/dice"] == pytest.approx(
        (scores["test/dice/outer"] + scores["test/dice/inner"]) / 2
    )
    assert task.figures()["seconds_per_pair"] > 0
    identity = data.baselines()["identity"]
    judged = task.metrics_for(identity)
    for given in data.every_item(data.test_set):
        prediction, target = identity(given)
        step = task.step(given)._replace(prediction=prediction, target=target)
        task.update_metrics(judged, step, given)
    assert judged.compute()["test/dice"].item() == pytest.approx(scores["test/dice_before"])


def test_without_labels_there_is_no_overlap(tmp_path):
    data = Tiny(labels=False)
    task, run = Registration(small(), window=5), trainer(1, tmp_path)
    (scores,) = run.test(task, datamodule=data, verbose=False)
    assert "test/ncc" in scores
    assert not any("dice" in name or "hd95" in name for name in scores)
    with pytest.raises(UserError, match="the data have no labels"):
        run.fit(Registration(small(), dice_weight=1.0), datamodule=data)


@pytest.mark.parametrize(
    ("given", "message"), [({"window": 4}, "must be odd"), ({"smoothness": -1}, "below 0")]
)
def test_weights_that_make_no_sense(given, message):
    with pytest.raises(UserError, match=message):
        Registration(small(), **given)


@torch.no_grad()
def test_pictures(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = Tiny()
    task, run = Registration(small(), window=5), trainer(1, tmp_path)
    run.test(task, datamodule=data, verbose=False)
    columns = {}
    for given in data.test_dataloader():
        own = task.items(task.step(given), given)
        columns = {
            key: value.tolist() if isinstance(value, torch.Tensor) else value
            for key, value in own.items()
        }
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    drawn = draw(tmp_path / "predictions.parquet", tmp_path, ["outer", "inner"])
    assert {path.name for path in drawn} == {*("registration_0.png", "dice.png")}
    assert all(path.stat().st_size > 10_000 for path in drawn)


@pytest.mark.data
@pytest.mark.slow
def test_patients_of_the_hippocampus_are_held_out(real_data):
    data = RegistrationData()
    data.setup()
    parts = []
    for own in (data.train_set, data.val_set, data.test_set):
        numbers = {n for pair in own.pairs[:40_000] for n in pair}
        parts.append({(int(own.scans[n].id[-3:]) + 1) // 2 for n in numbers})
    assert not parts[0] & (parts[1] | parts[2])
    assert not parts[1] & parts[2]
    values = torch.tensor([1, 2])
    before = torch.stack(
        [label_dice(x.moving_labels, x.fixed_labels, values) for x in data.test_set]
    )
    assert before.mean(0).tolist() == pytest.approx([0.579, 0.515], abs=2e-3)
