"""What the benchmarks share: sides in turn in one process, medians, memory, a table and a picture.

Seconds are process time on one thread of the CPU. Memory is what one training step adds to a
forked process at its peak (Linux). Each part has a process of its own: memory that one part has
freed would be cheaper to take for the next.
"""

import argparse
import ctypes
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

SAME = 5e-6  # largest difference of outputs, and of gradients as a share of the largest gradient
Side = Callable[[], AbstractContextManager[object]]  # entered to put another part in place of ours


class Case(NamedTuple):
    """A network to train a step, the other sides with the ratios they must reach, and how often."""

    name: str
    network: nn.Module
    inputs: tuple[Tensor, ...]
    others: Mapping[str, tuple[Side, float | None]]
    rounds: int
    checked: int | None = None  # windows in the test of equality; None for all
    fused: bool = False  # whether our side's Adam works in one pass, as its experiment has it


class Row(NamedTuple):
    """One comparison: the other side's seconds over ours, and what else there is to tell."""

    name: str
    other: str
    seconds: tuple[float, float]
    required: float | None
    note: str

    @property
    def ratio(self) -> float:
        """How many times as long the other side takes."""
        return self.seconds[1] / self.seconds[0]


class Clock(Callback):
    """Process time of a step of a fit that ends by steps, over all but the first ``warm``."""

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.seconds = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):  # noqa: ANN001, ANN201, D102
        if batch_idx == self.warm:
            self.began = time.process_time()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # noqa: ANN001, ANN201, D102
        if batch_idx == trainer.max_steps - 1:
            self.seconds = (time.process_time() - self.began) / (trainer.max_steps - self.warm)


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run the sides in turn, there and back; give each side's median process time in seconds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            began = time.process_time()
            sides[name]()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def peak(work: Callable[[], object]) -> float:
    """Give the largest resident memory, in MB, of a forked process that does the work."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the child found again would not count
    if not (child := os.fork()):
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status, usage = os.wait4(child, 0)
    assert not status, f"the forked process ended with status {status}"
    return usage.ru_maxrss / 1024


def outcome(case: Case, side: Side) -> Tensor:
    """Outputs in evaluation and training, and the gradient as a share of its largest, flat."""
    inputs = [part[: case.checked] for part in case.inputs]
    outputs = []
    for training in (False, True):
        case.network.train(training)
        torch.manual_seed(0)  # the same dropout on all sides
        with side():
            outputs.append(case.network(*inputs).flatten())
    sources = [*case.network.parameters(), *(p for p in case.inputs if p.requires_grad)]
    gradients = torch.autograd.grad(outputs[1].square().sum(), sources)
    gradient = torch.cat([part.flatten() for part in gradients])
    return torch.cat([*outputs, gradient / gradient.abs().max()]).detach()


def train(case: Case, side: Side, optimizer: torch.optim.Optimizer | None) -> None:
    """Take one training step."""
    with side():
        case.network(*case.inputs).square().mean().backward()
    if optimizer:
        optimizer.step()
        optimizer.zero_grad()


def compare(case: Case) -> list[Row]:
    """Hold the sides to be equal, then measure them."""
    sides = {"ours": nullcontext} | {name: side for name, (side, _) in case.others.items()}
    ours = outcome(case, nullcontext)
    gaps = {name: float((outcome(case, s) - ours).abs().max()) for name, s in sides.items()}
    assert max(gaps.values()) <= SAME, f"{case.name}: {gaps}"
    steps = {}
    for name, side in sides.items():
        own = list(case.network.parameters())
        fused = (case.fused and name == "ours") or None
        optimizer = torch.optim.Adam(own, lr=1e-4, fused=fused) if own else None
        steps[name] = partial(train, case, side, optimizer)
    memory = {name: peak(step) - peak(lambda: None) for name, step in steps.items()}
    seconds = alternate(steps, case.rounds)
    rows = []
    for name, (_, required) in case.others.items():
        note = f"{memory['ours']:.0f} and {memory[name]:.0f} MB; differ by {gaps[name]:.0e}"
        rows.append(Row(case.name, name, (seconds["ours"], seconds[name]), required, note))
    return rows


def show(rows: list[Row], picture: Path) -> None:
    """Print the table, and draw the ratios."""
    table = Table("work", "other side", "ours s", "other s", "ratio", "required", "note")
    for row in rows:
        times = [f"{seconds:.3f}" for seconds in row.seconds]
        required = f"{row.required}" if row.required else ""
        style = "red" if row.ratio < (row.required or 0) else None
        table.add_row(
            row.name, row.other, *times, f"{row.ratio:.2f}", required, row.note, style=style
        )
    Console(width=140).print(table)
    figure = Figure(figsize=(9, 1 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([f"{r.name}: {r.other}" for r in rows], [r.ratio for r in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="process time over ours (log scale)")
    axes.margins(x=0.1)
    axes.invert_yaxis()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


def start() -> None:
    """Make a process ready to measure."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)


def main(parts: Mapping[str, Callable[[], list[Row]]], picture: str) -> None:
    """Measure the parts that the command line asks for, and show them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all if none is named")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    rows: list[Row] = []
    for part in arguments.parts or parts:
        with ProcessPoolExecutor(1, get_context("spawn"), start) as process:
            rows += process.submit(parts[part]).result()
    if rows:
        show(rows, arguments.output / picture)
