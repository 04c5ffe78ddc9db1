"""How far files of flows have been read."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_LOOKED = 2**20  # bytes of a text that tell the length of its lines


def counted(tables: Iterable[pa.Table], paths: Sequence[Path]) -> Iterator[pa.Table]:
    """Pass on the flows of files, and show how many on stderr where that is a terminal.

    Args:
        tables: the pieces of all files.
        paths: of the files.
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
        task = shown.add_task(paths[0].name, total=None)
        count = 0
        for table in tables:
            yield table
            count += table.num_rows
            if count == table.num_rows and not shown.disable:
                guesses = [guess_flows(path) for path in paths]
                known = [guess for guess in guesses if guess is not None]
                shown.update(task, total=sum(known) if len(known) == len(paths) else None)
            shown.update(task, completed=count)


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
