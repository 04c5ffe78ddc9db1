"""An encoder of transformers in place of FlowTransformer's blocks, by the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.pretrained import from_pretrained
from pleiad import command

FIT = [
    *("fit", "security/detect", "--data.train=flows.csv", "--data.label=kind"),
    *("--data.window=3", "--data.batch_size=16", "--data.steps_per_epoch=2"),
    *("--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)
    rng = np.random.default_rng(0)
    kind = rng.choice(["normal", "flood"], 400)
    frame = {"size": rng.normal(50, 10, 400) + 60 * (kind == "flood"), "kind": kind}
    frame["protocol"] = rng.choice(["tcp", "udp"], 400)
    pd.DataFrame(frame).to_csv("flows.csv", index=False)


@pytest.mark.slow
def test_begins_from_a_folder_and_predicts_without_it(tiny_bert):
    shutil.copytree(tiny_bert, "bert")
    assert command.run([*FIT, "--checkpoint=bert", "--run=out"]) == 0
    results = json.loads(Path("out/results.json").read_text("utf-8"))
    assert results["checkpoint"]["matched"] > 20
    shutil.rmtree("bert")
    network = from_pretrained("out").network
    assert network.config["model_type"] == "bert"
    assert network(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1, dtype=torch.long)).shape == (2, 1)
    command.run(["predict", "out", "--input=flows.csv", "--output=alerts.csv"])
    assert len(pd.read_csv("alerts.csv")) == 400
    for source, kind in (("out", "bert"), ("out/model", "bert")):
        assert command.run([*FIT, f"--checkpoint={source}", f"--run=of_{kind}"]) == 0
        assert from_pretrained(f"of_{kind}").network.config["model_type"] == kind
        shutil.rmtree(f"of_{kind}")


@pytest.mark.slow
def test_begins_from_blocks_of_its_own():
    assert command.run([*FIT, "--run=first"]) == 0
    for source in ("first", "first/model"):
        assert command.run([*FIT, f"--checkpoint={source}", "--run=second"]) == 0
        matched = json.loads(Path("second/results.json").read_text("utf-8"))["checkpoint"]
        assert matched["missing"] == matched["reshaped"] == []
        shutil.rmtree("second")
