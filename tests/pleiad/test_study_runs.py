"""The runs of a study: what is skipped, gone on with and told; and the whole of it once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from core.errors import UserError
from pleiad import study_checks, study_file, study_length, study_runs
from pleiad.study_checks import Examined, State
from pleiad.study_length import Spent

TEXT = """
seeds: [1, 2]
tasks: {a: time_series/dlinear_etth1}
methods: {full: {}, gentle: {model.optimizer.lr: 0.001}}
"""
CHILD = """
import json, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").write_text("{}")
def stop(number, frame):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last").write_text("x")
    sys.exit(int(sys.argv[4]))
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
time.sleep(float(sys.argv[2]))
if sys.argv[3] == "fail":
    sys.exit("pleiad: no luck")
(folder / "results.json").write_text(json.dumps({"metrics": {"test/mse": 0.5}}))
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def study():
    Path("s.yaml").write_text(TEXT)
    return study_file.read(Path("s.yaml"))


@pytest.fixture
def begun(monkeypatch):
    """Small processes in place of trainings, which take ``wait`` seconds and of which some fail."""
    settings = {"wait": 0.0, "fails": "", "names": [], "status": 143}

    def arguments(run):
        settings["names"].append((run.name, str(run.state)))
        how = "fail" if run.name == settings["fails"] else "go"
        wait, status = str(settings["wait"]), str(settings["status"])
        return [sys.executable, "-c", CHILD, str(run.folder), wait, how, status]

    examined = [Examined(cell, "{}", Spent()) for cell in study_file.read(Path("s.yaml")).cells()]
    monkeypatch.setattr(study_runs, "arguments", arguments)
    monkeypatch.setattr(study_runs, "check", lambda study, tell: examined)
    return settings


def test_runs_are_made_once(study, begun):
    lines = []
    found = study_runs.run(study, jobs=2, tell=lines.append)
    assert (found.done, found.failures, found.status) == (4, [], 0)
    names = [name for name, _ in begun["names"]]
    assert names == ["a/full/1", "a/gentle/1", "a/full/2", "a/gentle/2"]
    assert sum("[4/4]" in line and "ends" in line for line in lines) == 1
    assert "mse 0.5" in " ".join(lines)
    assert study_runs.run(study, tell=lines.append).done == 0
    assert "4 of 4 runs are finished already" in lines
    assert len(begun["names"]) == 4


def test_a_run_that_fails_ends_no_other(study, begun):
    begun["fails"] = "a/gentle/1"
    found = study_runs.run(study)
    assert (found.done, found.status) == (3, 2)
    (failure,) = found.failures
    assert (failure.run.name, failure.status) == ("a/gentle/1", 1)
    assert failure.told == f"no luck ({failure.run.folder}.log)"
    begun |= {"fails": "", "names": []}
    assert study_runs.run(study).status == 0
    assert begun["names"] == [("a/gentle/1", "began")]  # it had saved nothing


@pytest.mark.parametrize("status", [143, 0])
def test_a_signal_lets_the_runs_save_and_begins_no_more(study, begun, status):
    begun |= {"wait": 30, "status": status}

    def tell(line):
        if "[2/4]" in line:
            log = study.folder / "a/full/1.log"
            while b"begun" not in (log.read_bytes() if log.exists() else b""):
                time.sleep(0.02)
            signal.raise_signal(signal.SIGTERM)

    found = study_runs.run(study, jobs=2, tell=tell)
    assert found.status == 143
    assert found.failures == []
    states = dict(begun["names"])
    assert states["a/full/1"] == "new"
    begun |= {"wait": 0, "names": []}
    assert study_runs.run(study).done == 4
    assert begun["names"][0] == ("a/full/1", "interrupted")
    assert "a/full/2" in dict(begun["names"])


def test_a_full_disk_is_told_by_its_status(study):
    failure = study_runs.Failure(None, 74, "")
    assert study_runs.Outcome(1, [failure], None).status == 74


def test_what_is_made_otherwise_is_told(study, begun, monkeypatch):
    study_runs.run(study)
    cells = study.cells()
    (study.folder / "a/gentle/2/config.yaml").write_text("model: {init_args: {optimizer: {lr: 1}}}")
    with pytest.raises(UserError, match=r"a/gentle/2 was made otherwise: model.optimizer.lr is 1"):
        study_checks.plan(study, [Examined(cell, "{}", Spent()) for cell in cells])
    assert len(list(study.folder.glob("*/*/*/results.json"))) == 4


def test_two_processes_do_not_share_a_study(study, begun):
    study_file.keep(study)
    with (
        study_runs._locked(study.folder),
        pytest.raises(UserError, match="another process runs this study"),
    ):
        study_runs.run(study)


def test_a_run_that_another_process_makes_is_left_alone(study, begun):
    study_file.keep(study)
    folder = study.folder / "a/full/1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    examined = study_runs.check(study, print)
    with FileLock(folder / ".lock"):
        assert study_checks.plan(study, examined)[0].state == State.RUNNING
        with pytest.raises(UserError, match="a/full/1: another process is training this run"):
            study_runs.run(study)
    assert study_checks.plan(study, examined)[0].state == State.BEGAN


def test_states(tmp_path):
    folder = tmp_path / "run"
    assert study_checks.state_of(folder) == State.NEW
    folder.mkdir()
    assert study_checks.state_of(folder) == State.BEGAN
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match="in the way"):
        study_checks.state_of(folder)
    (folder / "config.yaml").touch()
    assert study_checks.state_of(folder) == State.BEGAN
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/last").touch()
    assert study_checks.state_of(folder) == State.INTERRUPTED
    (folder / "results.json").touch()
    assert study_checks.state_of(folder) == State.FINISHED


def test_threads_are_shared(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("PLEIAD_RUN", "elsewhere")
    assert study_runs.environment(1)["OMP_NUM_THREADS"] == "8"
    assert study_runs.environment(3)["OMP_NUM_THREADS"] == "2"
    assert study_runs.environment(99)["OMP_NUM_THREADS"] == "1"
    assert "PLEIAD_RUN" not in study_runs.environment(1)


def test_at_least_one_job(study):
    with pytest.raises(UserError, match="--jobs=0"):
        study_runs.run(study, jobs=0)


CO2 = """
seeds: [1]
tasks: {co2: time_series/patchtst_co2}
overrides: {model.network: DLinear, trainer.accelerator: cpu, trainer.accumulate_grad_batches: 2}
methods: {full: {}, wrong: {model.network.kernel: 0, trainer.gradient_clip_val: 1.0}}
"""


def test_examined_with_a_budget():
    Path("s.yaml").write_text(CO2)
    cell, wrong = study_file.read(Path("s.yaml")).cells()
    found = study_checks.examine(cell, 100)
    trainer = yaml.safe_load(found.yaml)["trainer"]
    assert trainer["max_steps"] == found.spent.steps == 100
    assert trainer["max_epochs"] == -1
    assert trainer["check_val_every_n_epoch"] is None
    assert yaml.safe_load(study_checks.examine(cell, None).yaml)["trainer"]["max_epochs"] == 20
    with pytest.raises(UserError, match=r"s.yaml: co2, methods.wrong: "):
        study_checks.examine(wrong, 100)


@pytest.mark.slow
def test_seconds_become_steps(monkeypatch):
    Path("s.yaml").write_text(CO2 + "budget: {seconds: 30}\n")
    study = study_file.read(Path("s.yaml"))
    study_file.keep(study)

    class Here:
        """A process that is this one."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def submit(self, call, *arguments):
            value = call(*arguments)
            return type("Answer", (), {"result": lambda self: value})()

    monkeypatch.setattr(study_checks, "_process", Here)
    monkeypatch.setattr(study_checks, "step_seconds", lambda cell: 0.25)
    cell = study.cells()[0]
    (found,) = study_checks.measured(study, [study_checks.examine(cell, None)])
    assert found.spent.steps == 120
    monkeypatch.setattr(study_checks, "step_seconds", lambda cell: 1.0)  # measured once only
    (again,) = study_checks.measured(study, [study_checks.examine(cell, None)])
    assert again == found
    longer = study._replace(budget=study.budget._replace(seconds=60))
    (other,) = study_checks.measured(longer, [study_checks.examine(cell, None)])
    assert other.spent.steps == 60
    monkeypatch.undo()
    assert 0 < study_length.step_seconds(cell) < 5


def pleiad(*arguments, code=0):
    found = subprocess.run(
        [sys.executable, "-m", "pleiad", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert found.returncode == code, found.stderr + found.stdout
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_whole_study():
    Path("mine.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Broken(Callback):\n"
        "    def on_train_start(self, trainer, module):\n"
        "        raise RuntimeError('no luck')\n"
    )
    text = """
    seeds: [1, 2]
    budget: {steps: 12}
    overrides: {trainer.accelerator: cpu, model.network: DLinear, trainer.limit_test_batches: 2}
    tasks:
      near: {experiment: time_series/patchtst_co2, overrides: {data.horizon: 26}}
      far: time_series/patchtst_co2
    methods:
      full: {}
      hasty: {model.scheduler.max_lr: 0.02}
      broken: {trainer.callbacks: mine.Broken, trust: mine, tasks: {near: false}}
    """
    Path("s.yaml").write_text(text)
    assert "near/hasty/2" in pleiad("study", "s.yaml", "--dry-run").stdout
    assert not Path("studies").exists()
    found = pleiad("study", "s.yaml", "--jobs", "2", code=2)
    assert found.stderr.count("pleiad: failed: far/broken/") == 2
    assert "no luck" in found.stderr
    finished = sorted(Path("studies/s").glob("*/*/*/results.json"))
    assert len(finished) == 8
    for path in finished:
        results = json.loads(path.read_text())
        assert results["steps"] == 12
        assert results["seed"] == int(path.parent.name)
        assert (path.parent / "checkpoints/best").is_file()  # it has been validated at its end
    kept = {path: path.stat().st_mtime for path in finished}
    one = Path("studies/s/far/full/1")
    before = json.loads((one / "results.json").read_text())["metrics"]
    (one / "results.json").rename("results.json")  # as if it had been cut short in its test
    found = pleiad("study", "s.yaml", code=2)
    assert "far/full/1 goes on" in found.stdout
    assert "7 of 10 runs are finished already" in found.stdout
    assert json.loads((one / "results.json").read_text())["metrics"] == before
    assert all(p.stat().st_mtime == t for p, t in kept.items() if p.parent != one)
    table = pd.read_csv(pleiad_report())
    assert set(table[table.task == "far"].method) == {"full", "hasty", "broken"}
    assert table[table.method == "hasty"].low.notna().all()
    changed = pleiad("study", change("0.02", "0.03"), code=2)
    assert "model.scheduler.max_lr is 0.02 there and 0.03 now" in changed.stderr


def pleiad_report() -> Path:
    pleiad("report", "studies/s", "--format", "csv", "--output", "out.csv")
    return Path("out.csv")


def change(old: str, new: str) -> Path:
    path = Path("s.yaml")
    path.write_text(path.read_text().replace(old, new))
    return path
