"""Two processes train on the same global batches as one, and judge every item once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
KEYS = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--model.network=DLinear",  # no dropout, no batch statistics
    "--data.lookback=20",
    "--data.horizon=5",
    "--data.batch_size=16",
]


def fit(folder: Path, *more: str) -> dict:
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "pleiad",
            "fit",
            "time_series/forecast",
            *KEYS,
            *more,
            f"--run={folder}",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder.parent,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


TECHNIQUES = [
    *("--transforms=LoRA", "--transforms.0.rank=2"),
    *("--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.0.decay=0.9"),
    *("--trainer.accumulate_grad_batches=2", "--model.scheduler=WarmupCosine"),
    *("--model.optimizer.lr=0.01", "--model.decay_all=false"),
]


@pytest.mark.slow
@pytest.mark.parametrize("techniques", [[], TECHNIQUES], ids=["plain", "techniques"])
def test_one_and_two_processes_agree(tmp_path, techniques):
    draw = np.random.default_rng(1)
    frame = pd.DataFrame(
        {"date": pd.date_range("2020-01-01", periods=301), "y": draw.normal(size=301)}
    )
    frame["y"] = frame["y"].cumsum()
    frame.to_csv(tmp_path / "walk.csv", index=False)
    data = "--data.train=walk.csv"
    alone = fit(tmp_path / "one", data, *techniques)
    shared = fit(
        tmp_path / "two", data, *techniques, "--trainer.devices=2", "--trainer.strategy=ddp"
    )
    for name, value in alone["metrics"].items():
        assert shared["metrics"][name] == pytest.approx(value, rel=1e-5)
    assert shared["baselines"] == alone["baselines"]
    rows = [pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two")]
    assert list(rows[0]["id"]) == list(rows[1]["id"])
    np.testing.assert_allclose(
        np.stack(rows[0]["prediction"]), np.stack(rows[1]["prediction"]), rtol=1e-4, atol=1e-4
    )
    losses = [
        pd.read_csv(tmp_path / name / "metrics.csv")["val/loss"].dropna() for name in ("one", "two")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
