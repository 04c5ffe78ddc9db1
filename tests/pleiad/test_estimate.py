"""An estimate measures, keeps nothing, and names options that exist."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from pleiad import command, estimate, experiments
from pleiad.run import Options

FORECAST = "time_series/forecast"
KEYS = ["--data.train=s.csv", "--data.lookback=24", "--data.horizon=6", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def _series(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(np.random.default_rng(0).normal(50, 5, (900, 2)), columns=["a", "b"])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=900))
    frame.to_csv("s.csv", index=False)


def test_ten_steps_tell_how_long(monkeypatch, capsys):
    monkeypatch.setattr(estimate, "faster_precision", lambda: "bf16-mixed")
    keys = [*KEYS, "--data.eval_batch_size=8", "--trainer.max_epochs=7"]
    found = estimate.estimate(FORECAST, keys, Options())
    windows = 900 - 270 - 24 - 6 + 1
    assert found.steps == windows // 32  # the last, incomplete batch is left out
    assert found.epochs == 7
    assert found.validation_batches == -(-(90 - 6 + 1) // 8)
    assert found.epoch == pytest.approx(found.step * found.steps)
    parts = 7 * (found.epoch + found.validation) + found.test
    assert found.total == pytest.approx(parts)
    assert found.memory > 10**8
    options = [switch.option for switch in found.switches]
    assert "--trainer.max_epochs=3" in options
    for option in options:
        given = [word for word in option.split() if not word.startswith("--precision")]
        experiments.resolve(FORECAST, [*KEYS, *given])
    kept = next(s for s in found.switches if "accumulate" in s.option)
    assert kept.option == "--data.batch_size=16 --trainer.accumulate_grad_batches=2"
    assert {p.name for p in Path().iterdir()} == {"s.csv"}


def test_the_command_prints_a_table(capsys):
    keys = [*KEYS, "--model.network=DLinear", "--trainer.max_steps=20"]
    assert command.run(["fit", FORECAST, *keys, "--estimate"]) == 0
    shown = capsys.readouterr().out
    assert "a step" in shown
    assert "if begun now" in shown
    assert "--trainer.max_steps=10" in shown
    assert not Path("runs").exists()


def test_callbacks_accumulation_and_short_epochs_are_measured_too():
    stopping = "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val/loss}}]"
    keys = [*KEYS, stopping, "--data.batch_size=128", "--trainer.accumulate_grad_batches=2"]
    found = estimate.estimate(FORECAST, [*keys, "--trainer.max_epochs=20"], Options())
    assert found.steps == 2
    assert found.epochs == 20


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["--trainer.max_epochs=-1"], "the fit has no end"),
        (["--trainer.max_epochs=-1", "--model.scheduler=null"], "the fit has no end"),
        (["--trainer.fast_dev_run=true"], "leave --trainer.fast_dev_run out"),
        (["--data.horizon=800"], "fewer than"),
    ],
)
def test_what_cannot_be_estimated(keys, text):
    with pytest.raises(UserError, match=text):
        estimate.estimate(FORECAST, [*KEYS, *keys], Options())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "12.3 ms"), (3.456, "3.46 s"), (4000, "1:06:40")]
)
def test_a_length_of_time_is_readable(seconds, text):
    assert estimate.span(seconds) == text


@pytest.mark.parametrize(
    ("args", "count"),
    [
        ({}, 1),
        ({"check_val_every_n_epoch": 2}, 0.5),
        ({"val_check_interval": 0.25}, 4),
        ({"val_check_interval": 10}, 4),
        ({"val_check_interval": 20, "check_val_every_n_epoch": None}, 2),
    ],
)
def test_validations_of_an_epoch_are_counted(args, count):
    assert estimate._validations(args, 40) == count
