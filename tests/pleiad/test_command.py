"""What a user types, and what comes back."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import data
from core.callbacks.checkpoints import pointed
from core.checkpoint_io import read_checkpoint
from core.errors import UserError
from data.errors import DataError
from pleiad import command, experiments

QUICK = [
    "--trainer.max_steps=4",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
]
FORECAST = ["fit", "time_series/forecast", *QUICK, "--data.lookback=24", "--data.horizon=6"]


def pleiad(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    found = subprocess.run(
        [sys.executable, "-m", "pleiad", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert found.returncode == code, found.stderr
    return found


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)


@pytest.fixture
def sales() -> Path:
    """400 days of two channels."""
    days = np.arange(400)
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"date": pd.date_range("2020-01-01", periods=400)})
    frame["north"] = 50 + 10 * np.sin(days * 2 * np.pi / 7) + draw.normal(size=400)
    frame["south"] = 20 + 5 * np.cos(days * 2 * np.pi / 7) + draw.normal(size=400)
    frame.to_csv("sales.csv", index=False)
    return Path("sales.csv")


def told(arguments: list[str]) -> str:
    """Run a command that must fail by the user's mistake; give its one line."""
    with pytest.raises((UserError, DataError)) as caught:
        command.run(arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


ETTH1 = "time_series/dlinear_etth1"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fit", "time_series/dlinear_eth1"], f"did you mean {ETTH1}"),
        (["fit", "dlinear_etth1"], ETTH1),
        (["fit", "nothing.yaml"], "nothing.yaml: no such file"),
        (["fit"], "needs a name"),
        (["predict", "owner/model", "--input=a", "--output=b"], "by --checkpoint owner/model"),
        (["import", "autoformr", "x.pt", "--output=m"], "did you mean autoformer or"),
        (["test", ETTH1, "--checkpoint=none"], "no such file"),
        (["fit", ETTH1, "--checkpoint=x", "--ckpt_path=last"], "give one of them"),
        (["fti"], "did you mean fit?"),
        (["list", "system"], "did you mean systems?"),
        (["fit", ETTH1, "--model.optimizer.lrr=3"], "did you mean model.optimizer.lr?"),
        (["fit", ETTH1, "--model.network.kernl=3"], "did you mean model.network.kernel?"),
        (["fit", ETTH1, "--trainer.max_epoch=3"], "did you mean trainer.max_epochs"),
        (["fit", ETTH1, "--lr=3"], "unknown key lr"),
        (
            ["fit", ETTH1, "--model.network.horizon=3"],
            "use --data.horizon|set --data.horizon instead",
        ),
        (["fit", ETTH1, "--model.network.channels=3"], "it is read from the data"),
        (["fit", ETTH1, "--data.train=my.csv"], "use time_series/forecast"),
        (["fit", ETTH1, "--data.horizon"], "--data.horizon=VALUE"),
        (["fit", ETTH1, "data.horizon=3"], "is not an option"),
        (["fit", ETTH1, "--model.network=os.system"], "may not be named"),
        (["fit", ETTH1, "--model.network=PatchTS"], "PatchTST"),
        (["fit", ETTH1, "--model.optimizer=torch.hub.load"], "may not be named"),
        (["fit", ETTH1, "--trainer.callbacks=[{class_path: os.system}]"], "may not be named"),
        (["fit", ETTH1, "--trust=nothing"], "no module nothing.py"),
        (["fit", ETTH1, "--ckpt_path=last"], "no unfinished run"),
        (["fit", "time_series/forecast"], "--data.train is needed"),
        (["test", ETTH1], "no finished run"),
        (["predict", ETTH1, "--input=a", "--output=b"], "no finished run"),
        (["data", "where", "etth"], "etth1"),
        (["show", "nothing"], "is no system, no experiment, no data set and no file"),
        (["report", "nothing"], "nothing"),
        (["new", "time_series", "not-a-name"], "not-a-name"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, line):
    text = told(arguments)
    assert any(part in text for part in line.split("|")), text
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &x 1\nb: *x", "aliases"),
        (
            "model: {class_path: os.system}\ndata: {}",
            "names a class|must name a class|may not be named",
        ),
        ("model: [", "x.yaml:"),
        ("42", "not an experiment"),
        ("modell: {}", "unknown key modell"),
        (
            "model: {class_path: domains.time_series.forecasting.Forecastin}\ndata: 3",
            "must name a class",
        ),
    ],
)
def test_hostile_and_broken_yaml(text, line):
    Path("x.yaml").write_text(text)
    found = told(["fit", "x.yaml"])
    assert any(part in found for part in line.split("|")), found


def test_a_config_that_names_os_system_imports_nothing():
    config = experiments.load(ETTH1).config
    config["model"]["init_args"]["optimizer"] = {"class_path": "evil.Thing"}
    Path("x.yaml").write_text(yaml.safe_dump(config))
    Path("evil.py").write_text("open('ran', 'w')")
    assert "may not be named" in told(["fit", "x.yaml"])
    assert not Path("ran").exists()


def test_keys_and_types_that_only_the_classes_know(sales):
    assert "lookback" in told([*FORECAST, f"--data.train={sales}", "--data.lookback=abc"])
    assert "width" in told([*FORECAST, f"--data.train={sales}", "--model.network.width=33"])
    assert "patch=40" in told([*FORECAST, f"--data.train={sales}", "--model.network.patch=40"])
    assert not Path("runs").exists()


def test_data_that_does_not_fit(sales):
    assert "no such file" in told([*FORECAST, "--data.train=none.csv"])
    text = told([*FORECAST, f"--data.train={sales}", "--data.horizon=300"])
    assert "fewer than" in text
    assert "data.horizon" in text
    frame = pd.read_csv(sales)
    frame.drop(columns="date").to_csv("nodate.csv", index=False)
    assert "--data.time" in told([*FORECAST, "--data.train=nodate.csv"])
    frame.loc[7, "south"] = None
    frame.to_csv("hole.csv", index=False)
    assert "--data.gaps=interpolate" in told(
        [*FORECAST, "--data.train=hole.csv", "--data.gaps=error"]
    )
    text = sales.read_text().replace("2020-01-05,", "2020-01-05,n/x")
    Path("words.csv").write_text(text)
    assert "words.csv:6: column 'north'" in told([*FORECAST, "--data.train=words.csv"])
    assert "there is no such column" in told(
        [*FORECAST, f"--data.train={sales}", "--data.target=x"]
    )
    assert not Path("runs").exists()


def test_a_wrong_checksum_is_named(monkeypatch, tmp_path):
    folder = tmp_path / "time_series" / "ETT-small"
    folder.mkdir(parents=True)
    (folder / "ETTh1.csv").write_text("date,OT\n")
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path))
    text = told(["fit", ETTH1, *QUICK])
    assert "ETTh1.csv" in text
    assert "f18de3ad" in text


@pytest.fixture
def run(sales) -> Path:
    assert command.run([*FORECAST, f"--data.train={sales}"]) == 0
    return Path("runs/time_series/forecast/0")


def test_a_run_folder_holds_what_it_promises(run, capsys):
    capsys.readouterr()
    results = json.loads((run / "results.json").read_text())
    assert results["experiment"] == "time_series/forecast"
    assert results["system"] == "patchtst"
    assert results["published"] is None
    assert {"test/mse", "test/mae"} <= set(results["metrics"])
    assert "seasonal repeat" in results["baselines"]
    assert results["parameters"]["total"] >= results["parameters"]["trainable"] > 0
    memory = results["memory"]
    assert memory["saved_bytes"] > 0
    assert memory["gradient_bytes"] == memory["weight_bytes"]
    assert memory["optimizer_bytes"] > 2 * memory["weight_bytes"]
    names = {
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "model",
        "pictures",
        "predictions.parquet",
    }
    assert names | {"report.html", "results.json", "tensorboard"} <= {p.name for p in run.iterdir()}
    rows = pd.read_parquet(run / "predictions.parquet")
    errors = np.abs(np.stack(rows["prediction"]) - np.stack(rows["target"]))
    assert len(rows) == 80 - 6 + 1  # every window of the last fifth
    assert results["metrics"]["test/mae"] == pytest.approx(errors.mean(), rel=1e-4)
    truth = pd.read_csv("sales.csv")[["north", "south"]].to_numpy()
    first = int(rows["id"][0])
    np.testing.assert_allclose(
        np.stack(rows["target"])[0].reshape(6, 2), truth[first : first + 6], rtol=1e-4
    )


def test_test_repeats_the_numbers(run, capsys):
    capsys.readouterr()
    command.run(["test", str(run)])
    found = dict(line.split() for line in capsys.readouterr().out.strip().splitlines())
    results = json.loads((run / "results.json").read_text())
    for name, value in results["metrics"].items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5)
    command.run(["validate", "time_series/forecast"])
    assert "val/mse" in capsys.readouterr().out


def test_predict_writes_original_units(run, sales, capsys):
    arguments = ["predict", str(run), f"--input={sales}", "--output=f.csv", "--plot=f.png"]
    assert command.run(arguments) == 0
    forecast = pd.read_csv("f.csv", parse_dates=["date"])
    assert list(forecast.columns) == ["date", "north", "south"]
    assert list(forecast["date"]) == list(pd.date_range("2021-02-04", periods=6))
    assert forecast["north"].between(20, 80).all()
    assert Path("f.png").stat().st_size > 5000
    pd.read_csv(sales).drop(columns="south").to_csv("less.csv", index=False)
    assert "missing south" in told(["predict", str(run), "--input=less.csv", "--output=g.csv"])
    pd.read_csv(sales).head(10).to_csv("short.csv", index=False)
    assert "fewer than the 24" in told(["predict", str(run), "--input=short.csv", "--output=g.csv"])
    assert "no folder" in told(["predict", str(run), f"--input={sales}", "--output=no/g.csv"])
    assert not Path("g.csv").exists()


def test_damaged_and_foreign_checkpoints(run, sales):
    (checkpoint,) = list((run / "checkpoints").glob("epoch*.ckpt"))[:1]
    cut = Path("cut.ckpt")
    cut.write_bytes(checkpoint.read_bytes()[:5000])
    arguments = [*FORECAST, f"--data.train={sales}"]
    assert "not a readable checkpoint" in told([*arguments, f"--ckpt_path={cut}"])
    other = [*arguments, "--model.network=DLinear", f"--ckpt_path={checkpoint}"]
    assert "does not fit Forecasting" in told(other)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    assert "damaged" in told(["test", str(run)])
    assert "finished already" in told(["fit", str(run), "--ckpt_path=last"])


def test_a_run_repeats_from_its_folder(run):
    command.run(["fit", str(run), "--run=again"])
    first, second = (json.loads((p / "results.json").read_text()) for p in (run, Path("again")))
    assert first["metrics"] == second["metrics"]
    assert first["config_hash"] == second["config_hash"]
    assert "not empty" in told(["fit", str(run), "--run=again"])


def test_another_network_by_its_short_name(sales):
    command.run([*FORECAST, f"--data.train={sales}", "--model.network=dlinear"])
    results = json.loads(Path("runs/time_series/forecast/0/results.json").read_text())
    assert results["system"] == "dlinear"
    assert results["parameters"]["total"] == 2 * (24 * 6 + 6)


@pytest.mark.parametrize(
    ("key", "told_of"),
    [
        ("--trainer.logger=false", "is set by the run"),
        ("--trainer.default_root_dir=x", "give the folder by --run"),
        ("--checkpoints.folder=x", "is set by the run"),
        ("--trainer.log_every_n_steps=0", "must be at least 1"),
        ("--trainer.max_time=nonsense", "nonsense"),
        ("--trainer.devices=0", "devices"),
        ("--seed_everything=false", "whole number"),
        ("--model.optimizer.lr=-1", "-1"),
    ],
)
def test_settings_that_a_run_cannot_take(sales, key, told_of):
    assert told_of in told([*FORECAST, f"--data.train={sales}", key])


def test_names_of_files_are_taken_as_they_are(sales):
    for name in ("sales #1.csv", "jan: feb.csv", "2024"):
        Path(name).write_text(sales.read_text())
        given = experiments.resolve("time_series/forecast", [f"--data.train={name}"])
        assert given.config["data"]["init_args"]["train"] == name


def test_a_partial_test_is_no_result_to_compare(sales):
    keys = ["--trainer.limit_test_batches=1", "--data.eval_batch_size=16"]
    command.run([*FORECAST, f"--data.train={sales}", *keys])
    run = Path("runs/time_series/forecast/0")
    results = json.loads((run / "results.json").read_text())
    assert results["baselines"] == {}
    assert any("part of the test split" in line for line in results["warnings"])
    before = (run / "predictions.parquet").read_bytes()
    command.run(["test", str(run)])
    assert (run / "predictions.parquet").read_bytes() == before


def test_half_precision_and_names_that_would_leave_the_folder(sales):
    command.run([*FORECAST, f"--data.train={sales}", "--precision=bf16-mixed"])
    run = Path("runs/time_series/forecast/0")
    results = json.loads((run / "results.json").read_text())
    assert results["techniques"] == [{"name": "precision", "value": "bf16-mixed"}]
    assert len(pd.read_parquet(run / "predictions.parquet")) == 75
    text = (run / "config.yaml").read_text().replace("time_series/forecast", "../../outside")
    (run / "config.yaml").write_text(text)
    assert "is not a name" in told(["fit", str(run)])


def test_the_network_is_trained_in_bfloat16_alone(sales):
    keys = ["--precision=bf16-true", "--model.optimizer=AdamWBF16"]
    command.run([*FORECAST, f"--data.train={sales}", *keys, "--model.optimizer.rounding=kahan"])
    run = Path("runs/time_series/forecast/0")
    results = json.loads((run / "results.json").read_text())
    assert {"name": "precision", "value": "bf16-true"} in results["techniques"]
    command.run(["test", str(run)])
    checkpoint = read_checkpoint(pointed(run / "checkpoints", "last"))["state_dict"]
    weights = [value for name, value in checkpoint.items() if name.startswith("network.")]
    assert {str(w.dtype) for w in weights if w.is_floating_point()} == {"torch.bfloat16"}


def test_another_optimizer_keeps_the_settings_that_both_take(capsys):
    given = ["fit", ETTH1, "--model.optimizer.lr=3e-5", "--model.optimizer=SGD", "--print_config"]
    command.run(given)
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert model["optimizer"]["class_path"] == "torch.optim.SGD"
    assert model["optimizer"]["init_args"]["lr"] == 3e-5
    assert "betas" not in model["optimizer"]["init_args"]
    command.run(["fit", ETTH1, "--model.network=DLinear", "--print_config"])
    network = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["network"]
    assert "layers" not in network["init_args"]  # another network has the sizes of its paper


def test_auto_in_a_file_is_resolved_and_float16_refused(sales, monkeypatch):
    monkeypatch.setattr("core.precision.faster_precision", lambda: "bf16-mixed")
    given = [*FORECAST, f"--data.train={sales}", "--trainer.precision=auto"]
    command.run(given)
    run = Path("runs/time_series/forecast/0")
    assert "  precision: bf16-mixed\n" in (run / "config.yaml").read_text()
    for key in ("--precision=16-mixed", "--trainer.precision=16-true"):
        text = told([*FORECAST, f"--data.train={sales}", key, "--trainer.accelerator=cpu"])
        assert "take bf16-" in text
        assert "Traceback" not in text


def test_a_dry_run_keeps_nothing(sales, capsys):
    command.run([*FORECAST, f"--data.train={sales}", "--trainer.fast_dev_run=true"])
    assert "nothing was kept" in capsys.readouterr().out
    text = told([*FORECAST, f"--data.train={sales}", "--trainer.limit_train_batches=0"])
    assert "limit_train_batches=0 must be at least 1" in text
    assert not Path("runs").exists()


def test_print_config_is_an_experiment(sales, capsys):
    command.run([*FORECAST, f"--data.train={sales}", "--print_config"])
    text = capsys.readouterr().out
    config = yaml.safe_load(text)
    assert config["data"]["init_args"]["lookback"] == 24
    assert "lookback" not in config["model"]["init_args"]["network"]["init_args"]
    Path("mine.yaml").write_text(text)
    experiments.resolve("mine.yaml", [])
    assert not Path("runs").exists()


def test_a_network_of_the_users_own(sales):
    Path("users_own.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Module):\n"
        "    def __init__(self, horizon: int):\n"
        "        super().__init__()\n"
        "        self.horizon = horizon\n"
        "        self.scale = nn.Linear(1, 1)\n"
        "    def forward(self, past):\n"
        "        return self.scale(past[:, -1:, :, None])[..., 0].expand(-1, self.horizon, -1)\n"
    )
    arguments = [*FORECAST, f"--data.train={sales}", "--model.network=users_own.Flat"]
    assert "--trust MODULE" in told(arguments)
    try:
        assert command.run([*arguments, "--trust=users_own"]) == 0
        answer = ["predict", "time_series/forecast", f"--input={sales}", "--output=f.csv"]
        assert "--trust MODULE" in told(answer)
        assert command.run([*answer, "--trust=users_own"]) == 0
        assert len(pd.read_csv("f.csv")) == 6
    finally:
        sys.path[:] = [p for p in sys.path if p != str(Path.cwd())]
        sys.modules.pop("users_own", None)


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_resolves(name):
    needed = ["--data.train=x.csv"] if name in experiments.OPEN else []
    resolved = experiments.resolve(name, needed)
    assert resolved.config["model"]["class_path"].startswith(("domains.", "core.tasks."))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in experiments.names() if n not in experiments.OPEN])
def test_every_experiment_runs(name, request):
    dataset = experiments.load(name).config["data"].get("init_args", {}).get("dataset")
    if dataset is not None:  # drawn photos are no set of files
        if data.entry(dataset).source.kind != "package":
            request.getfixturevalue("real_data")
        try:
            data.locate(dataset)
        except data.DataError as error:
            pytest.skip(str(error))
    few = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    few += ["--data.eval_batch_size=32", "--trainer.max_steps=2"]
    if name == "nlp/minilm_cranfield":
        few.append("--data.max_length=32")  # all documents are embedded
    assert command.run(["fit", name, *QUICK, *few]) == 0
    results = json.loads(Path("runs", name, "0", "results.json").read_text())
    assert all(map(np.isfinite, results["metrics"].values()))


def test_light_commands_are_quick_and_import_nothing_heavy():
    heavy = ["torch", "lightning", "pandas", "numpy", "transformers", "matplotlib", "torchmetrics"]
    check = (
        "import sys\n"
        "from pleiad.command import main\n"
        "try: main(sys.argv[1:])\n"
        f"except SystemExit: print('HEAVY', [m for m in {heavy} if m in sys.modules])\n"
    )
    lines = [
        ["--help"],
        ["list", "systems"],
        ["list", "experiments"],
        ["fit", ETTH1, "--help"],
        ["fit", ETTH1, "--model.optimizer.lrr=1"],
        ["fit", "nothing"],
    ]
    for line in lines:
        found = subprocess.run(
            [sys.executable, "-c", check, *line],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert "HEAVY []" in found.stdout, (line, found.stdout[-300:], found.stderr)


def test_exit_statuses(sales):
    found = pleiad("fit", "nothing", code=2)
    assert found.stderr.startswith("pleiad: no experiment 'nothing'")
    assert len(found.stderr.strip().splitlines()) == 1
    assert "Traceback" in pleiad("fit", "nothing", "--debug", code=1).stderr
    assert "usage" in pleiad("--help").stdout


@pytest.mark.slow
def test_a_full_disk_ends_with_74(sales):
    script = (
        "import resource, sys\n"
        "from pleiad import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pleiad.command import main; main(sys.argv[1:])\n"
    )
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            *FORECAST,
            f"--data.train={sales}",
            "--model.network.width=64",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert found.returncode == 74, found.stderr
    assert not list(Path("runs").rglob("*.part"))


@pytest.mark.slow
def test_killed_and_resumed_by_name(sales):
    arguments = ["fit", "time_series/forecast", f"--data.train={sales}", "--data.lookback=24"]
    arguments += ["--data.horizon=6", "--trainer.max_epochs=6", "--checkpoints.every_n_steps=1"]
    arguments += ["--trainer.enable_progress_bar=false"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pleiad(*arguments, "--run=whole")
    process = subprocess.Popen([sys.executable, "-m", "pleiad", *arguments], env=environment)
    folder = Path("runs/time_series/forecast/0")
    while process.poll() is None:
        log = folder / "metrics.csv"
        if log.exists() and log.read_text().count("\n") > 3:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / "results.json").exists()
    pleiad("fit", "time_series/forecast", "--ckpt_path=last")
    whole, resumed = (json.loads((p / "results.json").read_text()) for p in (Path("whole"), folder))
    assert resumed["metrics"] == whole["metrics"]
    assert (folder / "metrics.csv").read_text() == Path("whole/metrics.csv").read_text()
    weights = [(p / "model" / "model.safetensors").read_bytes() for p in (Path("whole"), folder)]
    assert weights[0] == weights[1]
    assert "no unfinished run" in told(["fit", "time_series/forecast", "--ckpt_path=last"])
