import gzip
import json
import os
import subprocess
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
from domains.security.networks.flow_transformer import FlowTransformer
from domains.security.progress import counted, guess_flows
from domains.security.thresholds import budget_curve
from domains.security.windows import HostWindows
from pleiad import command

sys.path.insert(0, str(Path(__file__).parent))
from flow_case import PROTOCOLS, STATES, WINDOW, Encode, preprocessing


def alerts(**given) -> FlowAlerts:
    scores = np.linspace(0.001, 0.999, 1000)
    curve = budget_curve(scores, np.arange(1000) % 2 == 1, 0.01)
    return FlowAlerts(preprocessing(**given), 0.9, curve)


def write(path, count, seed=0, **columns) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "note": [f"n, {n}" for n in range(count)],
            "size": rng.integers(0, 100, count),
            "rate": rng.uniform(0, 100, count).round(3),
            "proto": rng.choice(PROTOCOLS, count),
            "state": rng.choice(STATES, count),
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
    sizes = {"numeric": 2, "levels": [4, 3], "window": WINDOW, "inner": 16, "width": 8}
    network = FlowTransformer(**sizes)
    save_pretrained(network, Path("model"), init_args=sizes, preprocessing=preprocessing)
    return Path("model")


def run(*inputs, output="alerts.csv", code=0, more=()):
    given = ["predict", "model", "--input", *inputs, "--output", output, *more]
    assert command.run(given) == code


def told(*inputs, **given) -> str:
    with pytest.raises(UserError) as caught:
        run(*inputs, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def judged(path: Path, source: Path | list[Path]) -> np.ndarray:
    """Score all flows at once, as a test does: one array, every window by its index."""
    loaded = from_pretrained("model")
    flows = loaded.preprocessing.flows
    tables = list(read_flows(source, flows.specification, also=flows.also))
    parts = [flows.encode(table) for table in tables]
    keys = None if not flows.also else np.concatenate([flows.hosts(t) for t in tables])
    numeric, codes = (np.concatenate([getattr(p, n) for p in parts]) for n in ("numeric", "codes"))
    windows = HostWindows(WINDOW).add(keys, numeric, codes)
    with torch.inference_mode():
        given = map(torch.from_numpy, windows.at(np.arange(len(numeric))))
        return loaded.network(*given)[:, 0].double().sigmoid().numpy()


@pytest.mark.parametrize("context", ["file", "source"])
def test_every_flow_has_the_score_of_the_whole_in_its_place(model, context, monkeypatch):
    saved(alerts(context=context))
    write(Path("flows.csv"), 500)
    monkeypatch.setattr("domains.security.alerts.BATCH", 64)
    monkeypatch.setattr(read_flows, "__kwdefaults__", {**read_flows.__kwdefaults__, "rows": 90})
    run("flows.csv")
    found = pd.read_csv("alerts.csv")
    assert list(found.columns) == ["flow", "score", "verdict", "fields"]
    assert found["flow"].tolist() == list(range(1, 501))
    np.testing.assert_allclose(found["score"], judged(model, Path("flows.csv")), atol=1e-6)
    assert ((found["score"] > 0.5) == (found["verdict"] == "attack")).all()
    assert found["verdict"].nunique() == 2
    told = found["fields"].notna()
    assert told.sum() > 50
    assert (found["verdict"][told] == "attack").all()


def test_windows_run_on_over_the_files_of_one_call(model, capsys):
    Path("day").mkdir()
    for number, name in enumerate(("a.csv", "b.csv.gz", "c.csv")):
        write(Path("day") / name, 40, seed=number)
    run("day/*", output="out")
    files = [Path("day") / name for name in ("a.csv", "b.csv.gz", "c.csv")]
    wanted = np.split(judged(model, files), 3)
    for name, scores in zip(("a.csv", "b.csv", "c.csv"), wanted, strict=True):
        np.testing.assert_allclose(pd.read_csv(Path("out") / name)["score"], scores, atol=1e-6)
    alone = judged(model, files[2])
    assert np.abs(alone - wanted[2]).max() > 1e-4  # the windows do matter


def test_a_call_that_goes_on_gives_the_same(model):
    Path("day").mkdir()
    for number, name in enumerate(("a.csv", "b.csv", "c.csv")):
        write(Path("day") / name, 40, seed=number)
    run("day/*", output="out")
    whole = Path("out/c.csv").read_bytes()
    Path("out/c.csv").unlink()
    run("day/*", output="out")
    assert Path("out/c.csv").read_bytes() == whole


def test_a_bad_file_leaves_no_trace_in_the_windows(model, capsys):
    Path("day").mkdir()
    write(Path("day/a.csv"), 40)
    write(Path("day/c.csv"), 40, seed=2)
    bad = write(Path("day/b.csv"), 40, seed=1).drop(columns="proto")
    bad.to_csv("day/b.csv", index=False)
    run("day/*", output="out", code=2)
    assert "proto" in capsys.readouterr().err
    wanted = judged(model, [Path("day/a.csv"), Path("day/c.csv")])[40:]
    np.testing.assert_allclose(pd.read_csv("out/c.csv")["score"], wanted, atol=1e-6)


def test_alerts_alone_with_columns_copied(model, capsys):
    frame = write(Path("flows.csv"), 300)
    more = ("--alerts_only", "--keep", "note,size,host", "--false_alarm_rate", "0.5")
    run("flows.csv", output="alerts.jsonl", more=more)
    lines = [json.loads(line) for line in Path("alerts.jsonl").read_text("utf-8").splitlines()]
    assert 0 < len(lines) < 300
    for line in lines:
        row = frame.iloc[line["flow"] - 1]
        assert (line["note"], line["size"], line["host"]) == (row["note"], row["size"], row["host"])
        assert line["verdict"] == "attack"
        assert set(line["fields"]) <= {"size", "rate", "proto", "state"}
        assert all(value > 0 for value in line["fields"].values())
    said = capsys.readouterr().out
    assert f"300 flows, {len(lines)} alerts" in said
    assert "for a false alarm rate of 0.5" in said
    assert "flows a second" in said
    run("flows.csv", output="alerts.csv", more=("--keep=note,size",))
    found = pd.read_csv("alerts.csv")
    assert found["note"].tolist() == frame["note"].tolist()
    assert found["size"].tolist() == frame["size"].tolist()


def test_a_number_of_alarms_in_a_day(model, capsys):
    write(Path("flows.csv"), 1440 * 2 + 1)  # a flow a minute for two days
    run("flows.csv", more=("--budget=144/day",))
    assert "a false alarm rate of 0.1 (144 of 1,440 flows a day)" in capsys.readouterr().out
    stamps = (np.arange(2881) * 60_000 + 1_700_000_000_000).astype(str)
    write(Path("flows.csv"), 2881, time=stamps)
    run("flows.csv", more=("--budget=144/day",))
    assert "(144 of 1,440 flows a day)" in capsys.readouterr().out
    write(Path("flows.csv"), 200, time="soon")
    assert "'soon', which is no time" in told("flows.csv", more=("--budget=144/day",))


def test_strange_flows_are_warned_of(model, capsys):
    write(Path("flows.csv"), 100, proto="sctp", size=200)
    run("flows.csv")
    said = capsys.readouterr().out
    assert "WARNING: 50.0% levels that training had not" in said
    assert "WARNING: 50.0% numbers out of its range" in said
    write(Path("flows.csv"), 100)
    run("flows.csv")
    assert "WARNING" not in capsys.readouterr().out


def test_the_flows_of_a_file_are_guessed_by_its_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("flows.csv"), 60_000)
    assert guess_flows(Path("flows.csv")) == pytest.approx(60_000, rel=0.03)
    pd.read_csv("flows.csv").to_parquet("flows.parquet")
    assert guess_flows(Path("flows.parquet")) == 60_000
    assert guess_flows(Path("flows.csv.gz")) is None
    tables = read_flows(Path("flows.csv"), alerts().flows.specification)
    assert sum(table.num_rows for table in counted(tables, Path("flows.csv"))) == 60_000


def test_order_of_columns_does_not_matter(model):
    frame = write(Path("flows.csv"), 50)
    frame[frame.columns[::-1]].to_csv("turned.csv", index=False)
    run("flows.csv", output="a.csv")
    run("turned.csv", output="b.csv")
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "flows.csv"),
        (b"size,rate,proto,state,time\n", "holds no flows"),
        (
            b"size,rate,proto,state,time\n1,2,tcp,SF,3\n1,many,tcp,SF,4\n",
            "flows.csv:3: column 'rate'",
        ),
        (b"size,rate,proto,time\n1,2,tcp,3\n", "no column 'state'"),
        (b"size,rate,proto,state,time\n1,2,t\xffp,SF,3\n", "flows.csv:2: byte 0xff"),
    ],
)
def test_bad_files_end_in_one_line_and_leave_no_result(model, content, fault):
    Path("flows.csv").write_bytes(content)
    assert fault in told("flows.csv")
    assert not list(Path().glob("*alerts*"))


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("--budget=many",), "--budget=many"),
        (("--budget=3/day", "--false_alarm_rate=0.1"), "give one"),
        (("--false_alarm_rate=2",), "between 0 and 1"),
        (("--format=xml",), "--format=xml"),
        (("--keep=score",), "of its own"),
        (("--keep=nothing",), "nothing"),
        (("--alerts_only=maybe",), "true or false"),
        (("--alert_only",), "alert_only"),
    ],
)
def test_bad_options(model, more, fault):
    write(Path("flows.csv"), 20)
    assert fault in told("flows.csv", more=more)


def test_contributions_sum_to_the_change_of_a_linear_map():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = Encode()
            self.head = torch.nn.Linear(14, 1)

        def forward(self, numeric, codes):
            return self.head(self.encode(numeric, codes).sum(1))

    torch.manual_seed(0)
    network = Linear()
    numeric, codes = torch.rand(5, WINDOW, 2), torch.randint(0, 6, (5, WINDOW, 2))
    found = contributions(network, numeric, codes, usual=1)
    change = network(numeric, codes) - network(numeric * 0, torch.ones_like(codes))
    torch.testing.assert_close(found.sum(1), change[:, 0])
    codes[:, :, 1] = 1
    assert (contributions(network, numeric, codes, usual=1)[:, 3] == 0).all()


PEAKS = """
import resource, sys
from pathlib import Path
import torch
from flow_case import WINDOW, preprocessing
from domains.security.alerts import FlowAlerts
from domains.security.networks.flow_transformer import FlowTransformer
from domains.security.thresholds import Point
torch.set_num_threads(1)
torch.manual_seed(0)
sizes = {"numeric": 2, "levels": [4, 3], "window": WINDOW, "inner": 8, "width": 8, "layers": 1}
network = FlowTransformer(**sizes).eval()
alerts = FlowAlerts(preprocessing(context="source"), 0.5, [Point(0.999999, 0.0, 0.0)])
for name in sys.argv[1:]:
    said = alerts.predict_file(network, Path(name), Path("out.csv"), false_alarm_rate="0.01")
    print(said.split()[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    head, lines = "size,rate,proto,state,host,time\n", []
    for number in range(100_000):
        host = number * 7919 % 90_001  # more hosts than are remembered
        lines.append(f"{number % 97},{number % 89}.5,{PROTOCOLS[number % 4]},SF,{host},{number}\n")
    for name, times in (("short.csv", 1), ("long.csv", 10)):
        (tmp_path / name).write_text(head + "".join(lines) * times, "utf-8")
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), here])}
    ran = subprocess.run(
        [sys.executable, "-c", PEAKS, "short.csv", "long.csv"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (short, before), (long, after) = (line.split() for line in ran.stdout.splitlines())
    assert (short, long) == ("100,000", "1,000,000")
    assert int(after) < int(before) + 60
    assert (tmp_path / "out.csv").read_bytes().count(b"\n") == 1_000_001
