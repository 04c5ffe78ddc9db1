"""Freezing from the command line: switched on by name in any domain, told of in the results."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from pleiad import command
from pleiad.experiments import resolve

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
QUICK += ["--trainer.log_every_n_steps=1"]
SERIES = ["fit", "time_series/forecast", "--data.train=walk.csv", "--data.lookback=20"]
SERIES += ["--data.horizon=5", "--data.batch_size=16", "--model.network=PatchTST", *QUICK]
SERIES += ["--model.network.width=8", "--model.network.inner=8", "--model.network.heads=2"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)
    walk = np.random.default_rng(1).normal(size=201).cumsum()
    frame = pd.DataFrame({"date": pd.date_range("2020-01-01", periods=201), "y": walk})
    frame.to_csv("walk.csv", index=False)


def technique(folder: str, name: str) -> dict:
    told = json.loads(Path(folder, "results.json").read_text())["techniques"]
    return next(each for each in told if each["name"] == name)


def test_an_argument_goes_to_the_callback_that_takes_it():
    given = ["--trainer.callbacks=SlimFit", "--trainer.callbacks.freezing_rate=0.9"]
    (found,) = resolve("nlp/minilm_sst2", given).config["trainer"]["callbacks"]
    assert found["class_path"] == "core.callbacks.freezing.SlimFit"
    assert found["init_args"] == {"freezing_rate": 0.9}
    with pytest.raises(UserError, match=r"no trainer.callbacks.gamma"):
        resolve("nlp/minilm_sst2", [*given, "--trainer.callbacks.gamma=2"])
    two = ["--trainer.callbacks.0=LISA", "--trainer.callbacks.1=SlimFit"]
    two += ["--trainer.callbacks.gamma=2", "--trainer.callbacks.mode=legacy"]
    lisa, slim = resolve("nlp/minilm_sst2", two).config["trainer"]["callbacks"]
    assert lisa["init_args"] == {"gamma": 2}
    assert slim["init_args"] == {"mode": "legacy"}
    with pytest.raises(UserError, match=r"no trainer.callbacks.seed"):  # both take it
        resolve("nlp/minilm_sst2", [*two, "--trainer.callbacks.seed=2"])


def test_a_forecaster_by_slimfit():
    given = ["--trainer.callbacks=SlimFit", "--trainer.callbacks.freezing_rate=0.8"]
    command.run([*SERIES, *given, "--trainer.max_epochs=1", "--run=out"])
    told = technique("out", "SlimFit")
    assert 0.5 < told["frozen_share"] < 0.95
    assert told["units"] > 10
    metrics = pd.read_csv("out/metrics.csv")
    assert metrics["freezing/frozen_fraction"].count() == told["steps"]
    results = json.loads(Path("out/results.json").read_text())
    assert results["parameters"]["trainable"] == results["parameters"]["total"]


@pytest.mark.slow
def test_schedules_over_all_steps_and_their_refusals():
    epochs = ["--trainer.max_epochs=2", "--model.scheduler=null"]
    given = ["--trainer.callbacks=FreezeOut", "--trainer.callbacks.t0=0.5", *epochs]
    command.run([*SERIES, *given, "--run=out"])
    first, *_, last = technique("out", "FreezeOut")["times_active"].values()
    assert 0 < first < last < technique("out", "FreezeOut")["steps"]
    with pytest.raises(UserError, match="FreezeOut sets the learning rates itself, and so does"):
        command.run([*SERIES, *given, "--model.scheduler=WarmupConstant", "--model.interval=step"])
    cache = ["--trainer.callbacks=AutoFreeze", "--trainer.callbacks.cache=true", *epochs]
    with pytest.raises(UserError, match="name their samples in `rows`, and a Window has none"):
        command.run([*SERIES, *cache, "--run=third"])


@pytest.mark.slow
def test_a_classifier_skips_what_it_has_frozen(tiny_bert):
    rows = [(f"film {n} was {'good' if n % 2 else 'bad'}", n % 2) for n in range(120)]
    pd.DataFrame(rows, columns=["review", "liked"]).to_csv("reviews.csv", index=False)
    given = ["fit", "nlp/classify", "--data.train=reviews.csv", "--data.text=review", *QUICK]
    given += ["--data.label=liked", "--data.probe=false", f"--checkpoint={tiny_bert}"]
    given += ["--trainer.callbacks=AutoFreeze", "--trainer.callbacks.rule=geometric"]
    given += ["--trainer.callbacks.cache=true", "--trainer.max_epochs=6", "--run=out"]
    command.run(given)
    told = technique("out", "AutoFreeze")
    assert told["frozen_stages"] == 3  # the embeddings and two layers
    assert told["cached_batches"] > 0, told
