"""Keep arrays that are costly to make, such as tokens of many texts, in the user's cache folder.

An entry is a folder ``arrays/<digest>/`` of NumPy files with their hashes. It is whole or absent:
it is written beside its place and then renamed. What is damaged is made anew, and where the folder
cannot be used everything works without it, only slower.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from core.openers import file_digest

LIMIT_BYTES = 5 * 2**30
PATIENCE = 600
"""Seconds to wait for another process that makes the same arrays, before making them here too."""
_FORMAT = 1
_INDEX = "index.json"


def cached(
    key_parts: Sequence[Any],
    make: Callable[[], Mapping[str, NDArray[Any]]],
    *,
    limit: int = LIMIT_BYTES,
) -> dict[str, NDArray[Any]]:
    """Give the arrays that ``make`` makes, from the cache where they lie there already.

    They are mapped into memory, so that they may be larger than it; a change to them stays in this
    process. While one process makes them, others that ask for the same wait; ``make`` must
    therefore not wait for those.

    Args:
        key_parts: all that the arrays depend on: texts, numbers, None, bytes, and lists and
            mappings of these.
        make: gives the arrays by name; a name serves as a file name.
        limit: the most bytes in the cache; the entries not used for longest make room, and what is
            larger than this is not kept.

    Raises:
        TypeError: if a part of the key is of another type.
        ValueError: if a name is no plain word, or an array holds objects.
    """
    entry = _folder() / _digest(key_parts)
    if (found := _read(entry)) is not None:
        return found
    lock = FileLock(_lock(entry))
    try:
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except (OSError, NotImplementedError):
        return _made(make)
    try:
        found = _read(entry)  # made by another process meanwhile
        return _keep(entry, _made(make), limit) if found is None else found
    finally:
        lock.release()


def _folder() -> Path:
    import pooch

    return Path(pooch.os_cache("pleiad")) / "arrays"


def _digest(key_parts: Sequence[Any]) -> str:
    def plain(part: Any) -> Any:
        if isinstance(part, bytes):
            return {"bytes": part.hex()}
        raise TypeError(f"a key of the cache cannot hold a {type(part).__name__}: {part!r}")

    text = json.dumps([_FORMAT, list(key_parts)], sort_keys=True, default=plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _made(make: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    arrays = dict(make())
    for name, array in arrays.items():
        if not name.isidentifier():
            raise ValueError(f"{name!r} must be a plain word to name an array")
        if array.dtype.hasobject:
            raise ValueError(f"the array {name!r} holds objects, which are not kept")
    return arrays


def _read(entry: Path, *, check: bool = True) -> dict[str, NDArray[Any]] | None:
    """Map the arrays of an entry; None where it is absent or damaged."""
    try:
        index = json.loads((entry / _INDEX).read_text())
        arrays = {}
        for name, digest in index.items():
            file = entry / f"{name}.npy"
            if check and file_digest(file) != digest:
                return None
            arrays[name] = np.asarray(np.load(file, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError, AttributeError):
        return None
    with suppress(OSError):
        os.utime(entry)  # used just now
    return arrays


def _keep(entry: Path, arrays: dict[str, NDArray[Any]], limit: int) -> dict[str, NDArray[Any]]:
    """Write an entry and give its arrays, mapped; where that fails, those in memory."""
    if sum(array.nbytes for array in arrays.values()) > limit:
        return arrays
    part = entry.with_name(f".{entry.name}.part")
    try:
        _remove(part)  # of a process that was killed
        part.mkdir()
        index = {}
        for name, array in arrays.items():
            file = part / f"{name}.npy"
            np.save(file, array, allow_pickle=False)
            index[name] = file_digest(file)
        (part / _INDEX).write_text(json.dumps(index))
        _remove(entry)  # a damaged one
        part.rename(entry)
        _make_room(entry, limit)
    except OSError:
        return arrays
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return _read(entry, check=False) or arrays


def _make_room(newest: Path, limit: int) -> None:
    """Drop the entries not used for longest, and what killed processes left, down to ``limit``."""
    others = [path for path in newest.parent.iterdir() if path.is_dir() and path != newest]
    total = _size(newest)
    for path in sorted(others, key=_used, reverse=True):
        total += _size(path)
        if total > limit:
            _remove(path)
            _lock(path).unlink(missing_ok=True)


def _used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:  # another process dropped it
        return 0.0


def _size(entry: Path) -> int:
    total = 0
    for file in entry.glob("*"):
        with suppress(OSError):
            total += file.stat().st_size
    return total


def _lock(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")


def _remove(entry: Path) -> None:
    """Drop an entry at one stroke: nobody sees a part of it."""
    gone = entry.with_name(f".{uuid.uuid4().hex}.gone")
    with suppress(OSError):
        entry.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
