"""What `pleiad doctor` finds, on this installation and on broken ones."""

import io
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from pleiad import doctor
from pleiad.doctor import Check

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def versions(monkeypatch):
    """Pretend that packages have other versions; None is not installed."""
    wanted: dict[str, str | None] = {}
    real = metadata.version

    def version(name):
        found = wanted[name] if name in wanted else real(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    return wanted


def run(code: str, folder: Path, *path: Path) -> str:
    """Run Python in a folder, with further folders before the suite on its path."""
    search = os.pathsep.join(map(str, [*path, REPOSITORY]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_looks_at_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {check.name: check for check in doctor.checks()}
    wanted = {"python", "torch", "lightning", "jsonargparse", "transformers", "devices"}
    wanted |= {f"package {name}" for name in ("core", "data", "domains", "configs")}
    wanted |= {f"extra {name}" for name in ("time-series", "nlp", "vision", "speech", "medical")}
    wanted |= {"extra biology", "extra security"}
    wanted |= {"runs folder", "data folder", "free disk", "safe loading"}
    assert wanted <= found.keys()
    assert not {"extra all", "extra dev", "extra docs", "extra peers"} & found.keys()
    assert found["torch"] == Check("torch", True, metadata.version("torch"), "")
    assert found["devices"].ok
    assert "threads" in found["devices"].detail
    assert list(tmp_path.iterdir()) == []
    for check in found.values():
        assert check.ok or check.fix, check


def test_only_the_devices_need_torch(tmp_path):
    code = """
import sys
from pleiad import doctor
doctor.devices = lambda: doctor.Check("devices", True, "", "")
doctor.checks()
heavy = {"torch", "lightning", "jsonargparse", "transformers", "numpy", "core", "data"}
print(sorted(heavy & sys.modules.keys()))
"""
    assert run(code, tmp_path).strip() == "[]"


def test_an_old_python_is_told(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    check = doctor.python()
    assert check == Check("python", False, "3.10.4", "install Python 3.11 or newer")


@pytest.mark.parametrize(
    ("name", "version", "ok"),
    [
        ("torch", "2.9.1", False),
        ("torch", "2.10.0", True),
        ("torch", "2.11.0+cpu", True),
        ("torch", "2.12.0.dev20260101", True),
        ("lightning", "2.6.1", False),
        ("lightning", "2.6.2", False),
        ("lightning", "2.6.3", False),
        ("lightning", "2.6.6", True),
        ("transformers", "4.57.0", False),
        ("transformers", "5.5.0", True),
        ("jsonargparse", "4.52.0", False),
        ("jsonargparse", "4.53.0", True),
    ],
)
def test_versions_are_held_against_their_floors(versions, name, version, ok):
    versions[name] = version
    check = doctor.version(name)
    assert check.ok is ok
    assert version in check.detail
    assert bool(check.fix) is not ok


def test_a_malicious_release_is_told_apart_from_an_old_one(versions):
    versions["lightning"] = "2.6.3"
    check = doctor.version("lightning")
    assert "malicious" in check.detail
    assert "replace every password and token" in check.fix


def test_only_transformers_may_be_absent(versions):
    versions.update(torch=None, transformers=None)
    assert not doctor.version("torch").ok
    assert doctor.version("transformers").ok
    assert doctor.version("torch").fix == "pip install 'torch>=2.10'"


def test_an_extra_is_present_absent_or_wrong(versions):
    versions.update(pandas="2.3.0", statsmodels=None, timm="0.9.0")
    declared = {
        "tables": [Requirement("pandas>=2.2,<3")],
        "time-series": [Requirement("pandas>=2.2,<3"), Requirement("statsmodels>=0.14")],
        "vision": [Requirement("timm==1.0.*")],
        "dev": [Requirement("nothing-at-all")],
    }
    tables, series, vision = doctor.extras(declared)
    assert tables == Check("extra tables", True, "pandas 2.3.0", "")
    assert series.ok
    assert series.detail == "not installed: statsmodels"
    assert series.fix == "pip install 'pleiad[time-series]'"
    assert not vision.ok
    assert vision.detail == "timm 0.9.0, needed ==1.0.*"
    assert vision.fix == "pip install 'pleiad[vision]'"


def test_extras_are_read_from_the_metadata(tmp_path, monkeypatch):
    folder = tmp_path / "pleiad-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pleiad\nVersion: 0.1.0\n"
        "Provides-Extra: nlp\nProvides-Extra: speech\n"
        "Requires-Dist: torch==2.11.*\n"
        "Requires-Dist: tomli>=2; python_version < '3'\n"
        "Requires-Dist: transformers>=5.5; extra == 'nlp'\n"
        "Requires-Dist: soundfile>=0.13; extra == 'speech'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = {extra: [need.name for need in needs] for extra, needs in doctor.declared().items()}
    assert found == {"nlp": ["transformers"], "speech": ["soundfile"]}


@pytest.mark.parametrize("name", ["core", "data", "domains", "configs"])
@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_package_that_hides_ours_is_named(tmp_path, name, kind):
    path = tmp_path / name / "__init__.py" if kind == "package" else tmp_path / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    code = "import sys; sys.orig_argv = ['pleiad', 'doctor']\n"  # else the import is refused
    code += f"from pleiad import doctor; print(*doctor.package({name!r}), sep='|')"
    _, ok, detail, fix = run(code, tmp_path, tmp_path).strip().split("|")
    assert ok == "False"
    assert detail == f"{path} hides {REPOSITORY / name}"
    assert fix


def test_a_folder_that_is_no_package_hides_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    code = "from pleiad import doctor; print(doctor.package('data').ok)"
    assert run(code, tmp_path, tmp_path).strip() == "True"


def test_a_package_that_another_project_writes_into_is_told(monkeypatch):
    shared = {"data": ["pleiad", "someones-data"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: shared)
    check = doctor.package("data")
    assert not check.ok
    assert "someones-data installs files into" in check.detail
    assert "pip uninstall someones-data" in check.fix
    assert doctor.package("core").ok


@pytest.mark.parametrize("which", ["runs", "data"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path, monkeypatch, which):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path / "data"))
    (tmp_path / which).write_text("a file where a folder should be")
    check = doctor.runs_folder() if which == "runs" else doctor.data_folder()
    assert not check.ok
    assert str(tmp_path / which) in check.detail
    assert check.fix


def test_folders_that_are_not_there_yet_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path / "a" / "b"))
    assert doctor.runs_folder() == Check("runs folder", True, str(tmp_path / "runs"), "")
    assert doctor.data_folder() == Check("data folder", True, str(tmp_path / "a" / "b"), "")
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_may_be_read_only(tmp_path, monkeypatch):
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path))
    monkeypatch.setattr(doctor, "_writable", lambda folder: False)  # root may write anywhere
    check = doctor.data_folder()
    assert check.ok
    assert "read-only" in check.detail
    assert "PLEIAD_DATA" in check.fix


def test_the_data_folder_is_the_catalogues(tmp_path, monkeypatch):
    import data

    place = data.entry("etth1")
    for setting in (str(tmp_path), None):
        if setting is None:
            monkeypatch.delenv("PLEIAD_DATA")
        else:
            monkeypatch.setenv("PLEIAD_DATA", setting)
        assert data.where("etth1").is_relative_to(doctor.data_root() / place.domain / place.folder)


def test_a_full_disk_is_told(monkeypatch):
    usage = shutil.disk_usage(REPOSITORY)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    check = doctor.free_disk()
    assert not check.ok
    assert check.detail == "1.0 GB for runs, 1.0 GB for data"
    assert "2.0 GB" in check.fix


@pytest.mark.parametrize(("value", "ok"), [(None, True), ("", True), ("0", True), ("1", False)])
def test_unsafe_loading_is_told(monkeypatch, value, ok):
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    if value is not None:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
    check = doctor.unsafe_loading()
    assert check.ok is ok
    assert check.fix == ("" if ok else "unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


def test_a_gpu_is_named(monkeypatch):
    import torch

    class Properties:
        total_memory = 85_000_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    assert "cuda 0: Some GPU (85.0 GB)" in doctor.devices().detail


def test_a_driver_that_is_too_old_is_told(monkeypatch):
    import warnings

    import torch

    def available():
        warnings.warn("CUDA initialization: The NVIDIA driver is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", available)
    check = doctor.devices()
    assert not check.ok
    assert "driver is too old" in check.detail
    assert check.fix == "update the NVIDIA driver"


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    check = doctor.devices()
    assert not check.ok
    assert check.fix == "install torch anew"


def test_the_table_tells_three_states_apart():
    console = Console(width=100, file=io.StringIO())
    console.print(
        doctor.table(
            [
                Check("torch", True, "2.11.0", ""),
                Check("extra nlp", True, "not installed: peft", "pip install 'pleiad[nlp]'"),
                Check("package data", False, "/x/data.py hides ours", "rename it"),
            ]
        )
    )
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in lines] == ["ok", "note", "FAIL"]
    assert "pip install 'pleiad[nlp]'" in lines[1]
