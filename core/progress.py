"""When will it end: a time of day for progress bars and estimates."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


def ends(seconds: float, now: datetime | None = None) -> str:
    """Say when something ends that takes so many seconds more."""
    return f"ends {clock(seconds, now)}, in {timedelta(seconds=max(0, round(seconds)))}"


def clock(seconds: float, now: datetime | None = None) -> str:
    """Give the time of day in so many seconds, and the day where it is another."""
    now = now or datetime.now()
    end = now + timedelta(seconds=max(0, round(seconds)))
    day = "" if end.date() == now.date() else f"{end:%a %d %b} "
    return f"{day}{end:%H:%M}"


class EndColumn(ProgressColumn):
    """The finishing time of a bar's task."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Show nothing before a speed is known."""
        left = task.time_remaining
        return Text("" if left is None or task.finished else ends(left), style="cyan")


_shown: list[Progress] = []


@contextmanager
def bar(title: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a bar on stderr, where that is a terminal; one within another is a line of it.

    Args:
        title: what is done.
        total: how much there is to do.

    Yields:
        A function that takes how much more was done.
    """
    if not _shown:
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), EndColumn()
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            _shown.append(progress)
            try:
                with bar(title, total) as advance:
                    yield advance
            finally:
                _shown.clear()
        return
    task = _shown[0].add_task(title, total=total)
    yield lambda done: _shown[0].advance(task, done)
    _shown[0].update(task, visible=len(_shown[0].tasks) == 1)
