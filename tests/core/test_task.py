"""Task and callbacks on a small real problem: next week's CO2 from the last eight weeks."""

import warnings
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics import MeanSquaredError

import data
from core.callbacks.checkpoints import Checkpoints, pointed
from core.callbacks.exact_resume import ExactResume
from core.callbacks.nonfinite import NonFiniteGuard
from core.callbacks.predictions import Predictions
from core.checkpoint_io import SafeCheckpointIO, read_checkpoint
from core.data_module import DataModule
from core.errors import UserError
from core.metrics_csv import MetricsCSV
from core.task import Step, Task


class Weeks(DataModule):
    def setup(self, stage=None):
        frame = pd.read_csv(data.locate("co2"))
        values = torch.tensor(frame["co2"].interpolate().to_numpy(), dtype=torch.float32)
        windows = values.unfold(0, 9, 1)
        windows = windows - windows[:, :1]
        parts = windows[:1000], windows[1000:1200], windows[1200:1500]
        self.train_set, self.val_set, self.test_set = (
            TensorDataset(part[:, :8], part[:, 8:]) for part in parts
        )


class NextWeek(Task):
    def forward(self, batch):
        return self.network(batch[0])

    def step(self, batch):
        prediction = self(batch)
        return Step(nn.functional.mse_loss(prediction, batch[1]), prediction, batch[1])

    def items(self, step, batch):
        return {"target": step.target[:, 0], "both": torch.cat([step.target, step.prediction], 1)}

    def epoch_outputs(self):
        return {"constant": 3.0}


def task(scheduler=None, lr=0.01, **kwargs) -> NextWeek:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.Adam, lr=lr)
    return NextWeek(nn.Linear(8, 1), {"mse": MeanSquaredError()}, optimizer, scheduler, **kwargs)


def trainer(folder: Path, *callbacks: pl.Callback, **kwargs) -> pl.Trainer:
    settings = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": MetricsCSV(folder),
        "log_every_n_steps": 5,
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "plugins": [SafeCheckpointIO()],
        "callbacks": [*callbacks, ExactResume(0)],
        "enable_checkpointing": any(isinstance(c, Checkpoints) for c in callbacks),
    }
    return pl.Trainer(**settings | kwargs)


def test_learns_and_logs_the_agreed_names(tmp_path):
    module, weeks = task(), Weeks(batch_size=50)
    loop = trainer(tmp_path, Predictions(tmp_path / "predictions.parquet"))
    before = trainer(tmp_path / "x").validate(module, weeks, verbose=False)[0]["val/mse"]
    loop.fit(module, weeks)
    (found,) = loop.test(module, weeks, verbose=False)
    assert set(found) == {"test/loss", "test/mse", "test/constant"}
    assert found["test/mse"] < before
    log = pd.read_csv(tmp_path / "metrics.csv")
    assert list(log["step"].dropna()) == sorted(log["step"])
    assert len(log["train/loss"].dropna()) == 3 * 20 // 5
    assert len(log["val/mse"].dropna()) == 3
    rows = pd.read_parquet(tmp_path / "predictions.parquet")
    assert len(rows) == 300
    both = np.stack(rows["both"])
    assert np.square(both[:, 0] - both[:, 1]).mean() == pytest.approx(found["test/mse"], rel=1e-4)


def test_total_steps_are_filled_in(tmp_path):
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    module = task(cycle, interval="step")
    trainer(tmp_path).fit(module, Weeks(batch_size=50))
    (config,) = module.trainer.lr_scheduler_configs
    assert config.scheduler.total_steps == 60
    given = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=99)
    module = task(given, interval="step")
    trainer(tmp_path).fit(module, Weeks(batch_size=50))
    assert module.trainer.lr_scheduler_configs[0].scheduler.total_steps == 99
    with pytest.raises(ValueError, match="interval='day'"):
        task(interval="day")


class KeepFirst(pl.Callback):
    """Copy the checkpoint after the first epoch aside."""

    def on_train_epoch_start(self, trainer, pl_module):
        folder = Path(trainer.default_root_dir)
        if trainer.current_epoch == 1 and not (folder / "first.ckpt").exists():
            last = pointed(folder / "checkpoints", "last")
            (folder / "first.ckpt").write_bytes(last.read_bytes())


def test_a_fused_optimizer_is_clipped_in_bfloat16(tmp_path):
    found = {}
    for fused in (False, True):
        module, weeks = task(), Weeks(batch_size=50)
        module.optimizer = partial(torch.optim.SGD, lr=1.0, fused=fused)
        before = module.network.weight.detach().clone()
        settings = {"max_steps": 1, "precision": "bf16-mixed", "limit_val_batches": 0}
        trainer(tmp_path, gradient_clip_val=1e-3, **settings).fit(module, weeks)
        change = [module.network.weight.detach() - before, module.network.bias.grad]
        found[fused] = torch.cat([part.flatten() for part in change])
        assert found[fused].norm() == pytest.approx(1e-3, rel=0.01)
    torch.testing.assert_close(found[True], found[False])


def test_a_fused_optimizer_cannot_be_clipped_in_float16(tmp_path):
    module = task()
    module.optimizer = partial(torch.optim.SGD, lr=1.0, fused=True)
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    loop = trainer(tmp_path, max_steps=1, gradient_clip_val=1.0, plugins=[half])
    with pytest.raises(UserError, match=r"--model\.optimizer\.fused=false"):
        loop.fit(module, Weeks(batch_size=50))


def test_plateau_schedule_resumes_exactly(tmp_path):
    plateau = partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5, factor=0.5
    )
    module = task(plateau)
    loop = trainer(tmp_path, Checkpoints(), KeepFirst(), max_epochs=5)
    loop.fit(module, Weeks(batch_size=50))
    rate = loop.optimizers[0].param_groups[0]["lr"]
    assert rate < 0.01
    again = task(plateau)
    loop = trainer(tmp_path / "again", Checkpoints(), max_epochs=5)
    loop.fit(again, Weeks(batch_size=50), ckpt_path=tmp_path / "first.ckpt")
    assert loop.optimizers[0].param_groups[0]["lr"] == rate
    assert torch.equal(again.network.weight, module.network.weight)


def test_early_stopping_stays_stopped(tmp_path):
    def stop():
        return EarlyStopping("val/loss", patience=1, min_delta=1e9)

    loop = trainer(tmp_path, stop(), Checkpoints(), max_epochs=9)
    loop.fit(task(), Weeks(batch_size=50))
    assert loop.current_epoch == 2
    again = trainer(tmp_path, stop(), Checkpoints(), max_epochs=9)
    again.fit(task(), Weeks(batch_size=50), ckpt_path=pointed(tmp_path / "checkpoints", "last"))
    assert again.global_step == loop.global_step


def test_pointers_and_what_is_kept(tmp_path):
    loop = trainer(tmp_path, Checkpoints(every_n_steps=7), max_epochs=4)
    module = task(lr=0.3)  # too large: the best is not the last
    loop.fit(module, Weeks(batch_size=50))
    folder = tmp_path / "checkpoints"
    best, last = pointed(folder, "best"), pointed(folder, "last")
    log = pd.read_csv(tmp_path / "metrics.csv")["val/loss"].dropna().reset_index(drop=True)
    assert read_checkpoint(best)["epoch"] == log.idxmin()
    assert read_checkpoint(last)["global_step"] == 80
    assert {p.name for p in folder.glob("*.ckpt")} == {best.name, last.name}
    for text in ("../../etc/passwd", "gone.ckpt", ""):
        (folder / "last").write_text(text)
        with pytest.raises(UserError, match="points to"):
            pointed(folder, "last")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path, accumulate):
    class Broken(Weeks):
        def setup(self, stage=None):
            super().setup()
            self.train_set.tensors[0][:] = self.train_set.tensors[0] * float("nan")

    guard = NonFiniteGuard(every_n_steps=1000)
    loop = trainer(
        tmp_path, guard, Checkpoints(every_n_steps=2), accumulate_grad_batches=accumulate
    )
    with pytest.raises(UserError, match=r"not finite in epoch 0.*--model.optimizer.lr"):
        loop.fit(task(), Broken(batch_size=50))
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))


def test_a_wrong_monitor_names_what_there_is(tmp_path):
    loop = trainer(tmp_path, Checkpoints(monitor="val/acc"), num_sanity_val_steps=0)
    with pytest.raises(UserError, match=r"no metric 'val/acc'; there are .*val/loss"):
        loop.fit(task(), Weeks(batch_size=50))


def test_a_batch_larger_than_the_data():
    weeks = Weeks(batch_size=5000)
    weeks.setup()
    with pytest.raises(UserError, match=r"data.batch_size.*set it to 1000"):
        weeks.plan()


def test_a_row_cut_by_a_crash_is_dropped(tmp_path):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"a": 1.0}, 0)
    log.log_metrics({"a": 2.0, "b": 5.0}, 1)
    with log.path.open("a") as file:
        file.write("2,0.")
    again = MetricsCSV(tmp_path)
    again.log_metrics({"a": 3.0}, 2)
    text = log.path.read_text()
    assert text.splitlines() == ["step,epoch,a,b", "0,,1.0,", "1,,2.0,5.0", "2,,3.0,"]
    again.go_back(2, {"a": 9.0, "epoch": 0})
    assert log.path.read_text().splitlines()[-1] == "1,,2.0,5.0"  # its row was written
    again.go_back(3, {"a": 9.0, "epoch": 0})
    assert log.path.read_text().splitlines()[-1] == "2,0,9.0,"


def test_read_only_folder_is_refused_before_training(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    module = task()
    with pytest.raises(PermissionError), warnings.catch_warnings():
        trainer(tmp_path, Checkpoints()).fit(module, Weeks(batch_size=50))
    assert module.trainer.global_step == 0
