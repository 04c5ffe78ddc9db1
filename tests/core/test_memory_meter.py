"""The meter measures any LightningModule, changes nothing, and goes on where a run goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from core import memory
from core.callbacks.memory import MemoryMeter

D, B, N = 8, 4, 24
H = 4 * B * D
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


class Plain(pl.LightningModule):
    """A stranger's module: two layers, Adam."""

    def __init__(self, frozen=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(D, D, bias=False), nn.Dropout(0.5), nn.GELU())
        self.head = nn.Linear(D, 1, bias=False)
        self.body.requires_grad_(not frozen)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        return self.head(self.body(x)).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Manual(Plain):
    """Two backwards a batch, of which the first keeps the most."""

    def __init__(self, raw=False):
        super().__init__()
        self.automatic_optimization = False
        self.raw = raw

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for part in (1, 2):
            optimizer.zero_grad()
            loss = super().training_step([batch[0][::part]], batch_idx)
            loss.backward() if self.raw else self.manual_backward(loss)
            optimizer.step()


def fit(model, *callbacks, rows=N, ckpt_path=None, **kwargs):
    pl.seed_everything(0, verbose=False)
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    rows = torch.randn(rows, D, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(rows), batch_size=B)
    trainer = pl.Trainer(callbacks=list(callbacks), **QUIET | {"max_epochs": 2} | kwargs)
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    return {name: value.detach().clone() for name, value in model.named_parameters()}


KEPT = {"Linear": 2 * H, "Dropout": H, "GELU": H, "loss": 4 * B}


def test_figures_are_those_of_the_hand():
    meter, model = MemoryMeter(), Plain()
    fit(model, meter)
    assert meter.saved_by_class == KEPT
    assert meter.saved_bytes == sum(KEPT.values())
    weights = 4 * (D * D + D)
    assert meter.weight_bytes == meter.gradient_bytes == weights
    assert meter.optimizer_bytes == 2 * weights + 2 * 4
    assert meter.measured_steps == 3
    assert 0 < meter.forward_seconds < 1
    assert 0 < meter.backward_seconds < 1
    assert meter.peak_bytes > 2**24
    assert "training_step" not in vars(model)


def test_what_is_frozen_has_no_gradient_and_no_moments():
    meter = MemoryMeter()
    fit(Plain(frozen=True), meter)
    assert meter.saved_by_class == {"Linear": H, "loss": 4 * B}  # the head's input alone
    assert meter.gradient_bytes == 4 * D
    assert meter.optimizer_bytes == 2 * 4 * D + 4
    assert meter.weight_bytes == 4 * (D * D + D)


class Thaws(pl.Callback):
    """Trains body and head in turn."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.body.requires_grad_(batch_idx % 4 == 0)


def test_figures_that_change_are_means_and_moments_stay():
    meter = MemoryMeter()
    fit(Plain(), meter, Thaws(), max_epochs=1)  # counted: 0, 2 and 4, of which 2 is frozen
    weights = 4 * (D * D + D)
    assert meter.gradient_bytes == (2 * weights + 4 * D) // 3
    assert meter.saved_by_class["Dropout"] == 2 * H // 3
    assert meter.optimizer_bytes == 2 * weights + 2 * 4


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 4},
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 0.1},
    ],
    ids=["plain", "accumulation", "bf16", "clipping"],
)
@pytest.mark.parametrize(
    "kind", [Plain, Manual, lambda: Manual(raw=True)], ids=["automatic", "manual", "raw"]
)
def test_weights_are_the_same_bit_for_bit(kind, settings):
    manual = isinstance(kind(), Manual)
    if manual and set(settings) & {"accumulate_grad_batches", "gradient_clip_val"}:
        pytest.skip("Lightning has these for automatic optimization only")
    meter = MemoryMeter(every_n_steps=4)
    without = fit(kind(), max_epochs=4, **settings)
    for name, value in fit(kind(), meter, max_epochs=4, **settings).items():
        assert torch.equal(value, without[name])
    assert meter.measured_steps == 3 + 4
    assert meter.gradient_bytes == 4 * (D * D + D)
    if settings.get("precision") != "bf16-mixed" and not (manual and kind().raw):
        assert meter.saved_bytes == sum(KEPT.values())


def test_hooks_of_the_user_and_a_step_that_is_left_out():
    class Odd(Plain):
        def training_step(self, batch, batch_idx):
            if batch_idx % 2:
                return None
            with torch.autograd.graph.save_on_cpu():
                return super().training_step(batch, batch_idx)

    meter = MemoryMeter(first_steps=3)
    with pytest.warns(UserWarning, match="returned `None`"):
        fit(Odd(), meter, max_epochs=1)
    assert meter.measured_steps == 3
    assert meter.saved_bytes == 0  # hooks inside cannot be seen through
    assert meter.backward_seconds is None


def test_a_failing_step_leaves_the_module_as_it_was():
    class Fails(Plain):
        def training_step(self, batch, batch_idx):
            raise ValueError("mine")

    meter, model = MemoryMeter(), Fails()
    with pytest.raises(ValueError, match="mine"):
        fit(model, meter)
    assert "training_step" not in vars(model)
    assert meter.saved_bytes is None
    assert torch.nn.modules.module._global_forward_hooks == {}


def test_compiled_code_is_timed_only(monkeypatch):
    monkeypatch.setattr(memory, "countable", lambda model: False)
    meter = MemoryMeter()
    fit(Plain(), meter)
    assert meter.saved_bytes is None
    assert meter.forward_seconds > 0
    assert meter.gradient_bytes == 4 * (D * D + D)


def test_a_resumed_run_reports_over_both_parts(tmp_path):
    class Half(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    settings = {"every_n_steps": 4, "first_steps": 1}
    whole = MemoryMeter(**settings)
    fit(Plain(), whole, Thaws(), Half())
    resumed = MemoryMeter(**settings)
    model = Plain()
    fit(model, resumed, Thaws(), ckpt_path=tmp_path / "half.ckpt")
    for name in ("saved_bytes", "saved_by_class", "gradient_bytes", "optimizer_bytes"):
        assert getattr(resumed, name) == getattr(whole, name), name
    assert resumed.measured_steps == whole.measured_steps == 3
    assert len(resumed.state_dict()["seconds"]["forward"]) == 3


def test_a_count_stands_for_the_batches_up_to_the_next():
    class Grows(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step([batch[0].repeat(1 + batch_idx, 1)], batch_idx)

    meter = MemoryMeter(every_n_steps=4, first_steps=1)  # counts the batches 0 and 4 of 6
    fit(Grows(), meter, max_epochs=1)
    assert meter.measured_steps == 2
    assert meter.saved_bytes == int(sum(KEPT.values()) * (4 * 1 + 2 * 5) / 6)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="every_n_steps=1"):
        MemoryMeter(every_n_steps=1)


def two_processes(folder: Path) -> None:
    """Fit with two processes, with and without the meter; write what each process found."""
    torch.set_num_threads(1)
    settings = {"devices": 2, "strategy": "ddp", "max_epochs": 1, "rows": 8 * B}
    meter, model = MemoryMeter(), Plain()
    found = {"with": fit(model, meter, **settings), "without": fit(Plain(), **settings)}
    weights = {k: {n: v.tolist() for n, v in w.items()} for k, w in found.items()}
    rank = os.environ.get("LOCAL_RANK", "0")
    (folder / f"{rank}.json").write_text(json.dumps([meter.figures(), weights]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (one, weights), (other, others) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert weights["with"] == weights["without"] == others["with"]
    for figures in (one, other):
        assert figures["saved_by_class"] == KEPT
        assert figures["gradient_bytes"] == 4 * (D * D + D)


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
