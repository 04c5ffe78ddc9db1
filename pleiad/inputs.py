"""The files that a command's ``--input`` means, and where the result of each one goes."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.errors import UserError
from core.openers import read_text

LIST_BYTES = 2**28
"""The largest list of files that is read."""


def is_plain(given: Sequence[str]) -> bool:
    """Say whether ``given`` names one file, neither a folder nor a pattern nor a list."""
    return len(given) == 1 and not (
        given[0].startswith("@") or Path(given[0]).is_dir() or _is_pattern(given[0])
    )


def collect(given: Sequence[str], suffixes: Sequence[str], output: Path) -> list[Path]:
    """List the files that ``given`` means, each once.

    Args:
        given: files, folders (their files of a known ending, without those of subfolders), patterns
            such as ``data/**/*.csv``, and ``@LIST`` for a text file with one path a line. A file of
            a list may be missing: that is told when its turn comes.
        suffixes: the endings of the files that are taken from a folder.
        output: the folder of the results; what a folder or a pattern finds there is left out.

    Raises:
        UserError: if a file is missing, or a folder, pattern or list holds none.
    """
    found: dict[str, Path] = {}
    own = os.path.realpath(output)
    for each in given:
        listed = each.startswith("@")
        paths = _listed(Path(each[1:])) if listed else _expanded(each, suffixes)
        if not paths:
            raise UserError(f"--input {each}: {_nothing(each, suffixes)}")
        if not listed and paths != [Path(each)]:
            paths = [p for p in paths if not os.path.realpath(p).startswith(own + os.sep)]
        if not paths:
            raise UserError(
                f"--output {output}: would replace the input {each}; give another folder"
            )
        for path in paths:
            found.setdefault(absolute(path), path)
    return list(found.values())


def assign(
    inputs: Sequence[Path], folder: Path, taken: Mapping[str, str], ending: str = ""
) -> list[str]:
    """Name the result of each input, below ``folder``: its own name, or that with ``ending``.

    Where two inputs have one name, or a name is taken by another input's result, every result is
    named by its input's path below the folder that all inputs have in common.

    Args:
        inputs: the files, each once.
        folder: the folder of the results.
        taken: the absolute path of the input of every result that is there already, by its name.
        ending: of every result, in place of the input's; empty keeps that.

    Raises:
        UserError: if the result would replace another input's result, or an input.
    """
    paths = [absolute(path) for path in inputs]
    names = [bare(path) + ending if ending else path.name for path in inputs]
    if ending and len(set(names)) < len(names):  # a.jpg and a.png
        names = [path.name + ending for path in inputs]
    if len(set(names)) < len(names) or any(
        taken.get(name, path) != path for name, path in zip(names, paths, strict=True)
    ):
        common = os.path.commonpath([Path(path).parent for path in paths])
        names = [str(Path(path).relative_to(common)) + ending for path in paths]
    real = {os.path.realpath(path) for path in paths}
    root = os.path.realpath(folder)
    for path, name in zip(paths, names, strict=True):
        if taken.get(name, path) != path:
            raise UserError(
                f"{folder / name}: is the result of {taken[name]} and would be replaced by that of"
                f" {path}; give another --output"
            )
        if str(Path(root, name)) in real:
            raise UserError(
                f"--output {folder}: would replace the input {path}; give another folder"
            )
    return names


def bare(path: Path) -> str:
    """Give a file's name without its ending, that of packed ones too."""
    return Path(path.name.removesuffix(".gz")).stem


def absolute(path: Path) -> str:
    """Write a path in full, without following links."""
    return os.path.abspath(path)  # noqa: PTH100 - `resolve` would follow them


def _expanded(given: str, suffixes: Sequence[str]) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        endings = tuple(suffix.lower() for suffix in suffixes)
        with os.scandir(path) as entries:
            names = [e.name for e in entries if e.name.lower().endswith(endings) and e.is_file()]
        return [path / name for name in sorted(names) if not name.startswith(".")]
    if path.is_file():
        return [path]
    if _is_pattern(given):
        found = glob.glob(given, recursive=True)  # noqa: PTH207 - it may be absolute
        return [path for path in map(Path, sorted(found)) if path.is_file()]
    raise UserError(f"--input {given}: no such file")


def _listed(path: Path) -> list[Path]:
    lines = (line.strip() for line in read_text(path, LIST_BYTES).splitlines())
    return [Path(line) for line in lines if line and not line.startswith("#")]


def _is_pattern(given: str) -> bool:
    return glob.has_magic(given) and not Path(given).exists()


def _nothing(given: str, suffixes: Sequence[str]) -> str:
    if given.startswith("@"):
        return "lists no file"
    if Path(given).is_dir():
        return f"holds no file that ends in {' or '.join(suffixes)}"
    return "no file is named so"
