"""Predicting for many files: every result once, none missing, past what fails."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock

from core.errors import UserError
from core.pretrained import save_pretrained
from core.progress import ends
from domains.time_series.forecast_files import ForecastFiles
from domains.time_series.networks.dlinear import DLinear
from pleiad import command, manifest, predict
from pleiad.run import _locked

FILES = ForecastFiles(("north", "south"), "date", "D", 24, 6, (50.0, 20.0), (10.0, 5.0))


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = DLinear(lookback=24, horizon=6, channels=2, kernel=5)
    save_pretrained(network, Path("model"), preprocessing=FILES)
    return Path("model")


def write(path: Path | str, seed: int = 0) -> Path:
    """Write 40 days of two channels."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal((50, 20), 5, (40, 2))
    frame = pd.DataFrame(values, columns=["north", "south"])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=40))
    frame.to_csv(path, index=False)
    return path


def run(*inputs: object, output: str = "out", code: int = 0, more: tuple[str, ...] = ()) -> None:
    given = ["predict", "model", "--input", *map(str, inputs), "--output", output, *more]
    assert command.run(given) == code


def told(*inputs: object, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        run(*inputs, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(folder: str = "out") -> list[dict[str, str]]:
    with Path(folder, "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


def results(folder: str = "out") -> dict[str, bytes]:
    """Read every file but the manifest and the lock."""
    files = [p for p in Path(folder).rglob("*") if p.is_file()]
    own = ("manifest.csv", ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name not in own}


def test_a_folder_a_pattern_and_a_list(model, capsys):
    for number in range(3):
        write(f"data/{number}.csv", number)
    Path("data/notes.txt").write_text("not a table")
    write("data/deep/9.csv")
    run("data")
    assert sorted(results()) == ["0.csv", "1.csv", "2.csv"]
    assert "3 written" in capsys.readouterr().out
    run("data/[01].csv", output="some")
    assert sorted(results("some")) == ["0.csv", "1.csv"]
    Path("list").write_text("# mine\ndata/2.csv\n\ndata/0.csv\n")
    run("@list", "data/**/9.csv", output="listed")
    assert [row["output"] for row in rows("listed")] == ["2.csv", "0.csv", "9.csv"]
    run("data/1.csv", output="one.csv")
    assert Path("one.csv").read_bytes() == results()["1.csv"] == results("some")["1.csv"]
    assert {row["status"] for row in rows()} == {"done"}
    assert all(float(row["seconds"]) > 0 and len(row["sha256"]) == 64 for row in rows())
    assert str(Path("data/0.csv").absolute()) == rows()[0]["input"]
    assert rows()[0]["message"].startswith("out/0.csv: 6 steps")


def test_a_bad_file_stops_nothing(model, capsys):
    for number in range(3):
        write(f"data/{number}.csv", number)
    Path("data/1.csv").write_text("date,north\n2024-01-01,3\n")
    Path("list").write_text("data/0.csv\ndata/1.csv\ndata/2.csv\ndata/none.csv\n")
    run("@list", code=2)
    said = capsys.readouterr()
    assert "2 written, 2 failed" in said.out
    assert "data/1.csv: missing south" in said.err
    assert "data/none.csv: no such file" in said.err
    assert [row["status"] for row in rows()] == ["done", "failed", "done", "failed"]
    assert sorted(results()) == ["0.csv", "2.csv"]
    write("data/1.csv", 1)
    write("data/none.csv", 3)
    run("@list")
    assert "2 written, 2 there already" in capsys.readouterr().out
    assert sorted(row["output"] for row in rows()) == ["0.csv", "1.csv", "2.csv", "none.csv"]


def test_an_unforeseen_error_stops_nothing_but_a_full_disk_does(model, monkeypatch, capsys):
    files = [write(f"{number}.csv", number) for number in range(3)]
    whole = ForecastFiles.predict_file

    def fail(error):
        def predict_file(self, network, input, *rest, **options):
            if input.name == "1.csv":
                raise error
            return whole(self, network, input, *rest, **options)

        monkeypatch.setattr(ForecastFiles, "predict_file", predict_file)

    fail(RuntimeError("no idea"))
    run(*files, code=2)
    assert "1.csv: RuntimeError: no idea" in capsys.readouterr().err
    fail(OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        run(*files, output="full")
    assert [row["output"] for row in rows("full")] == ["0.csv"]


def test_equal_names_keep_their_folders(model):
    write("data/a/x.csv", 1)
    write("data/b/x.csv", 2)
    run("data/*/x.csv")
    assert sorted(results()) == ["a/x.csv", "b/x.csv"]
    run("data/a/x.csv", "data/a", output="flat")
    assert sorted(results("flat")) == ["x.csv"]
    assert "would be replaced" in told("data/b", output="flat")
    run("data/b", "data/a", output="flat")
    assert sorted(results("flat")) == ["b/x.csv", "x.csv"]
    write("manifest.csv")
    assert "manifest.csv" in told("manifest.csv", "./manifest.csv")


def test_results_are_no_inputs_and_replace_none(model):
    write("data/0.csv")
    run("data", output="data/out")
    run("data/**/*.csv", output="data/out")
    assert sorted(results("data/out")) == ["0.csv"]
    before = Path("data/0.csv").read_bytes()
    assert "would replace the input" in told("data/*.csv", output="data")
    assert "is the input file" in told("data/0.csv", output="data/0.csv")
    assert Path("data/0.csv").read_bytes() == before


def test_what_is_done_is_done_once(model, capsys):
    for number in range(3):
        write(f"data/{number}.csv", number)
    run("data")
    before = {name: Path("out", name).stat().st_ino for name in results()}
    Path("out/1.csv").unlink()
    write("data/2.csv", 7)
    run("data")
    assert "2 written, 1 there already" in capsys.readouterr().out
    after = {name: Path("out", name).stat().st_ino for name in results()}
    assert after["0.csv"] == before["0.csv"]
    assert sorted(row["output"] for row in rows()) == ["0.csv", "1.csv", "2.csv"]
    run("data/2.csv", output="new.csv")
    assert results()["2.csv"] == Path("new.csv").read_bytes()
    with Path("out/manifest.csv").open("a") as file:
        file.write("/somewhere/cut.csv,cut")
    run("data")
    assert len(rows()) == 3
    Path("data/0.csv").write_text("date,north\n")
    run("data", code=2)
    assert {row["output"]: row["status"] for row in rows()}["0.csv"] == "failed"
    assert sorted(results()) == ["1.csv", "2.csv"]


def test_another_model_or_other_options_need_another_folder(model, monkeypatch):
    write("data/0.csv")
    monkeypatch.setattr(ForecastFiles, "options", {"levels": "shares of the bands"}, raising=False)
    asked = []
    whole = ForecastFiles.predict_file

    def predict_file(self, network, input, output, plot=None, **options):
        asked.append(options)
        return whole(self, network, input, output, plot)

    monkeypatch.setattr(ForecastFiles, "predict_file", predict_file)
    run("data", more=("--levels", "0.1,0.9"))
    assert asked == [{"levels": "0.1,0.9"}]
    assert "other options" in told("data")
    text = told("data", more=("--level=0.1",))
    assert "did you mean --levels?" in text
    assert "shares of the bands" in text
    network = DLinear(lookback=24, horizon=6, channels=2, kernel=5)
    save_pretrained(network, model, preprocessing=FILES)
    assert "another model" in told("data", more=("--levels", "0.1,0.9"))


def test_mistakes_are_told_before_anything_is_written(model):
    write("data/0.csv")
    Path("empty").mkdir()
    Path("list").touch()
    assert "no such file" in told("nothing.csv")
    assert "holds no file that ends in .csv" in told("empty")
    assert "no file is named so" in told("data/*.txt")
    assert "lists no file" in told("@list")
    assert "several results need a folder" in told("data", output="list")
    assert "draws one file's picture" in told("data", more=("--plot=a.png",))
    assert "unknown option --nonsense; there is --future" in told("data", more=("--nonsense=3",))
    assert not Path("out").exists()
    Path("out").mkdir()
    Path("out/manifest.csv").write_text("mine\n1\n")
    assert "not a manifest" in told("data")
    assert results() == {}


def test_one_process_a_folder(model, monkeypatch):
    write("data/0.csv")
    whole = predict._Rows.add

    def add(self, source, name):
        assert "another process" in told("data")
        whole(self, source, name)

    monkeypatch.setattr(predict._Rows, "add", add)
    run("data")


def test_a_call_that_failed_leaves_no_lock(model, monkeypatch):
    write("data/0.csv")
    run("data")
    save_pretrained(DLinear(24, 6, channels=2, kernel=5), model, preprocessing=FILES)
    with pytest.raises(UserError, match="another model") as kept:  # it holds every frame
        run("data")
    with FileLock("out/.lock").acquire(timeout=0):
        assert kept.value
    for _ in range(2):
        held = _locked(Path("out"))
        with held, pytest.raises(UserError, match="another process"):
            _locked(Path("out"))


def test_the_manifest_holds_any_name(tmp_path):
    opened = manifest.Manifest(tmp_path, "m", "{}")
    (tmp_path / "x,y.csv").touch()
    row = manifest.Entry('a "b",c.csv', "x,y.csv", "done", "1", "two\nlines", "0", "m", "{}")
    opened.append(row)
    opened.close()
    again = manifest.Manifest(tmp_path, "m", "{}")
    assert again.done == {row.input: ("x,y.csv", "0")}
    again.close()
    assert rows(str(tmp_path))[0]["message"] == "two lines"


def test_the_time_of_the_end_is_told():
    from datetime import datetime

    now = datetime(2026, 3, 31, 23, 50)
    assert ends(300, now) == "ends 23:55, in 0:05:00"
    assert ends(3600.4, now) == "ends Wed 01 Apr 00:50, in 1:00:00"


def test_a_foreign_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text('{"architectures": ["BertModel"]}')
    write("x.csv")
    assert "holds weights of another project" in told("x.csv", output="y.csv")


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(model):
    for number in range(200):
        write(f"data/{number:03}.csv", number)
    given = [sys.executable, "-m", "pleiad", "predict", "model", "--input", "data", "--output"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for rows_before_kill in (20, 90):
        process = subprocess.Popen([*given, "killed"], env=environment)
        file = Path("killed/manifest.csv")
        while process.poll() is None:
            if file.exists() and file.read_bytes().count(b"\n") > rows_before_kill:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert rows_before_kill <= len(rows("killed")) < 200
    inodes = {row["output"]: Path("killed", row["output"]).stat().st_ino for row in rows("killed")}
    subprocess.run([*given, "killed"], env=environment, check=True)
    assert sorted(row["output"] for row in rows("killed")) == [f"{n:03}.csv" for n in range(200)]
    assert all(Path("killed", name).stat().st_ino == inode for name, inode in inodes.items())
    subprocess.run([*given, "whole"], env=environment, check=True)
    assert results("killed") == results("whole")
    assert len(results("whole")) == 200
