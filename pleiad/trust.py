"""Modules of the user's own: named one by one, hashed, and kept with the run that used them.

A trusted module lies in the current folder as ``NAME.py`` or as a package ``NAME/``. A run keeps a
copy in ``trusted/`` and its SHA-256 in ``trusted/sha256.json``. Where the module is not in the
current folder any more, the copy of the run that is asked for takes its place.
"""

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from core.errors import UserError
from core.openers import read_json, write_atomic

FOLDER = "trusted"
HASHES = "sha256.json"


class Change(NamedTuple):
    """A module that is not what it was when a run used it."""

    name: str
    now: str
    before: str
    copy: Path

    def __str__(self) -> str:
        """Tell it in one line, with both hashes."""
        return (
            f"{self.name} has changed since the run used it (sha256 {self.now[:12]}, then"
            f" {self.before[:12]}; the run's copy is {self.copy})"
        )


def allow(names: Sequence[str], run: Path | None = None) -> list[Change]:
    """Let the named modules be imported: from the current folder, else from the run's copy.

    Args:
        names: modules.
        run: the run folder that is asked for, if one is.

    Returns:
        The modules that have changed since the run used them; those of the current folder count.

    Raises:
        UserError: if there is no such module, its name is taken, or the run's copy is damaged.
    """
    changes = []
    for name in names:
        source, copy = _in(Path.cwd(), name), _copy(run, name)
        found = source or copy
        if found is None:
            raise UserError(_missing(name))
        if copy is not None and (now := digest(found)) != (before := digest(copy)):
            changes.append(Change(name, now, before, copy))
        check_name(name, found)
        _FINDER.sources[name] = found
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    return changes


def keep(folder: Path, names: Sequence[str]) -> None:
    """Copy the sources of trusted modules into a run folder, and write their hashes."""
    if not names:
        return
    (folder / FOLDER).mkdir(exist_ok=True)
    found = {name: _source(name) for name in names}
    for source in found.values():
        for path in _files(source):
            target = folder / FOLDER / path.relative_to(source.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.resolve() != target.resolve():  # a run that goes on with its own copy
                shutil.copyfile(path, target)
    hashes = {name: digest(_in(folder / FOLDER, name) or source) for name, source in found.items()}
    write_atomic(folder / FOLDER / HASHES, json.dumps(hashes, indent=2) + "\n")


def kept(folder: Path | None) -> dict[str, str]:
    """Give the SHA-256 of each module that a run keeps."""
    if folder is None or not (folder / FOLDER / HASHES).is_file():
        return {}
    found = read_json(folder / FOLDER / HASHES)
    if not isinstance(found, dict):
        raise UserError(f"{folder / FOLDER / HASHES}: damaged: a mapping is needed")
    return found


def digest(source: Path) -> str:
    """Give the SHA-256 of a file, or of all Python files of a package with their names."""
    if source.is_file():
        return hashlib.sha256(source.read_bytes()).hexdigest()
    found = hashlib.sha256()
    for path in _files(source):
        found.update(f"{path.relative_to(source).as_posix()}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def run_of(name: str | None) -> Path | None:
    """Find the run folder that a name stands for: it, or the one whose ``model/`` it is."""
    if name is None or not (folder := Path(name)).is_dir():
        return None
    return folder.parent if (folder.parent / FOLDER / HASHES).is_file() else folder


def check_name(name: str, source: Path) -> None:
    """Refuse a module's name that means another module already.

    Raises:
        UserError: if an import of the name would find, or has found, something else.
    """
    loaded = sys.modules.get(name)
    if loaded is None and name in _FINDER.sources:
        return
    try:
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    origin = None if spec is None else spec.origin
    own = source if source.is_file() else source / "__init__.py"
    if spec is not None and (origin is None or Path(origin).resolve() != own.resolve()):
        raise UserError(f"{source}: the name {name!r} is that of another module; rename the file")


class _Finder(MetaPathFinder):
    """Finds the trusted modules, each where it was looked up, and nothing else."""

    def __init__(self) -> None:
        self.sources: dict[str, Path] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a trusted module; Python finds what is inside a package by itself."""
        source = self.sources.get(fullname)
        if source is None:
            return None
        if source.is_file():
            return importlib.util.spec_from_file_location(fullname, source)
        return importlib.util.spec_from_file_location(
            fullname, source / "__init__.py", submodule_search_locations=[str(source)]
        )


_FINDER = _Finder()


def _in(folder: Path, name: str) -> Path | None:
    """Find a module in a folder: a file or a package."""
    if name.isidentifier():
        for path in (folder / f"{name}.py", folder / name):
            if path.is_file() or (path / "__init__.py").is_file():
                return path
    return None


def _copy(run: Path | None, name: str) -> Path | None:
    """Find a run's copy of a module, and check it."""
    known = kept(run)
    if run is None or name not in known:
        return None
    copy = _in(run / FOLDER, name)
    if copy is None or digest(copy) != known[name]:
        raise UserError(f"{run / FOLDER}: the copy of {name} is not what {HASHES} says; damaged")
    return copy


def _missing(name: str) -> str:
    if not name.isidentifier():
        return f"--trust {name}: name a module, such as `mine` for mine.py"
    return f"--trust {name}: there is no module {name}.py in the current folder"


def _source(name: str) -> Path:
    """Find the source of a module that was allowed, or that Python code has imported."""
    if name in _FINDER.sources:
        return _FINDER.sources[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(_missing(name))
    path = Path(spec.origin)
    return path.parent if path.name == "__init__.py" else path


def _files(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(source.rglob("*.py"))
