"""Groups of parameters: rates that fall with the depth, decay where it fits, exact resume."""

import shutil
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torchmetrics import MeanSquaredError

from core.callbacks.checkpoints import pointed
from core.errors import UserError
from core.parameter_groups import check_schedule, parameter_groups, scale_rates
from core.schedules import WarmupLinear
from core.task import Step, Task

sys.path.insert(0, str(Path(__file__).parent))
import resume_case


class Layered(nn.Module):
    """A user's network that states its layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.position = nn.Parameter(torch.zeros(1, 4))
        self.embed = nn.Linear(4, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in "12")
        self.last_norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 1)

    @property
    def stages(self):
        return [self.embed, *self.layers]

    def forward(self, x):
        x = self.embed(x + self.position)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(self.last_norm(x))


def named(network, groups):
    names = {id(p): n for n, p in network.named_parameters()}
    return [
        ([names[id(p)] for p in g["params"]], g.get("rate"), g.get("weight_decay")) for g in groups
    ]


def test_rates_fall_towards_the_input():
    network = Layered()
    rates = {
        name: rate
        for names, rate, _ in named(network, parameter_groups(network, 0.5))
        for name in names
    }
    assert rates == {
        "position": 0.125,
        **{f"embed.{p}": 0.125 for p in ("weight", "bias")},
        **{f"layers.0.{i}.{p}": 0.25 for i in (0, 1) for p in ("weight", "bias")},
        **{f"layers.1.{i}.{p}": 0.5 for i in (0, 1) for p in ("weight", "bias")},
        **{f"{m}.{p}": 1.0 for m in ("last_norm", "head") for p in ("weight", "bias")},
    }


def test_no_decay_on_biases_and_norms_and_only_what_is_trained():
    network = Layered()
    network.embed.requires_grad_(False)
    network.position.requires_grad_(False)
    network.layers[0].requires_grad_(False)
    groups = named(network, parameter_groups(network, 0.5, decay_all=False))
    assert groups == [
        (["layers.1.0.weight"], 0.5, None),
        (["layers.1.0.bias", "layers.1.1.weight", "layers.1.1.bias"], 0.5, 0.0),
        (["last_norm.weight", "last_norm.bias", "head.bias"], 1.0, 0.0),
        (["head.weight"], 1.0, None),
    ]
    assert named(network, parameter_groups(network))[0][1:] == (None, None)


def test_a_shared_parameter_is_in_one_group():
    network = Layered()
    network.layers[1][0].weight = network.layers[0][0].weight
    groups = parameter_groups(network, 0.5)
    every = [id(p) for group in groups for p in group["params"]]
    assert len(every) == len(set(every)) == len(list(network.parameters()))


class Mine(Task):
    def step(self, batch):
        prediction = self.network(batch[0])
        return Step(nn.functional.mse_loss(prediction, batch[1]), prediction, batch[1])


def task(scheduler=None, optimizer=torch.optim.AdamW, interval="step", **kwargs):
    given = {"layer_decay": 0.5, "decay_all": False} | kwargs
    metrics = {"mse": MeanSquaredError()}
    return Mine(Layered(), metrics, partial(optimizer, lr=0.01), scheduler, interval, **given)


def loop(folder, **kwargs):
    _, data, trainer = resume_case.make(folder, **kwargs)
    return data, trainer


@pytest.mark.parametrize(
    "scheduler",
    [
        WarmupLinear,
        partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.9**step),
        partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=100),
        partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0),
        None,
    ],
)
def test_ratios_stay_under_schedules(tmp_path, scheduler):
    class Ratios(pl.Callback):
        seen = 0

        def on_train_batch_end(self, trainer, *_):
            (optimizer,) = trainer.optimizers
            top = max(group["lr"] for group in optimizer.param_groups)
            self.seen += top > 0
            for group in optimizer.param_groups:
                assert group["lr"] == pytest.approx(top * group["rate"])

    data, trainer = loop(tmp_path, extra=[ratios := Ratios()], max_epochs=2)
    plateau = "Plateau" in str(scheduler)
    trainer.fit(task(scheduler, interval="epoch" if plateau else "step"), data)
    assert ratios.seen >= 18


def test_schedules_of_one_rate_are_refused(tmp_path):
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    data, trainer = loop(tmp_path)
    with pytest.raises(UserError, match="OneCycleLR sets one rate for all layers"):
        trainer.fit(task(cycle), data)
    data, trainer = loop(tmp_path, max_epochs=1)
    trainer.fit(task(cycle, layer_decay=None), data)


def test_schedules_over_all_steps_are_stepped_each_step(tmp_path):
    data, trainer = loop(tmp_path)
    with pytest.raises(UserError, match=r"set --model.interval=step"):
        trainer.fit(task(WarmupLinear, interval="epoch"), data)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 40), (3, 16)])
def test_total_steps_are_optimizer_steps(tmp_path, accumulate, steps):
    data, trainer = loop(tmp_path, accumulate_grad_batches=accumulate)
    module = task(WarmupLinear)
    trainer.fit(module, data)  # ten batches an epoch: the last group is smaller
    (config,) = trainer.lr_scheduler_configs
    assert config.scheduler.total_steps == trainer.global_step == steps
    assert config.scheduler.last_epoch == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0


def test_a_rise_of_one_step_is_no_division_by_zero(tmp_path):
    data, trainer = loop(tmp_path, max_epochs=1)
    short = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, pct_start=0.1)
    with pytest.raises(UserError, match="cannot be laid out over 10 optimizer steps"):
        trainer.fit(task(short), data)


class KeepAside(pl.Callback):
    """Copy the checkpoint that is there when a step begins."""

    def on_train_batch_start(self, trainer, *_):
        folder = Path(trainer.default_root_dir)
        if trainer.global_step == 17:
            shutil.copy(pointed(folder / "checkpoints", "last"), folder / "aside.ckpt")


def test_resumes_exactly(tmp_path):
    whole = task(WarmupLinear)
    data, trainer = loop(tmp_path / "a", extra=[KeepAside()])
    trainer.fit(whole, data)
    module = task(WarmupLinear)
    data, again = loop(tmp_path / "b")
    again.fit(module, data, ckpt_path=tmp_path / "a" / "aside.ckpt")
    assert again.global_step == 40
    for name, value in whole.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    ours, theirs = (loop.optimizers[0].param_groups for loop in (trainer, again))
    assert [g["rate"] for g in ours] == [g["rate"] for g in theirs]


@pytest.mark.parametrize("kind", [nn.Module, pl.LightningModule])
def test_a_users_own_module(kind):
    """The same few lines in a loop of one's own."""

    class Own(kind):
        def __init__(self):
            super().__init__()
            self.network = Layered()

    module = Own()
    optimizer = torch.optim.AdamW(parameter_groups(module, 0.5, decay_all=False), lr=0.1)
    scale_rates(optimizer)
    check_schedule(optimizer, WarmupLinear(optimizer, 10))
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.0125, 0.025, 0.05, 0.1}


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"layer_decay=0.5: Linear does not state `stages`"):
        parameter_groups(nn.Linear(2, 2), 0.5)
    with pytest.raises(UserError, match=r"layer_decay=1.5 must be above 0 and at most 1"):
        task(layer_decay=1.5)
    with pytest.raises(UserError, match="all are frozen"):
        parameter_groups(Layered().requires_grad_(False))
