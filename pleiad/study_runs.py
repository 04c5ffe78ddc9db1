"""Make the runs of a study, each in a process of its own; go on with what was interrupted."""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple, NoReturn

from filelock import FileLock, Timeout
from rich.table import Table

from core.errors import UserError
from core.openers import read_json
from core.progress import ends
from pleiad.runs import CLAIMED, is_finished
from pleiad.study import Study
from pleiad.study_checks import Run, State, check, measured, plan
from pleiad.study_file import keep

DISK_FULL = 74
POLL = 0.1
"""Seconds between two looks at what runs."""


class Failure(NamedTuple):
    """A run that came to no result, the status of its process, and what it said last."""

    run: Run
    status: int
    told: str


class Outcome(NamedTuple):
    """What became of a study: ``stopped`` is the signal that ended it, or None."""

    done: int
    failures: list[Failure]
    stopped: int | None

    @property
    def status(self) -> int:
        """The exit status of the command."""
        if self.stopped is not None:
            return 128 + self.stopped
        found = {failure.status for failure in self.failures}
        return DISK_FULL if DISK_FULL in found else 2 if found else 0


def look(study: Study, tell: Callable[[str], None] = lambda line: None) -> Table:
    """Check every run of a study and list them, with what there is of each; change nothing.

    Raises:
        UserError: as :func:`run` does.
    """
    signal.signal(signal.SIGTERM, _leave)
    shown = Table(header_style="bold")
    for head in ("run", "experiment", "state"):
        shown.add_column(head)
    for each in plan(study, check(study, tell)):
        shown.add_row(each.name, each.cell.experiment, str(each.state))
    return shown


def run(study: Study, jobs: int = 1, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Check all runs of a study, then make those that are not finished.

    What one run says stands in ``SEED.log`` beside its folder. A run that fails ends no other.

    Args:
        study: the study.
        jobs: how many run at once; they share the threads.
        tell: takes lines on how it goes.

    Raises:
        UserError: for a mistake in any run, before the first begins.
    """
    if jobs < 1:
        raise UserError(f"--jobs={jobs} must be at least 1")
    signal.signal(signal.SIGTERM, _leave)
    examined = check(study, tell)
    for each in plan(study, examined):  # what was made otherwise is told before anything is written
        if each.state == State.RUNNING:
            raise UserError(f"{each.folder}: another process is training this run; wait for it")
    keep(study)
    with _locked(study.folder):
        runs = plan(study, measured(study, examined, tell))
        todo = [each for each in runs if each.state != State.FINISHED]
        if finished := len(runs) - len(todo):
            tell(f"{finished} of {len(runs)} runs are finished already")
        return _Workers(todo, len(runs), jobs, tell).run()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave while runs are checked, with the process that does it."""
    sys.exit(128 + number)


class _Workers:
    """So many processes at once, until all runs are made or a signal comes."""

    def __init__(
        self, todo: Sequence[Run], total: int, jobs: int, tell: Callable[[str], None]
    ) -> None:
        self.waiting = deque(todo)
        self.total = total
        self.jobs = jobs
        self.tell = tell
        self.number = total - len(todo)
        self.working: dict[subprocess.Popen[bytes], tuple[Run, float, IO[bytes]]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.failures: list[Failure] = []
        self.done = 0

    def run(self) -> Outcome:
        """Work; on SIGINT or SIGTERM let what runs save itself, and begin nothing more."""
        with _Signals() as signals:
            while self.working or (self.waiting and signals.received is None):
                while self.waiting and len(self.working) < self.jobs and signals.received is None:
                    self._begin(self.waiting.popleft())
                signals.hand_on(self.working)
                for process in [p for p in self.working if p.poll() is not None]:
                    self._end(process, signals.received is not None)
                time.sleep(POLL)
        return Outcome(self.done, self.failures, signals.received)

    def _begin(self, run: Run) -> None:
        self.number += 1
        doing = "goes on" if run.state == State.INTERRUPTED else "begins"
        self.tell(f"[{self.number}/{self.total}] {run.name} {doing}{self._ends(run)}")
        if run.state == State.BEGAN:
            shutil.rmtree(run.folder)  # it has saved nothing to go on from
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        log = _log(run).open("wb")
        process = subprocess.Popen(
            arguments(run),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(self.jobs),
            start_new_session=True,  # it hears of a signal once, and from here
        )
        self.working[process] = (run, time.monotonic(), log)

    def _end(self, process: subprocess.Popen[bytes], stopping: bool) -> None:
        run, began, log = self.working.pop(process)
        log.close()
        seconds = time.monotonic() - began
        if process.returncode == 0 and is_finished(run.folder):
            self.done += 1
            self.seconds.setdefault(run.cell.where, []).append(seconds)
            self.tell(f"{run.name} is done in {seconds:.0f} s: {_result(run.folder)}")
        elif stopping:
            self.tell(f"{run.name} has stopped; it goes on next time")
        else:
            failure = Failure(run, process.returncode, _last_words(run))
            self.failures.append(failure)
            self.tell(f"{run.name} failed with status {failure.status}: {failure.told}")

    def _ends(self, run: Run) -> str:
        """Say when all will be done, as far as the runs so far tell."""
        if not self.seconds:
            return ""
        mean = {where: statistics.mean(found) for where, found in self.seconds.items()}
        usual = statistics.mean(mean.values())
        left = [run, *self.waiting, *(each for each, _, _ in self.working.values())]
        seconds = sum(mean.get(each.cell.where, usual) for each in left) / self.jobs
        return f"; the study {ends(seconds)}"


class _Signals(AbstractContextManager["_Signals"]):
    """Take SIGINT and SIGTERM, and hand each on to the runs, which save and stop."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._count = 0
        self._told: Counter[int] = Counter()
        self._before: dict[int, Any] = {}

    def hand_on(self, working: Iterable[subprocess.Popen[bytes]]) -> None:
        """Send the runs what they have not been sent; a run begun meanwhile hears of it too."""
        for process in working:
            while self.received is not None and self._told[process.pid] < self._count:
                self._told[process.pid] += 1
                process.send_signal(self.received)

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        self._count += 1


def arguments(run: Run) -> list[str]:
    """Give the command line of a run."""
    command = [sys.executable, "-m", "pleiad", "fit"]
    quiet = "--trainer.enable_progress_bar=false"
    if run.state == State.INTERRUPTED:
        trust = [f"--trust={module}" for module in run.cell.trust]
        return [*command, str(run.folder), "--ckpt_path=last", *trust, quiet]
    own = [*run.cell.command, f"--run={run.folder}"]
    return [*command, run.cell.experiment, *own, *run.overrides, quiet]


def environment(jobs: int) -> dict[str, str]:
    """Give the environment of a run; ``jobs`` at once share the threads of this process."""
    found = {key: value for key, value in os.environ.items() if key != CLAIMED}
    if jobs > 1:
        given = found.get("OMP_NUM_THREADS", "")
        threads = int(given) if given.isdecimal() else os.cpu_count() or 1
        found["OMP_NUM_THREADS"] = str(max(1, threads // jobs))
    return found


def _log(run: Run) -> Path:
    return run.folder.with_name(f"{run.folder.name}.log")


def _last_words(run: Run) -> str:
    """Give the last line of what a run said, which tells its error."""
    text = _log(run).read_bytes()[-10_000:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = lines[-1].removeprefix("pleiad: ")[:300] if lines else "it said nothing"
    return f"{told} ({_log(run)})"


def _result(folder: Path) -> str:
    """Give the metrics of a finished run in one line."""
    found = read_json(folder / "results.json")["metrics"]
    shown = list(found.items())[:4]
    return ", ".join(f"{name} {value:.4g}" for name, value in shown if value is not None)


def _locked(folder: Path) -> AbstractContextManager[Any]:
    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process runs this study") from None
