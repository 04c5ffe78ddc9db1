"""Schedules that freeze from the input on, or thaw from the output on, by the clock alone."""

import math
from collections.abc import Iterable

from lightning.pytorch import LightningModule, Trainer

from core.errors import UserError
from core.freezing.engine import Freezing, Moment
from core.freezing.optimizer_state import split_groups
from core.freezing.units import Layout, Patterns, pattern_unit


class GradualUnfreezing(Freezing):
    """Train the head first, and one stage more from the top with each epoch.

    Howard and Ruder, Universal Language Model Fine-tuning, ACL 2018. Where there is no head, the
    last stage trains from the start.

    Args:
        every: epochs, or steps, before the next stage thaws.
        by: ``epoch`` or ``step``.
        stages: a regular expression for each stage, from the input on; None takes the network's.
        always_train: regular expressions of parameters that are never frozen; None takes the head.

    Raises:
        UserError: if a setting is out of range.
    """

    def __init__(
        self,
        every: int = 1,
        by: str = "epoch",
        stages: list[str] | None = None,
        always_train: Patterns = None,
    ) -> None:
        super().__init__(stages, always_train)
        if every < 1 or by not in ("epoch", "step"):
            raise UserError(
                f"GradualUnfreezing: every={every} must be at least 1 and by={by!r} epoch or step"
            )
        self.every = every
        self.by = by

    def begin(self, trainer: Trainer) -> None:
        """Look whether anything trains beside the stages."""
        self._alone = self.trained == sum(unit.size for unit in self.units)

    def choose(self, now: Moment) -> Iterable[int]:
        """Train the top stages."""
        count = (now.epoch if self.by == "epoch" else now.step) // self.every + self._alone
        return range(max(len(now.units) - count, 0), len(now.units))


def stop_times(count: int, t0: float, power: int) -> list[float]:
    """Give the share of training after which each of L stages stops, and the head's, 1, last.

    Example:
        >>> [round(t, 3) for t in stop_times(2, 0.8, 3)]
        [0.512, 0.729, 1.0]
    """
    return [(t0 + (1 - t0) * i / count) ** power for i in range(count + 1)]


class FreezeOut(Freezing):
    """Cool each stage to a rate of zero along a cosine, the first ones sooner, then freeze it.

    Brock et al., FreezeOut, 2017. Stage i of L stops at ``(t0 + (1 - t0) i / L) ** power`` of the
    training, the head at its end. It sets the learning rates itself, so there may be no scheduler.

    Args:
        t0: share of training after which the first stage stops, before the power.
        power: 1, 2 or 3.
        scaled: give each stage a higher rate, so that the sum over its steps is the same for all.
        stages: a regular expression for each stage, from the input on; None takes the network's.
        always_train: regular expressions of parameters that are never frozen; None takes the head.

    Raises:
        UserError: if a setting is out of range, there is a scheduler, or the fit has no end.
    """

    def __init__(
        self,
        t0: float = 0.8,
        power: int = 3,
        scaled: bool = True,
        stages: list[str] | None = None,
        always_train: Patterns = None,
    ) -> None:
        super().__init__(stages, always_train)
        if not 0 < t0 <= 1 or power not in (1, 2, 3):
            raise UserError(
                f"FreezeOut: t0={t0} must be above 0 and at most 1, and power={power} 1, 2 or 3"
            )
        self.t0 = t0
        self.power = power
        self.scaled = scaled

    def begin(self, trainer: Trainer) -> None:
        """Give each stage groups of its own in the optimizers."""
        if trainer.lr_scheduler_configs:
            kind = type(trainer.lr_scheduler_configs[0].scheduler).__name__
            raise UserError(
                f"FreezeOut sets the learning rates itself, and so does {kind};"
                " leave out one of them (--model.scheduler=null)"
            )
        for optimizer in trainer.optimizers:
            split_groups(optimizer, [unit.parameters for unit in self.units], "stage")
            for group in optimizer.param_groups:
                group["full_lr"] = group["lr"]

    def choose(self, now: Moment) -> Iterable[int]:
        """Set the rates, and train what has not stopped."""
        if math.isinf(now.total_steps):
            raise UserError(
                "FreezeOut needs the number of all steps, and the fit has no end;"
                " set --trainer.max_epochs or --trainer.max_steps"
            )
        times = stop_times(len(now.units), self.t0, self.power)
        done = now.step / now.total_steps
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                stop = times[group["stage"]]
                full = group["full_lr"] / (stop if self.scaled else 1.0)
                group["lr"] = 0.5 * full * (1 + math.cos(math.pi * min(done / stop, 1.0)))
        return [number for number, stop in enumerate(times[:-1]) if done < stop]


class Static(Freezing):
    """Freeze the same parameters in every step.

    Args:
        freeze: regular expressions of names of parameters that are frozen.
        train: regular expressions of names of those that train; all others are frozen. Give one
            of the two.

    Raises:
        UserError: if a pattern finds nothing, or both are given, or none.
    """

    by_hand = True

    def __init__(self, freeze: Patterns = None, train: Patterns = None) -> None:
        super().__init__(always_train=train)
        if (freeze is None) == (train is None):
            raise UserError("Static: give freeze or train, a pattern of parameters' names")
        self.frozen = freeze

    def find_units(self, module: LightningModule) -> Layout:
        """Make one unit of all that is frozen."""
        if self.frozen is not None:
            return pattern_unit(module, self.frozen, "freeze")
        return pattern_unit(module, self.always_train, "train", other=True)

    def choose(self, now: Moment) -> Iterable[int]:
        """Train none."""
        return ()
