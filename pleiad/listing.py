"""What ``pleiad list`` and ``pleiad show`` say about systems, experiments and data sets.

Everything here reads text files only: no module of a domain is imported.
``python -m pleiad.listing`` writes the generated pages, ``docs/systems.md`` and the ``README.md``
of each domain; a test fails when they no longer equal the registry.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import data
from core.errors import UserError
from core.openers import read_text, write_atomic
from pleiad import registry
from pleiad.experiments import names
from pleiad.registry import Measured, Published, System

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

RUNS = Path("runs")
PLACES = {
    "here": "on this machine",
    "fetch": "downloaded by `pleiad data fetch NAME`, or on first use where it is small",
    "install": "ships in a package that is not installed",
    "manual": "must be fetched by hand; `pleiad data fetch NAME` says how",
}
"""The statuses of a data set."""

Row = dict[str, Any]
_MARKS = "; ".join(f"[{mark}] {meaning}" for mark, meaning in registry.MARKS.items())
_COLUMNS = {
    "systems": ("id", "name", "title", "domain", "task", "kind", "status"),
    "experiments": ("name", "about", "system", "status"),
    "datasets": ("name", "title", "domain", "systems", "licence", "status"),
    "checkpoints": ("system", "name", "source", "licence", "commercial_use", "bytes", "note"),
}
NO_CHECKPOINTS = (
    "No public weights are known that load into a built network. Weights of your own, by the names"
    " of the published code, are taken by: pleiad import SYSTEM CHECKPOINT --output FOLDER"
)


def render(
    what: str,
    output: str = "table",
    *,
    domain: str | None = None,
    task: str | None = None,
    status: str | None = None,
    runs: Path = RUNS,
) -> "RenderableType | str":
    """List systems, experiments, data sets or public checkpoints; the filters combine.

    Args:
        what: ``systems``, ``experiments``, ``datasets`` or ``checkpoints``.
        output: ``table``, ``json`` or ``md``; all but ``table`` give text to be written as it is.
        domain: only those of this package of the suite.
        task: only those whose task in the taxonomy contains this, whatever its case.
        status: only those of this status.
        runs: the folder of the runs that results are read from.

    Raises:
        UserError: if a filter can match nothing; the message gives what can be asked for.
    """
    keep = _filters(what, domain, task, status)
    made: dict[str, Callable[[], list[Row]]] = {
        "systems": lambda: system_rows(runs),
        "experiments": lambda: experiment_rows(runs),
        "datasets": dataset_rows,
        "checkpoints": lambda: checkpoint_rows(runs),
    }
    rows = made[what]()
    rows = [row for row in rows if all(test(row) for test in keep)]
    if output == "json":
        return json.dumps(rows, indent=2, default=str, ensure_ascii=False)
    if what == "checkpoints" and not rows:
        return NO_CHECKPOINTS
    cells = [[_cell(row[column]) for column in _COLUMNS[what]] for row in rows]
    return _markdown(_COLUMNS[what], cells) if output == "md" else _table(_COLUMNS[what], cells)


def system_rows(runs: Path | None = RUNS) -> list[Row]:
    """The ninety systems, then the companions; published and measured results are kept apart."""
    return [
        {
            "id": entry.id,
            "name": entry.name,
            "title": entry.title,
            "paper": entry.paper,
            "year": entry.year,
            "code": entry.code,
            "licence": entry.licence,
            "domain": entry.domain,
            "survey_domain": entry.survey_domain,
            "task": entry.survey_task,
            "kind": entry.kind,
            "module": entry.module,
            "experiments": entry.experiments,
            "datasets": entry.datasets,
            "status": registry.status(entry, runs),
            "published": [vars(row) for row in entry.published],
            "measured": [vars(found) for found in _results(entry, runs)],
            "notes": entry.notes,
        }
        for entry in _entries()
    ]


def experiment_rows(runs: Path | None = RUNS) -> list[Row]:
    """The experiments that come with the suite, with the first line of their comment."""
    owners = {name: entry for entry in _entries() for name in entry.experiments}
    return [
        {
            "name": name,
            "domain": name.partition("/")[0],
            "about": next(iter(_comment(name)), ""),
            "system": owners[name].name if name in owners else None,
            "task": owners[name].survey_task if name in owners else None,
            "status": _experiment_status(name, owners.get(name), runs),
        }
        for name in names()
    ]


def dataset_rows() -> list[Row]:
    """The data catalogue, with the systems that use each set and whether it is here."""
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "domain": entry.domain,
            "systems": [system.name for system in _users(entry.name)],
            "task": sorted({system.survey_task for system in _users(entry.name)}),
            "licence": entry.licence,
            "citation": entry.citation,
            "source": entry.source.text or entry.source.kind,
            "bytes": entry.bytes,
            "status": dataset_status(entry),
            "facts": dict(entry.facts),
        }
        for entry in data.entries().values()
    ]


def checkpoint_rows(runs: Path | None = RUNS) -> list[Row]:
    """The public weights that load, with their licence; the status is their system's."""
    return [
        {
            "system": entry.name,
            **vars(checkpoint),
            "domain": entry.domain,
            "task": entry.survey_task,
            "status": registry.status(entry, runs),
        }
        for entry in _entries()
        for checkpoint in entry.checkpoints
    ]


def dataset_status(entry: data.Entry) -> str:
    """Where a set is: a key of ``PLACES``. Nothing is downloaded or verified."""
    try:
        place = data.where(entry.name)
    except data.DataError:
        return "install"
    if entry.group:
        here = any(True for pattern in entry.group.glob for _ in place.glob(pattern))
    elif len(entry.files) == 1:
        here = place.is_file()
    else:
        here = all((place / file.path).is_file() for file in entry.files)
    missing = {"url": "fetch", "package": "install", "manual": "manual"}
    return "here" if here else missing[entry.source.kind]


def show_system(key: int | str, runs: Path | None = RUNS) -> "RenderableType":
    """One system: citation, place, how to run it, published beside measured, known faults.

    Raises:
        UserError: if there is none of this number or name; the message gives the nearest.
    """
    from rich.console import Group
    from rich.text import Text

    entry = registry.system(key)
    status = registry.status(entry, runs)
    head = Text(f"{entry.id}  {entry.name}", style="bold").append(f"  {status}", style="not bold")
    parts: list[RenderableType] = [head, Text(_citation(entry)), Text()]
    facts = {
        "kind": f"{entry.kind}, {entry.domain}",
        "survey": f"{entry.survey_domain}: {entry.survey_task}",
        "code": entry.code,
        "licence": entry.licence or "not stated",
        "module": entry.module or "not built yet",
        "data": ", ".join(f"{name} ({_dataset_state(name)})" for name in entry.datasets),
    }
    parts += _lines(facts)
    for name in filter(registry.config, entry.experiments):
        about, *commands = [*_comment(name), ""]
        parts += [Text(), Text(f"{name}: {about}"), Text(f"  pleiad fit {name}")]
        parts += [Text(f"  {line}") for line in commands if line not in {"", f"pleiad fit {name}"}]
    if results := _beside(entry, runs):
        columns = ("data set", "setting", "published", "measured here", "source")
        parts += [Text(), _table(columns, results), Text(_MARKS)]
    if entry.notes:
        parts += [Text(), Text("Known faults of the reference, and limits:")]
        parts += [Text(f"  - {note}") for note in entry.notes]
    return Group(*parts)


def show_dataset(name: str) -> "RenderableType":
    """One data set: what it is, where it comes from, its splits and facts, and who uses it.

    Raises:
        DataError: if there is none of this name; the message gives the nearest.
    """
    from rich.console import Group
    from rich.text import Text

    entry = data.entry(name)
    status = dataset_status(entry)
    head = Text(entry.name, style="bold").append(f"  {status}", style="not bold")
    facts = {
        "place": str(data.where(name)) if status == "here" else PLACES[status],
        "size": f"{entry.bytes / 1e6:.3g} MB" if entry.bytes else "not published",
        "source": entry.source.text or " ".join(file.url for file in entry.files if file.url),
        "licence": entry.licence,
        "cite": entry.citation,
        "splits": _pairs(entry.splits, "; "),
        "facts": _pairs(entry.facts, "; "),
        "systems": ", ".join(system.name for system in _users(name)),
    }
    return Group(head, Text(f"{entry.title}.\n"), *_lines(facts))


def pages(root: Path = registry.ROOT) -> dict[str, str]:
    """The generated pages, by their path below ``root``. Only committed results enter them."""
    domains = sorted(file.parent.name for file in root.glob("domains/*/__init__.py"))
    return {
        "docs/systems.md": _systems_page(),
        **{f"domains/{domain}/README.md": _domain_page(domain) for domain in domains},
    }


def main(wanted: Sequence[str]) -> None:
    """Write the generated pages, or only the ``wanted`` ones."""
    made = pages()
    for name in wanted or made:
        if name not in made:
            sys.exit(f"{name} is not a generated page; they are {', '.join(made)}")
        write_atomic(registry.ROOT / name, made[name])


def _entries() -> tuple[System, ...]:
    return (*registry.systems(), *registry.peers())


def _users(dataset: str) -> list[System]:
    return [entry for entry in _entries() if dataset in entry.datasets]


def _filters(
    what: str, domain: str | None, task: str | None, status: str | None
) -> list[Callable[[Row], bool]]:
    keep: list[Callable[[Row], bool]] = []
    if domain is not None:
        package = domain.lower().replace("-", "_")
        _check("domain", domain, package, registry.DOMAINS)
        keep.append(lambda row: row["domain"] == package)
    if task is not None:
        tasks = [name for group in registry.registry().taxonomy.values() for name in group]
        if not any(task.lower() in name for name in _lower(tasks)):
            raise UserError(
                f"--task {task}: no task contains it; the tasks are: {'; '.join(tasks)}"
            )
        keep.append(lambda row: any(task.lower() in name for name in _lower(row["task"])))
    if status is not None:
        _check("status", status, status, PLACES if what == "datasets" else registry.STATUSES)
        keep.append(lambda row: row["status"] == status)
    return keep


def _check(option: str, given: str, value: str, known: Iterable[str]) -> None:
    choices = list(known)
    if value not in choices:
        hint = registry.near(value, choices)
        raise UserError(f"--{option} {given}: {hint}It is one of {', '.join(choices)}")


def _lower(names: str | Sequence[str] | None) -> list[str]:
    return [name.lower() for name in ([names] if isinstance(names, str) else names or [])]


def _experiment_status(name: str, owner: System | None, runs: Path | None) -> str:
    if owner and registry.status(owner, runs) == "none":
        return "none"
    found = registry.measured(name, runs)
    return "works" if found and (owner is None or registry.within(found, owner)) else "built"


def _results(entry: System, runs: Path | None) -> list[Measured]:
    found = [registry.measured(name, runs) for name in entry.experiments]
    return [results for results in found if results]


def _comment(experiment: str) -> list[str]:
    """The comment at the head of a config, without its marks."""
    file = registry.config(experiment)
    lines = read_text(file).splitlines() if file else []
    head: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.lstrip("#").strip())
    return head


def _dataset_state(name: str) -> str:
    entries = data.entries()
    return dataset_status(entries[name]) if name in entries else "not in the catalogue"


def _citation(entry: System) -> str:
    where = entry.paper or ""
    year = "" if entry.year is None or str(entry.year) in where else str(entry.year)
    place = ", ".join(part for part in (where, year) if part)
    title = entry.title if entry.title.endswith("?") else f"{entry.title}."
    return f"{title} {place}." if place else title


def _beside(entry: System, runs: Path | None) -> list[list[str]]:
    """Published and measured results in columns of their own; the measured rows come first."""
    measured = _results(entry, runs)
    rows = []
    for row in entry.published:
        ours = [found.metrics for found in measured if _same(found, row)]
        source = f"{row.source} [{row.mark}]"
        rows.append(_result(row, row.metrics, ours[0] if ours else {}, source))
    others = [found for found in measured if not any(_same(found, row) for row in entry.published)]
    rows += [_result(found, {}, found.metrics, "") for found in others]
    return sorted(rows, key=lambda row: not row[3])


def _same(found: Measured, row: Published) -> bool:
    return (found.dataset, found.setting) == (row.dataset, row.setting)


def _result(
    row: Measured | Published,
    published: Mapping[str, float],
    measured: Mapping[str, float],
    source: str,
) -> list[str]:
    return [row.dataset, _pairs(row.setting), _metrics(published), _metrics(measured), source]


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return f"({_pairs(value)})"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _pairs(values: Mapping[str, object], between: str = ", ") -> str:
    return between.join(f"{key} {_cell(value)}" for key, value in values.items())


def _lines(facts: Mapping[str, str]) -> list["Text"]:
    from rich.text import Text

    return [Text(f"{name:<9}{value}") for name, value in facts.items() if value]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in {"id", "name", "status"})
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _systems_page() -> str:
    rows = system_rows(runs=None)
    ninety = [row for row in rows if isinstance(row["id"], int)]
    index = [
        [domain, task, _cell([row["id"] for row in ninety if row["task"] == task])]
        for domain, tasks in registry.registry().taxonomy.items()
        for task in tasks
    ]
    text = [
        "# The systems\n",
        "Generated from `pleiad/systems.yaml` by `python -m pleiad.listing`. A system *works* when "
        "its last results are at most 10 % worse than published (or, where nothing is published "
        "for them, when a run has finished), is *built* when its module is there, and is *none* "
        "otherwise. `pleiad show NAME` gives its citation, its results and the known faults of its "
        "reference.\n",
        f"{_count(ninety)} {len(rows) - len(ninety)} companion networks (p1, p2, ...) stand "
        "beside them.\n",
        "## Where each one has its place\n",
        _markdown(("survey domain", "task", "systems"), index),
    ]
    for domain in registry.DOMAINS:
        text += [
            f"## {_heading(domain)}\n",
            _markdown(
                ("#", "name", "title", "where", "kind", "code", "licence", "status"),
                [
                    [_cell(row[key]) for key in ("id", "name", "title")]
                    + [_cell(row["paper"] or row["year"])]
                    + [_cell(row[key]) for key in ("kind", "code", "licence", "status")]
                    for row in rows
                    if row["domain"] == domain
                ],
            ),
        ]
    results = [
        [entry.name, *row] for entry in _entries() for row in _beside(entry, runs=None) if row[3]
    ]
    if results:
        text += [
            "## Published beside measured\n",
            f"Committed results only. Sources: {_MARKS}.\n",
            _markdown(
                ("system", "data set", "setting", "published", "measured here", "source"), results
            ),
        ]
    return "\n".join(text)


def _domain_page(domain: str) -> str:
    rows = [row for row in system_rows(runs=None) if row["domain"] == domain]
    ninety = [row for row in rows if isinstance(row["id"], int)]
    companions = [row for row in rows if row not in ninety]
    experiments = [row for row in experiment_rows(runs=None) if row["domain"] == domain]
    columns = ("id", "name", "title", "kind", "experiments", "status")
    text = [
        f"# {_heading(domain)}\n",
        "Generated from `pleiad/systems.yaml` by `python -m pleiad.listing`; "
        "`pleiad show NAME` tells more about each line.\n",
    ]
    for title, part in (("Systems", ninety), ("Companion networks", companions)):
        if part:
            cells = [[_cell(row[column]) for column in columns] for row in part]
            text += [f"## {title}\n", _markdown(columns, cells)]
    if experiments:
        lines = [f"- `pleiad fit {row['name']}`: {row['about']}\n" for row in experiments]
        text += ["## Experiments\n", "".join(lines)]
    return "\n".join(text)


def _count(rows: Sequence[Row]) -> str:
    working = sum(row["status"] == "works" for row in rows)
    built = sum(row["status"] != "none" for row in rows)
    return f"{len(rows)} systems, of which {built} are built and {working} work."


def _heading(domain: str) -> str:
    names = {"nlp": "Natural language", "core": "Core: techniques for every domain"}
    return names.get(domain, domain.replace("_", " ").capitalize())


if __name__ == "__main__":
    main(sys.argv[1:])
