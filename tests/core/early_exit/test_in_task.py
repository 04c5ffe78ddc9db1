"""Early exits from the command: trained, saved, judged, gone on with, beside other changes."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.callbacks.checkpoints import pointed
from core.checkpoint_io import read_checkpoint
from core.early_exit.derived import Derived
from core.early_exit.transform import exits_of
from core.errors import UserError
from core.pretrained import from_pretrained
from pleiad import command, exits
from pleiad import run as runs

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
QUICK += ["--trainer.log_every_n_steps=1"]
CLASSIFY = ["--data.train=reviews.csv", "--data.text=review", "--data.label=liked"]
CLASSIFY += ["--data.max_length=24", "--data.probe=false", "--data.batch_size=8", *QUICK]
CLASSIFY += ["--model.optimizer.lr=0.003", "--model.scheduler=null", "--trainer.max_epochs=2"]
EXITS = ["--transforms=EarlyExit", "--transforms.heads=copy"]
CHOSEN = [*EXITS, "--transforms.threshold=validation", "--transforms.delta=0.05"]
SERIES = ["--data.train=walk.csv", "--data.lookback=20", "--data.horizon=5", *QUICK]
SERIES += ["--data.batch_size=16", "--model.network=PatchTST", "--model.network.width=8"]
SERIES += ["--model.network.inner=8", "--model.network.heads=2", "--trainer.max_epochs=1"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)
    draw = np.random.default_rng(0)
    words = {"yes": ("good", "great", "fine"), "no": ("bad", "poor", "dull")}
    rows = []
    for number in range(160):
        liked = "yes" if number % 2 else "no"
        word = words[liked][draw.integers(3)]
        rows.append((f"film {number} " + "and on " * int(draw.integers(6)) + word, liked))
    pd.DataFrame(rows, columns=["review", "liked"]).to_csv("reviews.csv", index=False)
    walk = draw.normal(size=201).cumsum()
    frame = pd.DataFrame({"date": pd.date_range("2020-01-01", periods=201), "y": walk})
    frame.to_csv("walk.csv", index=False)


def classify(*given, tiny_bert, run="out", **options):
    folder = Path(run)
    runs.fit(
        "nlp/classify",
        [*CLASSIFY, *given],
        runs.Options(run=folder, checkpoint=str(tiny_bert), **options),
    )
    return folder


def technique(folder, name="EarlyExit"):
    told = json.loads(Path(folder, "results.json").read_text())["techniques"]
    return next(each for each in told if each["name"] == name)


def test_from_a_fit_to_answers(tiny_bert, capsys):
    folder = classify(*CHOSEN, tiny_bert=tiny_bert)
    told = technique(folder)
    results = json.loads((folder / "results.json").read_text())
    assert told["choice"]["loss"] <= told["choice"]["last_loss"] + 0.05
    assert told["choice"]["mean_exit"] < 2
    assert 1 <= told["mean_exit"] < 2
    assert (
        sum(told["exits"].values())
        == told["samples"]
        == len(pd.read_parquet(folder / "predictions.parquet"))
    )
    assert told["macs_share"] < 1
    assert results["metrics"]["test/mean_exit"] == pytest.approx(told["mean_exit"], abs=1e-4)
    assert results["metrics"]["test/macs_share"] == pytest.approx(told["macs_share"], abs=1e-4)
    assert min(told["samples_per_second"], told["samples_per_second_whole"]) > 0
    curve = pd.read_csv(folder / "pictures" / "exit_curve.csv")
    assert list(curve.columns) == ["rule", "value", "mean_exit", "right"]
    whole = curve[(curve["rule"] == "depth") & (curve["value"] == 2)]["right"].item()
    (chosen,) = curve[(curve["value"] - told["choice"]["threshold"]).abs() < 1e-9]["right"]
    assert results["metrics"]["test/accuracy"] == pytest.approx(chosen, abs=1e-6)
    assert 0 <= whole <= 1
    assert (folder / "pictures" / "exit_curve.png").stat().st_size > 5000
    assert "exit_curve" in (folder / "report.html").read_text()
    loaded = from_pretrained(folder)
    exits = exits_of(loaded.network)
    kept = told["choice"]["threshold"]
    assert exits.thresholds.tolist() == pytest.approx([kept])
    again = runs.evaluate(str(folder), (), runs.Options(), "test")
    assert again["test/accuracy"] == results["metrics"]["test/accuracy"]
    capsys.readouterr()
    command.run(["predict", "out", "--input=reviews.csv", "--output=answers.csv"])
    assert len(pd.read_csv("answers.csv")) == 160
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"mean exit 1\.\d\d of 2 layers, \d+ % of the multiply-adds, \S+ rows", said)


def test_an_interrupted_fit_goes_on_to_the_same_weights(tiny_bert, monkeypatch):
    given = [*EXITS, "--transforms.schedule=alternating", "--transforms.threshold=0.5"]
    whole = classify(*given, tiny_bert=tiny_bert, run="whole")

    class Stop(BaseException):
        pass

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("pleiad.run._finish", stop)
        with pytest.raises(Stop):
            classify(*given, "--trainer.max_epochs=1", tiny_bert=tiny_bert, run="half")
    runs.fit("half", ["--trainer.max_epochs=2"], runs.Options(ckpt_path="last"))
    ours, theirs = (
        read_checkpoint(pointed(Path(name) / "checkpoints", "last"))["state_dict"]
        for name in (whole, "half")
    )
    assert any("early_exits.heads" in name for name in ours)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("order", ["exits_first", "exits_last"])
@pytest.mark.parametrize("other", ["LoRA", "ActivationCompression"])
def test_beside_another_change(tiny_bert, other, order):
    exits = {"class_path": "core.early_exit.transform.EarlyExit"}
    exits["init_args"] = {"heads": "copy", "threshold": 0.6}
    module = {"LoRA": "core.adapters", "ActivationCompression": "core.activation_compression"}
    node = {"class_path": f"{module[other]}.{other}", "init_args": {}}
    nodes = [exits, node] if order == "exits_first" else [node, exits]
    folder = classify(f"--transforms={json.dumps(nodes)}", tiny_bert=tiny_bert)
    state = read_checkpoint(pointed(folder / "checkpoints", "best"))["state_dict"]
    begun = read_checkpoint(pointed(folder / "checkpoints", "last"))["state_dict"]
    assert state.keys() == begun.keys()
    loaded = from_pretrained(folder).network.eval()
    own = exits_of(loaded)
    assert own is not None
    learnt = [p for n, p in loaded.named_parameters() if "early_exits.heads" in n]
    head = [p for n, p in loaded.named_parameters() if n.startswith("model.classifier")]
    assert learnt
    copied = list(own.heads.parameters())[-1]
    assert not torch.equal(copied, head[-1])  # the copy has learnt something of its own
    told = technique(folder)
    assert sum(told["exits"].values()) > 0
    found = technique(folder, other)
    if (other, order) == ("LoRA", "exits_first"):  # what the exits have is new, as a head is
        assert sum("early_exits" in name for name in found["whole"]) == len(learnt)
    metric = json.loads((folder / "results.json").read_text())["metrics"]["test/accuracy"]
    again = runs.evaluate(str(folder), (), runs.Options(), "test")["test/accuracy"]
    assert again == metric


def test_weights_of_a_run_with_exits_begin_another_run(tiny_bert):
    folder = classify(*EXITS, "--transforms.threshold=0.6", tiny_bert=tiny_bert)
    found = runs.evaluate("nlp/classify", CLASSIFY, runs.Options(checkpoint=str(folder)), "test")
    assert 0 <= found["test/accuracy"] <= 1
    runs.fit("nlp/classify", CLASSIFY, runs.Options(run=Path("next"), checkpoint=str(folder)))


@pytest.mark.parametrize("kind", ["patience", "saturation"])
def test_a_forecaster_leaves_by_values(kind):
    given = ["--transforms=EarlyExit", "--transforms.values=true", f"--transforms.criterion={kind}"]
    given += ["--transforms.threshold=validation", "--transforms.delta=0.2"]
    given += ["--transforms.criterion.theta=0.5"] if kind == "patience" else []
    folder = runs.fit("time_series/forecast", [*SERIES, *given], runs.Options(run=Path("out")))
    told = technique(folder)
    assert sum(told["exits"].values()) == told["samples"]
    last = told["choice"]["last_loss"]
    assert told["choice"]["loss"] <= last + 0.2
    assert last == pytest.approx(1.0, rel=1e-4)  # losses are shares of the last exit's
    answers = from_pretrained(folder).network.eval()
    assert exits_of(answers).thresholds.unique().numel() == 1


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["--transforms.criterion=entropie"], "no criterion 'entropie'"),
        (["--transforms.criterion=mine.Mine"], "allow a module of your own by --trust"),
        (["--transforms.criterion=core.early_exit.criteria.Nothing"], "there is no class"),
        (["--transforms.criterion=core.task.Task"], "there is no class core.task.Task"),
        (["--transforms.criterion=patience", "--transforms.criterion.thta=1"], "did you mean"),
        (["--transforms.criterion=patience", "--transforms.criterion.theta=a"], "must be float"),
        (["--transforms.criterion=patience", "--transforms.criterion.theta=-1"], "theta=-1"),
        (["--transforms.threshold=best"], "threshold='best'"),
        (["--transforms.schedule=twice"], "transforms.0.schedule='twice'"),
        (["--transforms.schedule=two_stage", "--transforms.heads=own"], "heads=copy"),
        (["--transforms.min_exit=2"], "min_exit=2"),
        (["--transforms.stages=nothing"], "stages='nothing'"),
    ],
)
def test_mistakes_end_before_the_training(tiny_bert, given, fault):
    with pytest.raises(UserError, match=fault) as caught:
        classify("--transforms=EarlyExit", *given, tiny_bert=tiny_bert)
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def test_what_is_no_layered_network_is_refused():
    with pytest.raises(UserError, match="has no list of two layers"):
        runs.fit(
            "time_series/forecast",
            [*SERIES[:4], *QUICK, "--model.network=DLinear", "--transforms=EarlyExit"],
            runs.Options(run=Path("out")),
        )


GATED = [*EXITS, "--transforms.beta=0.01"]


def contents(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_gate_is_fitted_before_the_test_and_travels(tiny_bert, monkeypatch):
    folder = classify(*GATED, tiny_bert=tiny_bert)
    told = technique(folder)
    (kept,) = (folder / "early_exits").iterdir()
    derived = Derived.load(kept)
    assert derived.depths == (1, 2)
    assert len(derived.ids) == sum(told["gate"]["exits"].values())
    assert 1 <= told["gate"]["mean_depth"] <= 2
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["test/mean_exit"] == pytest.approx(told["mean_exit"], abs=1e-4)
    assert not any("random values" in warning for warning in results["warnings"])
    state = read_checkpoint(pointed(folder / "checkpoints", "best"))["state_dict"]
    (weight,) = (t for n, t in state.items() if n.endswith("early_exits.gate.linear.weight"))
    assert weight.shape == (2, derived.features.shape[1])
    gate = exits_of(from_pretrained(folder).network).gate
    depths = gate.choose(derived.features)
    assert float(depths.double().mean()) == pytest.approx(told["gate"]["mean_depth"])
    before = contents(folder)
    with monkeypatch.context() as patch:  # the kept set is read, no new one made
        patch.setattr(Derived, "gather", None)
        again = runs.evaluate(str(folder), (), runs.Options(), "test")
        assert again["test/accuracy"] == results["metrics"]["test/accuracy"]
        dear = runs.evaluate(str(folder), ["--transforms.beta=5"], runs.Options(), "test")
    assert dear["test/mean_exit"] == 1
    assert contents(folder) == before


@pytest.mark.parametrize("given", [EXITS, CHOSEN])
def test_a_finished_run_is_judged_at_each_exit_and_with_gates(tiny_bert, given, capsys):
    folder = classify(*given, tiny_bert=tiny_bert)
    before = contents(folder)
    capsys.readouterr()
    command.run(["exits", "out", "--beta=0", "--beta=0.01", "--beta=5", *QUICK])
    told = capsys.readouterr().out
    assert re.search(r"exit 1 +exit 2", told)
    assert re.search(r"beta 0 +beta 0.01 +beta 5", told)
    assert re.search(r"test/accuracy( +[01]\.\d{4}){3}", told)
    after = contents(folder)
    (new,) = after.keys() - before.keys()
    assert new.startswith("out/early_exits")
    assert before.items() <= after.items()
    found = exits.compare("out", QUICK, runs.Options(), [0.0, 0.01, 5.0])
    assert contents(folder) == after
    assert [way.met["mean_exit"] for way in found.fixed] == [1, 2]
    assert [way.met["layers_share"] for way in found.fixed] == [0.5, 1]
    depths = [way.met["mean_exit"] for way in found.gated]
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] == 1
    curve = pd.read_csv(folder / "pictures" / "exit_curve.csv").set_index(["rule", "value"])
    for depth, way in enumerate(found.fixed, 1):
        wanted = curve.loc[("depth", depth), "right"]
        assert way.metrics["test/accuracy"] == pytest.approx(wanted, abs=1e-6)
    assert found.gated[-1].metrics["test/accuracy"] == found.fixed[0].metrics["test/accuracy"]


def test_a_gate_of_another_price_has_a_model_of_its_own(tiny_bert):
    classify(*EXITS, tiny_bert=tiny_bert)
    options = runs.Options()
    found = exits.compare("out", QUICK, options, [0.01], output=Path("chosen"))
    loaded, plain = from_pretrained("chosen"), from_pretrained("out")
    assert exits_of(loaded.network).gate.beta == 0.01
    state = plain.network.state_dict()
    named = {n: t for n, t in loaded.network.state_dict().items() if ".gate." not in n}
    assert named.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in named.items())
    data = [given for given in CLASSIFY if given.startswith("--data")]
    judged = runs.evaluate("chosen", [*data, *QUICK], options, "test")
    assert judged["test/accuracy"] == found.gated[0].metrics["test/accuracy"]
    command.run(["predict", "chosen", "--input=reviews.csv", "--output=answers.csv"])
    assert len(pd.read_csv("answers.csv")) == 160
    with pytest.raises(UserError, match="chosen: exists already"):
        exits.compare("out", QUICK, options, [0.01], output=Path("chosen"))
    with pytest.raises(UserError, match="one --beta"):
        exits.compare("out", QUICK, options, [0.0, 0.01], output=Path("other"))
    with pytest.raises(UserError, match="beta=-1"):
        exits.compare("out", QUICK, options, [-1.0])


def test_a_run_without_exits_is_refused(tiny_bert):
    classify(tiny_bert=tiny_bert)
    with pytest.raises(UserError, match="no early exits"):
        exits.compare("out", QUICK, runs.Options())


def test_a_forecaster_has_a_gate():
    given = ["--transforms=EarlyExit", "--transforms.values=true", "--transforms.beta=0.001"]
    folder = runs.fit("time_series/forecast", [*SERIES, *given], runs.Options(run=Path("out")))
    told = technique(folder)
    assert sum(told["exits"].values()) == told["samples"]
    assert 0 < told["gate"]["quality"] <= 1
