"""AutoFreeze: freeze from the input on what has stopped to change, and skip it once it is known.

Liu et al., AutoFreeze, 2021; He et al., PipeTransformer, ICML 2021.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from core.errors import UserError
from core.freezing.engine import Freezing, Moment
from core.freezing.prefix_cache import PrefixCache
from core.freezing.units import Patterns
from core.nested import rows_of


def median_rule(before: Tensor, now: Tensor, frozen: int) -> int:
    """Say how many stages are frozen next, by the change of their gradients.

    Args:
        before: (N,) norms of each stage's gradients summed over the interval before the last.
        now: (N,) those over the last.
        frozen: stages, from the input on, that are frozen already.

    Returns:
        The place of the first stage whose relative change reaches the median of all that train.
    """
    change = ((before - now).abs() / before.clamp_min(1e-30))[frozen:]
    return frozen + int((change >= change.quantile(0.5)).nonzero()[0])


def geometric_rule(count: int, alpha: float, epoch: int) -> int:
    """Say how many of N stages are frozen in an epoch: ``ceil(N (1 - (1 - alpha) ** epoch))``.

    Example:
        >>> [geometric_rule(12, 1 / 3, epoch) for epoch in range(6)]
        [0, 4, 7, 9, 10, 11]
    """
    return math.ceil(count * (1 - (1 - alpha) ** epoch) - 1e-9)


class AutoFreeze(Freezing):
    """Freeze the first stages for good, once their gradients have stopped to change.

    Only frozen first stages shorten the backward pass. With ``cache`` the forward pass through
    them too: their outputs are kept for each sample until more stages freeze. It needs batches
    that name their samples, in a field ``rows``, and samples that are the same in each epoch.

    Args:
        interval: steps from one decision to the next: a share of all below 1, or their number.
        rule: ``median`` of the gradients' relative changes, or ``geometric``: the share ``alpha``
            of what trains is frozen each epoch (PipeTransformer).
        alpha: of the geometric rule.
        cache: keep the outputs of the frozen stages.
        cache_bytes: that are kept at most, in the memory of the host.
        sample_id: gives from a batch the numbers of its samples (B,), where it has no ``rows``.
        stages: a regular expression for each stage, from the input on; None takes the network's.
        always_train: regular expressions of parameters that are never frozen; None takes the head.

    Raises:
        UserError: if a setting is out of range, or a batch does not name its samples.
    """

    def __init__(
        self,
        interval: float = 0.05,
        rule: str = "median",
        alpha: float = 1 / 3,
        cache: bool = False,
        cache_bytes: int = 2**30,
        sample_id: Callable[[Any], Any] | None = None,
        stages: list[str] | None = None,
        always_train: Patterns = None,
    ) -> None:
        super().__init__(stages, always_train)
        if interval <= 0 or (interval >= 1 and interval != int(interval)):
            raise UserError(
                f"AutoFreeze: interval={interval} must be a share below 1 of all steps, or a whole"
                " number of steps"
            )
        if rule not in ("median", "geometric") or not 0 < alpha < 1 or cache_bytes < 0:
            raise UserError(
                f"AutoFreeze: rule={rule!r} must be median or geometric, alpha={alpha} between 0"
                f" and 1, and cache_bytes={cache_bytes} at least 0"
            )
        self.interval = interval
        self.rule = rule
        self.alpha = alpha
        self.cache = cache
        self.cache_bytes = cache_bytes
        self.sample_id = sample_id
        self.needs = "gradient" if rule == "median" else ""
        self._cache = PrefixCache(cache_bytes)

    def begin(self, trainer: Trainer) -> None:
        """Freeze none at first."""
        self.memory = {"frozen": 0, "before": None}
        self._cache = PrefixCache(self.cache_bytes)
        self._bound = 0
        whole = self.trained == sum(unit.size for unit in self.units)
        self._most = len(self.units) - whole  # something has to train

    def choose(self, now: Moment) -> Iterable[int] | None:
        """Freeze more of the first stages when it is time."""
        frozen: int = self.memory["frozen"]
        if self.rule == "geometric":
            frozen = geometric_rule(len(now.units), self.alpha, now.epoch)
        elif now.step and now.step % self._steps_of(now) == 0:
            change, before = self.take_gradients(), self.memory["before"]
            if before is not None and frozen < len(now.units):
                frozen = median_rule(before, change, frozen)
            self.memory["before"] = change
        self.memory["frozen"] = min(frozen, self._most)
        return range(self.memory["frozen"], len(now.units))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Choose, and look whether the frozen stages can be skipped."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self.cache:
            return
        ids = self._ids(batch)
        if self._bound != self.memory["frozen"] and not self._cache.fault:
            self._bound = self.memory["frozen"]
            frozen = self.units[: self._bound]
            self._cache.bind(pl_module, [module for unit in frozen for module in unit.modules])
        self._cache.begin(ids)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Keep what the frozen stages gave."""
        super().on_before_backward(trainer, pl_module, loss)
        if self.cache:
            for module in self._cache.end(loss):
                self.hold(module)  # dropout between frozen stages

    def report(self) -> dict[str, Any]:
        """Say what was frozen, and how many batches were skipped through it."""
        told = {**super().report(), "frozen_stages": self.memory.get("frozen", 0)}
        if self.cache:
            told["cached_batches"] = self._cache.hits
            if self._cache.fault:
                told["notes"] = [*told["notes"], f"nothing is cached: {self._cache.fault}"]
        return told

    def release(self) -> None:
        """Let all layers work as they did."""
        self._cache.unbind()
        super().release()

    def _steps_of(self, now: Moment) -> int:
        if self.interval >= 1:
            return int(self.interval)
        if math.isinf(now.total_steps):
            raise UserError(
                f"AutoFreeze: interval={self.interval} is a share of all steps, and the fit has no"
                " end; set --trainer.max_epochs or --trainer.max_steps, or give steps"
            )
        return max(round(self.interval * now.total_steps), 1)

    def _ids(self, batch: Any) -> Sequence[int]:
        """Give the numbers of a batch's samples."""
        found = (self.sample_id or rows_of)(batch)
        if found is None:
            raise UserError(
                f"AutoFreeze: cache=true needs batches that name their samples in `rows`, and a"
                f" {type(batch).__name__} has none; give sample_id, a function of a batch, or"
                " leave out cache"
            )
        numbers: list[int] = found.tolist() if isinstance(found, Tensor) else list(found)
        return numbers
