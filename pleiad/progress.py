"""When will it end: a time of day for progress bars and estimates."""

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


def bar(title: str) -> Progress:
    """Make a bar on stderr; it shows only where that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        EndColumn(),
        console=console,
        disable=not console.is_terminal,
    )
