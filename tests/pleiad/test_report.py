"""The table and the page of a run, on a run folder as `pleiad fit` leaves it."""

import base64
import io
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
    network:
      class_path: domains.time_series.networks.patchtst.PatchTST
      init_args: {{width: {width}}}
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
        lines += [
            f"{step},{epoch},{0.32 + 0.5 * math.exp(-step / 400)},,,"
            for step in range(epoch * steps, (epoch + 1) * steps, 50)
        ]
        done = (epoch + 1) * steps - 1
        loss = 0.66 + 0.3 * math.exp(-done / 500) + 0.004 * epoch
        lines.append(f"{done},{epoch},,{loss},{loss},{math.sqrt(loss) - 0.2}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def picture() -> bytes:
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
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    return drawn.getvalue()


@pytest.fixture
def make(tmp_path, picture):
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
            (folder / "pictures" / "windows.png").write_bytes(picture)
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
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def write_text(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


# Reading


def test_loads_a_run(make):
    run = load_run(make())
    assert run.results["system"] == "patchtst"
    assert set(run.curves) == {"train/loss", "val/loss", "val/mse", "val/mae"}
    assert run.curves["train/loss"][1] == (50.0, pytest.approx(0.32 + 0.5 * math.exp(-1 / 8)))
    assert [step for step, _ in run.curves["val/mse"]] == [269 + 270 * n for n in range(10)]
    assert run.pictures["windows.png"].startswith(b"\x89PNG")


def test_a_row_cut_by_a_crash_is_left_out(make):
    log = "step,epoch,train/loss\n0,0,1.5\n50,0,0."
    assert load_run(make(log=log)).curves == {"train/loss": [(0.0, 1.5)]}


def test_a_run_without_pictures_or_optional_keys_is_read(make):
    folder = make(pictures=False)
    content = results()
    for key in ("setting", "command", "git", "warnings", "units", "notes", "licence", "citation"):
        del content[key]
    write_text(folder, "results.json", json.dumps(content))
    (folder / "pictures").rmdir()
    run = load_run(folder)
    assert run.pictures == {}
    page = Page(html([run]))
    assert "licence" not in page.text
    assert "Pictures" not in page.text


@pytest.mark.parametrize("name", ["results.json", "metrics.csv", "config.yaml"])
def test_a_missing_file_is_named(make, name):
    folder = make()
    (folder / name).unlink()
    with pytest.raises(UserError, match="not finished" if name == "results.json" else name):
        load_run(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such run folder"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("results.json", "{", r"results.json:1: not valid JSON"),
        ("results.json", "[]", r"results.json: damaged: a mapping is needed"),
        ("results.json", "{}", r"results.json: damaged: the key `experiment` is missing"),
        ("config.yaml", "a: [", r"config.yaml:2: "),
        ("config.yaml", "- a", r"config.yaml: damaged"),
        ("metrics.csv", "", r"metrics.csv:1: damaged: there is no column `step`"),
        ("metrics.csv", "epoch,loss\n0,1\n", r"metrics.csv:1: damaged"),
        ("metrics.csv", "step,epoch,val/mse\n0,0,0.5\n1,0,x\n", r"metrics.csv:3: .*val/mse: 'x'"),
        ("metrics.csv", "step,epoch,val/mse\n,0,0.5\n", r"metrics.csv:2: damaged: step: ''"),
        ("metrics.csv", "step,epoch,val/mse\n1,0\n", r"metrics.csv:2: damaged: not as many cells"),
        ("metrics.csv", "step,epoch\n1,0,0.5\n", r"metrics.csv:2: damaged: not as many cells"),
        ("metrics.csv", 'step,epoch\n"1,0\n', r"metrics.csv: damaged: unexpected end"),
        ("pictures/windows.png", "no picture", r"windows.png: damaged: not a readable PNG"),
    ],
)
def test_a_damaged_file_is_named(make, name, text, told):
    folder = make()
    write_text(folder, name, text)
    with pytest.raises(UserError, match=told) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


def test_a_picture_cut_off_is_damaged(make):
    folder = make()
    path = folder / "pictures" / "windows.png"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"windows\.png: damaged"):
        load_run(folder)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("metrics", [1], "`metrics`"),
        ("metrics", {"test/mse": "0.4"}, "`metrics.test/mse`"),
        ("metrics", {"test/mse": True}, "`metrics.test/mse`"),
        ("baselines", {"repeat-last": 1}, "`baselines.repeat-last`"),
        ("baselines", {"repeat-last": {"test/mse": []}}, "`baselines.repeat-last.test/mse`"),
        ("published", "none", "`published`"),
        ("published", {"mse": "0.4", "source": "x"}, "`published.mse`"),
        ("seconds", {"fit": "1 h"}, "`seconds.fit`"),
        ("seed", None, "`seed`"),
        ("warnings", "none", "`warnings`"),
    ],
)
def test_a_damaged_key_is_named(make, key, value, told):
    with pytest.raises(UserError, match=rf"results\.json: damaged: {re.escape(told)} may not be"):
        load_run(make(**{key: value}))


MEMORY = {
    "measured_steps": 3,
    "saved_bytes": 263_000_000,
    "saved_by_class": {"Linear": 180_000_000, "GELU": 60_000_000, "LayerNorm": 23_000_000},
    "gradient_bytes": 90_000_000,
    "optimizer_bytes": 180_000_000,
    "weight_bytes": 90_000_000,
    "forward_seconds": 0.1234,
    "backward_seconds": 1.5,
}


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        ({**MEMORY, "saved_bytes": "many"}, "`memory.saved_bytes`"),
        ({**MEMORY, "saved_by_class": {"Linear": []}}, "`memory.saved_by_class.Linear`"),
        ({**MEMORY, "saved_by_class": 3}, "`memory.saved_by_class`"),
    ],
)
def test_damaged_memory_is_named(make, memory, told):
    with pytest.raises(UserError, match=rf"results\.json: damaged: {told} may not be"):
        load_run(make(memory=memory))


def test_memory_stands_in_table_and_page(make):
    none = load_run(make("none"))
    assert "kept" not in shown(table([none]))
    assert "kept" not in Page(html([none])).text
    run = load_run(make("one", memory=MEMORY))
    terminal = shown(table([run]), width=100)
    for text in ("kept", "263.0 MB", "90.0 MB", "180.0 MB", "1.2 GB", "123 ms", "1.5 s"):
        assert text in terminal
    page = Page(html([run])).text
    assert "263.0 MB (Linear 180.0 MB, GELU 60.0 MB, LayerNorm 23.0 MB, ...)" in page


def test_memory_of_several_runs_stands_side_by_side(make):
    half = {**MEMORY, "saved_bytes": 100_000_000, "gradient_bytes": None}
    runs = [
        load_run(make("a", memory=MEMORY)),
        load_run(make("b", memory={**MEMORY, "saved_bytes": 265_000_000}, seed=2022)),
        load_run(make("c", memory=half, width=64)),
    ]
    terminal = shown(table(runs), width=100)
    assert all(len(line) <= 100 for line in terminal.splitlines())
    for text in ("264.0 MB", "100.0 MB"):
        assert text in terminal
    rows = [row for row in Page(html(runs)).rows if "264.0 MB" in row or "100.0 MB" in row]
    assert len(rows) == 2
    assert rows[1][1:3] == ["100.0 MB", "-"]


# Warnings


def test_nothing_speaks_against_a_good_result_of_several_seeds():
    assert warnings(results(), seeds=3) == []


def test_a_baseline_that_wins_is_named_with_both_figures():
    content = results(
        metrics={"test/mse": 0.086, "test/mae": 0.2},
        baselines={
            "repeat-last": {"test/mse": 0.081, "test/mae": 0.21},
            "seasonal-naive": {"test/mse": 0.0855, "test/mae": 0.3},
        },
        published=None,
    )
    assert warnings(content, 2) == ["repeat-last (0.081) beats the network (0.086) on test/mse"]


def test_a_bound_that_knows_the_answers_is_no_rival(make):
    scores = {"test/mse": 0.1, "test/mae": 0.1}
    content = results(baselines={"ideal mask (oracle)": scores}, published=None)
    assert warnings(content, 2) == []
    text = shown(table([load_run(make(baselines={"ideal mask (oracle)": scores}))]))
    assert "0.1000 *" not in text
    assert "0.3841 *" not in text  # there is no other to compare with


def test_an_equal_baseline_does_not_beat_the_network():
    content = results(
        metrics={"test/mse": 0.5}, baselines={"naive": {"test/mse": 0.5}}, published=None
    )
    assert warnings(content, 2) == []


def test_more_is_better_for_a_metric_that_is_no_error():
    content = results(
        metrics={"test/accuracy": 0.9, "test/wer": 0.1},
        baselines={"majority": {"test/accuracy": 0.95, "test/wer": 0.2}},
        published=None,
    )
    assert warnings(content, 2) == ["majority (0.95) beats the network (0.9) on test/accuracy"]


def test_figures_that_look_alike_are_told_apart():
    content = results(
        metrics={"test/mse": 0.3786001},
        baselines={"naive": {"test/mse": 0.3786}},
        published=None,
    )
    assert warnings(content, 2) == ["naive (0.3786) beats the network (0.3786001) on test/mse"]


def test_far_worse_than_published_is_told():
    content = results(metrics={"test/mse": 0.48, "test/mae": 0.43})
    assert warnings(content, 2) == ["test/mse (0.48) is 16 % worse than the published 0.414"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_metric_that_is_no_number_is_told(value):
    told = warnings(results(metrics={"test/mse": value}), 2)
    assert len(told) == 1
    assert "test/mse is not a finite number" in told[0]


def test_one_seed_and_no_baseline_are_told():
    told = warnings(results(baselines={}))
    assert any("no baseline" in line for line in told)
    assert any("one seed (2021)" in line for line in told)


# The table


def test_the_table_marks_the_best_and_keeps_published_apart(make):
    lines = shown(table([load_run(make())])).splitlines()
    header = next(line for line in lines if " mse" in line)
    columns = [cell.strip() for cell in header.split("┃")[1:-1]]
    assert columns == ["", "mse", "mae", "published mse", "published mae"]
    rows = {
        cells[0]: cells[1:]
        for line in lines
        if line.startswith("│")
        for cells in [[cell.strip() for cell in line.split("│")[1:-1]]]
    }
    assert rows == {
        "patchtst (seed 2021)": ["0.3841 *", "0.4023 *", "0.414", "0.419"],
        "repeat-last (baseline)": ["1.2943", "0.7131", "-", "-"],
        "seasonal-naive (baseline)": ["0.5122", "0.4334", "-", "-"],
    }
    text = "\n".join(lines)
    assert "published (patchtst): iTransformer, Table 10" in text
    assert "warning: one seed (2021) only" in text


def test_the_table_marks_a_baseline_that_wins(make):
    text = shown(table([load_run(make(metrics={"test/mse": 0.6, "test/mae": 0.4}))]))
    assert "0.6000 │ 0.4000 * │" in text
    assert "│ 0.5122 * │" in text
    assert "warning: seasonal-naive (0.5122) beats the network (0.6) on test/mse" in text


def test_seeds_of_one_experiment_are_one_row(make):
    runs = [
        load_run(make("0")),
        load_run(make("1", seed=2022, metrics={"test/mse": 0.39412, "test/mae": 0.41231})),
    ]
    text = shown(table(runs))
    assert "patchtst (seeds 2021, 2022)" in text
    assert "0.3891 ±\N{NO-BREAK SPACE}0.0071 *" in text
    assert "one seed" not in text
    assert "standard deviation" in text


def test_a_baseline_that_depends_on_the_seed_is_averaged_too(make):
    fitted = [{"trees": {"test/mse": mse, "test/mae": 0.5}} for mse in (0.5, 0.52, 0.54)]
    runs = [load_run(make(str(n), seed=n, baselines=fitted[n])) for n in range(3)]
    (line,) = (line for line in shown(table(runs)).splitlines() if "trees" in line)
    cells = [cell.strip() for cell in line.split("│")[2:4]]
    assert cells == ["0.5200 ±\N{NO-BREAK SPACE}0.0200", "0.5000"]


def test_a_small_spread_has_the_decimals_of_its_mean(make):
    metrics = [{"test/mse": 0.3953}, {"test/mse": 0.39549}]
    runs = [load_run(make(str(n), seed=n, metrics=metrics[n])) for n in range(2)]
    assert "0.3954 ±\N{NO-BREAK SPACE}0.0001 *" in shown(table(runs))


def test_what_differs_by_more_than_the_seed_is_a_row_of_its_own(make):
    runs = [load_run(make("0")), load_run(make("1", seed=2022, width=64))]
    text = shown(table(runs), 200)
    assert "±" not in text
    assert text.count("one seed") == 2
    assert str(runs[1].folder) in text


def test_one_seed_run_twice_is_not_averaged(make):
    text = shown(table([load_run(make("0")), load_run(make("1"))]), 200)
    assert "±" not in text
    assert text.count("one seed") == 2


def test_results_on_other_data_are_not_compared(make):
    other = {
        "experiment": "time_series/patchtst_co2",
        "dataset": "co2",
        "metrics": {"test/mse": 0.01, "test/mae": 0.02},
        "baselines": {"repeat-last": {"test/mse": 0.5, "test/mae": 0.5}},
        "published": None,
    }
    runs = [load_run(make("0")), load_run(make("1", **other))]
    first, second = shown(table(runs), 200).split("time_series/patchtst_co2: co2")
    assert "0.3841 *" in first
    assert "0.0100 *" in second  # the best on its own data, in a table of its own
    assert "repeat-last" in first
    assert "repeat-last" in second
    page = html(runs)
    assert page.count("<h2>Results: ") == 2


def test_the_loss_is_shown_where_nothing_else_is(make):
    run = load_run(make(metrics={"test/loss": 1.5}, baselines={}, published=None))
    text = shown(table([run]))
    assert "loss" in text
    assert "1.5000" in text


def test_the_coverage_of_intervals_is_said_below_the_table(make):
    metrics = {"test/mse": 0.38, "test/coverage_80": 0.787, "test/coverage_95": 0.94}
    text = shown(table([load_run(make(metrics=metrics))]))
    assert "of 80 %, 78.7 % of the values lie inside" in text.replace("\n", " ")
    assert "coverage" not in text
    assert "smaller in the validation part" not in text
    worse = shown(table([load_run(make("1", metrics=metrics | {"test/coverage_95": 0.7}))]))
    assert "intervals of 95 % hold 70 % of the test: errors were" in worse.replace("\n", " ")


def test_markup_and_control_characters_reach_no_terminal(make):
    run = load_run(make(experiment="[red]x[/red]\x1b[31m", system="[bold]y\x07", device="\ud800"))
    text = shown(table([run]))
    assert "[red]x[/red]" in text
    assert "[bold]y" in text
    assert "\x1b" not in text
    assert "\x07" not in text


# The page


def test_the_page_shows_everything(make):
    page = Page(html([load_run(make())]))
    for wanted in (
        "time_series/patchtst_etth1: etth1, lookback 96, horizon 96",
        "1 warning",
        "one seed (2021) only",
        "published (patchtst): iTransformer, Table 10",
        "1 h 2 min",
        "1.2 GB",
        "1,234,567",
        "cpu, 2 threads",
        "pleiad fit runs/time_series/patchtst_etth1/0",
        "2.11.0",
        "1a2b3c4d5e6f-dirty",
        "CC BY-ND 4.0",
        "Zhou et al., Informer, AAAI 2021",
        "2 missing hours were filled",
        "precision: bf16-mixed",
        "seed_everything: 2021",
        "windows.png",
    ):
        assert wanted in page.text, wanted
    assert page.rows[2:] == [
        ["patchtstseed 2021", "0.3841*", "0.4023*", "0.414", "0.419"],
        ["repeat-lastbaseline", "1.2943", "0.7131", "-", "-"],
        ["seasonal-naivebaseline", "0.5122", "0.4334", "-", "-"],
    ]
    assert page.text.index("1 warning") < page.text.index("Results")


def test_the_page_loads_nothing_and_runs_nothing(make):
    text = html([load_run(make())])
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_the_pictures_are_embedded_whole(make):
    run = load_run(make())
    page = Page(html([run]))
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(source.removeprefix(prefix)) for source in sources] == [
        run.pictures["windows.png"]
    ]


def test_no_text_of_a_run_becomes_markup(make):
    quoted = f'"{HOSTILE}'
    changes = dict.fromkeys(
        ("experiment", "system", "task", "dataset", "device", "config_hash", "command", "git"),
        quoted,
    )
    changes |= dict.fromkeys(("units", "licence", "citation"), quoted)
    changes |= {
        "setting": {quoted: quoted},
        "metrics": {quoted: 0.5},
        "baselines": {quoted: {quoted: 0.4}},
        "published": {quoted: 0.1, "source": quoted},
        "parameters": {quoted: 1},
        "seconds": {quoted: 1.0},
        "techniques": [quoted, {"name": quoted, quoted: quoted}],
        "versions": {quoted: quoted},
        "warnings": [quoted],
        "notes": [quoted],
    }
    folder = make(log=f'step,epoch,"val/""{HOSTILE}"\n0,0,1\n1,0,2\n2,1,3\n', **changes)
    (folder / "pictures" / "windows.png").rename(folder / "pictures" / "<b onload='x'>.png")
    write_text(folder, "config.yaml", f"experiment: >\n  {HOSTILE}\n")
    for runs in ([folder], [folder, make("1")]):
        text = html([load_run(run) for run in runs])
        page = Page(text)
        assert "<script" not in text
        assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b onload"})
        assert not any("onload" in attributes for _, attributes in page.tags)
        assert HOSTILE in page.text


def test_a_lone_surrogate_can_be_written(make):
    folder = make(device="\ud800", notes=["a\x00b"])
    assert write_report([folder]).read_bytes().decode("utf-8")


def test_the_curves_are_drawn_to_scale(make):
    log = "step,epoch,train/loss,val/loss\n0,0,4,\n50,0,2,\n99,0,,3\n100,1,0,\n199,1,,1\n"
    page = Page(html([load_run(make(log=log))]))
    paths = [a["d"] for tag, a in page.tags if tag == "path" and a.get("class") == "stroke"]
    assert paths == ["M0.0 0.0L25.13 50.0L50.25 100.0", "M49.75 25.0L100.0 75.0"]
    dots = [a["d"] for tag, a in page.tags if tag == "path" and a.get("class") == "dot"]
    assert len(dots) == 5
    assert "val/loss 1.0000 at step 199" in page.text


def test_a_single_epoch_is_shown(make):
    page = Page(html([load_run(make(log=metrics_csv(1)))]))
    assert [a["class"] for tag, a in page.tags if tag == "figure" and "class" in a] == ["chart"] * 3
    assert sum(tag == "svg" for tag, _ in page.tags) == 1
    assert re.search(r"val/mae 0\.\d{4}", page.text)


@pytest.mark.parametrize(
    "log",
    [
        "step,epoch\n",
        "step,epoch,train/loss\n0,0,1.5\n",
        "step,epoch,train/loss\n0,0,nan\n1,0,inf\n",
        "step,epoch,train/loss\n0,0,0\n1,0,0\n",
        "step,epoch,train/loss\n5,0,1\n5,0,2\n",
        "step,epoch,train/loss\n0,0,1e-300\n1,0,1e300\n",
    ],
)
def test_strange_logs_make_a_page(make, log):
    page = html([load_run(make(log=log))])
    Page(page)
    assert not re.search(r'd="[^"]*(nan|inf)', page)


def test_a_long_curve_is_thinned(make):
    log = "step,epoch,train/loss\n" + "".join(f"{n},0,{n}\n" for n in range(10_000))
    text = html([load_run(make(log=log))])
    page = Page(text)
    (path,) = [a["d"] for tag, a in page.tags if tag == "path" and a.get("class") == "stroke"]
    assert path.count("L") == 400
    assert path.endswith("L100.0 0.01")
    assert "1 point in 25" in page.text


def test_several_runs_share_one_table_and_have_a_part_each(make):
    runs = [load_run(make("0")), load_run(make("1", seed=2022, width=64))]
    page = Page(html(runs))
    assert len(page.rows) == 6
    anchors = {a["id"] for tag, a in page.tags if tag == "article"}
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert anchors == {"run-1", "run-2"}
    assert links == ["#run-1", "#run-2"]
    assert sum(tag == "img" for tag, _ in page.tags) == 2


def test_warnings_kept_in_the_run_are_shown(make):
    stored = [*warnings(results()), "the loss was not finite in 2 steps"]
    runs = [load_run(make("0", warnings=stored)), load_run(make("1", seed=2022))]
    text = Page(html(runs)).text
    assert f"{runs[0].folder}: the loss was not finite in 2 steps" in text
    assert "one seed" not in text


# The file


def test_one_run_is_reported_in_its_folder(make):
    folder = make()
    assert write_report([folder]) == folder / "report.html"
    assert (folder / "report.html").read_text("utf-8") == html([load_run(folder)])


def test_several_runs_are_reported_in_the_current_folder(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_report([make("0"), make("1", seed=2022)])
    assert path == Path("report.html")
    assert (tmp_path / "report.html").is_file()


def test_the_output_may_be_named(make, tmp_path):
    path = tmp_path / "mine.html"
    assert write_report([make()], path) == path
    assert path.is_file()


def test_a_wrong_output_is_refused(make, tmp_path):
    folder = make()
    with pytest.raises(UserError, match="is a folder"):
        write_report([folder], tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        write_report([folder], tmp_path / "nowhere" / "report.html")
    with pytest.raises(UserError, match="at least one run"):
        write_report([])


def test_a_damaged_run_leaves_the_old_report(make):
    folder = make()
    write_text(folder, "report.html", "old")
    write_text(folder, "results.json", "{")
    with pytest.raises(UserError):
        write_report([folder])
    assert (folder / "report.html").read_text() == "old"


def test_many_measures_have_a_line_each(make):
    metrics = {f"test/quality_{n}": 0.1234 + n for n in range(9)}
    text = shown(table([load_run(make(metrics=metrics, baselines={}))]), 80)
    lines = [line for line in text.splitlines() if line.startswith("│")]
    assert any("quality_8" in line and "8.123" in line for line in lines)
    assert not any("quality_1" in line and "quality_2" in line for line in lines)
