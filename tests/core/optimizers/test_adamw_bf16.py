"""A bfloat16 weight moves as far as it should, resumes exactly, and is the same on every rank."""

import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from core.callbacks.checkpoints import pointed
from core.checkpoint_io import SafeCheckpointIO, read_checkpoint
from core.errors import UserError
from core.optimizers.adamw_bf16 import AdamWBF16, stochastic_round

sys.path.insert(0, str(Path(__file__).parents[1]))
import resume_case

ROUNDINGS = ["nearest", "stochastic", "kahan", "master"]
MOVED = [  # weight, update, and the share of 200 updates that stays, by rounding
    (1.0, 1e-3, {"nearest": 0.0, "kahan": 1.0, "stochastic": 1.0, "master": 1.0}),
    (1.0, 1e-4, {"nearest": 0.0, "kahan": 0.98, "stochastic": 1.0, "master": 1.0}),
    (0.05, 1e-3, {"nearest": 0.98, "kahan": 1.0, "stochastic": 1.0, "master": 1.0}),
    (0.05, 1e-4, {"nearest": 0.0, "kahan": 1.0, "stochastic": 1.0, "master": 1.0}),
]


def train(parameters, optimizer, steps, start=0):
    for step in range(start, start + steps):
        for number, parameter in enumerate(parameters):
            draw = torch.Generator().manual_seed(100 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        optimizer.step()


def weights(dtype=torch.bfloat16):
    draw = torch.Generator().manual_seed(5)
    shapes = [(40, 7), (13,), (1,), (3, 2, 5)]
    return [nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for s in shapes]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("weight", "update", "shares"), MOVED)
def test_the_share_of_the_move_that_stays(weight, update, shares, rounding):
    parameter = nn.Parameter(torch.full((4096,), weight, dtype=torch.bfloat16))
    optimizer = AdamWBF16([parameter], lr=update, weight_decay=0.0, rounding=rounding)
    before = parameter.detach().float()
    for _ in range(200):  # equal gradients: each update is the rate itself
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    moved = parameter.detach().float()
    if rounding == "kahan":
        moved = moved + optimizer.state[parameter]["compensation"].float()
    if rounding == "master":
        moved = optimizer.state[parameter]["master"]
    share = float((before - moved).mean()) / (200 * update)
    assert share == pytest.approx(shares[rounding], abs=0.03)


def test_decay_alone_is_not_lost():
    left = {}
    for rounding in ("nearest", "stochastic"):
        parameter = nn.Parameter(torch.ones(65536, dtype=torch.bfloat16))
        optimizer = AdamWBF16([parameter], lr=1e-3, weight_decay=0.01, rounding=rounding)
        for _ in range(100):
            parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        left[rounding] = float(parameter.detach().double().mean())
    assert left["nearest"] == 1
    assert 1 - left["stochastic"] == pytest.approx(100 * 1e-5, rel=0.1)


@pytest.mark.parametrize("value", [1.001, -0.3, 3e-5, 250.7])
def test_random_rounding_keeps_the_mean(value):
    count = 1 << 20
    rounded = stochastic_round(torch.full((count,), value), seed=3).double()
    low, high = rounded.min(), rounded.max()
    assert len(rounded.unique()) == 2
    exact = float(torch.tensor(value))
    share = (exact - float(low)) / float(high - low)
    deviation = float(high - low) * (share * (1 - share) / count) ** 0.5
    assert abs(float(rounded.mean()) - exact) < 3 * deviation


def test_what_bfloat16_holds_stays_and_so_do_infinities():
    kept = torch.tensor([0.0, 1.0, -2.5, float("inf"), float("-inf"), 3.0e38]).bfloat16().float()
    for seed in range(20):
        assert torch.equal(stochastic_round(kept.clone(), seed).float(), kept)
    assert stochastic_round(torch.full((5,), torch.nan), 0).isnan().all()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_float32_is_torchs_adamw(rounding):
    ours, theirs = weights(torch.float32), weights(torch.float32)
    settings = {"lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.1}
    train(ours, AdamWBF16(ours, rounding=rounding, **settings), 50)
    train(theirs, torch.optim.AdamW(theirs, **settings), 50)
    for own, known in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, known, atol=1e-6, rtol=1e-6)


def test_the_copy_in_float32_is_trained_as_by_torch():
    ours, theirs = weights(), [nn.Parameter(p.detach().float()) for p in weights()]
    optimizer, other = AdamWBF16(ours, rounding="master"), torch.optim.AdamW(theirs)
    for step in range(30):
        train(ours, optimizer, 1, step)
        for own, copy in zip(ours, theirs, strict=True):
            copy.grad = own.grad.float()
        other.step()
    for own, copy in zip(ours, theirs, strict=True):
        torch.testing.assert_close(optimizer.state[own]["master"], copy.detach())
        assert torch.equal(own, copy.bfloat16())
    with torch.no_grad():
        ours[0].fill_(7.0)  # weights that are changed from outside are gone on from
    train(ours, optimizer, 1)
    assert float((ours[0].detach() - 7).abs().max()) < 0.1


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_resumed_it_ends_in_the_same_bits(rounding, tmp_path):
    whole = weights()
    train(whole, AdamWBF16(whole, rounding=rounding, seed=4), 20)
    first = weights()
    optimizer = AdamWBF16(first, rounding=rounding, seed=4)
    train(first, optimizer, 9)
    content = {"state_dict": {}, "weights": first, "optimizer": optimizer.state_dict()}
    SafeCheckpointIO().save_checkpoint(content, tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt")
    again = [nn.Parameter(p.detach()) for p in read["weights"]]
    resumed = AdamWBF16(again, rounding=rounding, seed=99)
    resumed.load_state_dict(read["optimizer"])
    train(again, resumed, 11, 9)
    for own, known in zip(again, whole, strict=True):
        assert torch.equal(own, known)


class InBF16(resume_case.Model):
    """Trained in bfloat16 alone."""

    rounding = "stochastic"

    def configure_optimizers(self):
        return AdamWBF16(self.parameters(), lr=1e-2, rounding=self.rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_resumed_fit_is_the_same_fit(tmp_path, rounding, monkeypatch):
    monkeypatch.setattr(InBF16, "rounding", rounding)
    outcome = []
    for folder, seed, epochs in (("whole", 1, 2), ("part", 1, 1), ("part", 77, 2)):
        _, data, trainer = resume_case.make(
            tmp_path / folder, seed=seed, precision="bf16-true", max_epochs=epochs
        )
        torch.manual_seed(1)
        model = InBF16("none")
        path = pointed(tmp_path / "part" / "checkpoints", "last") if seed == 77 else None
        trainer.fit(model, data, ckpt_path=path)
        outcome.append(model.state_dict())
    assert outcome[0]["network.0.weight"].dtype == torch.bfloat16
    for name, value in outcome[0].items():
        assert torch.equal(value, outcome[2][name]), name
    assert not torch.equal(outcome[0]["network.0.weight"], outcome[1]["network.0.weight"])


def test_weights_without_a_gradient_and_groups_are_kept_apart():
    still, moved = weights()[0], weights()[0]
    optimizer = AdamWBF16([{"params": [still]}, {"params": [moved], "rounding": "kahan"}], lr=0.1)
    before = still.clone()
    moved.grad = torch.ones_like(moved)
    optimizer.step()
    assert torch.equal(still, before)
    assert still not in optimizer.state
    assert "compensation" in optimizer.state[moved]


def test_bytes_of_the_state():
    held = {}
    for rounding in ROUNDINGS:
        parameter = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
        optimizer = AdamWBF16([parameter], rounding=rounding)
        train([parameter], optimizer, 1)
        tensors = [v for v in optimizer.state[parameter].values() if isinstance(v, torch.Tensor)]
        held[rounding] = sum(t.nbytes for t in tensors if t.ndim) / 1000
    assert held == {"nearest": 8, "stochastic": 8, "kahan": 10, "master": 12}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rounding": "up"}, r"rounding='up' must be one of nearest, stochastic, kahan, master"),
        ({"betas": (0.9, 1.0)}, "betas="),
        ({"lr": -1.0}, "lr=-1.0"),
    ],
)
def test_mistakes_are_told(settings, told):
    with pytest.raises(UserError, match=told):
        AdamWBF16(weights(), **settings)
    with pytest.raises(UserError, match="take kahan or master"):
        AdamWBF16(weights(torch.float16), rounding="stochastic")


WORKER = """
import sys, lightning.pytorch as pl, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
sys.path.insert(0, sys.argv[1])
from core.optimizers.adamw_bf16 import AdamWBF16
from core.optimizers.galore import GaLore

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    def training_step(self, batch, index):
        torch.rand(3 + self.global_rank)  # the ranks' own draws do not matter
        return (self.net(batch[0]) - batch[1]).square().mean()
    def configure_optimizers(self):
        if sys.argv[2] == "galore":
            return GaLore(self.parameters(), lr=1e-2, rank=4, update_every=3)
        return AdamWBF16(self.parameters(), lr=1e-3, rounding=sys.argv[2])
    def on_train_end(self):
        flat = torch.cat([p.detach().float().flatten() for p in self.parameters()])
        both = self.all_gather(flat)
        assert torch.equal(both[0], both[1]), (both[0] - both[1]).abs().max()
        assert not torch.equal(both[0], start)

torch.manual_seed(0)
draw = torch.Generator().manual_seed(0)
x = torch.randn(64, 16, generator=draw)
model = Model()
start = torch.cat([p.detach().bfloat16().float().flatten() for p in model.parameters()])
pl.Trainer(max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", logger=False,
           enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
           precision="bf16-true").fit(model, DataLoader(TensorDataset(x, x.sum(1, True)), 8))
torch.distributed.destroy_process_group()  # its threads would race with the interpreter's end
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stochastic", "kahan", "galore"])
def test_two_processes_end_in_the_same_bits(tmp_path, kind):
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    root = str(Path(__file__).parents[3])
    found = subprocess.run(
        [sys.executable, str(program), root, kind],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr[-3000:]


def test_it_trains_in_a_plain_trainer(tmp_path):
    assert issubclass(AdamWBF16, torch.optim.Optimizer)
    _, data, trainer = resume_case.make(tmp_path, precision="bf16-true", max_epochs=1)
    trainer.fit(InBF16("none"), data)
    assert isinstance(trainer.optimizers[0], AdamWBF16)
    assert isinstance(trainer, pl.Trainer)
