"""What a report says of memory, and of the time of a step's two halves."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import filesize
from rich.table import Table
from rich.text import Text

from pleiad.report_text import plain

COLUMNS = {
    "kept": "saved_bytes",
    "gradients": "gradient_bytes",
    "optimizer": "optimizer_bytes",
    "weights": "weight_bytes",
    "peak": "peak_memory_bytes",
    "forward": "forward_seconds",
    "backward": "backward_seconds",
}
"""What is shown of each run, and its key in ``results.json``."""

LEGEND = (
    "kept: for the backward of a batch; peak: of the process, or the GPU; forward, backward: of a"
    " batch, wall time"
)
CLASSES = 3
"""Classes of modules that a page names among those that keep the most."""


def numbers(memory: Any) -> dict[str, Any]:
    """Give the mappings that must hold numbers, by their keys."""
    if not memory:
        return {}
    plain_ones = {key: value for key, value in memory.items() if key != "saved_by_class"}
    return {"memory": plain_ones, "memory.saved_by_class": memory.get("saved_by_class", {})}


def rows(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, list[str]]]:
    """Give the cells of each group of runs, as the means over its runs; none if none measured.

    Args:
        runs: the contents of ``results.json`` by the name of their group.
    """
    if not any(results.get("memory") for group in runs.values() for results in group):
        return []
    return [(name, [_cell(group, key) for key in COLUMNS.values()]) for name, group in runs.items()]


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table | None:
    """Put what groups of runs held side by side; None where none was measured."""
    found = rows(runs)
    if not found:
        return None
    shown = Table(caption=LEGEND, caption_justify="left", caption_style="dim", header_style="bold")
    shown.add_column("memory", overflow="fold", min_width=12)
    for name in COLUMNS:
        shown.add_column(name, justify="right", no_wrap=True)
    for name, cells in found:
        shown.add_row(Text(plain(name)), *cells)
    return shown


def facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Give what the page says of one run, by name."""
    told = {"peak memory": filesize.decimal(results["peak_memory_bytes"])}
    memory = results.get("memory")
    if not memory:
        return told
    names = {
        "kept for the backward": "saved_bytes",
        "gradients": "gradient_bytes",
        "optimizer": "optimizer_bytes",
        "weights": "weight_bytes",
        "forward of a batch": "forward_seconds",
        "backward of a batch": "backward_seconds",
    }
    told |= {name: _cell([results], key) for name, key in names.items()}
    most = list(memory.get("saved_by_class", {}).items())[:CLASSES]
    if most:
        parts = [f"{name} {filesize.decimal(int(size or 0))}" for name, size in most]
        told["kept for the backward"] += f" ({', '.join(parts)}{', ...' * (len(parts) == CLASSES)})"
    return told


def _cell(group: Sequence[Mapping[str, Any]], key: str) -> str:
    found = [
        value
        for results in group
        if (value := {**results, **(results.get("memory") or {})}.get(key)) is not None
    ]
    if not found:
        return "-"
    mean = statistics.fmean(found)
    if key.endswith("_bytes"):
        return filesize.decimal(round(mean))
    return f"{mean:.3g} s" if mean >= 1 else f"{1000 * mean:.3g} ms"
