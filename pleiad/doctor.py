"""``pleiad doctor``: is this installation sound, and what would mend it?

It imports nothing else of the suite, so that it can still tell that a foreign ``core`` or ``data``
hides ours. Versions are read from the packages' metadata; the look at the devices imports torch.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich import filesize
from rich.table import Table
from rich.text import Text

from pleiad.hidden import FIX, OURS, ROOT, foreign

PYTHON = (3, 11)
FLOORS = {
    "torch": ">=2.10",
    "lightning": ">=2.6.6",
    "jsonargparse": ">=4.53",
    "transformers": ">=5.5",
}
"""Below these a known fault bites; of them only transformers is optional."""
MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
"""Releases that carried code which stole secrets."""
NOT_DOMAINS = ("all", "dev", "docs", "peers")
LEAST_FREE_BYTES = 2 * 10**9
UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class Check(NamedTuple):
    """One finding: what was looked at, whether it is sound, what was seen, what would mend it."""

    name: str
    ok: bool
    detail: str
    fix: str


def checks() -> list[Check]:
    """Look at everything."""
    return [
        python(),
        *(version(name) for name in FLOORS),
        *extras(declared()),
        *(package(name) for name in OURS),
        runs_folder(),
        data_folder(),
        free_disk(),
        unsafe_loading(),
        devices(),
    ]


def table(checks: Sequence[Check]) -> Table:
    """Show the findings; a sound one with a hint is marked ``note``."""
    shown = Table("", "check", "found", "what to do", header_style="bold")
    for check in checks:
        mark = ("note" if check.fix else "ok") if check.ok else "FAIL"
        style = {"ok": "green", "note": "yellow", "FAIL": "bold red"}[mark]
        shown.add_row(Text(mark, style), Text(check.name), Text(check.detail), Text(check.fix))
    return shown


def python() -> Check:
    """Look at Python's version."""
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] >= PYTHON
    wanted = ".".join(map(str, PYTHON))
    return Check("python", ok, found, "" if ok else f"install Python {wanted} or newer")


def version(name: str) -> Check:
    """Look at a package's version against its floor."""
    floor, found = FLOORS[name], installed(name)
    if found is None:
        optional = name == "transformers"
        return Check(name, optional, "not installed", f"pip install '{name}{floor}'")
    if found in MALICIOUS.get(name, ()):
        return Check(
            name,
            False,
            f"{found} is a malicious release",
            f"pip uninstall {name}, replace every password and token this machine holds, then"
            f" pip install '{name}{floor}'",
        )
    if not SpecifierSet(floor).contains(found, prereleases=True):
        return Check(name, False, f"{found}, needed {floor}", f"pip install '{name}{floor}'")
    return Check(name, True, found, "")


def declared() -> dict[str, list[Requirement]]:
    """Read what each extra asks for: from the metadata or, in a checkout, from pyproject.toml."""
    try:
        found = metadata.distribution("pleiad")
    except metadata.PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        return {
            extra: [Requirement(text) for text in texts]
            for extra, texts in project["optional-dependencies"].items()
        }
    needs = [need for text in found.requires or () if (need := Requirement(text)).marker]
    return {
        extra: [need for need in needs if need.marker and need.marker.evaluate({"extra": extra})]
        for extra in found.metadata.get_all("Provides-Extra") or ()
    }


def extras(declared: Mapping[str, Sequence[Requirement]]) -> list[Check]:
    """Look at what each domain needs besides.

    An extra that is not installed is no fault; an installed package of a wrong version is one.
    """
    return [_extra(extra, needs) for extra, needs in declared.items() if extra not in NOT_DOMAINS]


def _extra(extra: str, needs: Sequence[Requirement]) -> Check:
    found = {need.name: installed(need.name) for need in needs}
    absent = [name for name, version in found.items() if version is None]
    wrong = [
        f"{need.name} {found[need.name]}, needed {need.specifier}"
        for need in needs
        if (version := found[need.name]) and not need.specifier.contains(version, prereleases=True)
    ]
    present = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    detail = "; ".join(wrong) or (f"not installed: {', '.join(absent)}" if absent else present)
    fix = f"pip install 'pleiad[{extra}]'" if wrong or absent else ""
    return Check(f"extra {extra}", not wrong, detail, fix)


def installed(name: str) -> str | None:
    """Give a package's installed version without importing it; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def package(name: str) -> Check:
    """Look whether the top-level package ``name`` is ours, or hidden by another one."""
    ours = ROOT / name
    if importlib.util.find_spec(name) is None:
        return Check(f"package {name}", False, f"{ours} is missing", "install pleiad anew")
    if place := foreign(name):
        return Check(f"package {name}", False, f"{place} hides {ours}", FIX)
    others = sorted(set(metadata.packages_distributions().get(name, ())) - {"pleiad"})
    if others:
        return Check(
            f"package {name}",
            False,
            f"{', '.join(others)} installs files into {ours} too",
            f"pip uninstall {' '.join(others)}, then install pleiad anew",
        )
    return Check(f"package {name}", True, str(ours), "")


def runs_folder() -> Check:
    """Look whether runs can be written below the current folder."""
    folder = Path.cwd() / "runs"
    ok = _writable(folder)
    fix = "" if ok else "work in a folder that you may write, or give --run FOLDER"
    return Check("runs folder", ok, f"{folder}{'' if ok else ': not writable'}", fix)


def data_folder() -> Check:
    """Look whether the data folder is there; one that may only be read can be used, not filled."""
    folder = data_root()
    if _writable(folder):
        return Check("data folder", True, str(folder), "")
    fix = "set PLEIAD_DATA to a folder that you may write"
    if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
        return Check("data folder", True, f"{folder}: read-only", f"to fetch data sets, {fix}")
    return Check("data folder", False, f"{folder}: not writable", fix)


def data_root() -> Path:
    """Give the data folder: ``PLEIAD_DATA``, or ``pleiad/data`` in the user's cache folder."""
    import pooch

    named = os.environ.get("PLEIAD_DATA")
    folder = Path(named).expanduser() if named else Path(pooch.os_cache("pleiad")) / "data"
    return folder.absolute()


def free_disk() -> Check:
    """Look at the room left where runs and data go."""
    folders = {"runs": Path.cwd() / "runs", "data": data_root()}
    free = {name: shutil.disk_usage(_existing(folder)).free for name, folder in folders.items()}
    detail = ", ".join(f"{filesize.decimal(size)} for {name}" for name, size in free.items())
    ok = min(free.values()) >= LEAST_FREE_BYTES
    least = filesize.decimal(LEAST_FREE_BYTES)
    return Check("free disk", ok, detail, "" if ok else f"make room: {least} is the least")


def unsafe_loading() -> Check:
    """Look whether torch was told to load checkpoints that can run code."""
    value = os.environ.get(UNSAFE, "")
    if value in ("", "0"):
        return Check("safe loading", True, f"{UNSAFE} is not set", "")
    return Check(
        "safe loading",
        False,
        f"{UNSAFE}={value}: any checkpoint may run code when it is loaded",
        f"unset {UNSAFE}",
    )


def devices() -> Check:
    """Look at what torch can compute on."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            import torch

            found = [
                f"cuda {number}: {torch.cuda.get_device_name(number)}"
                f" ({filesize.decimal(torch.cuda.get_device_properties(number).total_memory)})"
                for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
            ]
            if torch.backends.mps.is_available():
                found.append("mps")
            found.append(f"cpu: {torch.get_num_threads()} threads")
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return Check("devices", False, f"torch fails: {reason}", "install torch anew")
    detail = ", ".join(found)
    driver = [str(warning.message) for warning in told if "CUDA" in str(warning.message)]
    if driver:
        reason = driver[0].partition("\n")[0].partition("(Triggered")[0].strip()
        return Check("devices", False, f"{detail}; {reason}", "update the NVIDIA driver")
    return Check("devices", True, detail, "")


def _writable(folder: Path) -> bool:
    """Say whether ``folder`` can be written or made, by trying: permission bits do not tell all."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return True
    except OSError:
        return False


def _existing(folder: Path) -> Path:
    """Give ``folder``, or the nearest folder above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())
