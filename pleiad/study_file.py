"""Read a study file; every mistake in its form is told in one line. See ``docs/studies.md``."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError
from core.openers import read_yaml, write_atomic
from pleiad.experiments import STUDIES, nearest
from pleiad.study import NAME, Budget, Study, is_study

KEYS = (
    *("study", "folder", "seeds", "budget", "reference", "metrics", "overrides", "tasks"),
    *("grid", "methods"),
)
SET_BY_BUDGET = re.compile(
    r"trainer\.(max|min)_(epochs|steps|time)|trainer\.(val_check_interval|check_val_every_n_epoch)"
)
"""Keys that a budget sets for every run."""
ELSEWHERE = {
    "run": "a run of a study has the folder FOLDER/TASK/METHOD/SEED",
    "ckpt_path": "an interrupted run of a study goes on by itself",
    "seed_everything": "give the seeds by `seeds`",
    "experiment": "give it in `tasks`",
}


def find(name: str) -> Path:
    """Find a study by its path, or by the name of one that comes with the suite.

    Raises:
        UserError: if there is none of that name.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = Path(str(files("configs"))) / STUDIES
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        there = "".join(f", or {known_name}" for known_name in known)
        raise UserError(f"no study {name!r}; give a YAML file{there}")
    return folder / f"{name}.yaml"


def read(path: Path) -> Study:
    """Read a study file.

    Raises:
        UserError: naming the file, the key and what it may be.
    """
    content = read_yaml(path)
    source = str(path)
    if not isinstance(content, dict):
        raise UserError(f"{source}: not a study (a mapping with `tasks` and `methods` is needed)")
    for key in content:
        if key not in KEYS:
            close = nearest(str(key), KEYS)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(KEYS)}"
            raise UserError(f"{source}: unknown key {key}; {hint}")
    name = str(content.get("study", path.stem))
    _check_name("study", name, source)
    methods = _grid(content.get("grid", {}), source)
    if not methods or "methods" in content:
        methods |= _methods(content.get("methods"), source)
    study = Study(
        name,
        Path(str(content.get("folder") or Path("studies", name))),
        _seeds(content.get("seeds"), source),
        _budget(content.get("budget"), source),
        str(content.get("reference", next(iter(methods)))),
        _values(content.get("overrides") or {}, "overrides", source),
        _tasks(content.get("tasks"), source),
        methods,
        source,
        _metrics(content.get("metrics", []), source),
    )
    if study.reference not in methods:
        raise UserError(
            f"{source}: reference: there is no method {study.reference!r};"
            f" there is {', '.join(methods)}"
        )
    for method, own in methods.items():
        _check_tasks_of(method, own, study.tasks, source)
    _check_budget_alone(study)
    if not study.cells():
        raise UserError(f"{source}: every method is left out of every task")
    return study


def of_folder(folder: Path) -> Study:
    """Read the study that has its runs in ``folder``, wherever that now lies.

    Raises:
        UserError: if there is none.
    """
    return read(folder / NAME)._replace(folder=folder)


def keep(study: Study) -> None:
    """Write the study into its folder.

    Raises:
        UserError: if that folder holds another study, or something else.
    """
    check_folder(study)
    study.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "study": study.name,
        "folder": str(study.folder),
        "seeds": list(study.seeds),
        "budget": {k: v for k, v in study.budget._asdict().items() if v is not None} or None,
        "reference": study.reference,
        "metrics": list(study.metrics),
        "overrides": study.overrides,
        "tasks": study.tasks,
        "methods": study.methods,
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_atomic(study.folder / NAME, text)


def check_folder(study: Study) -> None:
    """Refuse a folder that holds another study, or something else.

    Raises:
        UserError: naming it.
    """
    folder = study.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{study.source}: folder: {folder} is a file")
    if is_study(folder):
        other = of_folder(folder).name
        if other != study.name:
            raise UserError(
                f"{study.source}: folder: {folder} holds another study, {other}; name another"
            )
    elif folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(
            f"{study.source}: folder: {folder} is not empty and holds no study; name another"
        )


def _seeds(given: Any, source: str) -> tuple[int, ...]:
    if not isinstance(given, list) or not given:
        raise UserError(f"{source}: seeds={given!r} must be a list of whole numbers: [1, 2, 3]")
    for seed in given:
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise UserError(f"{source}: seeds: {seed!r} must be a whole number from 0 on")
    if twice := {seed for seed in given if given.count(seed) > 1}:
        raise UserError(f"{source}: seeds: {min(twice)} is given twice")
    return tuple(given)


def _budget(given: Any, source: str) -> Budget:
    if given is None:
        return Budget()
    form = f"{source}: budget={given!r} must be {{steps: NUMBER}} or {{seconds: NUMBER}}"
    if not isinstance(given, dict) or not given or set(given) - {"steps", "seconds"}:
        raise UserError(form)
    if len(given) > 1:
        raise UserError(f"{form}, one of them")
    ((kind, value),) = given.items()
    types = (int,) if kind == "steps" else (int, float)
    if type(value) not in types or not 0 < value < 10**12:
        raise UserError(f"{source}: budget.{kind}={value!r} must be a number above 0")
    return Budget(**given)


def _tasks(given: Any, source: str) -> dict[str, dict[str, Any]]:
    form = "TASK: EXPERIMENT, or TASK: {experiment: EXPERIMENT, overrides: {KEY: VALUE}}"
    if not isinstance(given, dict) or not given:
        raise UserError(f"{source}: tasks={given!r} must be a mapping, {form}")
    found = {}
    for name, value in given.items():
        _check_name("tasks", name, source)
        node = {"experiment": value} if isinstance(value, str) else value
        if not isinstance(node, dict) or not isinstance(node.get("experiment"), str):
            raise UserError(f"{source}: tasks.{name}={value!r} must be {form}")
        if extra := set(node) - {"experiment", "overrides"}:
            raise UserError(f"{source}: tasks.{name}: unknown key {min(map(str, extra))}; {form}")
        overrides = _values(node.get("overrides") or {}, f"tasks.{name}.overrides", source)
        found[str(name)] = {"experiment": node["experiment"], "overrides": overrides}
    return found


def _methods(given: Any, source: str) -> dict[str, dict[str, Any]]:
    if not isinstance(given, dict) or not given:
        raise UserError(
            f"{source}: methods={given!r} must be a mapping, METHOD: {{KEY: VALUE, ...}}"
        )
    found = {}
    for name, value in given.items():
        _check_name("methods", name, source)
        found[str(name)] = dict(_values(value or {}, f"methods.{name}", source, ("tasks",)))
    return found


def _metrics(given: Any, source: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{source}: metrics={given!r} must be a list of names: [test/accuracy]")
    return tuple(given)


def _grid(given: Any, source: str) -> dict[str, dict[str, Any]]:
    """Make a method of every combination of values, named by them."""
    form = f"{source}: grid={given!r} must be a mapping of keys to lists, {{KEY: [VALUE, ...]}}"
    if not isinstance(given, dict) or not all(isinstance(v, list) and v for v in given.values()):
        raise UserError(form)
    if not given:
        return {}
    methods = {
        "-".join(map(str, values)): dict(zip(given, values, strict=True))
        for values in product(*given.values())
    }
    return _methods(methods, source)


def _values(given: Any, where: str, source: str, further: Sequence[str] = ()) -> dict[str, Any]:
    """Check a mapping of override keys to values."""
    if not isinstance(given, dict):
        raise UserError(f"{source}: {where}={given!r} must be a mapping, {{KEY: VALUE, ...}}")
    for key in given:
        if not isinstance(key, str) or (not re.fullmatch(r"[\w.]+", key) and key not in further):
            raise UserError(f"{source}: {where}: {key!r} is not a key such as model.optimizer.lr")
        if key in ELSEWHERE:
            raise UserError(f"{source}: {where}.{key}: {ELSEWHERE[key]}")
    return given


def _check_tasks_of(
    method: str, own: Mapping[str, Any], tasks: Mapping[str, Any], source: str
) -> None:
    where = f"methods.{method}.tasks"
    given = own.get("tasks", {})
    if not isinstance(given, dict):
        raise UserError(f"{source}: {where}={given!r} must be TASK: {{KEY: VALUE}}, or TASK: false")
    for task, value in given.items():
        if task not in tasks:
            raise UserError(
                f"{source}: {where}: there is no task {task!r}; there is {', '.join(tasks)}"
            )
        if value is not False:
            _values(value, f"{where}.{task}", source)


def _check_budget_alone(study: Study) -> None:
    """Refuse a length beside the budget that sets it."""
    if study.budget == Budget():
        return
    for cell in study.cells():
        for argument in cell.overrides:
            key = argument[2:].partition("=")[0]
            if SET_BY_BUDGET.fullmatch(key):
                raise UserError(f"{cell.source}: {key} is set by `budget`; leave one of them out")


def _check_name(where: str, name: Any, source: str) -> None:
    """Refuse a name that cannot be that of a folder."""
    if not re.fullmatch(r"[^\W_][\w.+-]*", str(name)):
        raise UserError(
            f"{source}: {where}: {name!r} cannot be a folder's name; use letters, digits, - and _"
        )
