import csv
import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained
from domains.security.alerts import FlowAlerts
from domains.security.contributions import contributions
from domains.security.flow_files import read_flows
from domains.security.preprocessing import FlowPreprocessing
from domains.security.specification import FlowSpecification
from domains.security.thresholds import budget_curve
from domains.security.windows import HostWindows
from pleiad import command

sys.path.insert(0, str(Path(__file__).parent))
from flow_case import WINDOW, Encode

LEVELS = ("tcp", "udp", "icmp", "gre")


class WholeWindow(torch.nn.Module):
    """A map of the window that depends on every place of it."""

    classes = 2

    def __init__(self, width: int = 14) -> None:
        super().__init__()
        self.width = width
        self.encode = Encode()
        self.head = torch.nn.Linear(WINDOW * width, 1)

    def forward(self, numeric, codes):
        return self.head(self.encode(numeric, codes).flatten(1))


SPECIFICATION = FlowSpecification(
    numeric=("size", "rate"), categorical=("proto", "state"), source="host", time="time"
)


def alerts(**given) -> FlowAlerts:
    zeros, ones = np.zeros(2, np.float32), np.full(2, 100, np.float32)
    levels = (LEVELS, ("S0", "SF", "REJ"))
    flows = FlowPreprocessing(
        SPECIFICATION, zeros, ones, levels, np.zeros(2), ("normal", "attack"), WINDOW, **given
    )
    scores = np.linspace(0.001, 0.999, 1000)
    attack = np.arange(1000) % 2 == 1
    return FlowAlerts(flows, 0.9, budget_curve(scores, attack, 0.01))


def write(path, count, seed=0, **columns) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "note": [f"n, {n}" for n in range(count)],
            "size": rng.integers(0, 100, count),
            "rate": rng.uniform(0, 100, count).round(3),
            "proto": rng.choice(LEVELS, count),
            "state": rng.choice(["S0", "SF", "REJ"], count),
            "host": rng.choice(["a", "b", "c", "d"], count),
            "time": pd.date_range("2024-01-01", periods=count, freq="min").astype(str),
        }
    ).assign(**columns)
    text = frame.to_csv(index=False)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, "utf-8")
    return frame


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return saved(alerts())


def saved(preprocessing) -> Path:
    torch.manual_seed(3)
    save_pretrained(WholeWindow(), Path("model"), preprocessing=preprocessing)
    return Path("model")


def run(*inputs, output="alerts.csv", code=0, more=()):
    given = ["predict", "model", "--input", *inputs, "--output", output, *more]
    assert command.run([*given, "--trust", "test_alerts"]) == code


