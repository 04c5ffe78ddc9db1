import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import data
from core.errors import UserError
from pleiad import listing, registry
from pleiad.experiments import names
from pleiad.show import show

HEAVY = ("torch", "lightning", "transformers", "pandas", "numpy", "torchmetrics", "matplotlib")


def text(renderable) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()


def rows(what, **filters):
    return json.loads(listing.render(what, "json", **filters))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs that hold one finished run of DLinear, whose module counts as there."""
    monkeypatch.setattr(registry, "module_file", lambda module, root: Path(module))
    folder = tmp_path / "runs/time_series/dlinear_etth1/0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    content = {
        "experiment": "time_series/dlinear_etth1",
        "system": "dlinear",
        "dataset": "etth1",
        "setting": {"lookback": 96, "horizon": 96},
        "metrics": {"test/mse": 0.3911, "test/mae": 0.4022},
    }
    (folder / "results.json").write_text(json.dumps(content))
    return tmp_path / "runs"


def test_json_keeps_published_and_measured_apart(runs):
    found = {row["name"]: row for row in rows("systems", runs=runs)}
    assert len(found) == 90 + len(registry.peers())
    assert all(row["status"] in registry.STATUSES for row in found.values())
    dlinear = found["dlinear"]
    assert dlinear["status"] == "works"
    assert {"mse": 0.386, "mae": 0.4} in [row["metrics"] for row in dlinear["published"]]
    assert [row["metrics"] for row in dlinear["measured"]] == [{"mse": 0.3911, "mae": 0.4022}]
    assert found["slimfit"]["measured"] == []


def test_filters_combine():
    domain = rows("systems", domain="time-series")
    assert {row["domain"] for row in domain} == {"time_series"}
    task = rows("systems", task="Forecasting")
    assert [row["id"] for row in task] == [17, 49, 53, 74, "p1", "p2", "p3"]
    both = rows("systems", domain="time_series", task="Forecasting")
    assert both == [row for row in domain if row in task]
    assert 0 < len(both) < len(task)
    assert [row["id"] for row in rows("systems", domain="security", task="code")] == [70]


def test_the_status_filter_follows_the_runs(runs):
    works = {row["name"] for row in rows("systems", status="works", runs=runs)}
    assert "dlinear" in works
    assert "slimfit" not in works
    found = {row["name"] for row in rows("experiments", status="works", runs=runs)}
    assert "time_series/dlinear_etth1" in found
    built = {row["name"] for row in rows("experiments", status="built", runs=runs)}
    assert "time_series/autoformer_weather" in built
    assert not found & built
    assert rows("experiments", status="none", runs=runs) == []


@pytest.mark.parametrize("what", ["systems", "experiments"])
def test_a_missing_module_shows_as_none(what, monkeypatch):
    monkeypatch.setattr(registry, "module_file", lambda module, root: None)
    names = {row["name"] for row in rows(what, status="none")}
    assert names & {"dlinear", "time_series/dlinear_etth1"}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"domain": "vison"}, "--domain vison: did you mean vision"),
        ({"task": "juggling"}, "--task juggling: no task contains it; the tasks are: "),
        ({"status": "work"}, "--status work: did you mean works?"),
        ({"status": "here"}, "--status here: It is one of works, built, none"),
    ],
)
def test_a_filter_that_can_match_nothing_is_an_error(filters, message):
    with pytest.raises(UserError) as caught:
        listing.render("systems", **filters)
    assert message in str(caught.value)


@pytest.mark.parametrize("what", ["systems", "experiments", "datasets"])
def test_table_and_markdown_have_a_row_an_entry(what):
    count = len(rows(what))
    table = listing.render(what)
    assert isinstance(table, Table)
    assert table.row_count == count
    lines = listing.render(what, "md").splitlines()
    assert len(lines) == count + 2
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_experiments_tell_what_they_are():
    found = {row["name"]: row for row in rows("experiments")}
    dlinear = found["time_series/dlinear_etth1"]
    assert dlinear["about"].startswith("DLinear on ETTh1")
    assert (dlinear["system"], dlinear["domain"]) == ("dlinear", "time_series")
    assert found["time_series/forecast"]["system"] is None
    forecasting = rows("experiments", task="forecasting")
    assert "time_series/forecast" not in [row["name"] for row in forecasting]
    assert "time_series/dlinear_etth1" in [row["name"] for row in forecasting]
    assert rows("experiments", domain="nlp") == [
        row for row in found.values() if row["domain"] == "nlp"
    ]


def test_datasets_join_the_catalogue_and_mark_what_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path))
    found = {row["name"]: row for row in rows("datasets")}
    assert list(found) == list(data.entries())
    assert {"dlinear", "autoformer", "s_mamba"} <= set(found["etth1"]["systems"])
    assert found["etth1"]["status"] == "fetch"
    assert found["weather"]["status"] == "manual"
    assert found["libri2mix_samples"]["status"] == "manual"  # a set of very many files
    place = data.where("etth1")
    place.parent.mkdir(parents=True)
    place.touch()
    assert [row["name"] for row in rows("datasets", status="here", domain="time_series")] == [
        name for name in ("etth1", "co2") if name == "etth1" or found["co2"]["status"] == "here"
    ]
    assert {row["name"] for row in rows("datasets", task="cells")} == {
        "pbmc68k",
        "gp_molformer_pairtune",
    }


def test_a_set_of_several_files_is_here_only_when_all_are(tmp_path, monkeypatch):
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path))
    entry = data.entry("sst")
    for file in entry.files:
        assert listing.dataset_status(entry) == "fetch"
        path = data.where("sst") / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert listing.dataset_status(entry) == "here"


def test_a_set_of_very_many_files_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path))
    entry = data.entry("fsdd")
    assert entry.group is not None
    path = data.where("fsdd") / entry.group.glob[0].replace("*", "0_george_0")
    path.parent.mkdir(parents=True)
    path.touch()
    assert listing.dataset_status(entry) == "here"


def test_a_set_of_a_package_that_is_missing_must_be_installed(monkeypatch):
    def absent(name: str) -> Path:
        raise data.DataError(f"{name} ships in a package that is not installed")

    monkeypatch.setattr(data, "where", absent)
    assert listing.dataset_status(data.entry("co2")) == "install"


def test_show_puts_measured_beside_published(runs):
    lines = text(listing.show_system("dlinear", runs)).splitlines()
    assert lines[0].split() == ["p1", "dlinear", "works"]
    assert lines[1] == "Are Transformers Effective for Time Series Forecasting? AAAI 2023."
    assert "  pleiad fit time_series/dlinear_etth1" in lines
    head = next(line for line in lines if "measured here" in line)
    row = next(line for line in lines if "0.3911" in line)
    assert "lookback 96, horizon 96" in row
    published, measured = head.index("published"), head.index("measured here")
    assert row[published:measured].strip() == "mse 0.386, mae 0.4"
    assert row[measured:].startswith("mse 0.3911, mae 0.4022")
    assert sum("0.3911" in line for line in lines) == 1


@pytest.mark.parametrize("key", [53, "autoformer"])
def test_show_names_code_data_and_faults(key):
    shown = text(listing.show_system(key))
    assert "thuml/Autoformer @ 51c7d41" in shown
    assert "arXiv 2106.13008" in shown
    assert "illness (" in shown
    assert "An even moving-average window fails" in shown
    assert "univariate" in shown


@pytest.mark.parametrize("entry", [*registry.systems(), *registry.peers()], ids=lambda e: e.name)
def test_every_system_can_be_shown(entry):
    shown = text(listing.show_system(entry.id))
    assert entry.name in shown
    assert all(f"  - {note[:40]}" in shown for note in entry.notes)


@pytest.mark.parametrize("name", list(data.entries()))
def test_every_data_set_can_be_shown(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path))
    shown = text(listing.show_dataset(name))
    assert shown.startswith(name)
    assert data.entry(name).licence in shown
    assert "lookback" not in shown
    if name == "etth1":
        assert "downloaded by `pleiad data fetch NAME`" in shown
        assert "train 8640, val 2880, test 2880" in shown
        assert "rows 17420; channels 7" in shown
        assert "autoformer" in shown
        assert "2.59 MB" in shown


def test_show_of_an_unknown_system_gives_the_nearest():
    with pytest.raises(UserError, match="did you mean patchtst"):
        listing.show_system("patch_tst")


@pytest.mark.parametrize("name", list(listing.pages()))
def test_a_generated_page_equals_the_registry(name):
    assert (registry.ROOT / name).read_text("utf-8") == listing.pages()[name], (
        "run: python -m pleiad.listing"
    )


def test_a_domain_page_lists_exactly_its_systems():
    made = listing.pages()
    assert "domains/time_series/README.md" in made
    for name, page in made.items():
        if name.startswith("domains/"):
            listed = [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| ")]
            listed = [cell for cell in listed if cell not in {"name", "---"}]
            domain = name.split("/")[1]
            every = (*registry.systems(), *registry.peers())
            assert listed == [entry.name for entry in every if entry.domain == domain]


def test_the_page_of_systems_lists_each_once():
    page = listing.pages()["docs/systems.md"]
    for entry in (*registry.systems(), *registry.peers()):
        assert page.count(f"| {entry.id} | {entry.name} |") == 1


def test_pages_are_written_on_demand(tmp_path, monkeypatch):
    made = listing.pages()
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True)
    monkeypatch.setattr(listing, "pages", lambda: made)
    listing.main(["docs/systems.md"])
    assert list(tmp_path.rglob("*.md")) == [tmp_path / "docs/systems.md"]
    listing.main([])
    assert {name: (tmp_path / name).read_text("utf-8") for name in made} == made
    with pytest.raises(SystemExit, match=r"notes\.md is not a generated page"):
        listing.main(["notes.md"])


def test_a_bar_in_a_cell_does_not_break_a_markdown_table():
    assert listing._markdown(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


@pytest.mark.parametrize("what", ["systems", "experiments", "datasets", "show"])
def test_listing_is_quick_and_imports_nothing_heavy(what, tmp_path):
    call = "show_system(53)" if what == "show" else f"render({what!r})"
    code = (
        "import sys\nfrom rich.console import Console\nfrom pleiad import listing\n"
        f"Console().print(listing.{call})\n"
        f"sys.exit(' '.join(m for m in {HEAVY!r} if m in sys.modules) or None)"
    )

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PLEIAD_DATA": str(tmp_path)},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 100
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # a busy machine takes no process time
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 1.0


@pytest.mark.parametrize("name", names())
def test_every_experiment_can_be_shown(name):
    told = show(name)
    assert (registry.ROOT / "configs" / f"{name}.yaml").read_text("utf-8") in told
    assert f"pleiad fit {name} --help" in told


def test_show_of_an_unknown_experiment_gives_the_nearest():
    with pytest.raises(UserError, match="did you mean vision/p2at_s_camvid"):
        show("vision/p2at_s_camvi")
    assert "pleiad show p2at" in show("vision/p2at_s_camvid_small")
