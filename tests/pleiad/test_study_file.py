"""The form of a study file, and every mistake in it."""

import json
from pathlib import Path

import pytest
import yaml

from core.errors import UserError
from pleiad import command, experiments, study, study_file
from pleiad.study_length import length_of, total_batches

STUDY = """
seeds: [1, 2]
budget: {steps: 12}
reference: full
overrides: {trainer.accelerator: cpu}
tasks:
  etth1: {experiment: time_series/dlinear_etth1, overrides: {data.horizon: 24}}
  co2: time_series/patchtst_co2
methods:
  full: {}
  gentle: {model.optimizer.lr: 2e-4, data.horizon: 48, tasks: {etth1: {model.optimizer.lr: 1e-3}}}
  small: {model.network: DLinear, precision: bf16-mixed, trust: [], tasks: {etth1: false}}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(text: str = STUDY, name: str = "s.yaml") -> study.Study:
    Path(name).write_text(text)
    return study_file.read(Path(name))


def told(text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(text)
    assert "s.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_study_is_tasks_times_methods():
    found = read()
    assert found.folder == Path("studies/s")
    assert [cell.where for cell in found.cells()] == [
        *("etth1/full", "etth1/gentle", "co2/full", "co2/gentle", "co2/small")
    ]
    gentle = found.cells()[1]
    assert gentle.overrides == (  # the last word on a key counts, and comes last
        *("--trainer.accelerator=cpu", "--data.horizon=48", "--model.optimizer.lr=0.001"),
    )
    small = found.cells()[-1]
    assert small.command == ("--precision=bf16-mixed",)
    assert (
        study.resolved(small)
        .config["model"]["init_args"]["network"]["class_path"]
        .endswith("DLinear")
    )


def test_a_grid_has_a_method_for_every_combination():
    grid = "{model.optimizer.lr: [1e-3, 1e-4], data.horizon: [24, 48]}"
    found = read(STUDY.replace("methods:", f"grid: {grid}\nmetrics: [test/mse]\nmethods:"))
    assert list(found.methods)[:4] == ["0.001-24", "0.001-48", "0.0001-24", "0.0001-48"]
    assert found.methods["0.001-48"] == {"model.optimizer.lr": 0.001, "data.horizon": 48}
    assert list(found.methods)[4:] == ["full", "gentle", "small"]
    assert found.metrics == ("test/mse",)
    study_file.keep(found)
    again = study_file.of_folder(found.folder)
    assert (again.methods, again.metrics) == (found.methods, found.metrics)
    alone = read(STUDY.partition("methods:")[0].replace("reference: full", f"grid: {grid}"))
    assert alone.reference == "0.001-24"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("grid: {data.horizon: 24}", "must be a mapping of keys to lists"),
        ("grid: {data.horizon: []}", "must be a mapping of keys to lists"),
        ("grid: {data.name: [a/b]}", "'a/b' cannot be a folder's name"),
        ("metrics: test/mse", "metrics='test/mse' must be a list of names"),
    ],
)
def test_mistakes_in_a_grid_and_in_metrics(line, message):
    assert message in told(f"{line}\n{STUDY}")


def test_values_are_typed_as_on_the_command_line():
    text = "seeds: [1]\ntasks: {a: time_series/dlinear_etth1}\nmethods:\n  m:\n"
    found = read(text + "    trainer.callbacks: [{class_path: X, init_args: {a: null}}]\n").cells()
    key, _, value = found[0].overrides[0].partition("=")
    assert key == "--trainer.callbacks"
    assert json.loads(value) == [{"class_path": "X", "init_args": {"a": None}}]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("seeds: [1, 2]", "seeds: []", "must be a list of whole numbers"),
        ("seeds: [1, 2]", "seeds: 3", "must be a list of whole numbers"),
        ("seeds: [1, 2]", "seeds: [1, 1]", "1 is given twice"),
        ("seeds: [1, 2]", "seeds: [1, -2]", "from 0 on"),
        ("seeds: [1, 2]", "seeds: [1, true]", "True must be"),
        ("{steps: 12}", "{steps: 12, seconds: 3}", "one of them"),
        ("{steps: 12}", "{steps: 0}", "above 0"),
        ("{steps: 12}", "{steps: 1.5}", "above 0"),
        ("{steps: 12}", "{seconds: .inf}", "above 0"),
        ("{steps: 12}", "{epochs: 3}", "{steps: NUMBER}"),
        ("{steps: 12}", "12", "{steps: NUMBER}"),
        ("reference: full", "reference: ful", "no method 'ful'; there is full"),
        ("reference: full", "referencer: full", "did you mean reference?"),
        ("full: {}", "full: {trainer.max_steps: 3}", "set by `budget`"),
        ("full: {}", "full: {run: here}", "has the folder FOLDER/TASK/METHOD/SEED"),
        ("full: {}", "full: {seed_everything: 3}", "by `seeds`"),
        ("full: {}", "full: 3", "must be a mapping"),
        ("full: {}", "full: {3: 4}", "is not a key"),
        ("full: {}", "full: {tasks: {nile: {}}}", "no task 'nile'"),
        ("full: {}", "full: {tasks: [etth1]}", "must be TASK"),
        ("full: {}", "fu/ll: {}", "cannot be a folder's name"),
        ("full: {}", "gentle: {}", "the key 'gentle' is given twice"),
        ("co2: time_series/patchtst_co2", "co2: {experiments: x}", "TASK: EXPERIMENT"),
        ("co2: time_series/patchtst_co2", "co2: {experiment: x, n: 1}", "unknown key n"),
        ("co2: time_series/patchtst_co2", "..: x", "cannot be a folder's name"),
        ("overrides: {trainer.accelerator: cpu}", "overrides: [cpu]", "must be a mapping"),
    ],
)
def test_mistakes_in_the_form(old, new, line):
    assert old in STUDY
    assert line in told(STUDY.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", "[]", "3", "tasks", "a: *x", "seeds: ["])
def test_what_is_no_study(text):
    told(text)


def test_other_encodings_are_refused():
    Path("s.yaml").write_bytes(STUDY.replace("full", "völlig").encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        study_file.read(Path("s.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("small: {model", "small: {trainer.callback: X, model", "trainer.callback"),
        ("DLinear", "DLinea", "no network 'DLinea'"),
        ("patchtst_co2", "patchtst_co3", "did you mean time_series/patchtst_co2"),
        ("small: {model", "small: {trainer.max_epochs: x, model", "set by `budget`"),
    ],
)
def test_a_mistake_in_the_last_method_names_it(old, new, line):
    Path("s.yaml").write_text(STUDY.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        command.run(["study", "s.yaml"])
    assert line in str(caught.value)
    assert "s.yaml: co2, methods." in str(caught.value)
    assert not Path("studies").exists()


def test_the_folder_keeps_the_study_and_takes_no_other():
    found = read()
    study_file.keep(found)
    assert study_file.of_folder(found.folder).cells()[2].overrides == found.cells()[2].overrides
    moved = found.folder.rename("elsewhere")
    assert study_file.of_folder(moved).folder == moved
    with pytest.raises(UserError, match="holds another study, s"):
        study_file.keep(read(STUDY + "folder: elsewhere\n", "t.yaml"))
    Path("runs").mkdir()
    Path("runs/file").touch()
    with pytest.raises(UserError, match="holds no study"):
        study_file.keep(read(STUDY + "folder: runs\n"))
    with pytest.raises(UserError, match="is a file"):
        study_file.keep(read(STUDY + "folder: runs/file\n"))


def test_studies_are_found_by_path_or_name():
    assert study_file.find("some/s.yaml") == Path("some/s.yaml")
    with pytest.raises(UserError, match="no study 'nothing'; give a YAML file"):
        study_file.find("nothing")
    assert not any(name.startswith("studies/") for name in experiments.names())


@pytest.mark.parametrize(
    ("steps", "batches", "accumulated"), [(7, 3, 1), (5, 5, 2), (12, 7, 3), (1, 9, 4), (6, 2, 5)]
)
def test_batches_until_a_step(steps, batches, accumulated):
    taken = count = 0
    while taken < steps:
        count += 1
        place = (count - 1) % batches + 1
        taken += place == batches or place % accumulated == 0
    assert total_batches(steps, batches, accumulated) == count


def test_a_budget_is_spent_in_full_and_ends_with_a_validation():
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {}}
    other = {"class_path": "core.callbacks.ema.EMAWeightAveraging", "init_args": {}}
    spent = length_of(200, 150, {"callbacks": [stopping, other], "accumulate_grad_batches": 2})
    values = {k: yaml.safe_load(v) for k, _, v in (o.partition("=") for o in spent.overrides)}
    assert values.pop("--trainer.callbacks") == [other]
    assert values == {
        "--trainer.max_steps": 200,
        "--trainer.max_epochs": -1,
        "--trainer.val_check_interval": 80,  # 400 batches, of which 150 an epoch
        "--trainer.check_val_every_n_epoch": None,
    }
    assert not any("callbacks" in key for key in length_of(200, 150, {}).overrides)
