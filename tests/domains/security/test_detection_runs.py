"""Detection by the command, with what makes networks cheaper switched on by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.checkpoint_io import read_checkpoint
from core.early_exit.transform import exits_of
from core.pretrained import from_pretrained
from pleiad import command
from pleiad.run import Options, evaluate

ROOT = Path(__file__).parents[3]
CONFIG = """\
seed_everything: 0
model:
  class_path: domains.security.intrusion_detection.IntrusionDetection
  init_args:
    network:
      class_path: domains.security.networks.flow_transformer.FlowTransformer
      init_args: {inner: 16, width: 16}
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
data:
  class_path: domains.security.own_data.OwnFlowData
  init_args: {train: flows.csv, label: kind, window: 2, batch_size: 32, steps_per_epoch: 40}
trainer: {max_epochs: 3, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)
    rng = np.random.default_rng(0)
    kind = rng.choice(["normal", "normal", "flood", "probe"], 1500)
    kind[-60:][kind[-60:] == "flood"] = "worm"
    protocols = np.where(kind == "probe", "icmp", rng.choice(["tcp", "udp"], 1500))
    size = rng.normal(50, 10, 1500) + 60 * np.isin(kind, ["flood", "worm"])
    frame = {"size": size, "rate": rng.uniform(0, 9, 1500), "protocol": protocols, "kind": kind}
    pd.DataFrame(frame).to_csv("flows.csv", index=False)
    Path("detect.yaml").write_text(CONFIG, "utf-8")


def fit(*given: str) -> dict:
    assert command.run(["fit", "detect.yaml", "--run=out", *given]) == 0
    return json.loads(Path("out/results.json").read_text("utf-8"))


@pytest.mark.slow
def test_a_file_becomes_a_detector():
    results = fit()
    metrics = results["metrics"]
    assert metrics["test/f1"] > 0.7
    assert metrics["test/recall_unseen"] == results["details"]["test/recall/worm"]
    assert 0 < results["details"]["test/budget/threshold"] < 1
    names = ["gradient boosting", "logistic regression", "isolation forest"]
    assert list(results["baselines"]) == names
    for figures in results["baselines"].values():
        assert set(figures) == set(metrics) - {"test/loss"}
    assert any("beats the network" in line for line in results["warnings"])
    again = evaluate("out", [], Options(), "test")
    for name, value in again.items():
        assert (metrics | results["details"])[name] == pytest.approx(value), name
    pictures = sorted(path.name for path in Path("out/pictures").iterdir())
    assert pictures == [
        *("confusion.png", "recall_by_attack.csv", "recall_by_attack.png", "thresholds.png")
    ]
    rate = ("--false_alarm_rate", "0.01", "--alerts_only")
    assert command.run(["predict", "out", "--input=flows.csv", "--output=a.csv", *rate]) == 0
    predictions = pd.read_parquet("out/predictions.parquet").set_index("id")
    alerts = pd.read_csv("a.csv").set_index("flow")
    tested = predictions.index + 1
    found = predictions.index[tested.isin(alerts.index)]
    assert set(found) == set(predictions.index[predictions["alert"]])


@pytest.mark.slow
def test_early_exits_keep_to_the_budget_with_the_scores_they_give():
    exits = ["--transforms=EarlyExit", "--transforms.heads=copy"]
    results = fit(*exits, "--transforms.threshold=validation", "--transforms.delta=0.05")
    assert results["metrics"]["test/mean_exit"] < 2
    assert results["metrics"]["test/false_alarm_rate_at_budget"] < 0.05
    assert exits_of(from_pretrained("out").network) is not None
    assert command.run(["predict", "out", "--input=flows.csv", "--output=a.csv"]) == 0
    tested = pd.read_parquet("out/predictions.parquet")
    scores = pd.read_csv("a.csv")["score"].to_numpy()[tested["id"]]
    np.testing.assert_allclose(scores, tested["score"], atol=1e-5)


@pytest.mark.slow
def test_frozen_layers_and_bfloat16():
    given = ["--trainer.callbacks=SlimFit", "--trainer.callbacks.freezing_rate=0.5"]
    results = fit(*given, "--precision=bf16-mixed")
    told = {each["name"]: each for each in results["techniques"]}
    assert told["SlimFit"]["frozen_share"] > 0.2
    assert told["precision"]["value"] == "bf16-mixed"
    assert results["metrics"]["test/f1"] > 0.6
    (pointer,) = Path("out/checkpoints").glob("best*")
    state = read_checkpoint(pointer.with_name(pointer.read_text("utf-8").strip()))["state_dict"]
    assert state["threshold"].dtype == state["curve"].dtype == torch.float64


@pytest.mark.slow
def test_several_classes_by_the_command():
    results = fit("--data.classes=multi", "--data.split=stratified")
    assert results["metrics"]["test/f1_macro"] > 0.4
    assert {"test/f1/flood", "test/f1/benign"} <= set(results["details"])
    assert command.run(["predict", "out", "--input=flows.csv", "--output=a.csv"]) == 0
    verdicts = pd.read_csv("a.csv")["verdict"]
    assert {"benign", "flood", "probe"} <= set(verdicts) <= {"benign", "flood", "probe", "worm"}


@pytest.mark.slow
def test_two_processes_judge_as_one():
    network = ["--model.network.dropout=0", "--model.network.mlp_dropout=0"]
    command_line = [sys.executable, "-m", "pleiad", "fit", "detect.yaml", *network]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = []
    for run, more in (("one", []), ("two", ["--trainer.devices=2", "--trainer.strategy=ddp"])):
        given = [*command_line, f"--run={run}", "--trainer.max_epochs=1", *more]
        subprocess.run(given, check=True, capture_output=True, env=environment)
        results = json.loads(Path(run, "results.json").read_text("utf-8"))
        for figures in (results["metrics"], *results["baselines"].values()):
            assert figures.pop("test/flows_per_second") > 0
        found.append(results)
    alone, shared = found
    assert shared["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert shared["details"] == pytest.approx(alone["details"], rel=1e-4)
    assert shared["baselines"] == alone["baselines"]
