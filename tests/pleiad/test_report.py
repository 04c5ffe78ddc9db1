"""The table and the page of a run, on a run folder as `pleiad fit` leaves it."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from core.errors import UserError
from pleiad.report import html, load_run, table, warnings, write_report

HOSTILE = "<script>alert('x')</script>"

CONFIG = """\
experiment: time_series/patchtst_etth1
seed_everything: {seed}
model:
  class_path: domains.time_series.forecasting.Forecasting
  init_args:
    network: {{class_path: domains.time_series.networks.patchtst.PatchTST, init_args: {{width: {width}}}}}
data:
  class_path: domains.time_series.data.ForecastingData
  init_args: {{dataset: etth1, lookback: 96, horizon: 96, batch_size: 32, seed: null}}
trainer: {{max_epochs: 10}}
"""


def results(**changes) -> dict:
    """The content of a results.json in which the network wins, on changed keys."""
    content = {
        "experiment": "time_series/patchtst_etth1",
        "system": "patchtst",
        "task": "Forecasting",
        "dataset": "etth1",
        "setting": {"lookback": 96, "horizon": 96},
        "seed": 2021,
        "metrics": {"test/mse": 0.38412, "test/mae": 0.40231, "test/loss": 0.38412},
        "baselines": {
            "repeat-last": {"test/mse": 1.29432, "test/mae": 0.71308},
            "seasonal-naive": {"test/mse": 0.51224, "test/mae": 0.43337},
        },
        "published": {"mse": 0.414, "mae": 0.419, "source": "iTransformer, Table 10"},
        "parameters": {"total": 1234567, "trainable": 1234000},
        "seconds": {"fit": 3725.4, "test": 2.31},
        "peak_memory_bytes": 1_240_000_000,
        "techniques": [{"name": "precision", "value": "bf16-mixed"}],
        "versions": {"python": "3.11.2", "torch": "2.11.0", "lightning": "2.6.6"},
        "device": "cpu, 2 threads",
        "config_hash": "0123456789abcdef" * 4,
        "command": "pleiad fit runs/time_series/patchtst_etth1/0",
        "git": "1a2b3c4d5e6f-dirty",
        "warnings": [],
        "units": "standardised",
        "notes": ["2 missing hours were filled"],
        "licence": "CC BY-ND 4.0",
        "citation": "Zhou et al., Informer, AAAI 2021",
    }
    return {**content, **changes}


def metrics_csv(epochs: int = 10, steps: int = 270) -> str:
    """A log as the training writes it: the loss each 50 steps, the validation each epoch."""
    lines = ["step,epoch,train/loss,val/loss,val/mse,val/mae"]
    for epoch in range(epochs):
        for step in range(epoch * steps, (epoch + 1) * steps, 50):
            lines.append(f"{step},{epoch},{0.32 + 0.5 * math.exp(-step / 400)},,,")
        done = (epoch + 1) * steps - 1
        loss = 0.66 + 0.3 * math.exp(-done / 500) + 0.004 * epoch
        lines.append(f"{done},{epoch},,{loss},{loss},{math.sqrt(loss) - 0.2}")
    return "\n".join(lines) + "\n"


def draw(path: Path) -> None:
    """A small real picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    hours = range(192)
    series = [12 + 5 * math.sin(hour / 3.8) for hour in hours]
    axes.plot(hours[:96], series[:96], color="0.4", label="past")
    axes.plot(hours[96:], series[96:], color="black", label="truth")
    axes.plot(hours[96:], [0.9 * y + 1 for y in series[96:]], color="tab:blue", label="forecast")
    axes.set(xlabel="hour", ylabel="OT (°C)", title="ETTh1, a test window")
    axes.legend()
    figure.savefig(path, dpi=80)


@pytest.fixture
def make(tmp_path):
    """Give a function that writes a run folder."""

    def write(name="0", *, log=None, width=128, pictures=True, **changes) -> Path:
        folder = tmp_path / name
        (folder / "pictures").mkdir(parents=True)
        content = results(**changes)
        (folder / "results.json").write_text(json.dumps(content))
        (folder / "metrics.csv").write_text(metrics_csv() if log is None else log)
        config = CONFIG.format(seed=content["seed"], width=width)
        (folder / "config.yaml").write_text(config)
        if pictures:
            draw(folder / "pictures" / "windows.png")
        return folder

    return write


class Page(HTMLParser):
    """Collect what a test asks of a page, and check that every tag is closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
            if "td" in self.open or "th" in self.open:
                self.rows[-1][-1] += data


def shown(renderable, width=120) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: PTH123, SIM115
    console.print(renderable)
    return console.export_text()
