"""A finished run with early exits, judged at each of them, and with a gate at prices of a layer.

Only gates are fitted: the run's weights, and all that lies in its folder, stay as they are.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from rich.console import Group
from rich.table import Table

from core.adapter_targets import EXITS
from core.early_exit.transform import EarlyExit, exits_of
from core.errors import UserError
from core.openers import read_json
from core.pretrained import class_path
from pleiad import weights
from pleiad.building import Built
from pleiad.conclusion import is_detail, merged, save_model
from pleiad.experiments import resolve
from pleiad.run import Options, finished_run, reopen

ANEW = (f".{EXITS}.gate.", f".{EXITS}.thresholds")
"""What of a checkpoint says who leaves, and is set here."""


class Way(NamedTuple):
    """A way to run a network: its name, what ran of it in the test, and the metrics."""

    name: str
    met: dict[str, Any]
    metrics: dict[str, float]


class Compared(NamedTuple):
    """Every exit for all samples, and the gates."""

    fixed: list[Way]
    gated: list[Way]


def compare(
    name: str,
    overrides: Sequence[str],
    options: Options,
    betas: Sequence[float] = (),
    soft: bool = False,
    output: Path | None = None,
) -> Compared:
    """Test a finished run at each exit, and with gates.

    Args:
        name: a run folder, or an experiment, whose newest finished run it is.
        overrides: ``--key=value`` arguments.
        options: the command's own keys.
        betas: prices of a layer, a gate for each.
        soft: the gates learn shares of the exits.
        output: a new folder for the model with the gate, where ``betas`` are one.

    Raises:
        UserError: if the run has no early exits, or an argument does not fit.
    """
    if output is not None and len(betas) != 1:
        raise UserError(f"--output {output}: the model has one gate; give one --beta")
    if output is not None and output.exists():
        raise UserError(f"--output {output}: exists already; name a new folder")
    folder = finished_run(name)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder}: has no checkpoints; name a run of `pleiad fit`")
    experiment = resolve(str(folder), overrides, options.trust)
    experiment = experiment._replace(config=copy.deepcopy(experiment.config))
    nodes = experiment.config.get("transforms") or []
    node = next((each for each in nodes if each["class_path"] == class_path(EarlyExit)), None)
    if node is None:
        raise UserError(
            f"{folder}: the run has no early exits; `pleiad fit ... --transforms=EarlyExit` trains"
            " them"
        )
    given = {k: v for k, v in (node.get("init_args") or {}).items() if k != "threshold"}
    node["init_args"] = {**given, "beta": betas[0] if betas else 0.0, "soft": soft}
    built, trainer = reopen(folder, experiment, options, ANEW)
    exits = exits_of(built.task)
    assert exits is not None
    assert exits.gate is not None
    fixed, gated = [], []
    for depth in exits.gate.depths:
        exits.gate.hold(depth)
        fixed.append(_test(f"exit {depth}", built, trainer))
    for beta in betas:
        exits.gate.price(beta)
        gated.append(_test(f"beta {beta:g}", built, trainer))
    if output is not None and trainer.is_global_zero:
        origin = read_json(path) if (path := folder / weights.ORIGIN).is_file() else {}
        save_model(built, experiment, output, origin)
    return Compared(fixed, gated)


def tables(found: Compared) -> Group:
    """Put the ways into tables, a column each."""
    titles = ("one exit for all", "with a gate")
    pairs = zip(titles, found, strict=True)
    return Group(*(_table(title, ways) for title, ways in pairs if ways))


def _test(name: str, built: Built, trainer: Trainer) -> Way:
    metrics = merged(trainer.test(built.task, built.data, verbose=False))
    exits = exits_of(built.task)
    assert exits is not None
    return Way(name, exits.meter.report(), metrics)


def _table(title: str, ways: Sequence[Way]) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for heading in ("", *(way.name for way in ways)):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    met = [way.met for way in ways]
    table.add_row("mean exit", *(f"{each['mean_exit']:.2f}" for each in met))
    for number in met[0]["exits"]:
        counts = [each["exits"][number] for each in met]
        if any(0 < count < each["samples"] for count, each in zip(counts, met, strict=True)):
            table.add_row(f"left at {number}", *map(str, counts))
    for row, name in (("layers saved", "layers_share"), ("all saved", "macs_share")):
        table.add_row(row, *(f"{1 - each[name]:.1%}" for each in met))
    shown = [n for n in ways[0].metrics if not is_detail(n)]
    for name in shown:
        if name not in ("test/mean_exit", "test/macs_share"):
            table.add_row(name, *(f"{way.metrics[name]:.4f}" for way in ways))
    return table
