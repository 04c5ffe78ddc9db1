"""What a study came to: tables, their formats, figures."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from core.errors import UserError
from pleiad import command, study_figures, study_file, study_formats, study_report
from pleiad.study_formats import sheets

STUDY = """
seeds: [1, 2, 3]
reference: full
tasks: {sst_2: nlp/minilm_sst2, etth1: time_series/dlinear_etth1}
methods: {full: {}, "half": {}, lora: {tasks: {etth1: false}}}
"""
N = 80


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def finish(task: str, method: str, seed: int, **further: object) -> Path:
    """Write what a finished run leaves; ``half`` is right less often."""
    folder = Path("studies/s", task, method, str(seed))
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    (folder / "config.yaml").write_text("checkpoints: {monitor: val/loss}\n")
    if task == "etth1":
        errors = draw.random(N) + (method == "half")
        frame = pd.DataFrame({"id": range(N), "mse": errors})
        metrics = {"test/loss": 1.0, "test/mse": errors.mean(), "test/mase": 0.9}
    else:
        true = draw.integers(2, size=N)
        wrong = draw.random(N) < {"full": 0.1, "half": 0.4, "lora": 0.12}[method]
        frame = pd.DataFrame({"id": range(N), "label": true, "prediction": true ^ wrong})
        metrics = {"test/loss": 1.0, "test/accuracy": 1 - wrong.mean(), "test/auroc": 0.9}
    frame.to_parquet(folder / "predictions.parquet")
    results = {
        "metrics": metrics,
        "seconds": {"fit": 10.0 + seed, "test": 1.0},
        "steps": 200,
        "peak_memory_bytes": 10**9,
        "parameters": {"total": 1000, "trainable": 10},
        "device": "cpu, 1 threads",
        "setting": {"horizon": 8} if task == "etth1" else {},
        **further,
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def study() -> Path:
    """A study whose last run is missing."""
    Path("s.yaml").write_text(STUDY)
    found = study_file.read(Path("s.yaml"))
    study_file.keep(found)
    for cell in found.cells():
        for seed in found.seeds:
            memory = {"saved_bytes": 4e6 if cell.method == "lora" else 9e6, "optimizer_bytes": 80}
            if (cell.where, seed) != ("etth1/half", 3):
                finish(cell.task, cell.method, seed, memory=memory)
    return found.folder


def row(found: study_report.Found, task: str, method: str) -> dict:
    rows = found.rows
    (one,) = rows[(rows.task == task) & (rows.method == method)].to_dict("records")
    return one


def test_methods_are_compared_over_seeds_and_items(study):
    found = study_report.load(study)
    half = row(found, "sst_2", "half")
    assert half["metric"] == "test/accuracy"
    values = found.runs[found.runs.method == "half"]["test/accuracy"].dropna()
    assert (half["mean"], half["sd"]) == pytest.approx((values.mean(), values.std()))
    assert half["low"] < half["difference"] < half["high"] < 0
    assert (half["n"], half["items"], half["groups"]) == (3, N, N)
    assert row(found, "etth1", "half")["groups"] == N // 8  # windows overlap
    assert row(found, "etth1", "half")["pairs"] == 2
    assert pd.isna(row(found, "sst_2", "full").get("difference"))
    assert (half["steps"], half["fit_seconds"], half["saved_bytes"]) == (200, 12, 9e6)
    assert "half: no result of seed 3" in found.notes["etth1"]
    assert any("10 independent groups" in line for line in found.notes["etth1"])


def test_other_metrics(study):
    found = study_report.load(study, ["accuracy", "test/auroc", "test/mse"])
    assert list(found.rows[found.rows.task == "etth1"].metric.unique()) == ["test/mse"]
    auroc = found.rows[found.rows.metric == "test/auroc"]
    assert auroc["difference"].dropna().eq(0).all()
    assert auroc["low"].isna().all()
    assert any(line.startswith("auroc has no interval") for line in found.notes["sst_2"])
    assert any(line.startswith("half is exactly full") for line in found.notes["sst_2"])
    with pytest.raises(
        UserError, match="--metric test/accuracies: no run has it; there is test/acc"
    ):
        study_report.load(study, ["accuracies"])


def test_a_study_names_its_metrics(study):
    path = study / "study.yaml"
    path.write_text(path.read_text().replace("metrics: []", "metrics: [test/auroc, test/mse]"))
    assert set(study_report.load(study).rows.metric) == {"test/auroc", "test/mse"}
    assert "test/accuracy" in set(study_report.load(study, ["accuracy"]).rows.metric)


def test_of_many_methods_those_are_named_that_no_cheaper_one_is_as_good_as():
    points = [study_figures.Point(str(x), x, y, 0.0, "C0") for x, y in enumerate([1, 3, 2, 3, 4])]
    assert [p.name for p in study_figures._front(points, lower=False)] == ["0", "1", "4"]
    assert [p.name for p in study_figures._front(points[1:], lower=True)] == ["1", "2"]


def test_the_metric_that_ranks_checkpoints_comes_first(study):
    for path in study.glob("sst_2/full/*/config.yaml"):
        path.write_text("checkpoints: {monitor: val/auroc}")
    assert row(study_report.load(study), "sst_2", "full")["metric"] == "test/auroc"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)[|&]", line.strip().strip("|\\"))]


def test_formats_hold_the_same_table(study):
    found = study_report.load(study)
    first, second = sheets(found)
    assert [len(sheet.rows) for sheet in (first, second)] == [3, 2]
    assert first.head[:2] == ["method", "accuracy ↑"]
    assert {"kept for backward", "optimizer", "steps", "fit"} < set(first.head)
    for form in ("markdown", "latex", "csv", "html"):
        for path in study_formats.write(found, form):
            assert path.is_file()
    lines = [line for line in (study / "report.md").read_text().splitlines() if "|" in line]
    assert [cells(line) for line in lines[2:5]] == first.rows
    text = (study / "report.tex").read_text()
    bodies = re.findall(r"\\midrule\n(.*?)\\bottomrule", text, re.DOTALL)
    assert [len(body.strip().splitlines()) for body in bodies] == [3, 2]
    assert cells(bodies[0].splitlines()[0])[0] == "full"
    assert r"sst\_2 (nlp/minilm\_sst2)" in text
    assert not re.search(r"(?<!\\)[_%]", re.sub(r"\{(figures|tab)[^}]*\}", "", body_of(text)))
    assert text.count(r"\begin{") == text.count(r"\end{")
    table = pd.read_csv(study / "report.csv")
    assert len(table) == 5
    runs = pd.read_csv(study / "report_runs.csv")
    assert len(runs) == 15
    assert (runs.state == "finished").sum() == 14
    page = Tags((study / "report.html").read_text())
    assert page.count["tr"] == 2 + 5 + 1 + 15
    assert page.count["img"] == 4
    assert "script" not in page.count
    assert not [link for link in page.links if not link.startswith("data:")]


def body_of(text: str) -> str:
    return text[text.index(r"\begin{document}") :]


class Tags(HTMLParser):
    """Count the tags of a page and list what it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value for key, value in attrs if key in ("src", "href")]


def test_figures_are_readable(study):
    found = study_report.load(study)
    written = study_figures.draw(found, study / "figures")
    assert sorted(path.name for path in written if path.suffix == ".png") == [
        *("etth1-memory.png", "etth1-seconds.png", "sst_2-memory.png", "sst_2-seconds.png")
    ]
    with Image.open(study / "figures/sst_2-memory.png") as picture:
        assert picture.size[0] > 1000
    assert (study / "figures/sst_2-memory.pdf").read_bytes().startswith(b"%PDF")


def test_names_in_a_figure_cover_nothing():
    draw = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "metric": "test/accuracy",
            "method": [f"method-{number}" for number in range(10)],
            "mean": 0.9 + 0.002 * draw.normal(size=10),
            "sd": 0.001,
            "fit_seconds": 60 + draw.normal(size=10),
        }
    )
    figure = study_figures._figure(rows, "fit_seconds", "seconds of fit", 1.0)
    axes = figure.axes[0]
    renderer = figure.canvas.get_renderer()
    boxes = [study_figures._extent(note, renderer) for note in axes.texts]
    assert len(boxes) == 10
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    places = axes.transData.transform(rows[["fit_seconds", "mean"]].to_numpy())
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_one_finished_run_is_a_report():
    Path("s.yaml").write_text(STUDY)
    study_file.keep(study_file.read(Path("s.yaml")))
    with pytest.raises(UserError, match="no run of the study is finished"):
        study_report.load(Path("studies/s"))
    finish("sst_2", "lora", 2)
    found = study_report.load(Path("studies/s"))
    for form in ("html", "markdown", "latex", "csv"):
        study_formats.write(found, form)
    (sheet,) = sheets(found)
    assert [cell[0] for cell in sheet.rows] == ["full", "half", "lora"]
    assert "1 of 3" in sheet.rows[-1]
    assert "etth1" in Path("studies/s/report.html").read_text()


def test_bad_arguments(study):
    run = study / "sst_2/full/1"
    for arguments, line in (
        (["report", str(study), str(run)], "one study alone"),
        (["report", str(run), "--format=csv"], "for the folder of a study"),
        (["report", str(study), "--format=pdf"], "html, markdown, latex, csv"),
        (["report", str(study), "--output=nowhere/x.md"], "there is no folder nowhere"),
        (["report", str(study), "--output=studies"], "is a folder"),
    ):
        with pytest.raises(UserError, match=line):
            command.run(arguments)
    (run / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results.json: damaged"):
        command.run(["report", str(study)])
