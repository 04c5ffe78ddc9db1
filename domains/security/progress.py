"""How far a file of flows has been read."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def counted(tables: Iterable[pa.Table], name: str) -> Iterator[pa.Table]:
    """Count the flows of a file on stderr, where that is a terminal.

    Args:
        tables: the pieces of the file; how many there are is not known before the last.
        name: of the file.
    """
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,.0f} flows"),
        TextColumn("{task.speed:,.0f} a second"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as shown:
        task = shown.add_task(name, total=None)
        for table in tables:
            yield table
            shown.advance(task, table.num_rows)
