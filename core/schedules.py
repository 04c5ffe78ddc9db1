"""Learning rates that warm up and then fall to zero, or stay, over all steps of a training.

Each rate is the optimizer's own times a factor, so that groups of parameters keep their ratios.
"""

import math
from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class _Warmup(LRScheduler):
    """Multiply every group's rate by a factor that rises from 0 to 1, and then by ``after``."""

    after: Callable[[float], float]

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        name = type(self).__name__
        if total_steps is None or total_steps < 1:
            raise ValueError(f"{name}: total_steps={total_steps} must be the number of all steps")
        if warmup < 0 or (warmup >= 1 and warmup != int(warmup)):
            raise ValueError(
                f"{name}: warmup={warmup} must be a share below 1, or a whole number of steps"
            )
        self.total_steps = total_steps
        self.warmup_steps = math.ceil(total_steps * warmup) if warmup < 1 else int(warmup)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Give the rate of each group at this step."""
        step, warmup = self.last_epoch, self.warmup_steps
        if step < warmup:
            factor = step / max(1, warmup)
        else:
            done = (step - warmup) / max(1, self.total_steps - warmup)
            factor = type(self).after(min(done, 1.0))
        return [rate * factor for rate in self.base_lrs]


class WarmupLinear(_Warmup):
    """Rise to the optimizer's rate, then fall in a straight line to zero.

    Args:
        optimizer: its rates are the highest ones.
        total_steps: of the whole training; filled in by the task.
        warmup: steps of the rise: a share of all below 1, or their number.
        last_epoch: the step to go on from; -1 begins.

    Raises:
        ValueError: if ``total_steps`` or ``warmup`` is out of range.
    """

    after = staticmethod(lambda done: 1 - done)


class WarmupCosine(_Warmup):
    """Rise to the optimizer's rate, then fall to zero along half a cosine.

    Args:
        optimizer: its rates are the highest ones.
        total_steps: of the whole training; filled in by the task.
        warmup: steps of the rise: a share of all below 1, or their number.
        last_epoch: the step to go on from; -1 begins.

    Raises:
        ValueError: if ``total_steps`` or ``warmup`` is out of range.
    """

    after = staticmethod(lambda done: 0.5 * (1 + math.cos(math.pi * done)))


class WarmupConstant(_Warmup):
    """Rise to the optimizer's rate and stay there.

    Args:
        optimizer: its rates are the highest ones.
        total_steps: of the whole training; filled in by the task.
        warmup: steps of the rise: a share of all below 1, or their number.
        last_epoch: the step to go on from; -1 begins.

    Raises:
        ValueError: if ``total_steps`` or ``warmup`` is out of range.
    """

    after = staticmethod(lambda done: 1.0)


class PolyLR(LRScheduler):
    """Let each rate fall as (1 - step / total_steps) ** power, down to zero.

    Args:
        optimizer: its rates are the first ones.
        total_steps: of the whole training; filled in by the task, unless a longer way is given, of
            which only the first part is gone.
        power: 1 is a straight line.
        last_epoch: the step to go on from; -1 begins.

    Raises:
        ValueError: if ``total_steps`` or ``power`` is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        power: float = 0.9,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None or total_steps < 1:
            raise ValueError(f"PolyLR: total_steps={total_steps} must be the number of all steps")
        if power <= 0:
            raise ValueError(f"PolyLR: power={power} must be above 0")
        self.total_steps = total_steps
        self.power = power
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Give the rate of each group at this step."""
        left = max(0.0, 1 - self.last_epoch / self.total_steps) ** self.power
        return [rate * left for rate in self.base_lrs]
