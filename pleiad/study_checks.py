"""What is found out before the first run of a study begins: mistakes, lengths, what is done."""

import json
import re
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from enum import StrEnum
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock, Timeout

from core.errors import UserError
from core.openers import parse_yaml, read_json, read_text, write_atomic
from data.errors import DataError
from pleiad.experiments import flat
from pleiad.runs import is_finished
from pleiad.study import Cell, Study, resolved
from pleiad.study_file import check_folder
from pleiad.study_length import Spent, batches_of, length_of, step_seconds

Answer = TypeVar("Answer")
LENGTHS = "lengths.json"
"""How many steps a budget in seconds came to, so that every seed and every go takes as many."""
UNIMPORTANT = re.compile(
    r"seed_everything|data\.(num_workers|eval_batch_size)|trainer\.(enable_.*|log_every_n_steps)"
)
"""Keys that may differ between runs of one cell: they change no result."""


class State(StrEnum):
    """What there is of a run; one that ``began`` has saved nothing and begins anew."""

    NEW = "new"
    BEGAN = "began"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"


class Examined(NamedTuple):
    """A cell that can be run: its resolved configuration as YAML, and its length."""

    cell: Cell
    yaml: str
    spent: Spent


class Run(NamedTuple):
    """One run of a study; ``overrides`` are the arguments of ``pleiad fit`` for its seed."""

    cell: Cell
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    state: State

    @property
    def name(self) -> str:
        """How it is called in what is told."""
        return f"{self.cell.where}/{self.seed}"


def check(study: Study, tell: Callable[[str], None] = lambda line: None) -> list[Examined]:
    """Resolve, build and check what the runs of each cell need, in another process.

    Raises:
        UserError: naming the file, the task, the method and the key.
    """
    check_folder(study)
    cells = study.cells()
    for cell in cells:
        resolved(cell)  # what is quickly found in any of them is told first
    found = []
    with _process() as process:
        for number, cell in enumerate(cells, 1):
            tell(f"checking {number} of {len(cells)}: {cell.where}")
            found.append(_ask(cell, process.submit(examine, cell, study.budget.steps)))
    return found


def measured(
    study: Study, examined: Sequence[Examined], tell: Callable[[str], None] = lambda line: None
) -> list[Examined]:
    """Turn a budget in seconds into steps: timed once a cell, alone, and then kept.

    Raises:
        UserError: if a budget does not suit the data.
    """
    seconds, path = study.budget.seconds, study.folder / LENGTHS
    if seconds is None:
        return list(examined)
    found = []
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    with _process() as checking:
        for cell, text, _ in examined:
            of = sha256(f"{seconds} {text}".encode()).hexdigest()
            length = known.get(cell.where)
            if length is None or length["of"] != of:
                with _process() as fresh:  # for each: what ran before changes no time
                    step = _ask(cell, fresh.submit(step_seconds, cell))
                length = {"of": of, "steps": max(1, int(seconds / step)), "seconds_a_step": step}
                known[cell.where] = length
                write_atomic(path, json.dumps(known, indent=2) + "\n")
                tell(f"{cell.where}: {step:.3g} s a step, so {length['steps']:,} steps")
            asked = checking.submit(examine, cell, int(length["steps"]))
            found.append(_ask(cell, asked))
    return found


def plan(study: Study, examined: Sequence[Examined]) -> list[Run]:
    """List the runs in the order of tasks, seeds and methods, with what there is of each.

    Raises:
        UserError: if there is a run whose configuration is not the planned one.
    """
    runs = []
    for cell, text, spent in examined:
        for seed in study.seeds:
            folder = study.folder / cell.task / cell.method / str(seed)
            state = state_of(folder)
            if state in (State.FINISHED, State.INTERRUPTED, State.RUNNING):
                open_length = study.budget.seconds is not None and spent.steps is None
                _check_same(cell, text, folder, open_length)
            overrides = (*cell.overrides, *spent.overrides, f"--seed_everything={seed}")
            runs.append(Run(cell, seed, folder, overrides, state))
    tasks, seeds = list(study.tasks), study.seeds
    return sorted(runs, key=lambda run: (tasks.index(run.cell.task), seeds.index(run.seed)))


def examine(cell: Cell, steps: int | None) -> Examined:
    """Build all that a cell's runs need.

    Args:
        cell: the cell.
        steps: optimizer steps of its budget; None: the experiment's own length.

    Raises:
        UserError: naming the study file, the task, the method and what does not fit.
    """
    from pleiad.building import build
    from pleiad.run import Options, prepare
    from pleiad.run import resolved as with_weights

    options = Options(precision=cell.precision, trust=cell.trust, checkpoint=cell.checkpoint)
    try:
        experiment = with_weights(cell.experiment, cell.overrides, options)
        built, _ = prepare(experiment, options)
        if steps is None:
            return Examined(cell, build(experiment, cell.precision, cell.trust).yaml, Spent())
        spent = length_of(steps, batches_of(built), experiment.config.get("trainer") or {})
        experiment = with_weights(cell.experiment, [*cell.overrides, *spent.overrides], options)
        return Examined(cell, build(experiment, cell.precision, cell.trust).yaml, spent)
    except (UserError, DataError) as error:
        raise UserError(f"{cell.source}: {error}") from None


def state_of(folder: Path) -> State:
    """Say what there is of the run in ``folder``.

    Raises:
        UserError: if it is a file, or holds what no run writes.
    """
    if is_finished(folder):
        return State.FINISHED
    if _is_locked(folder):
        return State.RUNNING
    if (folder / "checkpoints" / "last").is_file() and (folder / "config.yaml").is_file():
        return State.INTERRUPTED
    if not folder.exists():
        return State.NEW
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.yaml").is_file()):
        raise UserError(f"{folder}: is in the way of a run of the study; move it")
    return State.BEGAN


def differences(planned: str, folder: Path) -> list[str]:
    """Say in which keys a run's configuration is not the planned one, but for its seed.

    Args:
        planned: the resolved configuration as YAML.
        folder: of the run.
    """
    path = folder / "config.yaml"
    ours = dict(flat(parse_yaml(planned, "the study")))
    theirs = dict(flat(parse_yaml(read_text(path), str(path))))
    if ours.get("trainer.precision") == "auto":  # each run measures what it takes
        theirs["trainer.precision"] = "auto"
    return [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} now"
        for key in {**theirs, **ours}
        if not UNIMPORTANT.fullmatch(key) and not _equal(ours.get(key), theirs.get(key))
    ]


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) or (one in (None, {}, []) and other in (None, {}, []))


def _is_locked(folder: Path) -> bool:
    """Say whether a process, perhaps left behind by a killed study, is making this run."""
    lock = folder / ".lock"
    if not lock.is_file():
        return False
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _check_same(cell: Cell, planned: str, folder: Path, open_length: bool) -> None:
    found = differences(planned, folder)
    if open_length:  # a dry run has not measured it
        found = [line for line in found if not line.startswith("trainer.")]
    if found:
        rest = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(
            f"{cell.source}: the run in {folder} was made otherwise: {found[0]}{rest};"
            " name another `folder`, give the method another name, or move that run away"
        )


def _process() -> ProcessPoolExecutor:
    """Start a process for what is heavy: this one stays small while others are measured."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin)


def _begin() -> None:
    import pleiad.run  # noqa: F401 - Lightning, which sets its loggers as it is imported
    from pleiad.command import quiet

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command answers it
    quiet()


def _ask(cell: Cell, asked: "Future[Answer]") -> Answer:
    try:
        return asked.result()
    except BrokenProcessPool:
        raise UserError(
            f"{cell.source}: the process that checks it was killed; was there enough memory?"
        ) from None
