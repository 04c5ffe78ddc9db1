"""What a run came to: a table for the terminal, and one self-contained HTML page.

A published number never stands in a column of measured ones, every baseline stands beside the
network, and whatever speaks against a result is said (:func:`warnings`).
"""

import base64
import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from core.errors import UserError
from core.openers import parse_yaml, read_text, write_atomic
from pleiad import registry, report_memory
from pleiad.report_charts import charts
from pleiad.report_text import duration, figure, plain
from pleiad.runs import results as read_results

_KEYS: dict[str, Any] = {
    "experiment": str,
    "system": str,
    "task": str,
    "dataset": str,
    "seed": int,
    "metrics": dict,
    "baselines": dict,
    "published": dict | None,
    "parameters": dict,
    "seconds": dict,
    "peak_memory_bytes": int,
    "techniques": list,
    "versions": dict,
    "device": str,
    "config_hash": str,
}
_OPTIONAL: dict[str, Any] = {
    "setting": dict,
    "command": str,
    "git": str | None,
    "warnings": list,
    "units": str | None,
    "notes": list,
    "licence": str | None,
    "citation": str | None,
    "checkpoint": dict | None,
    "memory": dict | None,
}


UNCOVERED = 5
SIDE_BY_SIDE = 5
"""Measures that have a column each."""
"""Points by which intervals may miss their level before it is warned of."""


class Run(NamedTuple):
    """A finished run, read from its folder.

    ``results`` is ``results.json``; ``config`` the text of ``config.yaml``, and ``identity`` that
    without its seeds, equal for two runs that differ in nothing else; ``curves`` maps a column of
    ``metrics.csv`` to its points (step, value); ``pictures`` maps a file's name to its PNG bytes.
    """

    folder: Path
    results: dict[str, Any]
    config: str
    identity: str
    curves: dict[str, list[tuple[float, float]]]
    pictures: dict[str, bytes]


class Row(NamedTuple):
    """A row of results: ``measured`` holds one value a seed, ``published`` what others measured.

    Rows of one ``setup`` may be compared; ``anchor`` is where the page tells more.
    """

    name: str
    note: str
    kind: str
    setup: str
    measured: dict[str, list[float]]
    published: dict[str, float]
    source: str
    anchor: str


def load_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        UserError: if a file is missing or damaged, naming it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; `pleiad fit EXPERIMENT` makes one")
    results = _checked(read_results(folder), folder / "results.json")
    config = read_text(folder / "config.yaml")
    return Run(
        folder=folder,
        results=results,
        config=config,
        identity=_identity(parse_yaml(config, str(folder / "config.yaml")), folder / "config.yaml"),
        curves=_curves(folder / "metrics.csv"),
        pictures={path.name: _png(path) for path in sorted(folder.glob("pictures/*.png"))},
    )


def warnings(results: Mapping[str, Any], seeds: int = 1) -> list[str]:
    """Say what speaks against a result.

    Args:
        results: the content of ``results.json``.
        seeds: with how many seeds the experiment was run.
    """
    found = []
    for name, value in results["metrics"].items():
        if not _finite(value):
            found.append(
                f"{name} is not a finite number: the network diverged or nothing was counted"
            )
            continue
        if _is_coverage(name):
            level = int(name.rpartition("_")[2])
            if level - 100 * value > UNCOVERED:
                found.append(
                    f"intervals of {level} % hold {100 * value:.0f} % of the test: errors were"
                    " smaller in the validation part, by which they are measured"
                )
            continue
        rivals = {
            baseline: metrics[name]
            for baseline, metrics in results["baselines"].items()
            if not _is_oracle(baseline)
            and _finite(metrics.get(name))
            and _better(name, metrics[name], value)
        }
        if rivals:
            best = _best_of(name, rivals.values())
            baseline = next(rival for rival, figure in rivals.items() if figure == best)
            theirs, ours = _apart(best, value)
            found.append(f"{baseline} ({theirs}) beats the network ({ours}) on {name}")
        goal = _published(results).get(name)
        if goal and _worse_by(name, value, goal) > registry.TOLERANCE:
            share = f"{_worse_by(name, value, goal):.0%}".replace("%", " %")
            found.append(f"{name} ({value:.4g}) is {share} worse than the published {goal:g}")
    if not results["baselines"]:
        found.append("no baseline was measured: nothing shows that the network is worth its cost")
    if seeds < 2:
        found.append(f"one seed ({results['seed']}) only: the spread across seeds is not known")
    return found


def table(runs: Sequence[Run]) -> RenderableType:
    """Put runs, published numbers and the baselines of the first ones into one table.

    What speaks against the results stands below it, as :func:`warnings` says it. Runs on different
    data, settings or units are not compared: each kind has a table of its own. Where there are more
    measures than fit side by side, each has a line.
    """
    kinds = _comparable(runs)
    if len(kinds) > 1:
        return Group(*(table(kind) for kind in kinds))
    rows = _rows(runs)
    measured, published = _columns(rows)
    best = _best(rows, measured)
    heads = [Text(plain(name.removeprefix("test/"))) for name in measured]
    heads += [
        Text(plain(f"published {name.removeprefix('test/')}"), "italic") for name in published
    ]
    names, cells = [], []
    for number, row in enumerate(rows):
        names.append(Text(plain(f"{row.name} ({row.note})" if row.note else row.name)))
        own = []
        for name in measured:
            mark = (number, name) in best
            own.append(Text(_cell(row, name) + (" *" if mark else ""), "bold" if mark else ""))
        cells.append([*own, *(Text(_goal(row, name), "italic") for name in published)])
    turned = len(heads) > SIDE_BY_SIDE >= len(rows)
    shown = Table(title=Text(plain(_title(runs))), title_justify="left", header_style="bold")
    shown.add_column("", overflow="fold", min_width=12)
    for number, head in enumerate(names if turned else heads):
        shown.add_column(head, justify="right", no_wrap=not turned and number < len(measured))
    if turned:
        for head, *own in zip(heads, *cells, strict=True):
            shown.add_row(head, *own)
    else:
        for number, (row, head, own) in enumerate(zip(rows, names, cells, strict=True)):
            if number and row.kind != rows[number - 1].kind:
                shown.add_section()
            shown.add_row(head, *own)
    held = report_memory.table(_held(runs))
    told = [Text(plain(line), style="dim") for line in _legend(runs, rows, measured)]
    warned = [Text(plain(f"warning: {line}"), style="yellow") for line in _warned(runs)]
    return Group(shown, *told, *([held] if held else []), *warned)


def html(runs: Sequence[Run]) -> str:
    """Write one page about one or several runs; it loads nothing and runs no script."""
    environment = Environment(
        loader=PackageLoader("pleiad", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        title=_title(runs),
        warnings=_warned(runs),
        tables=[_sheet(kind) for kind in _comparable(runs)],
        runs=[_facts(run) for run in runs],
        cell=_cell,
        goal=_goal,
        lower=lower_is_better,
        memory_columns=report_memory.COLUMNS,
    )
    return page.encode("utf-8", "replace").decode()


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page about ``folders``; give its path.

    Args:
        folders: run folders.
        output: the file; by default ``report.html`` in the folder of the one run, or of several in
            the current folder.

    Raises:
        UserError: if a run cannot be read, or ``output`` is a folder or lies in none.
    """
    if not folders:
        raise UserError("a report needs at least one run folder: pleiad report RUN ...")
    if output is None:
        output = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file in it")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it first")
    write_atomic(output, html([load_run(folder) for folder in folders]))
    return output


# Reading


def _checked(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged: a mapping is needed")
    for key, kind in (_KEYS | _OPTIONAL).items():
        if key not in content:
            if key in _KEYS:
                raise UserError(f"{path}: damaged: the key `{key}` is missing")
            continue
        if not isinstance(content[key], kind):
            raise UserError(f"{path}: damaged: `{key}` may not be {str(content[key])[:40]!r}")
    published = content["published"] or {}
    numbers = {
        "metrics": content["metrics"],
        "parameters": content["parameters"],
        "seconds": content["seconds"],
        "published": {key: value for key, value in published.items() if key != "source"},
        **{f"baselines.{name}": value for name, value in content["baselines"].items()},
        **report_memory.numbers(content.get("memory")),
    }
    for key, mapping in numbers.items():
        if not isinstance(mapping, dict):
            raise UserError(f"{path}: damaged: `{key}` may not be {str(mapping)[:40]!r}")
        for name, value in mapping.items():
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise UserError(f"{path}: damaged: `{key}.{name}` may not be {str(value)[:40]!r}")
    return content


def _identity(config: Any, path: Path) -> str:
    if not isinstance(config, dict):
        raise UserError(f"{path}: damaged: a mapping is needed")
    data = config.get("data")
    if isinstance(data, dict) and isinstance(data.get("init_args"), dict):
        init_args = {key: value for key, value in data["init_args"].items() if key != "seed"}
        config = {**config, "data": {**data, "init_args": init_args}}
    rest = {key: value for key, value in config.items() if key != "seed_everything"}
    return json.dumps(rest, sort_keys=True, default=str)


def _curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    text = read_text(path)
    whole = text[: text.rfind("\n") + 1]  # a row cut by a crash has no end of line
    curves: dict[str, list[tuple[float, float]]] = {}
    try:
        reader = csv.DictReader(io.StringIO(whole), strict=True)
        if "step" not in (reader.fieldnames or ()):
            raise UserError(f"{path}:1: damaged: there is no column `step`")
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}:{reader.line_num}: damaged: not as many cells as columns")
            step = _value(row.pop("step"), "step", path, reader.line_num)
            for name, cell in row.items():
                if cell and name != "epoch" and not name.startswith("test/"):
                    value = _value(cell, name, path, reader.line_num)
                    curves.setdefault(name, []).append((step, value))
    except csv.Error as error:
        raise UserError(f"{path}: damaged: {error}") from None
    return curves


def _value(cell: str, column: str, path: Path, line: int) -> float:
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{path}:{line}: damaged: {column}: {cell[:40]!r} is no number") from None


def _png(path: Path) -> bytes:
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError(f"{path}: damaged: not a readable PNG picture") from None
    return content


# Judging


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _is_coverage(metric: str) -> bool:
    """Say whether a metric is the share of values within intervals, which has no best."""
    return "/coverage_" in metric


def lower_is_better(metric: str) -> bool:
    """Say whether less of a metric is better."""
    name = metric.rsplit("/", 1)[-1]
    return name == "loss" or name in registry.registry().lower_is_better


def _better(metric: str, one: float, other: float) -> bool:
    return one < other if lower_is_better(metric) else one > other


def _best_of(metric: str, values: Iterable[float]) -> float:
    return min(values) if lower_is_better(metric) else max(values)


def _worse_by(metric: str, value: float, goal: float) -> float:
    """Give by how much ``value`` is worse than ``goal``, as a share of ``goal``."""
    return (value - goal if lower_is_better(metric) else goal - value) / abs(goal)


def _published(results: Mapping[str, Any]) -> dict[str, float]:
    """Give the published numbers under the names that the measured ones have."""
    named = {}
    for name, value in (results["published"] or {}).items():
        if name != "source" and value is not None:
            named[name if name in results["metrics"] else f"test/{name}"] = float(value)
    return named


def _apart(one: float, other: float) -> tuple[str, str]:
    """Write two different numbers with as many digits as tell them apart, at least four."""
    texts = [(f"{one:.{digits}g}", f"{other:.{digits}g}") for digits in (4, 6, 9, 17)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[-1])


# Rows and columns


def _sheet(runs: Sequence[Run]) -> dict[str, Any]:
    """Give the page one table of comparable runs."""
    rows = _rows(runs)
    measured, published = _columns(rows)
    return {
        "title": _setup(runs[0]),
        "rows": rows,
        "measured": measured,
        "published": published,
        "best": _best(rows, measured),
        "legend": _legend(runs, rows, measured),
        "memory": report_memory.rows(_held(runs)),
    }


def _comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Put together the runs on the same data, setting and unit."""
    kinds: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        kinds.setdefault((_setup(run), str(run.results.get("units"))), []).append(run)
    return list(kinds.values())


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Put together the runs that differ by nothing but the seed."""

    def key(run: Run) -> tuple[str, str]:
        return run.identity, _setup(run)

    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    found = []
    for group in groups.values():
        seeds = {run.results["seed"] for run in group}
        found += [group] if len(seeds) == len(group) else [[run] for run in group]
    return found


def _setup(run: Run) -> str:
    """Name what must be equal before two results may be compared."""
    setting = run.results.get("setting", {})
    parts = [run.results["dataset"], *(f"{key} {value}" for key, value in setting.items())]
    return ", ".join(str(part) for part in parts)


def _label(run: Run) -> str:
    """Name a run by its system, and by the weights that it began from."""
    begun = (run.results.get("checkpoint") or {}).get("path")
    system = str(run.results["system"])
    return f"{system} from {Path(begun).name}" if begun else system


def _rows(runs: Sequence[Run]) -> list[Row]:
    groups = _groups(runs)
    several = len(groups) > 1
    differ = len({_setup(run) for run in runs}) > 1
    labels = [group[0].results["experiment"] if several else _label(group[0]) for group in groups]
    rows = []
    for label, group in zip(labels, groups, strict=True):
        first = group[0].results
        seeds = ", ".join(str(run.results["seed"]) for run in group)
        notes = [f"seeds {seeds}" if len(group) > 1 else f"seed {seeds}"]
        if differ:
            notes.insert(0, _setup(group[0]))
        if labels.count(label) > 1:
            notes.append(", ".join(str(run.folder) for run in group))
        rows.append(
            Row(
                name=label,
                note="; ".join(notes),
                kind="network",
                setup=_setup(group[0]),
                measured=_measured([run.results["metrics"] for run in group]),
                published=_published(first),
                source=str((first["published"] or {}).get("source", "")),
                anchor=f"run-{next(i for i, run in enumerate(runs, 1) if run is group[0])}",
            )
        )
    setup = _setup(groups[0][0])
    note = f"baseline on {setup}" if differ else "baseline"
    judged = [run.results["baselines"] for run in groups[0]]
    for name in judged[0]:
        found = _measured([each[name] for each in judged if name in each])
        measured = {key: v[:1] if len(set(v)) == 1 else v for key, v in found.items()}
        rows.append(Row(name, note, "baseline", setup, measured, {}, "", ""))
    return rows


def _held(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Give the results of each group of runs by its name in the table."""
    groups = _groups(runs)
    names = [row.name for row in _rows(runs)[: len(groups)]]
    names = [
        f"{name} ({group[0].folder})" if names.count(name) > 1 else name
        for name, group in zip(names, groups, strict=True)
    ]
    return {name: [run.results for run in group] for name, group in zip(names, groups, strict=True)}


def _measured(results: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
    return {
        name: [
            math.nan if (value := metrics.get(name)) is None else float(value)
            for metrics in results
        ]
        for name in results[0]
    }


def _columns(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Name the measured and the published columns; a loss is shown only where nothing else is."""
    names = list(dict.fromkeys(name for row in rows for name in row.measured))
    shown = [name for name in names if not _is_coverage(name)]
    measured = [name for name in shown if name.rsplit("/", 1)[-1] != "loss"] or shown
    return measured, list(dict.fromkeys(name for row in rows for name in row.published))


def _best(rows: Sequence[Row], measured: Sequence[str]) -> set[tuple[int, str]]:
    """Find the best measured value of each metric among the rows that may be compared."""
    best = set()
    for setup in {row.setup for row in rows}:
        for name in measured:
            means = {
                number: mean
                for number, row in enumerate(rows)
                if row.setup == setup
                and not _is_oracle(row.name)
                and _finite(mean := _mean(row, name))
            }
            if len(means) > 1:
                goal = _best_of(name, means.values())
                best |= {(number, name) for number, mean in means.items() if mean == goal}
    return best


def _is_oracle(name: str) -> bool:
    """Say whether a baseline is a bound that knows the answers, and no rival."""
    return name.endswith("(oracle)")


def _mean(row: Row, name: str) -> float:
    values = row.measured.get(name)
    return statistics.fmean(values) if values else math.nan


def _cell(row: Row, name: str) -> str:
    values = row.measured.get(name)
    if not values:
        return "-"
    if len(values) == 1:
        return figure(values[0])
    if not all(math.isfinite(value) for value in values):
        return figure(math.nan)
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return f"{figure(mean)} ±\N{NO-BREAK SPACE}{figure(spread, mean)}"


def _goal(row: Row, name: str) -> str:
    """Write a published number with the digits it was published with."""
    return f"{row.published[name]:.10g}" if name in row.published else "-"


def _title(runs: Sequence[Run]) -> str:
    experiments = list(dict.fromkeys(run.results["experiment"] for run in runs))
    if len(experiments) > 1:
        return f"{len(runs)} runs of {len(experiments)} experiments"
    title = f"{experiments[0]}: {_setup(runs[0])}"
    return title if len(runs) == 1 else f"{title} ({len(runs)} runs)"


def _legend(runs: Sequence[Run], rows: Sequence[Row], measured: Sequence[str]) -> list[str]:
    lines = ["* best measured value"]
    for sense, wanted in (("lower", True), ("higher", False)):
        names = [name.removeprefix("test/") for name in measured if lower_is_better(name) is wanted]
        if names:
            lines[0] += f"; {sense} is better for {', '.join(names)}"
    lines += [
        f"intervals of {row.name}: of {name.rpartition('_')[2]} %, {100 * mean:.1f} % of the values"
        " lie inside"
        for row in rows
        for name in row.measured
        if _is_coverage(name) and _finite(mean := _mean(row, name))
    ]
    units = {str(units) for run in runs if (units := run.results.get("units"))}
    if units:
        lines.append(f"units: {', '.join(sorted(units))}")
    if any(len(values) > 1 for row in rows for values in row.measured.values()):
        lines.append("mean ± sample standard deviation over seeds")
    sources = dict.fromkeys((row.name, row.source) for row in rows if row.published)
    lines += [f"published ({name}): {source or 'no source given'}" for name, source in sources]
    return lines


def _warned(runs: Sequence[Run]) -> list[str]:
    """Collect the warnings of all runs, each once; of several runs each says whose it is."""
    found = []
    for group in _groups(runs):
        for run in group:
            alone = warnings(run.results)
            now = warnings(run.results, len(group))
            told = [line for line in map(str, run.results.get("warnings", [])) if line not in alone]
            where = f"{run.folder}: "
            found += [where * (len(runs) > 1) + line for line in now + told]
    if len({_setup(run) for run in runs}) > 1:
        found.insert(0, "the runs differ in data set or setting: compare within each only")
    return list(dict.fromkeys(found))


# The page


def _facts(run: Run) -> dict[str, Any]:
    """Give the template what it shows of one run, formatted."""
    results = run.results
    return {
        "results": results,
        "folder": str(run.folder),
        "setting": ", ".join(f"{key} {value}" for key, value in results.get("setting", {}).items()),
        "techniques": [_technique(technique) for technique in results["techniques"]],
        "parameters": {key: f"{int(value or 0):,}" for key, value in results["parameters"].items()},
        "seconds": {key: duration(value or 0.0) for key, value in results["seconds"].items()},
        "memory": report_memory.facts(results),
        "charts": charts(run.curves),
        "pictures": {
            name: base64.b64encode(content).decode() for name, content in run.pictures.items()
        },
        "config": run.config,
    }


def _technique(technique: Any) -> str:
    if not isinstance(technique, Mapping):
        return str(technique)
    told = [
        str(value) if key == "value" else f"{key} {value}"
        for key, value in technique.items()
        if key != "name"
    ]
    name = str(technique.get("name", ""))
    return f"{name}: {', '.join(told)}" if told else name
