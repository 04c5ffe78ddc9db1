"""Runs that begin from given weights, and given weights that are judged."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained, warm_start
from domains.time_series.networks.dlinear import DLinear
from pleiad import command, weights

SIZES = ["--data.lookback=24", "--data.horizon=6"]
KEYS = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--data.train=s.csv"]
QUICK = [*KEYS, "--model.network=DLinear", "--trainer.max_steps=4"]
FORECAST = "time_series/forecast"


@pytest.fixture(autouse=True)
def _series(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)
    frame = pd.DataFrame(np.random.default_rng(0).normal(50, 5, (300, 2)), columns=["a", "b"])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=300))
    frame.to_csv("s.csv", index=False)


def told(arguments: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        command.run(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def results(folder: str | Path) -> dict:
    return json.loads(Path(folder, "results.json").read_text())


def printed(capsys, arguments: list[str]) -> dict[str, str]:
    capsys.readouterr()
    command.run(arguments)
    lines = capsys.readouterr().out.strip().splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


@pytest.fixture
def run() -> Path:
    command.run(["fit", FORECAST, *QUICK, *SIZES, "--run=first"])
    return Path("first")


def same(found: dict[str, str], folder: Path) -> bool:
    metrics = results(folder)["metrics"]
    return all(float(found[name]) == pytest.approx(metrics[name], rel=1e-5) for name in metrics)


def test_a_model_folder_is_judged_like_its_run(run, capsys):
    assert same(printed(capsys, ["test", "first/model"]), run)
    shutil.copytree("first/model", "moved")
    assert "--data.train is needed" in told(["test", "moved"])
    assert same(printed(capsys, ["test", "moved", *QUICK, *SIZES]), run)
    assert "was made for lookback=24" in told(["test", "moved", *QUICK])
    assert "--data.lookback=24" in told(["test", "moved", *QUICK])
    assert "add --model.network=DLinear" in told(["test", "moved", *KEYS, *SIZES])
    pd.read_csv("s.csv").drop(columns="b").to_csv("one.csv", index=False)
    assert "take other data" in told(["test", "moved", *QUICK, *SIZES, "--data.train=one.csv"])
    key = "--model.network.kernel=3"
    assert "in its size" in told(["test", "moved", *QUICK, *SIZES, key])
    assert "predict" not in str(printed(capsys, ["validate", "first/model"]))
    assert command.run(["predict", "moved", "--input=s.csv", "--output=f.csv"]) == 0


def test_given_weights_are_judged_without_training(run, capsys):
    arguments = ["test", FORECAST, *QUICK, *SIZES]
    (checkpoint,) = run.glob("checkpoints/epoch*.ckpt")
    for given in (run, run / "model", checkpoint):
        assert same(printed(capsys, [*arguments, f"--checkpoint={given}"]), run)
    assert not Path("runs").exists()
    command.run([*arguments, f"--checkpoint={run}", "--run=judged"])
    assert results("judged")["metrics"] == results(run)["metrics"]
    assert results("judged")["checkpoint"]["path"] == "first"
    assert results("judged")["seconds"]["fit"] == 0
    assert "Weights it began from" in Path("judged/report.html").read_text()
    assert same(printed(capsys, ["test", "judged"]), run)
    assert "no such file" in told([*arguments, "--checkpoint=none"])
    assert "Hugging Face hub" in told([*arguments, "--checkpoint=owner/model"])
    assert "only a test of given weights" in told(["test", str(run), "--run=x"])
    other = ["test", FORECAST, *KEYS, *SIZES, f"--checkpoint={checkpoint}"]
    assert "fits PatchTST" in told(other)


def test_a_run_begins_from_weights_and_tells_what_fits(run, capsys):
    command.run(["fit", FORECAST, *QUICK, *SIZES, "--checkpoint=first", "--run=second"])
    assert "first: 4 tensors loaded" in capsys.readouterr().out
    record = results("second")["checkpoint"]
    assert (record["path"], record["matched"], record["reshaped"]) == ("first", 4, [])
    assert results("second")["metrics"] != results("first")["metrics"]
    command.run(["fit", "second", "--run=again"])  # a run repeats from its folder alone
    assert results("again")["metrics"] == results("second")["metrics"]
    arguments = ["fit", FORECAST, *QUICK, "--data.lookback=24", "--data.horizon=9"]
    assert "none of its 4 tensors fits DLinear" in told([*arguments, "--checkpoint=first"])
    assert "one of them" in told([*arguments, "--checkpoint=first", "--ckpt_path=last"])
    assert not Path("runs").exists()


def test_a_run_that_goes_on_does_not_begin_again(run):
    command.run(["fit", FORECAST, *QUICK, *SIZES, "--checkpoint=first", "--run=second"])
    before = results("second")
    Path("second/results.json").unlink()
    shutil.rmtree("first")
    command.run(["fit", "second", "--ckpt_path=last"])
    assert results("second")["checkpoint"] == before["checkpoint"]
    assert results("second")["metrics"] == before["metrics"]
    assert "--checkpoint first: no such file" in told(["fit", "second", "--run=x"])


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_it_had_not_been(run):
    arguments = ["fit", FORECAST, *KEYS, "--model.network=DLinear", *SIZES, "--checkpoint=first"]
    arguments += ["--trainer.max_epochs=12", "--checkpoints.every_n_steps=1"]
    program = [sys.executable, "-m", "pleiad", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*program, "--run=whole"], env=environment, check=True)
    process = subprocess.Popen([*program, "--run=killed"], env=environment)
    log = Path("killed/metrics.csv")
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not Path("killed/results.json").exists()
    shutil.rmtree("first")
    command.run(["fit", "killed", "--ckpt_path=last"])
    assert results("killed")["metrics"] == results("whole")["metrics"]
    assert results("killed")["checkpoint"] == results("whole")["checkpoint"]
    whole, killed = (Path(name, "model/model.safetensors") for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


def test_a_head_of_another_size_stays_as_it_was_drawn(capsys):
    patch = [*KEYS, "--trainer.max_steps=2", "--data.lookback=24"]
    command.run(["fit", FORECAST, *patch, "--data.horizon=6", "--run=first"])
    capsys.readouterr()
    given = ["fit", FORECAST, *patch, "--data.horizon=9", "--checkpoint=first", "--run=second"]
    command.run(given)
    record = results("second")["checkpoint"]
    assert record["matched"] > 10
    assert record["missing"] == record["unexpected"] == []
    assert all("needed (9" in line for line in record["reshaped"])
    assert f"{len(record['reshaped'])} reshaped: " in capsys.readouterr().out


def test_a_licence_is_handed_down(run):
    network = from_pretrained(run).network
    facts = {"licence": "CC BY-NC 4.0", "commercial_use": "no", "source": "the authors"}
    save_pretrained(network, Path("bound"), extra=facts)
    command.run(["fit", FORECAST, *QUICK, *SIZES, "--checkpoint=bound", "--run=second"])
    (checkpoint,) = Path("second").glob("checkpoints/epoch*.ckpt")
    command.run(["fit", FORECAST, *QUICK, *SIZES, f"--checkpoint={checkpoint}", "--run=third"])
    command.run(["test", FORECAST, *QUICK, *SIZES, "--checkpoint=third", "--run=fourth"])
    for folder in ("second", "third", "fourth"):
        assert results(folder)["checkpoint"].items() >= facts.items()
        assert any("forbids commercial use" in line for line in results(folder)["warnings"])
        page = Path(folder, "report.html").read_text()
        assert "CC BY-NC 4.0" in page
        assert "forbids commercial use" in page


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("CC BY-NC 4.0", "no"),
        ("research only", "no"),
        ("Apache-2.0", "yes"),
        ("MIT", "yes"),
        ("see the site", "unknown"),
        (None, "unknown"),
    ],
)
def test_what_a_licence_allows(licence, allowed):
    assert weights.commercial_use(licence) == allowed


def test_only_what_fits_is_loaded():
    torch.manual_seed(0)
    source = DLinear(lookback=24, horizon=6, channels=2, kernel=5)
    state = {**source.state_dict(), "more": torch.zeros(1)}
    name = next(iter(source.state_dict()))
    state[name] = torch.zeros(3, 3)
    target = DLinear(lookback=24, horizon=6, channels=2, kernel=5)
    before = target.state_dict()[name].clone()
    found = warm_start(target, state, "x")
    assert found.unexpected == ("more",)
    assert found.missing == ()
    assert found.reshaped == (f"{name} is (3, 3), needed {tuple(before.shape)}",)
    assert torch.equal(target.state_dict()[name], before)
    for matched in found.matched:
        assert torch.equal(target.state_dict()[matched], state[matched])
    with pytest.raises(UserError, match="none of its 1 tensors fits DLinear"):
        warm_start(target, {"more": torch.zeros(1)}, "x")
    with pytest.raises(UserError, match="not finite"):
        warm_start(target, {key: t * float("nan") for key, t in state.items()}, "x")
