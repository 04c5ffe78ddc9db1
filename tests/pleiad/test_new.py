"""What `pleiad new` writes: files that lint, a test that fails until one line is filled in."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.callbacks.freezing import Moment
from core.early_exit.criteria import Seen
from core.errors import UserError
from core.openers import parse_yaml
from pleiad import registry
from pleiad.new import KINDS, create, entry, next_steps

REPOSITORY = Path(__file__).parents[2]
FILES = [
    "domains/time_series/networks/my_net.py",
    "configs/time_series/my_net_etth1.yaml",
    "tests/domains/time_series/networks/test_my_net.py",
]


@pytest.fixture
def root(tmp_path):
    """A checkout with what the test of a network needs."""
    networks = tmp_path / "domains" / "time_series" / "networks"
    networks.mkdir(parents=True)
    for folder in (networks, networks.parent, networks.parent.parent):
        (folder / "__init__.py").touch()
    (tmp_path / "core").symlink_to(REPOSITORY / "core")
    return tmp_path


def files(root: Path) -> list[str]:
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.name != "__init__.py"
    )


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_writes_network_config_and_test(root):
    assert create("time_series", "my_net", root) == [root / file for file in FILES]
    assert [file for file in files(root) if not file.startswith("core/")] == sorted(FILES)


def fill_in(network: Path) -> None:
    """Put the one line that the skeleton proposes in the place of its error."""
    text = network.read_text()
    line = next(line for line in text.splitlines() if "# return past" in line)
    start = text.index("        raise NotImplementedError")
    network.write_text(text[:start] + line.replace("# ", "", 1) + "\n")


def test_the_network_works_after_one_line(root):
    network, _, _ = create("time_series", "my_net", root)
    past = torch.ones(2, 24, 3)
    skeleton = runpy.run_path(str(network))["MyNet"](lookback=24, horizon=12, channels=3)
    with pytest.raises(NotImplementedError, match=r"MyNet\.forward is not written yet"):
        skeleton(past)
    fill_in(network)
    filled = runpy.run_path(str(network))["MyNet"](lookback=24, horizon=12, channels=3)
    assert filled(past).shape == (2, 12, 3)


@pytest.mark.slow
def test_the_test_fails_until_one_line_is_filled_in(root):
    network, _, test = create("time_series", "my_net", root)
    pytest_here = ("pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(test))
    before = run(root, *pytest_here)
    assert before.returncode == 1, before.stdout + before.stderr
    assert "NotImplementedError: MyNet.forward is not written yet" in before.stdout
    fill_in(network)
    after = run(root, *pytest_here)
    assert after.returncode == 0, after.stdout + after.stderr
    assert "6 passed" in after.stdout


def test_the_files_pass_the_linter(root):
    network, _, test = create("time_series", "my_long_network_name_42", root)
    settings = ("--no-cache", "--config", str(REPOSITORY / "pyproject.toml"))
    for verb in (("check",), ("format", "--check")):
        found = run(root, "ruff", *verb, *settings, str(network), str(test))
        assert found.returncode == 0, found.stdout + found.stderr


def test_the_config_names_what_is_there(root):
    _, config, _ = create("time_series", "my_net", root)
    text = config.read_text()
    content = parse_yaml(text, str(config))
    network = content["model"]["init_args"]["network"]
    assert network == {"class_path": "domains.time_series.networks.my_net.MyNet"}
    assert content["data"]["init_args"]["dataset"] == "etth1"
    for node in (content["model"], content["data"]):
        module, _, name = node["class_path"].rpartition(".")
        source = REPOSITORY / f"{module.replace('.', '/')}.py"
        assert f"class {name}(" in source.read_text()
    assert text.startswith("# MyNet on ETTh1")
    assert "pleiad fit time_series/my_net_etth1" in text


def test_the_entry_fits_the_registry(tmp_path):
    path = tmp_path / "systems.yaml"
    path.write_text(
        registry.PATH.read_text("utf-8").rstrip() + "\n" + entry("time_series", "my_net")
    )
    peer = registry.load(path).peers[-1]
    assert peer.name == "my_net"
    assert peer.module == "domains.time_series.networks.my_net"
    assert peer.experiments == ("time_series/my_net_etth1",)


def test_next_steps_name_the_files_and_the_entry():
    told = next_steps("time_series", "my_net")
    assert f"python -m pytest {FILES[2]}" in told
    assert "pleiad fit time_series/my_net_etth1" in told
    assert entry("time_series", "my_net").rstrip() in told


def test_next_steps_point_to_an_entry_that_is_there():
    told = next_steps("time_series", "autoformer")
    assert "has an entry 'autoformer' already" in told
    assert "module: domains.time_series.networks.autoformer" in told
    assert "- id:" not in told


@pytest.mark.parametrize(
    "name", ["", "class", "MyNet", "my-net", "2net", "my net", "../net", "my__net", "é", "net\n"]
)
def test_a_name_that_is_no_module_is_refused(root, name):
    before = files(root)
    with pytest.raises(UserError, match="will not do"):
        create("time_series", name, root)
    assert files(root) == before


@pytest.mark.parametrize("domain", ["vision", "", "../time_series"])
def test_a_domain_without_templates_is_refused(root, domain):
    with pytest.raises(UserError, match="there is time_series"):
        create(domain, "my_net", root)


def test_every_domain_with_templates_is_a_domain_of_the_registry():
    taxonomy = registry.registry().taxonomy
    for domain, kind in KINDS.items():
        assert domain in registry.DOMAINS
        assert kind.survey_task in taxonomy[kind.survey_domain]


def test_outside_a_checkout_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a checkout"):
        create("time_series", "my_net", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", FILES)
def test_nothing_is_overwritten_or_half_written(root, taken):
    path = root / taken
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    before = files(root)
    with pytest.raises(UserError, match=f"{path.name}: exists already"):
        create("time_series", "my_net", root)
    assert files(root) == before
    assert path.read_text() == "mine"


def test_a_failure_in_the_middle_leaves_nothing(root):
    (root / "configs").write_text("a file where a folder should be")
    before = files(root)
    with pytest.raises((UserError, OSError)):
        create("time_series", "my_net", root)
    assert files(root) == before


def test_a_schedule_of_ones_own_is_short_and_works(tmp_path, monkeypatch):
    assert create("schedule", "my_turns", tmp_path) == [tmp_path / "my_turns.py"]
    text = (tmp_path / "my_turns.py").read_text()
    tree = ast.parse(text)
    body = [line for line in ast.unparse(tree).splitlines() if line.strip()]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    words = sum(
        len(ast.get_docstring(node).splitlines())
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node)
    )
    assert len(body) - words <= 15
    assert "--trainer.callbacks=my_turns.MyTurns --trust my_turns" in next_steps(
        "schedule", "my_turns"
    )
    module = runpy.run_path(str(tmp_path / "my_turns.py"))
    schedule = module["MyTurns"](every=2)
    chosen = [schedule.choose(Moment(range(3), step, 9, 0, frozenset()))[0] for step in range(8)]
    assert chosen == [2, 2, 1, 1, 0, 0, 2, 2]
    with pytest.raises(UserError, match="another module"):
        create("schedule", "json", tmp_path)


def test_a_criterion_of_ones_own_is_short_and_works(tmp_path):
    assert create("criterion", "my_steady_one", tmp_path) == [tmp_path / "my_steady_one.py"]
    settings = ("--no-cache", "--config", str(REPOSITORY / "pyproject.toml"))
    found = run(tmp_path, "ruff", "format", "--check", *settings, "my_steady_one.py")
    assert found.returncode == 0, found.stdout + found.stderr
    told = next_steps("criterion", "my_steady_one")
    assert "--transforms.criterion=my_steady_one.MySteadyOne" in told
    criterion = runpy.run_path(str(tmp_path / "my_steady_one.py"))["MySteadyOne"](scale=1.0)
    first, second = (Seen(torch.tensor([[0.0], [value]]), None, None) for value in (0.0, 3.0))
    assert criterion.score(first, []).tolist() == [0, 0]
    assert criterion.score(second, [first]).tolist() == [1, 0.25]
