"""Quality against mean depth: what every threshold would give, and what a cut network would."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from core.early_exit.stages import ExitController
from core.early_exit.threshold import ExitTable, candidates, losses_at

POINTS = 60
"""Thresholds that a curve is drawn through at most."""


class Point(NamedTuple):
    """One way to answer: the mean exit and the mean loss of all samples.

    ``rule`` is ``threshold``, or ``depth`` where all samples leave at one exit; ``value`` is the
    threshold or the depth.
    """

    rule: str
    value: float
    mean_exit: float
    loss: float


def curve(table: ExitTable, also: Sequence[float] = ()) -> list[Point]:
    """Give the points of thresholds, from the last exit to the first, and of every depth.

    Args:
        table: what samples show at each exit.
        also: thresholds to be among them.
    """
    found = []
    for threshold in sorted({*candidates(table.scores, POINTS), *also}, reverse=True):
        exits, losses = losses_at(table, threshold)
        depth, loss = float(exits.double().mean()), float(losses.double().mean())
        found.append(Point("threshold", threshold, depth, loss))
    means = table.losses.double().mean(0).tolist()
    return found + [Point("depth", n, float(n), loss) for n, loss in enumerate(means, 1)]


def speeds(
    exits: ExitController, work: Iterable[Callable[[], Any]], most: float = 10.0
) -> dict[str, float]:
    """Measure samples a second with exits and without, in turns, on a network in eval mode.

    Args:
        exits: of the network.
        work: each runs one batch through the network.
        most: seconds after which no further batch is begun.
    """
    seconds = {"samples_per_second": 0.0, "samples_per_second_whole": 0.0}
    samples, began = 0, time.perf_counter()
    for run in work:
        run()  # each shape is counted once, which takes time
        for name in seconds:
            clock = time.perf_counter()
            if name == "samples_per_second":
                run()
                samples += len(exits.depths)
            else:
                with exits.using(None):
                    run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name] += time.perf_counter() - clock
        if time.perf_counter() - began > most:
            break
    return {name: round(samples / took, 2) for name, took in seconds.items() if took}
