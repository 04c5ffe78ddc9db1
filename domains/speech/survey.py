"""Look at every recording once before anything is trained; what is wrong is told then."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.array_cache import cached
from core.errors import UserError
from domains.speech import audio

THREADS = 4
_VERSION = 1
_NOTES = (
    audio.NOT_NUMBERS,
    audio.CLIPPED,
    audio.FOLDED,
    audio.SILENT,
)


class Survey(NamedTuple):
    """What N recordings hold.

    Attributes:
        rates: samples a second (N,).
        frames: samples a channel (N,).
        content: a hash of each recording's samples (N,).
        silent: which are silent (N,).
        notes: what was repaired or is odd, and how often.
    """

    rates: NDArray[np.int64]
    frames: NDArray[np.int64]
    content: NDArray[np.int64]
    silent: NDArray[np.bool_]
    notes: tuple[str, ...]


def survey(paths: Sequence[Path], rate: int) -> Survey:
    """Read all recordings; the result is kept in the cache folder.

    Args:
        paths: the files.
        rate: what they will be resampled to, for the notes.

    Raises:
        UserError: naming the first file that cannot be read.
    """
    stamps = []
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        found = path.stat()
        stamps.append([str(path.absolute()), found.st_mtime_ns, found.st_size])
    arrays = cached(["speech survey", _VERSION, stamps], lambda: _looked(paths))
    rates, odd = arrays["rates"], arrays["odd"]
    counts = {note: int(odd[:, at].sum()) for at, note in enumerate(_NOTES)}
    others = Counter(rates[rates != rate].tolist())
    counts |= {f"resampled from {own:,} to {rate:,} Hz": n for own, n in sorted(others.items())}
    notes = tuple(f"{note}: {count:,} recordings" for note, count in counts.items() if count)
    silent = odd[:, _NOTES.index(audio.SILENT)]
    return Survey(rates, arrays["frames"], arrays["content"], silent, notes)


def _looked(paths: Sequence[Path]) -> dict[str, NDArray[Any]]:
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(_look, paths))
    columns: Iterator[Any] = zip(*rows, strict=True) if rows else iter([()] * 4)
    rates, frames, content, odd = columns
    return {
        "rates": np.array(rates, np.int64),
        "frames": np.array(frames, np.int64),
        "content": np.array(content, np.int64),
        "odd": np.array(odd, bool).reshape(len(paths), len(_NOTES)),
    }


def _look(path: Path) -> tuple[int, int, int, list[bool]]:
    found = audio.read(path)
    digest = hashlib.blake2b(found.samples.numpy().tobytes(), digest_size=8).digest()
    content = int.from_bytes(digest, "little", signed=True)
    return found.rate, len(found.samples), content, [note in found.notes for note in _NOTES]
