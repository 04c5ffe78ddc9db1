"""A study file: tasks, methods and seeds, of which every combination is one run.

:mod:`pleiad.study_file` reads it, :mod:`pleiad.study_checks` looks for mistakes and for what is
done, :mod:`pleiad.study_runs` makes the runs, :mod:`pleiad.study_report` compares them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import UserError
from pleiad.experiments import Experiment, resolve

NAME = "study.yaml"
"""The study as it was last run, in its folder."""


class Budget(NamedTuple):
    """What every run may spend on training: optimizer steps, or seconds of them."""

    steps: int | None = None
    seconds: float | None = None


class Cell(NamedTuple):
    """A method on a task, of which each seed makes one run.

    ``overrides`` are ``--key=value`` arguments of ``pleiad fit``.
    """

    task: str
    method: str
    experiment: str
    overrides: tuple[str, ...]
    precision: str | None
    checkpoint: str | None
    trust: tuple[str, ...]
    source: str

    @property
    def where(self) -> str:
        """The folder of its runs, below that of the study."""
        return f"{self.task}/{self.method}"

    @property
    def command(self) -> tuple[str, ...]:
        """Give the command's own keys as arguments."""
        given = {"precision": self.precision, "checkpoint": self.checkpoint}
        return (
            *(f"--{key}={value}" for key, value in given.items() if value is not None),
            *(f"--trust={module}" for module in self.trust),
        )


class Study(NamedTuple):
    """A study file: ``tasks`` and ``methods`` hold what stands in it, ``source`` is its path.

    ``metrics`` are those that its tables show where no others are asked for.
    """

    name: str
    folder: Path
    seeds: tuple[int, ...]
    budget: Budget
    reference: str
    overrides: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    source: str
    metrics: tuple[str, ...] = ()

    def cells(self) -> list[Cell]:
        """List the methods on each task, those left aside for it left out."""
        return [
            self._cell(task, method)
            for task in self.tasks
            for method in self.methods
            if self.methods[method].get("tasks", {}).get(task) is not False
        ]

    def _cell(self, task: str, method: str) -> Cell:
        own = self.methods[method]
        values: dict[str, Any] = {}
        for part in (
            self.overrides,
            self.tasks[task]["overrides"],
            {key: value for key, value in own.items() if key != "tasks"},
            own.get("tasks", {}).get(task) or {},
        ):
            for key in part:
                values.pop(key, None)  # the last word on a key also comes last
            values |= part
        trust = values.pop("trust", None) or ()
        precision, checkpoint = (values.pop(key, None) for key in ("precision", "checkpoint"))
        return Cell(
            task,
            method,
            self.tasks[task]["experiment"],
            tuple(f"--{key}={_text(value)}" for key, value in values.items()),
            None if precision is None else str(precision),
            None if checkpoint is None else str(checkpoint),
            (trust,) if isinstance(trust, str) else tuple(map(str, trust)),
            f"{self.source}: {task}, methods.{method}",
        )


def is_study(folder: Path) -> bool:
    """Say whether ``folder`` holds the runs of a study."""
    return (folder / NAME).is_file()


def resolved(cell: Cell, further: Sequence[str] = ()) -> Experiment:
    """Merge a cell's overrides into its experiment and check every key.

    Raises:
        UserError: naming the study file, the task, the method and the key.
    """
    try:
        return resolve(cell.experiment, [*cell.overrides, *further], cell.trust)
    except UserError as error:
        raise UserError(f"{cell.source}: {error}") from None


def _text(value: Any) -> str:
    """Write a value as it would be typed."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
