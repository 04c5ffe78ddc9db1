"""Early exits on any task's network, from the configuration alone."""

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.adapter_targets import EXITS
from core.early_exit.cost import Meter
from core.early_exit.criteria import (
    Confidence,
    Criterion,
    Entropy,
    Learned,
    NormalisedEntropy,
    Patience,
    Reduction,
    Saturation,
    Seen,
    by_item,
    reduced,
)
from core.early_exit.curve import Point
from core.early_exit.exit_gate import ExitGate
from core.early_exit.heads import ExitHeads, Kind, width_of
from core.early_exit.plans import Recorded
from core.early_exit.policy import NEVER, Gated, Policy
from core.early_exit.stages import ExitController
from core.early_exit.threshold import (
    Choice,
    ExitTable,
    learn_then_test,
    smallest_cost,
)
from core.early_exit.training import ExitTraining, Judge, Moment, Schedule, Weights, wrong_in
from core.errors import UserError
from core.networks.hugging_face import HuggingFace
from core.transform import Transform

CRITERIA: Mapping[str, type[Criterion]] = {
    "normalised_entropy": NormalisedEntropy,
    "entropy": Entropy,
    "confidence": Confidence,
    "patience": Patience,
    "learned": Learned,
    "saturation": Saturation,
}
Chosen = Literal["validation", "guaranteed"]
CHOSEN = ("validation", "guaranteed")


class EarlyExit(Transform):
    """Let samples leave a network's layers as soon as an exit is sure of its answer.

    In training nobody leaves, and all exits learn by the task's own loss. In eval mode each sample
    leaves at the first exit whose score reaches the threshold; the rest of the batch goes on alone.

    Args:
        network: any network; changed in place. Its tensors keep their names.
        criterion: how sure an exit is: ``normalised_entropy``, ``entropy``, ``confidence``,
            ``patience``, ``learned``, ``saturation``, or a class of one's own (``class_path``).
        threshold: the score that suffices, one for all exits or a list, one for each but the last.
            ``validation`` chooses it before the test, as cheap as ``delta`` allows on validation
            data, ``guaranteed`` so that it holds for new data with probability 1 - ``alpha``. None
            lets nobody leave.
        delta: what the mean loss may be above the last exit's; of values as a share of it.
        alpha: the probability that ``guaranteed`` fails.
        beta: in place of a threshold: a gate chooses before the first layer how many to run. It is
            fitted before the test to the quality of each exit on training data, where a layer
            costs ``beta``; 0.02 buys one for a gain of two points.
        soft: the gate learns shares of the exits, not the best one.
        schedule: ``joint``, ``alternating``, ``two_stage``, ``self_distilled`` or ``drawn``; see
            :mod:`core.early_exit.training`.
        weights: of the exits' losses: by ``depth``, or ``equal``.
        share: of the steps in which ``two_stage`` and ``self_distilled`` train the network itself.
        min_exit: the first exit, from 1 on.
        heads: what answers: ``own``, ``classifier``, ``copy``, ``linear`` or ``tokens``; see
            :class:`core.early_exit.heads.ExitHeads`.
        stages: the name of the list of layers; None takes what the network states.
        reduce: one score of many tokens or pixels: ``worst``, ``mean`` or ``quantile``; ``auto``
            takes the worst token and a map's mean.
        values: the network gives values, not logits.
        compaction: layers work on fewer rows where more than this share has left.
        batch_dim: the axis of the samples in the state.
        shared: names of arguments of a layer that belong to no sample.
        width: of the state; None asks the last layer.

    Raises:
        UserError: if a setting is unknown, or does not fit the network.

    Example:
        >>> network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        >>> made = EarlyExit(network, threshold=0.0)
        >>> _ = network.eval()(torch.zeros(5, 4))
        >>> made.report()["mean_exit"]
        1.0
    """

    def __init__(
        self,
        network: nn.Module,
        criterion: str | dict[str, Any] | Criterion = "normalised_entropy",
        threshold: float | list[float] | str | None = None,
        delta: float = 0.01,
        alpha: float = 0.1,
        beta: float | None = None,
        soft: bool = False,
        schedule: Schedule = "joint",
        weights: Weights = "depth",
        share: float = 0.5,
        min_exit: int = 1,
        heads: Kind = "own",
        stages: str | None = None,
        reduce: Reduction = "auto",
        values: bool = False,
        compaction: float = 0.12,
        batch_dim: int = 0,
        shared: Sequence[str] = (),
        width: int | None = None,
    ) -> None:
        exits = ExitController(
            network, stages, compaction=compaction, batch_dim=batch_dim, shared=shared
        )
        try:
            last = len(exits.layers)
            if not 1 <= min_exit < last:
                raise UserError(
                    f"EarlyExit: min_exit={min_exit} must lie from 1 to {last - 1}, before the last"
                    f" of {last} layers"
                )
            answers = ExitHeads(exits, heads, min_exit, width)
            judge = _criterion(criterion, exits, width)
            training = ExitTraining(
                *(exits, answers, judge, schedule, weights, min_exit, share, values)
            )
            gate = None
            if beta is not None:
                if threshold is not None:
                    raise UserError(
                        f"EarlyExit: beta={beta} and threshold={threshold!r} both say who leaves;"
                        " give one of them"
                    )
                gate = ExitGate(exits, answers, min_exit, beta, soft, width)
            elif soft:
                raise UserError("EarlyExit: soft=True is of a gate; give its price as beta")
            found = EarlyExits(
                exits, answers, judge, training, reduce, threshold, delta, alpha, gate
            )
        except UserError:
            exits.remove()
            raise
        # transformers' own module is what is saved and loaded under its published names
        holder = network.model if isinstance(network, HuggingFace) else network
        holder.add_module(EXITS, found)
        super().__init__(network)
        self.exits = found

    def report(self) -> dict[str, Any]:
        """Say how many exits there are; after a test, where samples left and what ran."""
        return self.exits.report()


class EarlyExits(nn.Module):
    """The exits of a network: what answers, who leaves, how they learn, what they cost.

    Attributes:
        control: sets a depth by hand.
        thresholds: (L - 1,) the score that suffices at each exit before the last.
        gate: says who leaves where, in place of the thresholds; None where there is none.
        choice: how the threshold was chosen on validation data; None where it was not.
        curve_wished: a test shall judge its data at every exit, and measure its speed.
        curve: quality against mean depth on the test, where it was wished.
        speeds: samples a second in eval mode, with exits and without.
    """

    thresholds: Tensor

    def __init__(
        self,
        exits: ExitController,
        heads: ExitHeads,
        criterion: Criterion,
        training: ExitTraining,
        reduction: Reduction,
        threshold: float | list[float] | str | None,
        delta: float,
        alpha: float,
        gate: ExitGate | None = None,
    ) -> None:
        super().__init__()
        self.control = exits
        self.heads = heads
        self.criterion = criterion
        self.reduction: Reduction = reduction
        self.delta = delta
        self.alpha = alpha
        self.gate = gate
        self.learning = training
        self.meter = Meter(len(exits.layers))
        self.choice: Choice | None = None
        self.curve_wished = False
        self.curve: list[Point] = []
        self.speeds: dict[str, float] = {}
        self.chosen = threshold if isinstance(threshold, str) else None
        if self.chosen is not None and self.chosen not in CHOSEN:
            raise UserError(
                f"EarlyExit: threshold={threshold!r} must be a number, a list of numbers,"
                " 'validation' or 'guaranteed'"
            )
        count = len(exits.layers) - 1
        given = threshold if isinstance(threshold, list) else [threshold] * count
        if len(given) != count:
            raise UserError(
                f"EarlyExit: threshold has {len(given)} numbers; give {count}, one for each exit"
                " but the last"
            )
        numbers = [NEVER if t is None or self.chosen else _finite(t) for t in given]
        self.register_buffer("thresholds", torch.tensor(numbers, dtype=torch.float32))
        reduced(torch.zeros(1, 1), None, reduction)  # refuses what it does not know
        self.measure(self.meter)

    def forward(self, value: Any) -> Any:
        """Give the value back: a Sequential that has exits calls all that it holds."""
        return value

    def measure(self, meter: Meter) -> None:
        """Count by another meter what runs in eval mode from here on."""
        self.meter = meter
        if self.gate is not None:
            choose = self.gate.depths_of
            self.control.standing = Gated(self.control, self.heads, choose, meter)
            return
        self.control.standing = Policy(
            self.control,
            self.heads,
            self.criterion,
            self._thresholds,
            self.learning.first,
            self.reduction,
            meter,
        )

    def training_loss(self, judge: Judge, now: Moment) -> Tensor:
        """Give the loss of a batch.

        Args:
            judge: judges the batch; gives ``loss``, ``prediction`` and ``target``.
            now: how far the training is.
        """
        return self.learning.loss(judge, now)

    def choose(self, table: ExitTable) -> Choice:
        """Choose the threshold by what validation samples show at each exit."""
        if self.learning.values:  # losses as shares of the last exit's mean, for delta is one
            table = table._replace(
                losses=table.losses / table.losses[:, -1].mean().clamp(min=1e-12)
            )
        if self.chosen == "guaranteed":
            test: Literal["binomial", "hoeffding"] = "binomial"
            if self.learning.values:
                table, test = table._replace(losses=table.losses.clamp(max=1)), "hoeffding"
            self.choice = learn_then_test(table, self.delta, self.alpha, test)
        else:
            self.choice = smallest_cost(table, self.delta)
        found = self.choice.threshold
        self.thresholds.fill_(NEVER if found is None else found)
        return self.choice

    @torch.no_grad()
    def table(self, judge: Judge) -> ExitTable:
        """Give the scores (n, L - 1) and losses (n, L) of a batch at all exits.

        Items whose answer is not known are left out. The losses are shares of wrong answers; of
        values they are squared errors.

        Raises:
            UserError: if the batch's items are not the rows that the network is given.
        """
        control, last = self.control, len(self.control.layers)
        with control.using(Recorded()) as recorded:
            whole = judge()
        scores: list[Tensor] = []
        losses: list[Tensor] = []
        history: list[Seen] = []
        for number in range(1, last):
            with control.using(recorded.at(number)) as replay:
                judged = judge()
            losses.append(self._losses(judged))
            if number < self.learning.first:
                scores.append(torch.full_like(losses[-1], -math.inf))
                continue
            args, kwargs = replay.inputs
            seen = self.heads.seen(replay.states[0], args, kwargs, replay.outputs[0])
            score = reduced(self.criterion.score(seen, history), seen.mask, self.reduction)
            history.append(seen)
            if len(score) != len(losses[-1]) or len(replay.outputs) != 1:
                raise UserError(
                    "EarlyExit: the items of this task are not the rows of its network, so no"
                    " threshold can be chosen from them; give threshold a number"
                )
            scores.append(score.cpu())
        losses.append(self._losses(whole))
        known = losses[-1].isfinite()
        return ExitTable(
            torch.stack(scores, 1).float().cpu()[known], torch.stack(losses, 1).float()[known]
        )

    def report(self) -> dict[str, Any]:
        """Say how many exits there are, with which threshold, and what was met in eval mode."""
        own = self.thresholds.tolist()
        given = sorted({round(t, 6) for t in own})
        told: dict[str, Any] = {
            "layers": len(self.control.layers),
            "thresholds": None if min(given) >= NEVER else given[0] if len(given) == 1 else own,
            "exit_parameters": sum(p.numel() for p in self.parameters()),
        }
        if self.choice is not None:
            told["choice"] = self.choice._asdict()
        if self.gate is not None:
            told |= self.gate.report()
        return {**told, **self.meter.report(), **self.speeds}

    def _losses(self, judged: Any) -> Tensor:
        if self.learning.values:
            wrong = (judged.prediction.float() - judged.target.float()).square()
        else:
            wrong = wrong_in(judged)
        return by_item(wrong).cpu()

    def _thresholds(self) -> Sequence[float]:
        found: list[float] = self.thresholds.tolist()
        return found


def without_exits(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what exits have added to a network's tensors."""
    return {name: tensor for name, tensor in state.items() if EXITS not in name.split(".")}


def exits_of(network: nn.Module) -> EarlyExits | None:
    """Find the exits of a network, whatever wraps it or its ``forward``."""
    return next((part for part in network.modules() if isinstance(part, EarlyExits)), None)


def _criterion(
    given: str | Mapping[str, Any] | Criterion, exits: ExitController, width: int | None
) -> Criterion:
    """Build a criterion by its short name or by its class and arguments."""
    if isinstance(given, Criterion):
        return given
    if isinstance(given, str):
        if given not in CRITERIA:
            raise UserError(
                f"EarlyExit: criterion={given!r} must be one of {', '.join(CRITERIA)}, or name a"
                " class by class_path"
            )
        cls: Any = CRITERIA[given]
        arguments: dict[str, Any] = {}
    else:
        module, _, name = str(given.get("class_path", "")).rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            raise UserError(
                f"EarlyExit: criterion: there is no {given.get('class_path')}"
            ) from None
        if not (isinstance(cls, type) and issubclass(cls, Criterion)):
            raise UserError(
                f"EarlyExit: criterion: {given['class_path']} is no"
                " core.early_exit.criteria.Criterion"
            )
        arguments = dict(given.get("init_args") or {})
    if cls is Learned and "width" not in arguments:
        arguments["width"] = width if width is not None else width_of(exits)
    try:
        found: Criterion = cls(**arguments)
    except TypeError as error:
        raise UserError(f"EarlyExit: criterion: {error}") from None
    return found


def _finite(threshold: Any) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise UserError(f"EarlyExit: threshold={threshold!r} must be a number")
    if math.isnan(threshold):
        raise UserError("EarlyExit: threshold=nan must be a number")
    return max(-NEVER, min(NEVER, float(threshold)))
