"""When will it end: a time of day for progress bars and estimates."""

from datetime import datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


def ends(seconds: float, now: datetime | None = None) -> str:
    """Say when something ends that takes so many seconds more."""
    now = now or datetime.now()
    left = timedelta(seconds=max(0, round(seconds)))
    end = now + left
    day = "" if end.date() == now.date() else f"{end:%a %d %b} "
    return f"ends {day}{end:%H:%M}, in {left}"


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
