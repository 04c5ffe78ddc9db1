"""The tables of a study in a terminal, as Markdown, LaTeX, CSV and one HTML page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import filesize
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group
from rich.table import Table
from rich.text import Text

from core.errors import UserError
from core.openers import write_atomic
from pleiad.report import lower_is_better
from pleiad.study_report import COSTS, Found, about, is_clear

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


class Sheet(NamedTuple):
    """The table of a task as text: ``rows`` have a cell for each of ``head``."""

    task: str
    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def sheets(found: Found) -> list[Sheet]:
    """Write the table of each task that has a finished run."""
    return [_sheet(found, task, rows) for task, rows in found.rows.groupby("task", sort=False)]


def table(found: Found) -> Any:
    """Show the tables in a terminal; one that is too wide goes on below, by its methods."""
    parts: list[Any] = []
    for sheet in sheets(found):
        parts.append(_Wide(sheet.title, [sheet.head, *sheet.rows]))
        parts += [Text(line, style="dim") for line in sheet.notes]
    return Group(*parts)


class _Wide:
    """A table for any width: its head and rows of text, the first column left-aligned."""

    def __init__(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        self.title = title
        self.columns = list(zip(*rows, strict=True))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        widths = [max(cell_len(cell) for cell in column) + 3 for column in self.columns]
        left = list(range(1, len(widths)))
        while left:
            room, taken = options.max_width - widths[0] - 1, [left.pop(0)]
            room -= widths[taken[0]]
            while left and widths[left[0]] <= room:
                taken.append(left.pop(0))
                room -= widths[taken[-1]]
            title = Text(self.title) if taken[0] == 1 else None
            shown = Table(title=title, title_justify="left", header_style="bold")
            for place in (0, *taken):
                head = Text(self.columns[place][0])
                shown.add_column(head, justify="right" if place else "left")
            for cells in zip(*(self.columns[place][1:] for place in (0, *taken)), strict=True):
                shown.add_row(*map(Text, cells))
            yield shown


def write(found: Found, form: str, output: Path | None = None) -> list[Path]:
    """Write the report, and figures beside it; give their paths.

    Args:
        found: what :func:`load` gives.
        form: ``html``, ``markdown``, ``latex`` or ``csv``.
        output: the file; by default ``report`` in the folder of the study.

    Raises:
        UserError: if ``output`` is a folder or lies in none.
    """
    from pleiad.study_figures import draw

    if output is None:
        suffix = {"html": "html", "markdown": "md", "latex": "tex", "csv": "csv"}[form]
        output = found.study.folder / f"report.{suffix}"
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file in it")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it first")
    figures = draw(found, output.parent / "figures")
    return [*_write_as(found, form, output, figures), *figures]


def _write_as(found: Found, form: str, output: Path, figures: Sequence[Path]) -> list[Path]:
    """Write one form of the report; give the paths of its files.

    ``csv`` has a second file, ``..._runs.csv``, with one row a run.
    """
    if form == "csv":
        runs = output.with_name(f"{output.stem}_runs{output.suffix}")
        write_atomic(output, found.rows.to_csv(index=False))
        write_atomic(runs, found.runs.dropna(axis=1, how="all").to_csv(index=False))
        return [output, runs]
    forms: dict[str, Callable[[Found, Sequence[Path]], str]]
    forms = {"markdown": markdown, "latex": latex, "html": html}
    write_atomic(output, forms[form](found, figures))
    return [output]


def markdown(found: Found, figures: Sequence[Path]) -> str:
    """Write Markdown; figures are linked."""
    parts = [f"# {found.study.name}"]
    for sheet in sheets(found):
        lines = [
            sheet.head,
            ["---", *["---:"] * (len(sheet.head) - 1)],
            *([cell.replace("|", r"\|") for cell in row] for row in sheet.rows),
        ]
        parts.append(f"## {sheet.title}")
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
        parts += ["\n".join(f"- {note}" for note in sheet.notes)] if sheet.notes else []
        parts += [f"![{p.stem}](figures/{p.name})" for p in _of(figures, sheet.task, ".png")]
    return "\n\n".join([*parts, about(found)]) + "\n"


def latex(found: Found, figures: Sequence[Path]) -> str:
    """Write a document with one ``booktabs`` table a task."""
    parts = [
        r"\documentclass{article}",
        r"\usepackage[landscape,margin=2cm]{geometry}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
    ]
    for sheet in sheets(found):
        frame = pd.DataFrame(sheet.rows, columns=[_escaped(head) for head in sheet.head])
        style = frame.style.hide(axis="index").format(_escaped)
        parts.append(
            style.to_latex(
                hrules=True,
                column_format="l" + "r" * (len(sheet.head) - 1),
                caption=_escaped(". ".join([sheet.title, *sheet.notes, about(found)])),
                label=f"tab:{sheet.task}",
                position="ht",
                position_float="centering",
            )
        )
        parts += [
            rf"\includegraphics[width=.48\linewidth]{{figures/{path.name}}}"
            for path in _of(figures, sheet.task, ".pdf")
        ]
    return "\n".join([*parts, r"\end{document}"]) + "\n"


def html(found: Found, figures: Sequence[Path]) -> str:
    """Write one page, which loads nothing and runs no script."""
    from base64 import b64encode

    environment = Environment(
        loader=PackageLoader("pleiad", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html.jinja").render(
        title=found.study.name,
        about=about(found),
        sheets=sheets(found),
        reference=found.study.reference,
        unfinished=[task for task in found.study.tasks if task not in set(found.rows.task)],
        pictures={
            sheet.task: {
                path.stem: b64encode(path.read_bytes()).decode()
                for path in _of(figures, sheet.task, ".png")
            }
            for sheet in sheets(found)
        },
        runs=_runs(found),
        folder=str(found.study.folder),
    )


def _sheet(found: Found, task: Any, rows: pd.DataFrame) -> Sheet:
    metrics = list(rows.metric.unique())
    costs = [key for key in COSTS if key in rows and rows[key].notna().any()]
    head = ["method"]
    for metric in metrics:
        arrow = "↓" if lower_is_better(metric) else "↑"
        name = metric.removeprefix("test/")
        head += [f"{name} {arrow}", f"{name} {MINUS} {found.study.reference}"]
    head += ["runs", *(COSTS[key] for key in costs)]
    lines = []
    for method, own in rows.groupby("method", sort=False):
        line = [str(method)]
        for metric in metrics:
            row = own[own.metric == metric].iloc[0].to_dict()
            line += [_mean(row), _difference(row)]
        first = own.iloc[0].to_dict()
        line.append(f"{first['n']} of {first['seeds']}")
        lines.append(line + [_cost(key, first[key]) for key in costs])
    experiment = found.study.tasks[str(task)]["experiment"]
    return Sheet(str(task), f"{task} ({experiment})", head, lines, found.notes[str(task)])


def _runs(found: Found) -> Sheet:
    """Write the table of all runs, with what each took."""
    metrics = list(found.rows.metric.unique())
    costs = [key for key in COSTS if key in found.runs and found.runs[key].notna().any()]
    head = ["run", "state", *(name.removeprefix("test/") for name in metrics)]
    rows = [
        [
            f"{run['task']}/{run['method']}/{run['seed']}",
            str(run["state"]),
            *(_number(run[metric]) for metric in metrics),
            *(_cost(key, run[key]) for key in costs),
        ]
        for run in found.runs.to_dict("records")
    ]
    return Sheet("", "", [*head, *(COSTS[key] for key in costs)], rows, [])


def _number(value: float) -> str:
    return NOTHING if pd.isna(value) else f"{value:.{_places(value)}f}"


def _mean(row: Mapping[str, Any]) -> str:
    text = _number(row["mean"])
    return text if pd.isna(row["sd"]) else f"{text} ± {row['sd']:.{_places(row['mean'])}f}"


def _difference(row: Mapping[str, Any]) -> str:
    if pd.isna(row.get("difference", float("nan"))):
        return NOTHING
    places = _places(row["mean"])
    text = f"{row['difference']:+.{places}f}"
    if not pd.isna(row.get("low", float("nan"))):
        mark = "*" if is_clear(row) else ""
        text += f" [{row['low']:+.{places}f}, {row['high']:+.{places}f}]{mark}"
    return text.replace("-", MINUS)


def _places(value: float) -> int:
    """Give the decimals that suit a number: four of a share, fewer of what is large."""
    size = abs(value)
    return 0 if size >= 1000 else 2 if size >= 10 else 4 if size >= 0.01 or size == 0 else 6


def _cost(key: str, value: float) -> str:
    if pd.isna(value):
        return NOTHING
    if key.endswith("_bytes"):
        return filesize.decimal(round(value))
    return f"{value:.1f} s" if key.endswith("_seconds") else f"{value:,.0f}"


SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", MINUS: "$-$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", NOTHING: "--"},
}


def _escaped(text: object) -> str:
    """Write text for LaTeX."""
    return "".join(SPECIAL.get(character, character) for character in str(text))


def _of(figures: Sequence[Path], task: str, suffix: str) -> list[Path]:
    return [p for p in figures if p.suffix == suffix and p.stem.rpartition("-")[0] == task]
