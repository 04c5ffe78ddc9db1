"""The registry of systems: what ``systems.yaml`` declares, and how far each system is.

The comment at the head of that file explains its keys. What was measured is never typed into it: it
is read from the ``results.json`` of runs, and the status of a system is computed from them:

* ``works``: its module is in the source tree, one of its experiments has a config, and the last
  results of that experiment are within tolerance;
* ``built``: its module is in the source tree;
* ``none``: it is not.

The last results of an experiment are those of its newest finished run below the runs folder or,
where there is none, the figures committed in ``docs/results/*.json`` (copies of ``results.json``).
They are within tolerance if no metric is more than 10 % worse than the one published for the same
data set and setting; where nothing is published for them, a finished run suffices.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError
from core.openers import parse_yaml, read_json, read_text
from pleiad.experiments import nearest
from pleiad.runs import newest

PATH = Path(__file__).with_name("systems.yaml")
ROOT = Path(__file__).parent.parent
"""The folder that holds the packages, ``configs`` and, in a checkout, ``docs``."""

DOMAINS = (
    "nlp",
    "vision",
    "speech",
    "time_series",
    "medical",
    "biology",
    "security",
    "multimodal",
    "decision",
    "core",
)
KINDS = ("network", "task", "technique", "analysis", "dataset", "survey")
MARKS = {"P": "read in the paper or the authors' code", "S": "second hand", "R": "recalled"}
COMMERCIAL = ("yes", "no", "unknown")
"""Whether the licence of weights allows commercial use."""
STATUSES = ("works", "built", "none")
TOLERANCE = 0.1
"""How much worse than published a metric may be, as a share of the published value."""

Status = Literal["works", "built", "none"]
Setting = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Published:
    """A result that others published.

    Attributes:
        dataset: its name, in the catalogue where it is there.
        setting: what the result depends on, such as look-back and horizon.
        metrics: from a metric's name to its value; shares are fractions of one.
        source: where it was read.
        mark: how sure it is: a key of ``MARKS``.
    """

    dataset: str
    setting: Setting
    metrics: Mapping[str, float]
    source: str
    mark: str


@dataclass(frozen=True)
class Checkpoint:
    """Public weights that load into a system's network by ``pleiad import``.

    Attributes:
        name: of the file, without its ending.
        source: the address or hub id to fetch it from.
        licence: of the weights; None if they state none.
        commercial_use: a key of ``COMMERCIAL``.
        bytes: the size of the file; None if unknown.
        note: what they were trained on.
    """

    name: str
    source: str
    licence: str | None
    commercial_use: str
    bytes: int | None
    note: str


@dataclass(frozen=True)
class System:
    """One entry of the registry.

    Attributes:
        id: 1 to 90, or p1, p2, ... for a companion network that is not among the ninety.
        name: the short name that ``results.json`` carries.
        title: of the paper or project.
        paper: where it appeared; None if unknown.
        year: when; None if unknown.
        code: repository @ commit of the code that was read, or ``none``.
        domain: the package of the suite that it belongs to; ``core`` for techniques.
        survey_domain: its domain in the taxonomy.
        survey_task: its task in the taxonomy.
        kind: one of ``KINDS``.
        module: import path; None while it is not built.
        experiments: the names of its configs.
        datasets: the names of its sets in the catalogue.
        licence: of the code; None if it states none.
        published: what others measured.
        notes: known faults of the reference, and limits of what can be reproduced.
        checkpoints: public weights that load; the key may be left out.
    """

    id: int | str
    name: str
    title: str
    paper: str | None
    year: int | None
    code: str
    domain: str
    survey_domain: str
    survey_task: str
    kind: str
    module: str | None
    experiments: tuple[str, ...]
    datasets: tuple[str, ...]
    licence: str | None
    published: tuple[Published, ...]
    notes: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True)
class Registry:
    """A whole registry.

    Attributes:
        taxonomy: from a survey domain to its tasks.
        lower_is_better: the metrics of which less is better.
        systems: in the order of the file.
        peers: companion networks.
    """

    taxonomy: Mapping[str, tuple[str, ...]]
    lower_is_better: tuple[str, ...]
    systems: tuple[System, ...]
    peers: tuple[System, ...]


@dataclass(frozen=True)
class Measured:
    """The results of one run.

    Attributes:
        experiment: the name of its config.
        system: the name of its system.
        dataset: the name of its set.
        setting: what the results depend on.
        metrics: of the test split, named without ``test/``.
        path: the file they were read from.
    """

    experiment: str
    system: str
    dataset: str
    setting: Setting
    metrics: Mapping[str, float]
    path: Path


def load(path: Path = PATH) -> Registry:
    """Read a registry.

    Raises:
        UserError: if it is not valid YAML, or a key is unknown, missing or wrong; the message is
            ``FILE:LINE: what is wrong``.
    """
    text = read_text(path)
    raw = parse_yaml(text, path.name)
    try:
        return _registry(raw)
    except _FaultError as fault:
        line = _line(text, fault.where)
        raise UserError(f"{path.name}:{line}: {fault}") from None


@functools.cache
def registry() -> Registry:
    """The suite's registry, read once."""
    return load()


def systems() -> tuple[System, ...]:
    """The ninety systems by number."""
    return registry().systems


def peers() -> tuple[System, ...]:
    """The companion networks that are not among the ninety."""
    return registry().peers


def system(key: int | str) -> System:
    """The system or companion of a number or name, such as 53, ``"p1"`` or ``"autoformer"``.

    Raises:
        UserError: if there is none; the message gives the nearest names.
    """
    wanted = str(key).strip().lower().replace("-", "_")
    known = (*systems(), *peers())
    for entry in known:
        if wanted in {str(entry.id), entry.name}:
            return entry
    hint = near(wanted, [entry.name for entry in known])
    raise UserError(f"no system is called {key!r}; {hint}All systems: pleiad list systems")


def system_of(module: str) -> str | None:
    """The name of the system whose module has this import path; None if there is none."""
    for entry in (*systems(), *peers()):
        if entry.module == module:
            return entry.name
    return None


def near(word: str, known: list[str]) -> str:
    """A hint that ends in a space, such as ``did you mean autoformer? ``, or nothing."""
    found = nearest(word, known)
    return f"did you mean {' or '.join(found)}? " if found else ""


def published(system: str, dataset: str, setting: Setting) -> dict[str, float | str] | None:
    """What was published for exactly this system, data set and setting.

    Returns:
        The metrics and their ``source`` (which says so where it is not the original), or None if
        nothing is published for it.
    """
    for entry in (*systems(), *peers()):
        if entry.name == system and (row := _row(entry, dataset, setting)):
            doubt = "" if row.mark == "P" else f" ({MARKS[row.mark]})"
            return {**row.metrics, "source": f"{row.source}{doubt}"}
    return None


def status(system: System, runs: Path | None = None, root: Path = ROOT) -> Status:
    """How far a system is; the module's docstring states the rule.

    Args:
        system: an entry.
        runs: the folder of the runs; None considers committed figures only.
        root: the folder that holds the packages and ``configs``.
    """
    if system.module is None or not module_file(system.module, root):
        return "none"
    results = [measured(name, runs, root) for name in system.experiments if config(name, root)]
    return "works" if any(found and within(found, system) for found in results) else "built"


def within(results: Measured, system: System) -> bool:
    """Whether results are within tolerance of what was published for ``system``."""
    row = _row(system, results.dataset, results.setting)
    shared = row.metrics.keys() & results.metrics.keys() if row else set()
    if row is None or not shared:
        return True
    for name in shared:
        goal, value = row.metrics[name], results.metrics[name]
        excess = value - goal if name in registry().lower_is_better else goal - value
        if not excess <= TOLERANCE * abs(goal):  # false for NaN too
            return False
    return True


def measured(experiment: str, runs: Path | None = None, root: Path = ROOT) -> Measured | None:
    """The last results of an experiment, or None if it never finished.

    Args:
        experiment: the name of its config.
        runs: the folder of the runs; None considers committed figures only.
        root: the folder that holds ``docs/results``.
    """
    run = newest(experiment, finished=True, root=runs) if runs else None
    found = _measured(run / "results.json") if run else None
    return found or _committed(root).get(experiment)


def module_file(module: str, root: Path = ROOT) -> Path | None:
    """The source file of a module, found without importing anything; None if it is not there."""
    path = root / module.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def config(experiment: str, root: Path = ROOT) -> Path | None:
    """The config of an experiment; None if it is not there."""
    file = root / "configs" / f"{experiment}.yaml"
    return file if file.is_file() else None


def _row(system: System, dataset: str, setting: Setting) -> Published | None:
    for row in system.published:
        if row.dataset == dataset and row.setting == setting:
            return row
    return None


@functools.cache
def _committed(root: Path) -> Mapping[str, Measured]:
    """The committed figures by experiment."""
    found = [_measured(file) for file in sorted(root.glob("docs/results/*.json"))]
    return {results.experiment: results for results in found if results}


def _measured(file: Path) -> Measured | None:
    """Read one ``results.json``; None if it is damaged, which must not stop a listing."""
    try:
        raw = read_json(file)
        metrics = {
            name.removeprefix("test/"): float(value)
            for name, value in raw["metrics"].items()
            if isinstance(value, int | float)
        }
        return Measured(
            experiment=raw["experiment"],
            system=raw["system"],
            dataset=raw["dataset"],
            setting=dict(raw["setting"]),
            metrics=metrics,
            path=file,
        )
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None


# The schema: a check takes the place of a value (keys and indices from the top) and the value, and
# returns what the dataclass holds.
_Where = tuple[str | int, ...]
_Check = Callable[[_Where, Any], Any]


class _FaultError(Exception):
    def __init__(self, where: _Where, message: str) -> None:
        super().__init__(message)
        self.where = where


def _registry(raw: object) -> Registry:
    top = _mapping(
        (),
        raw,
        {
            "lower_is_better": _list_of(_text),
            "taxonomy": _free(_list_of(_text)),
            "systems": _list_of(_system(_whole)),
            "peers": _list_of(_system(_matching("p[0-9]+", "p1, p2, ..."))),
        },
    )
    seen: set[object] = set()
    for part in ("systems", "peers"):
        for index, entry in enumerate(top[part]):
            for key, value in (("id", entry.id), ("name", entry.name)):
                if value in seen:
                    raise _FaultError((part, index, key), f"{key} {value} is given twice")
                seen.add(value)
            if entry.survey_domain not in top["taxonomy"]:
                choices = ", ".join(top["taxonomy"])
                message = f"survey_domain {entry.survey_domain!r} must be one of {choices}"
                raise _FaultError((part, index, "survey_domain"), message)
            tasks = top["taxonomy"][entry.survey_domain]
            if entry.survey_task not in tasks:
                message = f"survey_task {entry.survey_task!r} must be one of: {'; '.join(tasks)}"
                raise _FaultError((part, index, "survey_task"), message)
    return Registry(**top)


def _system(identifier: _Check) -> _Check:
    checks: dict[str, _Check] = {
        "id": identifier,
        "name": _matching("[a-z][a-z0-9_]*", "lower-case letters, digits and underscores"),
        "title": _text,
        "paper": _optional(_text),
        "year": _optional(_whole),
        "code": _matching(r"none|[\w.-]+/.+", "none, or repository @ commit"),
        "domain": _one_of(DOMAINS),
        "survey_domain": _text,
        "survey_task": _text,
        "kind": _one_of(KINDS),
        "module": _optional(_matching(r"[a-z_]\w*(\.\w+)*", "an import path")),
        "experiments": _list_of(_matching(r"\w+/\w+", "DOMAIN/NAME below configs/")),
        "datasets": _list_of(_text),
        "licence": _optional(_text),
        "published": _list_of(_published),
        "notes": _list_of(_text),
    }
    optional = {"checkpoints": _list_of(_checkpoint)}
    return lambda where, raw: System(**_mapping(where, raw, checks, optional))


def _checkpoint(where: _Where, raw: object) -> Checkpoint:
    checks: dict[str, _Check] = {
        "name": _text,
        "source": _text,
        "licence": _optional(_text),
        "commercial_use": _one_of(COMMERCIAL),
        "bytes": _optional(_whole),
        "note": _text,
    }
    return Checkpoint(**_mapping(where, raw, checks))


def _published(where: _Where, raw: object) -> Published:
    checks: dict[str, _Check] = {
        "dataset": _text,
        "setting": _free(_plain),
        "metrics": _free(_number),
        "source": _text,
        "mark": _one_of(tuple(MARKS)),
    }
    return Published(**_mapping(where, raw, checks))


def _mapping(
    where: _Where,
    raw: object,
    checks: Mapping[str, _Check],
    optional: Mapping[str, _Check] | None = None,
) -> dict[str, Any]:
    """Check that ``raw`` has the keys of ``checks``, and no others but ``optional`` ones."""
    every = {**checks, **(optional or {})}
    if not isinstance(raw, dict):
        raise _FaultError(where, f"expected the keys {', '.join(checks)}, not {raw!r}")
    for key in raw:
        if key not in every:
            hint = near(str(key), list(every)) or f"the keys are {', '.join(every)}"
            raise _FaultError((*where, key), f"unknown key {key!r}; {hint.strip()}")
    for key in checks:
        if key not in raw:
            raise _FaultError(where, f"the key {key!r} is missing")
    return {key: check((*where, key), raw[key]) for key, check in every.items() if key in raw}


def _fail(where: _Where, expected: str, raw: object) -> _FaultError:
    key = next((part for part in reversed(where) if isinstance(part, str)), "the file")
    return _FaultError(where, f"{key} must be {expected}, not {raw!r}")


def _text(where: _Where, raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise _fail(where, "text", raw)
    return raw


def _whole(where: _Where, raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise _fail(where, "a whole number", raw)
    return raw


def _number(where: _Where, raw: object) -> float:
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        raise _fail(where, "a number", raw)
    return float(raw)


def _plain(where: _Where, raw: object) -> str | int | float:
    if not isinstance(raw, str | int | float):
        raise _fail(where, "text, a number, true or false", raw)
    return raw


def _matching(pattern: str, expected: str) -> _Check:
    def check(where: _Where, raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(pattern, raw):
            raise _fail(where, expected, raw)
        return raw

    return check


def _one_of(choices: tuple[str, ...]) -> _Check:
    def check(where: _Where, raw: object) -> object:
        if raw not in choices:
            raise _fail(where, f"one of {', '.join(choices)}", raw)
        return raw

    return check


def _optional(check: _Check) -> _Check:
    return lambda where, raw: None if raw is None else check(where, raw)


def _list_of(check: _Check) -> _Check:
    def check_list(where: _Where, raw: object) -> tuple[Any, ...]:
        if not isinstance(raw, list):
            raise _fail(where, "a list", raw)
        return tuple(check((*where, index), item) for index, item in enumerate(raw))

    return check_list


def _free(check: _Check) -> _Check:
    """A mapping from any text to values that pass ``check``."""

    def check_mapping(where: _Where, raw: object) -> dict[str, Any]:
        if not isinstance(raw, dict):
            raise _fail(where, "a mapping", raw)
        return {_text(where, key): check((*where, key), raw[key]) for key in raw}

    return check_mapping


def _line(text: str, where: _Where) -> int:
    """The line of the value at ``where``, counted from 1; of a key that is unknown, the key's."""
    import yaml

    node: Any = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    line = node.start_mark.line + 1 if node else 1
    for part in where:
        if isinstance(node, yaml.MappingNode):
            key, node = next(pair for pair in node.value if pair[0].value == str(part))
            line = key.start_mark.line + 1
        else:
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
