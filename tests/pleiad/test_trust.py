"""Modules of the user's own: which code counts, what a run keeps, and a schedule of theirs."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import UserError
from core.pretrained import from_pretrained
from pleiad import command, trust

ROOT = Path(__file__).parents[2]
NETWORK = """\
from torch import nn

class Flat(nn.Module):
    def __init__(self, horizon: int):
        super().__init__()
        self.horizon = horizon
        self.scale = nn.Linear(1, 1)

    def forward(self, past):
        return self.scale(past[:, -1:, :, None])[..., 0].expand(-1, self.horizon, -1)
"""
QUICK = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
FORECAST = ["fit", "time_series/forecast", *QUICK, "--data.train=walk.csv"]
FORECAST += ["--data.lookback=20", "--data.horizon=5", "--data.batch_size=16"]
OWN = [*FORECAST, "--trainer.max_steps=2", "--model.network=mine.Flat"]
TURNS = ["--trainer.callbacks=turns.Turns", "--trainer.callbacks.0.every=2", "--trust=turns"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)
    monkeypatch.setattr(trust._FINDER, "sources", {})
    before = set(sys.modules)
    draw = np.random.default_rng(1)
    dates = pd.date_range("2020-01-01", periods=301)
    walk = pd.DataFrame({"date": dates, "y": draw.normal(size=301).cumsum()})
    walk.to_csv("walk.csv", index=False)
    yield
    for name in ("mine", "turns", "steady", "package"):
        if name not in before:
            sys.modules.pop(name, None)


def forget() -> None:
    """Be a process that has imported nothing of the user's."""
    for name in ("mine", "steady"):
        sys.modules.pop(name, None)
    trust._FINDER.sources.clear()


def told(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        command.run(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def mine() -> Path:
    """A finished run with a network of the user's own."""
    Path("mine.py").write_text(NETWORK)
    assert command.run([*OWN, "--trust=mine", "--run=run"]) == 0
    forget()
    return Path("run")


def test_a_run_keeps_the_source_and_its_hash(mine):
    assert (mine / "trusted/mine.py").read_text() == NETWORK
    known = json.loads((mine / "trusted/sha256.json").read_text())
    assert known == {"mine": trust.digest(Path("mine.py"))}
    assert json.loads((mine / "results.json").read_text())["trusted"] == known


@pytest.mark.parametrize("what", ["test", "predict", "model"])
def test_what_changed_is_told_with_both_hashes(mine, what, capsys):
    arguments = {
        "test": ["test", "run"],
        "predict": ["predict", "run", "--input=walk.csv", "--output=f.csv"],
        "model": ["predict", "run/model", "--input=walk.csv", "--output=f.csv"],
    }[what]
    assert "--trust MODULE" in told(*arguments)
    assert command.run([*arguments, "--trust=mine"]) == 0
    assert capsys.readouterr().err == ""
    forget()
    Path("mine.py").write_text(NETWORK + "\n# another\n")
    assert command.run([*arguments, "--trust=mine"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    for source in ("mine.py", "run/trusted/mine.py"):
        assert trust.digest(Path(source))[:12] in lines[0]


def test_the_copy_counts_where_the_module_is_gone(mine, capsys):
    Path("mine.py").unlink()
    assert "no module mine.py" in told(*OWN, "--trust=mine")
    capsys.readouterr()
    assert command.run(["test", "run", "--trust=mine"]) == 0
    found = dict(line.split() for line in capsys.readouterr().out.strip().splitlines())
    results = json.loads((mine / "results.json").read_text())
    assert float(found["test/mse"]) == pytest.approx(results["metrics"]["test/mse"], rel=1e-5)
    assert Path(sys.modules["mine"].__file__).samefile(mine / "trusted/mine.py")


def test_a_damaged_copy_is_refused(mine):
    Path("mine.py").unlink()
    (mine / "trusted/mine.py").write_text("raise SystemExit('foreign code')")
    assert "copy of mine" in told("test", "run", "--trust=mine")


def test_code_comes_from_nowhere_else(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.py").write_text("raise SystemExit('foreign code')")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert "no module mine.py" in told(*OWN, "--trust=mine")
    Path("mine.py").write_text(NETWORK)
    assert "another module" in told(*OWN, "--trust=mine")
    Path("json.py").write_text("raise SystemExit('shadow')")
    assert "another module" in told(*OWN, "--trust=json")
    assert "name a module" in told(*OWN, "--trust=mine.py")


def test_a_package_is_hashed_and_copied_whole():
    Path("package/inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/__init__.py"):
        Path("package", name).touch()
    Path("package/inner/net.py").write_text(NETWORK)
    keys = [*OWN[:-1], "--model.network=package.inner.net.Flat", "--trust=package", "--run=run"]
    assert command.run(keys) == 0
    assert Path("run/trusted/package/inner/net.py").read_text() == NETWORK
    before = trust.digest(Path("package"))
    Path("package/inner/net.py").rename("package/inner/other.py")
    assert trust.digest(Path("package")) != before


# A schedule of one's own


def write_schedule() -> None:
    """Write what `pleiad new schedule` does, and let it be stopped at a step."""
    assert command.run(["new", "schedule", "turns"]) == 0
    text = Path("turns.py").read_text()
    stop = '        if os.environ.get("STOP") == str(now.step):\n'
    stop += "            signal.raise_signal(signal.SIGTERM)\n"
    text = text.replace("        turn =", stop + "        turn =")
    text = text.replace("from coll", "import os\nimport signal\nfrom coll")
    Path("turns.py").write_text(text)


@pytest.fixture
def classify(tiny_bert) -> list[str]:
    """A classifier of sentences, begun from a BERT of two layers."""
    draw = random.Random(0)
    words = {"yes": ("good", "great", "fine"), "no": ("bad", "poor", "dull")}
    rows = [
        (f"film {n} was {draw.choice(words[label])}", label) for n in range(120) for label in words
    ]
    pd.DataFrame(rows, columns=["review", "liked"]).to_csv("reviews.csv", index=False)
    keys = ["--data.train=reviews.csv", "--data.text=review", "--data.label=liked"]
    keys += ["--data.max_length=32", "--data.probe=false", "--data.batch_size=8"]
    return ["fit", "nlp/classify", *QUICK, *keys, f"--checkpoint={tiny_bert}"]


@pytest.fixture(params=["time_series", "nlp"])
def task(request) -> list[str]:
    if request.param == "nlp":
        return request.getfixturevalue("classify")
    return FORECAST


def weights(folder: str) -> dict[str, torch.Tensor]:
    return from_pretrained(Path(folder)).network.state_dict()


def turns(folder: str) -> dict:
    """Give what a run says of the schedule."""
    told_of = json.loads(Path(folder, "results.json").read_text())["techniques"]
    return next(technique for technique in told_of if technique["name"] == "Turns")


def test_a_schedule_trains_and_resumes_on_two_tasks(task, monkeypatch):
    write_schedule()
    fit = [*task, *TURNS, "--trainer.max_epochs=1"]
    assert command.run([*fit, "--run=whole"]) == 0
    told_of = turns("whole")
    assert told_of["units"] >= 2
    steps = told_of["steps"]
    assert sum(told_of["times_active"].values()) == steps
    monkeypatch.setenv("STOP", "3")
    with pytest.raises(SystemExit) as stopped:
        command.run([*fit, "--run=part"])
    assert stopped.value.code == 128 + signal.SIGTERM
    monkeypatch.delenv("STOP")
    shutil.move("turns.py", "aside.py")
    Path("turns.py").write_text(Path("aside.py").read_text() + "# changed\n")
    go_on = ["fit", "part", "--ckpt_path=last", "--trust=turns"]
    assert "has changed" in told(*go_on)
    shutil.move("aside.py", "turns.py")
    assert command.run(go_on) == 0
    whole, resumed = weights("whole"), weights("part")
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    assert turns("part") == told_of


# A criterion of early exits of one's own


def test_a_criterion_decides_on_two_tasks(task):
    assert command.run(["new", "criterion", "steady"]) == 0
    text = "nlp/classify" in task
    keys = ["--transforms=EarlyExit", "--transforms.criterion=steady.Steady"]
    keys += ["--transforms.criterion.scale=2", "--trainer.max_epochs=1"]
    if not text:
        keys += ["--transforms.values=true", "--transforms.delta=0.9", "--model.network=PatchTST"]
        keys += ["--model.network.width=8", "--model.network.inner=8", "--model.network.heads=2"]
    fit = [*task, *keys, "--transforms.threshold=0"]
    assert "allow a module of your own by --trust" in told(*fit)
    assert "may not be named" not in told(*fit, "--trust=other")
    assert command.run([*fit, "--trust=steady", "--run=always"]) == 0
    chosen = [*task, *keys, "--transforms.threshold=validation", "--trust=steady"]
    assert command.run([*chosen, "--run=run"]) == 0
    results = json.loads(Path("run", "results.json").read_text())
    assert list(results["trusted"]) == ["steady"]
    (technique,) = (each for each in results["techniques"] if each["name"] == "EarlyExit")
    assert technique["criterion"]["class_path"] == "steady.Steady"
    choice = technique["choice"]
    assert choice["loss"] <= choice["last_loss"] + technique.get("delta", 0.01)
    always = json.loads(Path("always", "results.json").read_text())
    assert always["metrics"]["test/mean_exit"] == 1
    scale = technique["criterion"]["init_args"]["scale"]
    assert scale == 2
    assert choice["threshold"] is None or choice["threshold"] == 0 or choice["mean_exit"] > 1
    Path("steady.py").unlink()  # the run's own copy is taken
    forget()
    source = "reviews.csv" if text else "walk.csv"
    answer = ["predict", "run", f"--input={source}", "--output=answers.csv"]
    assert "--trust" in told(*answer)
    assert command.run([*answer, "--trust=steady"]) == 0
    assert len(pd.read_csv("answers.csv"))


def test_a_schedule_is_named_in_a_file():
    write_schedule()
    Path("mine.yaml").write_text(
        "model:\n"
        "  class_path: domains.time_series.forecasting.Forecasting\n"
        "  init_args:\n"
        "    network: domains.time_series.networks.patchtst.PatchTST\n"
        "    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.01}}\n"
        "data:\n"
        "  class_path: domains.time_series.own_data.OwnForecastingData\n"
        "  init_args: {train: walk.csv, lookback: 20, horizon: 5}\n"
        "trainer:\n"
        "  max_steps: 4\n"
        "  callbacks: [{class_path: turns.Turns, init_args: {every: 1}}]\n"
    )
    assert "--trust MODULE" in told("fit", "mine.yaml", *QUICK)
    assert command.run(["fit", "mine.yaml", *QUICK, "--trust=turns", "--run=run"]) == 0
    active = turns("run")["times_active"]
    assert sum(active.values()) == 4
    assert max(active.values()) - min(active.values()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", ["time_series", "nlp"], indirect=True)
def test_a_schedule_of_two_processes(task):
    command.run(["new", "schedule", "turns"])
    fit = [*task, *TURNS, "--trainer.max_epochs=1"]
    if "nlp/classify" not in task:
        fit += ["--model.network.dropout=0"]
    for name, keys in {"one": [], "two": ["--trainer.devices=2", "--trainer.strategy=ddp"]}.items():
        done = subprocess.run(
            [sys.executable, "-m", "pleiad", *fit, *keys, f"--run={name}"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads(Path(name, "results.json").read_text()) for name in ("one", "two"))
    assert turns("two") == turns("one")
    assert two["trusted"] == one["trusted"]
    if "nlp/classify" not in task:
        assert two["metrics"]["test/mse"] == pytest.approx(one["metrics"]["test/mse"], rel=0.05)
