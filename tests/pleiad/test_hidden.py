"""Another `core`, `data`, `domains` or `configs` on the path is told in one line."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pleiad import hidden

REPOSITORY = Path(__file__).parents[2]


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    search = os.pathsep.join(map(str, (folder, REPOSITORY)))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(params=["data/__init__.py", "core.py", "domains.py", "configs/__init__.py"])
def foreign(request, tmp_path) -> Path:
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_the_command_ends_with_2_and_one_line(foreign, tmp_path):
    for arguments in (["list", "systems"], ["--help"], ["fit", "x"]):
        found = python("-m", "pleiad", *arguments, folder=tmp_path)
        assert found.returncode == 2
        (line,) = found.stderr.splitlines()
        assert line.startswith(f"pleiad: {foreign} hides the package ")
        assert "rename or uninstall it" in line
        assert found.stdout == ""


def test_an_import_is_refused_with_the_same_line(foreign, tmp_path):
    code = "import pleiad.experiments"
    found = python("-c", code, folder=tmp_path)
    assert found.returncode == 1
    last = found.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {foreign} hides the package ")


def test_the_doctor_still_answers(tmp_path):
    (tmp_path / "core.py").touch()
    found = python("-m", "pleiad", "doctor", folder=tmp_path)
    assert found.returncode == 1
    assert "package core" in found.stdout


def test_a_package_that_was_imported_before_is_seen_too(tmp_path):
    (tmp_path / "data.py").touch()
    code = f"import sys, data; sys.path.remove({str(tmp_path)!r}); import pleiad"
    assert "data.py hides the package 'data'" in python("-c", code, folder=tmp_path).stderr


def test_it_costs_nothing():
    assert hidden.fault() is None
    began = time.perf_counter()
    for _ in range(20):
        hidden.fault()
    assert (time.perf_counter() - began) / 20 < 0.005
    heavy = "import sys, pleiad; print('torch' in sys.modules, 'core' in sys.modules)"
    assert python("-c", heavy, folder=REPOSITORY).stdout.split() == ["False", "False"]
