"""Read ``catalogue.yaml``, the one declaration of every benchmark set.

The comment at the head of that file explains its keys. The reader is strict: an unknown key, a
missing key or a value of another type is an error that names the entry.
"""

import difflib
import functools
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType, UnionType
from typing import Any

from data.errors import DataError

PATH = Path(__file__).with_name("catalogue.yaml")

_ENTRY = {
    "title": str,
    "domain": str,
    "folder": str,
    "files": dict,
    "group": dict,
    "source": str,
    "licence": str,
    "citation": str,
    "splits": dict,
    "facts": dict,
}
_FILE = {"bytes": int | None, "sha256": str | None, "url": str}
_SPLITS = {"rows": int, "fractions": float, "files": str | list}
_GROUP = {"glob": list, "count": int, "bytes": int, "sha256": str}
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """One file of a set.

    Attributes:
        path: below the set's folder, with forward slashes.
        bytes: its size; None where no size is published.
        sha256: its checksum in hex; None where none is published, so that it cannot be verified.
        url: where its exact bytes can be downloaded; None unless the set's source is ``url``.
    """

    path: str
    bytes: int | None
    sha256: str | None
    url: str | None


@dataclass(frozen=True)
class Group:
    """The files of a set of very many, under one checksum.

    Attributes:
        glob: patterns below the set's folder that find every file.
        count: how many files they find.
        bytes: the sum of their sizes.
        sha256: of the lines ``<sha256>  <path>``, one a file, sorted by path: what
            ``ls PATTERN | LC_ALL=C sort | xargs sha256sum | sha256sum`` prints in the set's folder.
    """

    glob: tuple[str, ...]
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Where a set comes from.

    Attributes:
        kind: ``url`` (each file has one), ``package`` (it ships in an installed dependency) or
            ``manual`` (a person must fetch it).
        text: the package's import name, or what that person must do; empty for ``url``.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Entry:
    """One benchmark set.

    Attributes:
        name: what ``data.locate`` and a config call it.
        title: what it is, in one line.
        domain: the folder below the data folder, named like the domain.
        folder: the set's folder below that; for a package, below the package's own folder.
        files: its files, or empty if ``group`` holds them.
        group: its files as one group, for a set of very many.
        source: where it comes from.
        licence: as its source states it.
        citation: what to cite.
        splits: one key, ``rows``, ``fractions`` or ``files``, over a mapping from a split's name
            to its part: how many rows, or what share of them, in the order of the file; or files,
            as a path, a pattern, a list of these, or ``archive.zip!member``. Empty if none is
            published.
        facts: what networks and tasks need to know: rows, channels, class counts and so on.
    """

    name: str
    title: str
    domain: str
    folder: str
    files: tuple[File, ...]
    group: Group | None
    source: Source
    licence: str
    citation: str
    splits: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]

    @property
    def bytes(self) -> int | None:
        """The size of the whole set; None if no size is published."""
        if self.group:
            return self.group.bytes
        sizes = [file.bytes for file in self.files if file.bytes is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None


def load(path: Path) -> Mapping[str, Entry]:
    """Read a catalogue.

    Raises:
        DataError: if it is not valid YAML, or an entry has an unknown, missing or wrong key.
    """
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        raw = yaml.load(path.read_text("utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        raise DataError(f"{path.name}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path.name}: expected a mapping from names to entries")
    return MappingProxyType({name: _entry(f"{path.name}: {name}", name, raw[name]) for name in raw})


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Every set of the catalogue by its name, read once.

    Raises:
        DataError: if the catalogue is wrong.
    """
    return load(PATH)


def entry(name: str) -> Entry:
    """The declaration of one set.

    Raises:
        DataError: if there is no such set; the message gives the nearest names.
    """
    known = entries()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3)
        hint = f"nearest: {', '.join(sorted(near))}; " if near else ""
        raise DataError(f"no data set is called {name!r}; {hint}all names: pleiad list datasets")
    return known[name]


def _entry(at: str, name: object, raw: object) -> Entry:
    values = _take(at, raw, _ENTRY, optional={"files", "group"})
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise DataError(f"{at}: a name is lower-case letters, digits and underscores")
    if ("files" in values) == ("group" in values):
        raise DataError(f"{at}: give either files or group")
    kind, _, text = values["source"].partition(":")
    source = Source(kind, text.strip())
    if kind not in {"url", "package", "manual"} or (kind == "url") == bool(source.text):
        raise DataError(
            f"{at}: source must be url, package:NAME or manual:TEXT, not {values['source']!r}"
        )
    if kind == "package" and not source.text.isidentifier():
        raise DataError(f"{at}: package:NAME must be a top-level package, not {source.text!r}")
    files = values.pop("files", {})
    group = values.pop("group", None)
    if kind != "manual" and group:
        raise DataError(f"{at}: the source of a group must be manual")
    _splits(at, values["splits"])
    for key in ("domain", "folder"):
        _relative(at, values[key])
    return Entry(
        **values
        | {
            "name": name,
            "source": source,
            "files": tuple(_file(at, path, files[path], kind) for path in files),
            "group": _group(at, group) if group else None,
            "splits": MappingProxyType(values["splits"]),
            "facts": MappingProxyType(values["facts"]),
        }
    )


def _splits(at: str, splits: dict[str, Any]) -> None:
    at = f"{at}: splits"
    _take(at, splits, dict.fromkeys(_SPLITS, dict), optional=_SPLITS.keys())
    if len(splits) > 1:
        raise DataError(f"{at}: give one of {', '.join(_SPLITS)}, not {', '.join(splits)}")
    for kind, parts in splits.items():
        _take(f"{at}: {kind}", parts, dict.fromkeys(parts, _SPLITS[kind]))


def _file(at: str, path: str, raw: object, kind: str) -> File:
    at = f"{at}: {path}"
    values = _take(at, raw, _FILE, optional={"url"})
    _relative(at, path)
    if values["sha256"] is not None:
        _checksum(at, values["sha256"])
    url = values.get("url")
    if (kind == "url") != bool(url):
        raise DataError(f"{at}: url is given if and only if the source is url")
    if url and (not re.match("https?://", url) or values["sha256"] is None):
        raise DataError(f"{at}: url must be http(s) and come with a sha256")
    return File(path, values["bytes"], values["sha256"], url)


def _group(at: str, raw: object) -> Group:
    at = f"{at}: group"
    values = _take(at, raw, _GROUP)
    for pattern in values["glob"]:
        _relative(at, pattern)
    _checksum(at, values["sha256"])
    return Group(**values | {"glob": tuple(values["glob"])})


def _take(
    at: str,
    raw: object,
    types: Mapping[str, type | UnionType],
    optional: Set[str] = frozenset(),
) -> dict[str, Any]:
    """Check that ``raw`` holds exactly the keys of ``types``, each of its type; return a copy."""
    if not isinstance(raw, dict):
        raise DataError(f"{at}: expected the keys {', '.join(types)}, not {raw!r}")
    if unknown := [key for key in raw if key not in types]:
        raise DataError(f"{at}: unknown key {unknown[0]!r}; the keys are {', '.join(types)}")
    for key, kind in types.items():
        if key not in raw:
            if key in optional:
                continue
            raise DataError(f"{at}: the key {key!r} is missing")
        if not isinstance(raw[key], kind) or isinstance(raw[key], bool):
            name = getattr(kind, "__name__", str(kind))
            raise DataError(f"{at}: {key} must be {name}, not {raw[key]!r}")
    return dict(raw)


def _relative(at: str, path: object) -> None:
    pure = PurePosixPath(path) if isinstance(path, str) and path else None
    if pure is None or pure.is_absolute() or ".." in pure.parts:
        raise DataError(f"{at}: {path!r} must be a relative path without '..'")


def _checksum(at: str, sha256: str) -> None:
    if not _SHA256.fullmatch(sha256):
        raise DataError(f"{at}: sha256 must be 64 hex digits, not {sha256!r}")
