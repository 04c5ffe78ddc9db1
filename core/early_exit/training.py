"""How a network learns to answer at its exits, by the task's own loss.

| schedule | each optimizer step | source |
| --- | --- | --- |
| joint | the mean of all exits' losses, weighted by depth | PABEE; BranchyNet |
| alternating | the last exit's loss, then all exits', in turn | BERxiT |
| two_stage | the last exit's loss; after a share of the steps only the new heads learn | DeeBERT |
| self_distilled | as before, but the heads learn the last exit's answers | FastBERT |
| drawn | one exit's loss, drawn anew and weighted by depth | ECO-M2F |

A schedule knows of the task only a function that judges the batch; the network answers it from the
exit that is meant. Each batch goes through the stages once; what lies around them is computed for
each exit. Where parts get no gradient in some steps (all but ``joint``), several processes need
``strategy: ddp_find_unused_parameters_true``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from core.early_exit.criteria import Criterion, Learned, log_probabilities, mistakes
from core.early_exit.heads import ExitHeads
from core.early_exit.plans import Recorded, Replay
from core.early_exit.rows import first_tensor
from core.early_exit.stages import ExitController
from core.errors import UserError

Schedule = Literal["joint", "two_stage", "alternating", "self_distilled", "drawn"]
SCHEDULES = ("joint", "two_stage", "alternating", "self_distilled", "drawn")
Weights = Literal["depth", "equal"]
Judge = Callable[[], Any]
"""Judges the batch: gives ``loss``, ``prediction`` and ``target`` (:class:`core.task.Step`).

It may give ``mistakes()`` as well, where :func:`core.early_exit.criteria.mistakes` does not know
how the task's answers and targets are to be read.
"""


class Moment(NamedTuple):
    """The number of optimizer steps done, and the share of all of them."""

    step: int
    done: float


def wrong_in(judged: Any) -> Tensor:
    """Say where the answers of a judged batch are wrong: (n, ...), NaN where none is known."""
    own = getattr(judged, "mistakes", None)
    found: Tensor = mistakes(judged.prediction, judged.target) if own is None else own()
    return found


class ExitTraining:
    """The loss of one batch under a schedule.

    Args:
        exits: the network's exits.
        heads: what answers there.
        criterion: learns as well where it is :class:`Learned`.
        schedule: see the table above.
        weights: of the exits' losses: by their ``depth``, or ``equal``.
        first: the first exit.
        share: of the steps in which ``two_stage`` and ``self_distilled`` train the network itself.
        values: the network gives values: distil by squared distance, else by KL divergence.

    Raises:
        UserError: if there is no such schedule, or it has nothing to train.
    """

    def __init__(
        self,
        exits: ExitController,
        heads: ExitHeads,
        criterion: Criterion,
        schedule: Schedule,
        weights: Weights,
        first: int,
        share: float,
        values: bool,
    ) -> None:
        if schedule not in SCHEDULES:
            raise UserError(
                f"EarlyExit: schedule={schedule!r} must be one of {', '.join(SCHEDULES)}"
            )
        if weights not in ("depth", "equal"):
            raise UserError(f"EarlyExit: weights={weights!r} must be 'depth' or 'equal'")
        if not 0 <= share <= 1:
            raise UserError(f"EarlyExit: share={share} must lie from 0 to 1")
        if schedule in ("two_stage", "self_distilled") and heads.kind == "own":
            raise UserError(
                f"EarlyExit: schedule={schedule} trains heads beside a frozen network; take"
                " heads=copy, classifier, linear or tokens"
            )
        self.exits = exits
        self.heads = heads
        self.criterion = criterion
        self.schedule = schedule
        self.first = first
        self.share = share
        self.values = values
        numbers = range(first, len(exits.layers) + 1)
        total = sum(numbers) if weights == "depth" else len(numbers)
        self.weights = {n: (n if weights == "depth" else 1) / total for n in numbers}

    def loss(self, judge: Judge, now: Moment) -> Tensor:
        """Give the loss of a batch, whose gradients the optimizer follows."""
        if self.schedule == "drawn":
            return self._drawn(judge)
        if self.schedule in ("two_stage", "self_distilled"):
            return self._last(judge) if now.done < self.share else self._frozen(judge)
        if self.schedule == "alternating" and now.step % 2 == 0:
            return self._last(judge)
        return self._joint(judge)

    def _last(self, judge: Judge) -> Tensor:
        """Learn by the last exit alone, and with it what a learnt criterion learns."""
        if not isinstance(self.criterion, Learned):
            with self.exits.using(None):
                return self._loss_of(judge())
        with self.exits.using(Recorded()) as recorded:
            loss = self._loss_of(judge())
        for number in self._early():
            with torch.no_grad(), self.exits.using(recorded.at(number)) as replay:
                judged = judge()
            loss = loss + self._doubt(replay, judged, judge)
        return loss

    def _joint(self, judge: Judge) -> Tensor:
        with self.exits.using(Recorded()) as recorded:
            loss = self.weights[len(self.exits.layers)] * self._loss_of(judge())
        for number in self._early():
            with self.exits.using(recorded.at(number)) as replay:
                judged = judge()
            loss = loss + self.weights[number] * self._loss_of(judged)
            loss = loss + self._doubt(replay, judged, judge)
        return loss

    def _drawn(self, judge: Judge) -> Tensor:
        number = int(torch.randint(self.first, len(self.exits.layers) + 1, ()))
        mean = sum(self.weights.values()) / len(self.weights)
        with self.exits.depth(number):
            return self.weights[number] / mean * self._loss_of(judge())

    def _frozen(self, judge: Judge) -> Tensor:
        """Train the new heads alone, from the states of a network that stands still."""
        losses = []
        with self._only_heads():
            with torch.no_grad(), self.exits.using(Recorded()) as recorded:
                judge()
            for number in self._early():
                with self.exits.using(recorded.at(number)) as replay:
                    judged = judge()
                if self.schedule == "two_stage":
                    losses.append(self._loss_of(judged))
                else:
                    pairs = zip(replay.outputs, recorded.outputs, strict=True)
                    losses.append(torch.stack([self._distance(*pair) for pair in pairs]).mean())
                losses[-1] = losses[-1] + self._doubt(replay, judged, judge)
        return torch.stack(losses).sum()

    def _distance(self, student: Any, teacher: Any) -> Tensor:
        own, wanted = first_tensor(student), first_tensor(teacher)
        assert own is not None
        assert wanted is not None
        if self.values:
            return F.mse_loss(own.float(), wanted.float())
        logs, target = log_probabilities(own), log_probabilities(wanted)
        return (target.exp() * (target - logs)).sum(-1).mean()

    def _doubt(self, replay: Replay, judged: Any, judge: Judge) -> Tensor:
        """Give the loss of a learnt criterion at an exit."""
        if not isinstance(self.criterion, Learned):
            return torch.zeros((), device=judged.loss.device)
        if len(replay.outputs) != 1:
            raise UserError(
                "EarlyExit: criterion=learned needs one pass through the network a batch"
            )
        seen = self.heads.seen(replay.states[0], *replay.inputs, replay.outputs[0])
        return self.criterion.loss(seen, wrong_in(judged))

    def _early(self) -> range:
        return range(self.first, len(self.exits.layers))

    @staticmethod
    def _loss_of(judged: Any) -> Tensor:
        loss: Tensor = judged.loss
        return loss

    @contextmanager
    def _only_heads(self) -> Iterator[None]:
        """Hold everything but the exits' own parts still, without dropout."""
        network = self.exits.network
        kept = {id(p) for part in (self.heads, self.criterion) for p in part.parameters()}
        frozen = [p for p in network.parameters() if p.requires_grad and id(p) not in kept]
        modes = [(module, module.training) for module in network.modules()]
        own = {id(m) for part in (self.heads, self.criterion) for m in part.modules()}
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes:
            module.training = training and id(module) in own
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
            for module, training in modes:
                module.training = training
