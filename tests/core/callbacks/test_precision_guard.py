"""Planted faults are named, first where they arise; measuring costs little and resumes."""

import json
from itertools import pairwise
from typing import NamedTuple

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from core.callbacks.nonfinite import NonFiniteGuard
from core.callbacks.precision import PrecisionGuard
from core.checkpoint_io import SafeCheckpointIO, read_checkpoint
from core.errors import UserError
from core.half_precision import NetworkInHalf
from core.module_statistics import Statistics, measure
from core.optimizers.adamw_bf16 import AdamWBF16
from core.precision_report import advise, divergence


class Batch(NamedTuple):
    x: Tensor
    y: Tensor
    rows: Tensor


class Tiny(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, 1e-9)


class Block(nn.Module):
    def __init__(self, width, fault=None):
        super().__init__()
        self.linear, self.norm, self.fault = nn.Linear(width, width), nn.LayerNorm(width), fault
        self.calls = 0

    def forward(self, x):
        x = x + self.norm(self.linear(x))
        if self.training:
            self.calls += 1
        if self.fault == "large":
            x = x - x.detach() + 7e4
        if self.fault == "tiny":
            x = Tiny.apply(x)
        if self.fault == "nan" and self.calls > 3:
            x = x * torch.nan
        return x


class Model(pl.LightningModule):
    def __init__(self, fault=None, width=16, at=3, optimizer=torch.optim.AdamW, lr=1e-3):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(width, fault if n == at else None) for n in range(6))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 1)
        self.optimizer, self.lr = optimizer, lr

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))

    def training_step(self, batch, batch_idx):
        loss = (self(batch.x) - batch.y).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr)


def batches(count=64, width=16):
    draw = torch.Generator().manual_seed(0)
    items = torch.randn(count, width, generator=draw)
    return DataLoader([Batch(x, x[:1], torch.tensor(n)) for n, x in enumerate(items)], 8)


def trainer(folder, *callbacks, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 1}
    quiet |= {"callbacks": list(callbacks), "default_root_dir": folder, "accelerator": "cpu"}
    return pl.Trainer(**quiet | settings)


def test_counts_of_a_tensor():
    x = torch.tensor([0.0, -7e4, 4e4, 1e-9, -1e-3, 1.0])
    found = Statistics(*measure(x).tolist())
    assert found == Statistics(7e4, 6, 1, 1, 2, 0)
    assert found.overflows
    assert Statistics(*measure(torch.tensor([1.0, torch.nan])).tolist()).nonfinite == 1
    both = found.merged(Statistics(*measure(torch.tensor([1e-9, 1e-9])).tolist()))
    assert both == Statistics(7e4, 8, 1, 3, 2, 0)
    assert both.underflows


def test_an_activation_that_float16_does_not_hold_is_named(tmp_path):
    guard = PrecisionGuard(every_n_steps=4)
    trainer(tmp_path, guard).fit(Model("large"), batches())
    assert guard.faults()[0] == ("blocks.3", "activation overflows in float16")
    table = guard.table.set_index("module")
    assert table.loc["blocks.3", "activation_max"] >= 7e4 - 100
    known = ["blocks.0.linear", "blocks.0.norm", "blocks.0", "blocks.1.linear"]
    assert list(table.index)[:4] == known
    assert pd.read_csv(tmp_path / "precision_modules.csv")["module"].tolist() == list(table.index)
    assert guard.report()["faults"]["activation overflows in float16"][1] == "blocks.3"


def test_a_gradient_that_float16_loses_is_named(tmp_path):
    guard = PrecisionGuard()
    trainer(tmp_path, guard).fit(Model("tiny"), batches())
    first = next(name for name, told in guard.faults() if told == "gradient underflows in float16")
    assert first.startswith("blocks.3.")
    assert (
        "gradient underflows in float16"
        not in guard.table.set_index("module").loc["head", "verdict"]
    )


@pytest.mark.parametrize("every", [1, 50])
def test_the_first_module_that_is_not_finite_is_named_with_the_rows(tmp_path, every):
    guard = PrecisionGuard(every_n_steps=every)
    with pytest.raises(UserError, match=r"first in blocks\.3 \(epoch 0, batch 3, rows \[24, 25"):
        trainer(tmp_path, guard).fit(Model("nan"), batches())
    told = json.loads((tmp_path / "nonfinite.json").read_text())
    assert told["module"] == "blocks.3"
    assert told["rows"] == list(range(24, 32))
    assert told["inputs_finite"]
    (inputs,) = torch.load(tmp_path / "nonfinite_inputs.pt", weights_only=True)
    assert inputs.shape == (8, 16)


def test_a_bad_batch_is_told_from_a_bad_module(tmp_path):
    data = [Batch(*each) for each in [(torch.zeros(2, 16), torch.zeros(2, 1), torch.arange(2))] * 3]
    data[1].x[0, 0] = torch.inf
    guard = PrecisionGuard()
    with pytest.raises(UserError, match="whose inputs are not finite already"):
        trainer(tmp_path, guard).fit(Model(), DataLoader(data, None))
    assert guard.found["module"] == "blocks.0.linear"


def test_a_step_is_skipped_and_the_fit_goes_on(tmp_path):
    data = [
        Batch(*each)
        for each in zip(torch.randn(6, 8, 16), torch.randn(6, 8, 1), torch.zeros(6, 8), strict=True)
    ]
    data[2].y[0] = torch.nan
    guard, model, kept = PrecisionGuard(action="skip"), Model(), []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            kept.append(pl_module.head.weight.detach().clone())

    trainer(tmp_path, guard, NonFiniteGuard(), Keep()).fit(model, DataLoader(data, None))
    same = [torch.equal(a, b) for a, b in pairwise(kept)]
    assert same == [False, True, False, False, False]
    assert guard.skipped == 1
    assert guard.found["module"] == "the loss"
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_warning_and_the_other_guard_name_the_module(tmp_path):
    guard = PrecisionGuard(action="warn")
    with (
        pytest.warns(UserWarning, match=r"first in blocks\.3"),
        pytest.raises(UserError, match=r"is not finite in epoch 0.*, first in blocks\.3;"),
    ):
        trainer(tmp_path, guard, NonFiniteGuard()).fit(Model("nan"), batches())


@pytest.mark.parametrize(
    ("precision", "optimizer", "lr", "stalls"),
    [
        ("32-true", torch.optim.AdamW, 1e-6, True),
        ("32-true", torch.optim.AdamW, 1e-2, False),
        ("bf16-true", torch.optim.AdamW, 1e-6, True),
        ("bf16-true", AdamWBF16, 1e-6, False),  # stochastic: nothing is lost
    ],
)
def test_weights_that_stall_in_bfloat16(tmp_path, precision, optimizer, lr, stalls):
    guard = PrecisionGuard(every_n_steps=2)
    fit = trainer(tmp_path, guard, precision=precision)
    fit.fit(Model(optimizer=optimizer, lr=lr), batches())
    found = [name for name, told in guard.faults() if told == "stalls in bfloat16"]
    assert ("blocks.2.linear" in found) == stalls


def test_accumulated_gradients_are_measured_at_the_step(tmp_path):
    guard = PrecisionGuard(every_n_steps=4)
    trainer(tmp_path, guard, accumulate_grad_batches=4).fit(Model(lr=1e-6), batches())
    assert guard.table.set_index("module").loc["blocks.2.linear", "stalled"] > 0.5


def test_its_state_is_in_the_checkpoint(tmp_path):
    guard = PrecisionGuard(every_n_steps=4)
    fit = trainer(tmp_path, guard, plugins=[SafeCheckpointIO()])
    fit.fit(Model("large"), batches())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    state = read_checkpoint(tmp_path / "a.ckpt")["callbacks"]
    (kept,) = [value for key, value in state.items() if "PrecisionGuard" in key]
    again = PrecisionGuard(every_n_steps=4)
    again.load_state_dict(kept)
    pd.testing.assert_frame_equal(again.table, guard.table)
    assert again.state_dict() == guard.state_dict()


def test_a_pattern_chooses_modules(tmp_path):
    guard = PrecisionGuard(modules=r"blocks\.[01]\.linear")
    trainer(tmp_path, guard).fit(Model(), batches())
    assert list(guard.table["module"]) == ["blocks.0.linear", "blocks.1.linear"]
    with pytest.raises(UserError, match="no module's name matches modules='layers'"):
        trainer(tmp_path, PrecisionGuard(modules="layers")).fit(Model(), batches())


def test_the_comparison_is_written(tmp_path):
    guard = PrecisionGuard(compare=True)
    model = Model()
    before = None

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            nonlocal before
            before = {n: p.detach().clone() for n, p in pl_module.state_dict().items()}

    trainer(tmp_path, guard, Keep()).fit(model, batches())
    table = pd.read_csv(tmp_path / "precision.csv")
    assert (tmp_path / "pictures" / "precision.png").stat().st_size > 1000
    assert set(table["module"]) >= {"blocks.0.linear", "head"}
    assert table["activation"].between(0, 0.1).all()
    assert guard.report()["keep_float32"] == []
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


class Cancels(nn.Module):
    def forward(self, x):
        return (x + 300) - 300


def faulty():
    torch.manual_seed(0)
    good = [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(5)]
    good[3].append(Cancels())
    return nn.Sequential(*good, nn.Linear(16, 4))


def test_advice_names_the_one_module_to_keep():
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    assert advise(faulty(), x, measure="mse") == ["3.2"]
    network = faulty()
    network[3][2] = nn.Identity()
    assert advise(network, x) == []
    assert network.training


def test_divergence_grows_where_the_fault_is():
    network = faulty()
    network.append(nn.Dropout(0.5))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    found = divergence(network, [x, x], lambda module, batch: module(batch).square().mean())
    table = found.table.set_index("module")
    assert table.loc["3.1", "activation"] < 0.02 < table.loc["3.2", "activation"]
    assert table.loc["0.0", "gradient"] > 0
    assert found.loss > 0
    assert found.low != found.loss
    assert all(p.grad is None for p in network.parameters())


def test_a_network_in_bfloat16_is_compared_and_left_as_it_was(tmp_path):
    for settings in ({"precision": "bf16-true"}, {"plugins": [NetworkInHalf()]}):
        model = Model()
        guard = PrecisionGuard(compare=True)
        trainer(tmp_path, guard, **settings).fit(model, batches())
        table = pd.read_csv(tmp_path / "precision.csv").set_index("module")
        assert 0 < table.loc["blocks.4.linear", "activation"] < 0.1
        assert model.blocks[0].linear.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0 must be at least 1"),
        ({"action": "stop"}, "action='stop' must be warn, skip or raise"),
        ({"modules": "("}, "modules="),
    ],
)
def test_mistakes_are_told(settings, told):
    with pytest.raises(UserError, match=told):
        PrecisionGuard(**settings)
