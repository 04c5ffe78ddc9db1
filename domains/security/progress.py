"""How far a file of flows has been read."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from core.progress import bar

_LOOKED = 2**20  # bytes of a text that tell the length of its lines


def counted(tables: Iterator[pa.Table], path: Path) -> Iterator[pa.Table]:
    """Pass on the flows of a file, and show how many on stderr where that is a terminal.

    Args:
        tables: the pieces of the file.
        path: of the file.
    """
    first = next(tables, None)
    if first is None:
        return
    with bar(path.name, guess_flows(path)) as advance:  # now it is known to be readable
        for table in chain([first], tables):
            yield table
            advance(table.num_rows)


def guess_flows(path: Path) -> int | None:
    """Guess how many flows a file holds, by its size; None of a packed or damaged one."""
    if path.suffix.lower() == ".gz":
        return None
    if path.suffix.lower() in (".parquet", ".pq"):
        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, pa.ArrowException):
            return None
    with path.open("rb") as file:
        begun = file.read(_LOOKED)
    return round(path.stat().st_size * (begun.count(b"\n") or 1) / max(len(begun), 1))
