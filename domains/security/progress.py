"""How far a file of flows has been read."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_LOOKED = 2**20  # bytes of a text that tell the length of its lines


def counted(tables: Iterable[pa.Table], path: Path) -> Iterator[pa.Table]:
    """Pass on the flows of a file, and show how many on stderr where that is a terminal.

    Args:
        tables: the pieces of the file.
        path: of the file.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} flows"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as shown:
        task = None
        for table in tables:
            if task is None:  # now it is known to be readable
                task = shown.add_task(path.name, total=guess_flows(path))
            yield table
            shown.advance(task, table.num_rows)


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
