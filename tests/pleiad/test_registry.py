import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

import data
from core.errors import UserError
from pleiad import registry
from pleiad.experiments import OPEN, names
from pleiad.index import index

EVERY = (*registry.systems(), *registry.peers())
ABOVE_ONE = {  # every other metric is a share, or an error far below one
    *("mse", "mae", "perplexity", "hd95", "psnr", "si_sdr_i", "entropy_bits", "parameters", "fcd"),
    *("milliseconds", "gflops", "peak_gb", "memory_ratio", "compression_ratio", "speedup"),
    *("latency_speedup", "throughput_speedup", "inference_speedup", "training_speedup", "share"),
}
SMALL = """\
lower_is_better: [mse]
taxonomy:
  Signal: [forecasting]
systems:
  - id: 1
    name: first
    title: "First: a network"
    paper: null
    year: 2024
    code: owner/repository @ 1234567
    domain: time_series
    survey_domain: Signal
    survey_task: forecasting
    kind: network
    module: null
    experiments: [time_series/first_etth1]
    datasets: [etth1]
    licence: null
    published:
      - {dataset: etth1, setting: {lookback: 96}, metrics: {mse: 0.4}, source: Table 2, mark: P}
    notes: []
peers: []
"""


@pytest.fixture
def small(tmp_path):
    def write(*edits: tuple[str, str]) -> Path:
        text = SMALL
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "systems.yaml"
        path.write_text(text)
        return path

    return write


def test_ninety_systems_numbered_in_order_with_companions():
    assert [entry.id for entry in registry.systems()] == list(range(1, 91))
    assert [entry.id for entry in registry.peers()] == [f"p{number}" for number in range(1, 17)]
    assert len({entry.name for entry in EVERY}) == len(EVERY)


def test_the_taxonomy_counts_as_in_the_survey():
    place = Counter((entry.survey_domain, entry.survey_task) for entry in registry.systems())
    counts = {
        domain: [place[domain, task] for task in tasks]
        for domain, tasks in registry.registry().taxonomy.items()
    }
    assert counts == {
        "NLP": [9, 8, 6, 10, 2],
        "Computer vision": [6, 6, 5, 1],
        "Multi-modality": [7],
        "Audio and speech": [4],
        "Signal processing and time series": [4],
        "Science and life": [3],
        "Decision": [2],
        "Systems and efficiency": [16],
        "Survey": [1],
    }


@pytest.mark.parametrize(
    ("task", "numbers"),
    [
        ("code", [32, 70]),
        ("forecasting, flows", [17, 49, 53, 74]),
        ("separation, recognition, detection", [22, 38, 59, 79]),
        ("segmentation, scenes, 3-D, video", [8, 33, 34, 37, 73, 87]),
    ],
)
def test_rows_stand_where_the_survey_puts_them(task, numbers):
    assert [entry.id for entry in registry.systems() if entry.survey_task == task] == numbers


def test_a_small_file_is_read_whole(small):
    read = registry.load(small())
    (entry,) = read.systems
    assert (entry.id, entry.title, entry.year) == (1, "First: a network", 2024)
    assert entry.paper is None
    assert entry.experiments == ("time_series/first_etth1",)
    assert entry.published == (
        registry.Published("etth1", {"lookback": 96}, {"mse": 0.4}, "Table 2", "P"),
    )
    with pytest.raises(AttributeError):
        entry.year = 2025


@pytest.mark.parametrize(
    ("edit", "line", "message"),
    [
        (("    year: 2024", "    yeer: 2024"), 9, "unknown key 'yeer'; did you mean year?"),
        (("    year: 2024\n", ""), 5, "the key 'year' is missing"),
        (("year: 2024", "year: soon"), 9, "year must be a whole number, not 'soon'"),
        (("year: 2024", "year: true"), 9, "year must be a whole number, not True"),
        (("name: first", "name: First"), 6, "name must be lower-case letters"),
        (("code: owner/repository", "code: repository"), 10, "none, or repository @ commit"),
        (("domain: time_series", "domain: weather"), 11, "domain must be one of nlp, vision"),
        (("survey_domain: Signal", "survey_domain: Noise"), 12, "must be one of Signal"),
        (("survey_task: forecasting", "survey_task: x"), 13, "must be one of: forecasting"),
        (("kind: network", "kind: net"), 14, "kind must be one of network, task"),
        (("module: null", "module: a/b.py"), 15, "module must be an import path"),
        (("[time_series/first_etth1]", "[first_etth1]"), 16, "experiments must be DOMAIN/NAME"),
        (("datasets: [etth1]", "datasets: etth1"), 17, "datasets must be a list, not 'etth1'"),
        (("mse: 0.4", "mse: low"), 20, "mse must be a number, not 'low'"),
        (("{lookback: 96}", "{lookback: [96]}"), 20, "lookback must be text, a number"),
        (("mark: P", "mark: Q"), 20, "mark must be one of P, S, R, not 'Q'"),
        (("source: Table 2, ", ""), 20, "the key 'source' is missing"),
        (("notes: []", "notes: [1]"), 21, "notes must be text, not 1"),
        (("notes: []", "status: works\n    notes: []"), 21, "unknown key 'status'"),
        (("peers: []", "peer: []"), 22, "unknown key 'peer'; did you mean peers?"),
        (("peers: []", "peers: none"), 22, "peers must be a list"),
        (("lower_is_better: [mse]", "lower_is_better: ]"), 1, ""),
    ],
)
def test_a_violation_names_file_and_line(small, edit, line, message):
    with pytest.raises(UserError) as caught:
        registry.load(small(edit))
    assert str(caught.value).startswith(f"systems.yaml:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        ((), 22, "id 1 is given twice"),
        (("id: 1", "id: 2"), 23, "name first is given twice"),
    ],
)
def test_an_id_or_name_given_twice_is_an_error(tmp_path, change, line, message):
    head, entry, tail = (
        SMALL.partition("  - id: 1")[0],
        *SMALL[SMALL.index("  - id: 1") :].split("peers:"),
    )
    second = entry.replace(*change) if change else entry
    path = tmp_path / "systems.yaml"
    path.write_text(f"{head}{entry}{second}peers:{tail}")
    with pytest.raises(UserError, match=rf"^systems\.yaml:{line}: {message}"):
        registry.load(path)


def test_an_empty_file_is_told_its_keys(tmp_path):
    path = tmp_path / "systems.yaml"
    path.write_text("")
    with pytest.raises(UserError, match=r"^systems\.yaml:1: expected the keys lower_is_better"):
        registry.load(path)


@pytest.mark.parametrize("key", [53, " 53", "autoformer", "Autoformer"])
def test_a_system_is_found_by_number_or_name(key):
    assert registry.system(key).id == 53


def test_hyphens_and_companions_are_found_too():
    assert registry.system("s-mamba").id == 49
    assert registry.system("p2") is registry.system("patchtst")
    assert registry.system_of("domains.time_series.networks.patchtst") == "patchtst"
    assert registry.system_of("domains.time_series.networks") is None


@pytest.mark.parametrize("key", ["autofromer", 91, ""])
def test_an_unknown_system_gets_the_nearest_names(key):
    with pytest.raises(UserError, match="no system is called") as caught:
        registry.system(key)
    assert ("did you mean autoformer" in str(caught.value)) == (key == "autofromer")


@pytest.mark.parametrize(
    ("name", "dataset", "lookback", "horizon", "mse", "mae"),
    [
        ("autoformer", "ettm2", 96, 192, 0.281, 0.340),
        ("autoformer", "illness", 36, 24, 3.483, 1.287),
        ("autoformer", "etth1", 96, 96, 0.449, 0.459),
        ("s_mamba", "etth1", 96, 96, 0.386, 0.405),
        ("s_mamba", "exchange_rate", 96, 720, 0.867, 0.703),
        ("s_mamba", "pems08", 96, 12, 0.076, 0.178),
        ("itransformer", "etth1", 96, 192, 0.441, 0.436),
        ("patchtst", "etth1", 96, 96, 0.414, 0.419),
        ("patchtst", "etth1", 336, 96, 0.375, 0.399),
        ("dlinear", "etth1", 96, 96, 0.386, 0.400),
    ],
)
def test_published_forecasts(name, dataset, lookback, horizon, mse, mae):
    found = registry.published(name, dataset, {"lookback": lookback, "horizon": horizon})
    assert found is not None
    assert found.pop("source")
    assert found == {"mse": mse, "mae": mae}


def test_published_wants_the_exact_setting():
    setting = {"lookback": 96, "horizon": 96}
    assert registry.published("autoformer", "etth1", setting)
    assert registry.published("autoformer", "etth1", {**setting, "features": "univariate"}) is None
    assert registry.published("autoformer", "etth1", {"lookback": 96}) is None
    assert registry.published("autoformer", "etth1", {"lookback": 96, "horizon": 97}) is None
    assert registry.published("autoformer", "etth9", setting) is None
    assert registry.published("unheard_of", "etth1", setting) is None


def test_a_source_that_is_not_the_original_says_so():
    first = registry.published("s_mamba", "etth1", {"lookback": 96, "horizon": 96})
    second = registry.published("dlinear", "etth1", {"lookback": 96, "horizon": 96})
    assert first is not None
    assert second is not None
    assert "second hand" not in str(first["source"])
    assert "second hand" in str(second["source"])


def test_shares_are_fractions_of_one():
    for entry in EVERY:
        for row in entry.published:
            assert all(0 <= row.metrics[name] <= 1 for name in row.metrics if name not in ABOVE_ONE)


def test_each_setting_is_published_once():
    for entry in EVERY:
        keys = [(row.dataset, tuple(sorted(row.setting.items()))) for row in entry.published]
        assert len(set(keys)) == len(keys), entry.name


def test_what_less_is_better_of_is_a_metric_of_some_system():
    metrics = {name for entry in EVERY for row in entry.published for name in row.metrics}
    assert set(registry.registry().lower_is_better) <= metrics | {
        *("mae", "mase", "wape"),  # of runs alone, as are the next
        *("mean_exit", "macs_share", "false_alarm_rate_at_budget", "seconds_per_pair"),
        *("hd95_before", "hd95_surfel", "sdlogj_plain"),
    }
    assert {"mse", "mae", "wer"} <= set(registry.registry().lower_is_better)


@pytest.mark.parametrize("entry", EVERY, ids=lambda entry: entry.name)
def test_an_entry_names_only_what_is_there(entry):
    assert set(entry.datasets) <= set(data.entries())
    assert len(set(entry.datasets)) == len(entry.datasets)
    if entry.module:
        assert registry.module_file(entry.module), f"{entry.module} is missing"
    for name in entry.experiments:
        assert registry.config(name), f"configs/{name}.yaml is missing"


def test_every_network_and_every_bound_experiment_has_an_entry():
    classes = index()["classes"].items()
    networks = {path.rpartition(".")[0] for path, known in classes if known["role"] == "network"}
    named = {name for name in networks if name.startswith("domains.")}
    assert "domains.time_series.networks.dlinear" in named
    assert named <= {entry.module for entry in EVERY}
    named = [name for entry in EVERY for name in entry.experiments]
    assert sorted(named) == sorted(set(names()) - set(OPEN))


@pytest.fixture
def tree(tmp_path):
    """A source tree with one network and its config, and a folder for runs."""
    for name in ("domains/time_series/networks/first.py", "configs/time_series/first_etth1.yaml"):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True)
        file.write_text("# First.\n")
    return tmp_path


def entry(**changes):
    known = vars(registry.system("dlinear"))
    own = {
        "name": "first",
        "module": "domains.time_series.networks.first",
        "experiments": ("time_series/first_etth1",),
        "published": (
            registry.Published("etth1", {"horizon": 96}, {"mse": 0.4, "accuracy": 0.9}, "T", "P"),
        ),
    }
    return registry.System(**{**known, **own, **changes})


def results(file: Path, metrics, **changes):
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "experiment": "time_series/first_etth1",
        "system": "first",
        "dataset": "etth1",
        "setting": {"horizon": 96},
        "metrics": metrics,
    }
    file.write_text(json.dumps({**content, **changes}))
    (file.parent / "config.yaml").touch()
    return file


def status(tree, given=None):
    return registry.status(given or entry(), tree / "runs", tree / "tree")


def run(tree, number: int) -> Path:
    return tree / "runs/time_series/first_etth1" / str(number) / "results.json"


def test_without_module_none_without_run_built(tree):
    assert status(tree, entry(module=None)) == "none"
    assert status(tree, entry(module="domains.time_series.networks.second")) == "none"
    assert status(tree) == "built"
    assert registry.status(entry(), None, tree / "tree") == "built"


def test_a_package_is_a_module_too(tree):
    (tree / "tree/domains/time_series/__init__.py").touch()
    assert status(tree, entry(module="domains.time_series")) == "built"


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"test/mse": 0.39, "test/accuracy": 0.91}, "works"),
        ({"test/mse": 0.439}, "works"),  # 9.8 % more error
        ({"test/mse": 0.441}, "built"),  # 10.3 %
        ({"test/mse": 0.01, "test/accuracy": 0.815}, "works"),  # better error, 9.4 % fewer right
        ({"test/mse": 0.01, "test/accuracy": 0.805}, "built"),
        ({"test/mse": float("nan")}, "built"),
        ({"test/mae": 9.0}, "works"),  # nothing published for it
    ],
)
def test_the_tolerance_is_ten_percent_the_worse_way(tree, metrics, expected):
    results(run(tree, 0), metrics)
    assert status(tree) == expected


def test_where_nothing_is_published_a_finished_run_suffices(tree):
    results(run(tree, 0), {"test/mse": 99.0}, setting={"horizon": 97})
    assert status(tree) == "works"
    results(run(tree, 0), {"test/mse": 99.0}, dataset="co2")
    assert status(tree) == "works"


def test_only_the_last_finished_run_counts(tree):
    results(run(tree, 9), {"test/mse": 0.4})
    bad = results(run(tree, 10), {"test/mse": 0.8})  # 10 comes after 9, whatever the letters say
    os.utime(bad, (0, 0))
    assert status(tree) == "built"
    unfinished = run(tree, 11).parent
    unfinished.mkdir()
    (unfinished / "config.yaml").touch()
    assert status(tree) == "built"
    results(run(tree, 12), {"test/mse": 0.4})
    assert status(tree) == "works"


def test_without_its_config_a_run_does_not_count(tree):
    results(run(tree, 0), {"test/mse": 0.4})
    (tree / "tree/configs/time_series/first_etth1.yaml").unlink()
    assert status(tree) == "built"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"metrics": 3}', '{"metrics": {"test/mse": "x"}}']
)
def test_a_damaged_result_is_passed_over(tree, content):
    results(run(tree, 0), {}).write_text(content)
    assert status(tree) == "built"


def test_committed_figures_count_where_there_is_no_run(tree):
    results(tree / "tree/docs/results/first.json", {"test/mse": 0.41})
    assert registry.status(entry(), None, tree / "tree") == "works"
    found = registry.measured("time_series/first_etth1", tree / "runs", tree / "tree")
    assert found is not None
    assert found.metrics == {"mse": 0.41}
    assert found.path.name == "first.json"
    results(run(tree, 0), {"test/mse": 0.9})
    assert status(tree) == "built"
    assert registry.measured("time_series/second", tree / "runs", tree / "tree") is None


def test_one_working_experiment_suffices(tree):
    other = tree / "tree/configs/time_series/first_co2.yaml"
    other.touch()
    both = entry(experiments=("time_series/first_etth1", "time_series/first_co2"))
    results(run(tree, 0), {"test/mse": 0.8})
    assert status(tree, both) == "built"
    co2 = tree / "runs/time_series/first_co2/0/results.json"
    results(co2, {"test/mse": 0.8}, experiment="time_series/first_co2", dataset="co2")
    assert status(tree, both) == "works"


def test_reading_takes_no_time():
    def seconds() -> float:
        start = time.process_time()
        registry.load()
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.2


def test_every_task_of_the_suite_takes_layer_rates():
    tasks = {path: c for path, c in index()["classes"].items() if c["role"] == "task"}
    assert len(tasks) >= 5
    for path, described in tasks.items():
        assert {"layer_decay", "decay_all"} <= set(described["arguments"]), path
