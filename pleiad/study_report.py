"""What a study came to: for each task a table of methods, each compared with the reference."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from core.errors import UserError
from core.openers import read_json, read_yaml
from pleiad.experiments import nearest
from pleiad.runs import is_finished
from pleiad.study import Study
from pleiad.study_bootstrap import LEVEL, RESAMPLES, Interval, compare
from pleiad.study_file import of_folder
from pleiad.study_scores import Items, read

FEW_GROUPS = 20
"""Below so many independent groups of items an interval tells little."""
COSTS = {
    "steps": "steps",
    "fit_seconds": "fit",
    "peak_memory_bytes": "peak memory",
    "saved_bytes": "kept for backward",
    "optimizer_bytes": "optimizer",
    "trainable_parameters": "trained parameters",
}
"""Columns of what a method costs, and their heads."""


class Found(NamedTuple):
    """A study and its results.

    ``runs`` has a row a run; ``rows`` a row a task, metric and method; ``notes`` maps a task to
    lines on what has to be known about its table.
    """

    study: Study
    runs: pd.DataFrame
    rows: pd.DataFrame
    notes: dict[str, list[str]]


def load(folder: Path, metrics: Sequence[str] = ()) -> Found:
    """Read the finished runs of a study and compare its methods.

    Args:
        folder: of the study.
        metrics: to compare, such as ``test/accuracy``; by default those that the study names, or
            that which chooses the checkpoints, or the first.

    Raises:
        UserError: if nothing is finished, a file is damaged or there is no such metric.
    """
    study = of_folder(folder)
    runs = pd.DataFrame([_run(study, *which) for which in _planned(study)])
    if not (runs.state == "finished").any():
        raise UserError(
            f"{folder}: no run of the study is finished; `pleiad study FILE` makes them"
        )
    wanted = [name if "/" in name else f"test/{name}" for name in metrics or study.metrics]
    known = [name for name in map(str, runs) if name.startswith("test/")]
    for name in wanted:
        if name not in known:
            close = nearest(name, known) or known
            raise UserError(f"--metric {name}: no run has it; there is {', '.join(close)}")
    rows, notes = [], {}
    for task in study.tasks:
        of_task = runs[runs.task == task]
        notes[task] = list(_missing(of_task, len(study.seeds)))
        if not (of_task.state == "finished").any():
            continue
        own = [name for name in wanted if of_task[name].notna().any()]
        for metric in own or [_primary(of_task)]:
            for method in of_task.method.unique():
                row, told = _row(study, of_task, task, method, metric)
                rows.append(row)
                notes[task] += told
    return Found(study, runs, pd.DataFrame(rows), {t: _once(lines) for t, lines in notes.items()})


def _planned(study: Study) -> Iterator[tuple[str, str, int]]:
    for cell in study.cells():
        for seed in study.seeds:
            yield cell.task, cell.method, seed


def _run(study: Study, task: str, method: str, seed: int) -> dict[str, Any]:
    """Read a run into one row."""
    folder = study.folder / task / method / str(seed)
    row: dict[str, Any] = {"task": task, "method": method, "seed": seed, "state": "missing"}
    row |= {"folder": str(folder)}
    if not is_finished(folder):
        return row | {"state": "unfinished" if folder.is_dir() else "missing"}
    path = folder / "results.json"
    results = read_json(path)
    try:
        return row | {
            "state": "finished",
            "steps": results.get("steps"),
            "fit_seconds": results["seconds"]["fit"],
            "peak_memory_bytes": results["peak_memory_bytes"],
            "trainable_parameters": results["parameters"]["trainable"],
            "parameters": results["parameters"]["total"],
            **_numbers(results.get("memory") or {}),
            "device": results["device"],
            "horizon": results.get("setting", {}).get("horizon"),
            **_numbers(results["metrics"]),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged: {error}") from None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def _primary(runs: pd.DataFrame) -> str:
    """Choose the metric that ranks the checkpoints, or the first that is no loss."""
    first = runs[runs.state == "finished"].to_dict("records")[0]
    path = Path(first["folder"]) / "config.yaml"
    monitor = str((read_yaml(path).get("checkpoints") or {}).get("monitor"))
    wished = f"test/{monitor.partition('/')[2]}"
    known = [str(c) for c in first if str(c).startswith("test/") and not pd.isna(first[c])]
    others = [name for name in known if name != "test/loss"]
    return wished if wished in others else (others or known)[0]


def _row(
    study: Study, runs: pd.DataFrame, task: str, method: str, metric: str
) -> tuple[dict[str, Any], list[str]]:
    """Aggregate a method's runs over the seeds, and compare it with the reference."""
    own = runs[(runs.method == method) & (runs.state == "finished")]
    values = own[metric]
    row: dict[str, Any] = {
        "task": task,
        "metric": metric,
        "method": method,
        "n": int(values.notna().sum()),
        "seeds": len(study.seeds),
        "mean": values.mean(),
        "sd": values.std(ddof=1),
        **{key: own[key].mean() for key in COSTS if key in own},
    }
    reference = runs[(runs.method == study.reference) & (runs.state == "finished")]
    pairs = own.merge(reference, on="seed", suffixes=("", "_reference"))
    pairs = pairs[pairs[metric].notna() & pairs[f"{metric}_reference"].notna()]
    notes: list[str] = []
    if method == study.reference or pairs.empty:
        return row, notes
    row["difference"] = (pairs[metric] - pairs[f"{metric}_reference"]).mean()
    row["pairs"] = len(pairs)
    if (pairs[metric] == pairs[f"{metric}_reference"]).all():
        notes.append(f"{method} is exactly {study.reference}: do its keys change anything?")
    interval = _interval(pairs, metric)
    name = metric.removeprefix("test/")
    if interval is None:
        notes.append(f"{name} has no interval: it cannot be told again from single test items")
        return row, notes
    row |= {"low": interval.low, "high": interval.high, "items": interval.items}
    row["groups"] = interval.groups
    if interval.groups < FEW_GROUPS:
        notes.append(
            f"the test holds {interval.groups} independent groups of items only: intervals are"
            " narrower than they should be"
        )
    return row, notes


def _interval(pairs: pd.DataFrame, metric: str) -> Interval | None:
    sides: list[list[Items]] = []
    for suffix in ("", "_reference"):
        side: list[Items] = []
        for pair in pairs.to_dict("records"):
            path = Path(pair[f"folder{suffix}"]) / "predictions.parquet"
            horizon = pair.get("horizon")
            block = int(horizon) if horizon is not None and not pd.isna(horizon) else None
            items = read(path, metric, float(pair[f"{metric}{suffix}"]), block)
            if items is None:
                return None
            side.append(items)
        sides.append(side)
    ours, theirs = sides
    return compare(ours, theirs)


def _missing(runs: pd.DataFrame, seeds: int) -> Iterator[str]:
    """Say which runs are not there, and what few seeds mean."""
    for method, own in runs.groupby("method", sort=False):
        if left := [str(seed) for seed in own[own.state != "finished"].seed]:
            yield f"{method}: no result of seed {', '.join(left)}"
    if seeds == 1:
        yield "one seed only: intervals hold what other test items would change, not another seed"
    devices = runs.device.dropna().unique() if "device" in runs else ()
    if len(devices) > 1:
        yield f"times and memory are not comparable: runs on {', '.join(devices)}"


def about(found: Found) -> str:
    """Say in a sentence how differences were judged."""
    return (
        f"Differences are to {found.study.reference}; their {LEVEL:.0%} intervals are those of"
        f" {RESAMPLES:,} paired bootstrap draws of test items and seeds; * marks those without 0."
    ).replace("%", " %")


def is_clear(row: Mapping[str, Any]) -> bool:
    """Say whether an interval leaves out 0."""
    low, high = row.get("low", math.nan), row.get("high", math.nan)
    return bool(low > 0 or high < 0)


def _once(lines: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(lines))
