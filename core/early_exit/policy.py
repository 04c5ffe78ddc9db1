"""Who leaves: by a criterion's score of an exit's answer, or as a gate chose before."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from core.early_exit.cost import Meter
from core.early_exit.criteria import Criterion, Reduction, Seen, reduced
from core.early_exit.heads import ExitHeads
from core.early_exit.plans import Exit, Plan
from core.early_exit.rows import put, take
from core.early_exit.stages import ExitController

NEVER = 1e30
"""A threshold that no score reaches; infinity could not be saved."""


class Counted(Plan):
    """Count what runs, and put the answers of exits that have heads of their own in place.

    Args:
        exits: the network's exits.
        heads: what answers there.
        meter: counts what ran.
    """

    def __init__(self, exits: ExitController, heads: ExitHeads, meter: Meter) -> None:
        self.exits = exits
        self.heads = heads
        self.meter = meter
        self._answers: list[tuple[Tensor, Any]] = []

    def run(self, work: Callable[[], Any], inputs: Any) -> Any:
        """Count what runs."""
        self.exits.watch = self.meter.stage
        try:
            return self.meter.whole(lambda: self.exits.samples, work, inputs)
        finally:
            self.exits.watch = None

    def answer(self, exit: Exit) -> Any:
        """Give the answer of an exit for the samples that are still in."""
        return self.meter.head(
            exit.number, len(exit.samples), lambda: self.heads.answer(exit), exit.state()
        )

    def finish(self, output: Any) -> Any:
        """Put the answers of those who left early among the others."""
        samples = len(self.exits.depths)
        self.meter.add(self.exits.depths, self.exits.entered)
        if self.heads.kind == "own":  # the network's end has answered from each sample's own state
            return output
        for index, answer in self._answers:
            output = put(output, answer, index, samples)
        return output


class Policy(Counted):
    """Leave at the first exit whose score reaches its threshold.

    Args:
        exits: the network's exits.
        heads: what answers there.
        criterion: how sure an answer is.
        thresholds: gives one an exit before the last.
        first: the first exit.
        reduction: makes one score a sample.
        meter: counts what ran.
    """

    def __init__(
        self,
        exits: ExitController,
        heads: ExitHeads,
        criterion: Criterion,
        thresholds: Callable[[], Sequence[float]],
        first: int,
        reduction: Reduction,
        meter: Meter,
    ) -> None:
        super().__init__(exits, heads, meter)
        self.criterion = criterion
        self.thresholds = thresholds
        self.first = first
        self.reduction = reduction
        self.begin(None)

    def begin(self, state: Tensor | None) -> None:
        """Forget the batch before."""
        self._history: list[Seen] = []
        self._answers = []
        self._now = self.thresholds()

    def leave(self, exit: Exit) -> Tensor | bool:
        """Judge the samples that are still in."""
        last = len(self.exits.layers)
        if exit.number < self.first or exit.number == last:
            return exit.number == last
        if min(self._now[exit.number - 1 :]) >= NEVER:  # here and later nobody leaves
            return False
        answer = self.answer(exit)
        args, kwargs = self.exits.inputs(exit)
        seen = self.heads.seen(exit.state(), args, kwargs, answer)
        score = reduced(self.criterion.score(seen, self._history), seen.mask, self.reduction)
        left = score >= self._now[exit.number - 1]
        if bool(left.any()):
            self._answers.append((exit.samples[left], _rows(answer, left)))
        self._history = [_rows(each, ~left) for each in (*self._history, seen)]
        return left


class Gated(Counted):
    """Leave as a gate says from the state before the first stage.

    Args:
        exits: the network's exits.
        heads: what answers there.
        choose: gives the stages (S,) that each sample shall run, from that state.
        meter: counts what ran.
    """

    def __init__(
        self,
        exits: ExitController,
        heads: ExitHeads,
        choose: Callable[[Tensor], Tensor],
        meter: Meter,
    ) -> None:
        super().__init__(exits, heads, meter)
        self.choose = choose

    def begin(self, state: Tensor) -> None:
        """Ask the gate."""
        self._answers = []
        self._depths = self.choose(state)
        self.samples = len(self._depths)

    def leave(self, exit: Exit) -> Tensor:
        """Leave where a sample's own depth is reached."""
        left = self._depths[exit.samples] <= exit.number
        early = exit.number < len(self.exits.layers)
        if early and self.heads.kind != "own" and bool(left.any()):
            leaving = Exit(exit.number, exit.samples[left], exit.output, exit.group, exit.dim)
            self._answers.append((leaving.samples, self.answer(leaving)))
        return left


def _rows(value: Any, chosen: Tensor) -> Any:
    return take(value, chosen.nonzero().squeeze(1), len(chosen))
