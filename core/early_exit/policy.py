"""Who leaves by the answer of an exit: a criterion's score against a threshold."""

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


class Policy(Plan):
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
        self.exits = exits
        self.heads = heads
        self.criterion = criterion
        self.thresholds = thresholds
        self.first = first
        self.reduction = reduction
        self.meter = meter
        self.begin(None)

    def begin(self, state: Tensor | None) -> None:
        """Forget the batch before."""
        self._history: list[Seen] = []
        self._answers: list[tuple[Tensor, Any]] = []
        self._now = self.thresholds()

    def run(self, work: Callable[[], Any], inputs: Any) -> Any:
        """Count what runs."""
        self.exits.watch = self.meter.stage
        try:
            return self.meter.whole(lambda: self.exits.samples, work, inputs)
        finally:
            self.exits.watch = None

    def leave(self, exit: Exit) -> Tensor | bool:
        """Judge the samples that are still in."""
        last = len(self.exits.layers)
        if exit.number < self.first or exit.number == last:
            return exit.number == last
        if min(self._now[exit.number - 1 :]) >= NEVER:  # here and later nobody leaves
            return False
        state = exit.state()
        answer = self.meter.head(
            exit.number, len(exit.samples), lambda: self.heads.answer(exit), state
        )
        args, kwargs = self.exits.inputs(exit)
        seen = self.heads.seen(state, args, kwargs, answer)
        score = reduced(self.criterion.score(seen, self._history), seen.mask, self.reduction)
        left = score >= self._now[exit.number - 1]
        if bool(left.any()):
            self._answers.append((exit.samples[left], _rows(answer, left)))
        self._history = [_rows(each, ~left) for each in (*self._history, seen)]
        return left

    def finish(self, output: Any) -> Any:
        """Put the answers of those who left early among the others."""
        samples = len(self.exits.depths)
        self.meter.add(self.exits.depths, self.exits.entered)
        if self.heads.kind == "own":  # the network's end has answered from each sample's own state
            return output
        for index, answer in self._answers:
            output = put(output, answer, index, samples)
        return output


def _rows(value: Any, chosen: Tensor) -> Any:
    return take(value, chosen.nonzero().squeeze(1), len(chosen))
