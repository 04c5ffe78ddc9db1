"""Measure what training holds in memory and how long its two halves take, at a few of its steps."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from core import memory

TIMES = 1000
"""Steps whose seconds are remembered; of more than these the median is that of the last."""


class MemoryMeter(Callback):
    """Count at some steps what is kept for the backward, and time others; change nothing.

    Of the first ``2 * first_steps`` batches each other is counted and each other timed, from then
    on one of ``every_n_steps`` and the one after it. Figures are those of one process, and None
    until measured: nothing is counted in code compiled by torch.

    A count stands for all batches up to the next one.

    What is kept is what :func:`core.memory.saved_bytes` counts and is still held when the backward
    begins; what a checkpointed part computes again is not. With several backwards in a step it is
    what is held at the most at the beginning of one.

    Args:
        every_n_steps: batches from one count to the next. The default is no multiple of the usual
            period of anything that changes from step to step.
        first_steps: how many counts the beginning has.

    Attributes:
        optimizer_bytes: the most that the state of the optimizers has held.
        weight_bytes: those of the parameters.
    """

    def __init__(self, every_n_steps: int = 29, first_steps: int = 3) -> None:
        if every_n_steps < 2 or first_steps < 0:
            raise ValueError(
                f"every_n_steps={every_n_steps} must be at least 2"
                f" and first_steps={first_steps} at least 0"
            )
        self.every_n_steps = every_n_steps
        self.first_steps = first_steps
        self._reset()

    def _reset(self) -> None:
        self.optimizer_bytes: int | None = None
        self.weight_bytes: int | None = None
        self._batches = 0
        self._counts = 0
        self._kept, self._gradients = _Held(), _Held()
        self._seconds: dict[str, deque[float]] = {
            key: deque(maxlen=TIMES) for key in ("forward", "backward")
        }
        self._step: _Step | None = None
        self._gradients_due = self._optimizer_due = False

    @property
    def measured_steps(self) -> int:
        """How many steps were counted."""
        return self._counts

    @property
    def saved_bytes(self) -> int | None:
        """The bytes kept for a backward, the mean over the batches."""
        return int(sum(self._kept.mean(self._batches).values())) if self._counts else None

    @property
    def saved_by_class(self) -> dict[str, int]:
        """The same by the class of the module that keeps them, the most first."""
        found = self._kept.mean(self._batches)
        return {kind: int(found[kind]) for kind in sorted(found, key=lambda k: -found[k])}

    @property
    def gradient_bytes(self) -> int | None:
        """The bytes of all gradients before an optimizer's step, the mean over the batches."""
        found = self._gradients.mean(self._batches)
        return int(found["all"]) if found else None

    @property
    def peak_bytes(self) -> int:
        """The most bytes held so far, of the GPU where one is used, else of this process."""
        return memory.peak_bytes()

    @property
    def forward_seconds(self) -> float | None:
        """Wall time of a batch's ``training_step``, the median over the timed steps.

        Where optimization is manual it is what lies before a backward.
        """
        return self._median("forward")

    @property
    def backward_seconds(self) -> float | None:
        """Wall time of a batch's backward, the median over the timed steps."""
        return self._median("backward")

    def figures(self) -> dict[str, Any]:
        """Give all figures but the peak, for ``results.json``."""
        return {
            "measured_steps": self.measured_steps,
            "saved_bytes": self.saved_bytes,
            "saved_by_class": self.saved_by_class,
            "gradient_bytes": self.gradient_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "weight_bytes": self.weight_bytes,
            "forward_seconds": self.forward_seconds,
            "backward_seconds": self.backward_seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """Keep the sums, so that a resumed run reports over all its parts."""
        return {
            "batches": self._batches,
            "counts": self._counts,
            "kept": asdict(self._kept),
            "gradients": asdict(self._gradients),
            "optimizer_bytes": self.optimizer_bytes,
            "weight_bytes": self.weight_bytes,
            "seconds": {key: list(values) for key, values in self._seconds.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the sums of the interrupted run."""
        self._batches = state_dict["batches"]
        self._counts = state_dict["counts"]
        self._kept = _Held(**state_dict["kept"])
        self._gradients = _Held(**state_dict["gradients"])
        self.optimizer_bytes = state_dict["optimizer_bytes"]
        self.weight_bytes = state_dict["weight_bytes"]
        for key, values in state_dict["seconds"].items():
            self._seconds[key].extend(values)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew with each fit."""
        if stage == TrainerFn.FITTING:
            self._reset()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make ready to measure this batch, if its turn has come."""
        self._leave()
        number, self._batches = self._batches, self._batches + 1
        beginning = number < 2 * self.first_steps
        turn = number % (2 if beginning else self.every_n_steps)
        if turn > 1:
            return
        counts = turn == 0 and memory.countable(pl_module)
        self._step = _Step(pl_module, counts)
        self._gradients_due |= turn == 0

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Count what is kept now."""
        if self._step is not None:
            self._step.before_backward(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the backward."""
        if self._step is not None:
            self._step.after_backward()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Count the gradients, which are complete now."""
        if self._gradients_due:
            self._gradients_due, self._optimizer_due = False, True
            self._gradients.hold({"all": memory.gradient_bytes(pl_module)}, self._batches - 1)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take over what was measured."""
        if self._optimizer_due:
            self._optimizer_due = False
            self._weigh(trainer, pl_module)
        if (step := self._step) is None:
            return
        self._leave()
        if step.kept is not None:
            self._counts += 1
            self._kept.hold(step.kept, self._batches - 1)
        elif not step.counts:
            for key, seconds in step.seconds.items():
                self._seconds[key].append(seconds)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the optimizers once more."""
        self._leave()
        self._weigh(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self._leave()

    def _weigh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = memory.optimizer_bytes(*trainer.optimizers)
        self.optimizer_bytes = max(self.optimizer_bytes or 0, now)
        self.weight_bytes = memory.weight_bytes(pl_module)

    def _leave(self) -> None:
        if self._step is not None:
            self._step.leave()
            self._step = None

    def _median(self, key: str) -> float | None:
        return statistics.median(self._seconds[key]) if self._seconds[key] else None


@dataclass
class _Held:
    """Sizes by kind, known at some batches, each until the next."""

    now: dict[str, int] = field(default_factory=dict)
    since: int = 0
    first: int = 0
    sums: dict[str, int] = field(default_factory=dict)

    def hold(self, sizes: Mapping[str, int], batch: int) -> None:
        """Take the sizes of a batch."""
        if self.now:
            self.sums = self._summed(batch)
        else:
            self.first = batch
        self.now, self.since = dict(sizes), batch

    def mean(self, batches: int) -> dict[str, float]:
        """Give the mean over the batches before number ``batches``, from the first known on."""
        seen = max(batches - self.first, 1)
        return {kind: total / seen for kind, total in self._summed(batches).items()}

    def _summed(self, batch: int) -> dict[str, int]:
        length = batch - self.since
        return {
            kind: self.sums.get(kind, 0) + self.now.get(kind, 0) * length
            for kind in self.sums | self.now
        }


class _Step:
    """The measurement of one batch: ``training_step`` runs inside it until :meth:`leave`."""

    def __init__(self, module: LightningModule, counts: bool) -> None:
        self.module = module
        self.counts = counts
        self.kept: Mapping[str, int] | None = None
        self.seconds: dict[str, float] = {}
        self._count: memory.Kept | None = None
        self._began: float | None = None
        self._inside = False
        own: Callable[..., Any] = module.training_step
        self._before = vars(module).get("training_step")

        @wraps(own)
        def measured(*args: Any, **kwargs: Any) -> Any:
            return self._run(own, *args, **kwargs)

        module.training_step = measured  # type: ignore[method-assign]

    def leave(self) -> None:
        """Give the module its own ``training_step`` back."""
        if self._before is None:
            vars(self.module).pop("training_step", None)
        else:
            self.module.training_step = self._before  # type: ignore[method-assign]

    def before_backward(self, loss: Tensor) -> None:
        """Count what is kept, and begin with the time of the backward."""
        self._end("forward")
        if self._count is not None:
            self._count.add_attributes(loss)
            self._count.drop_freed()
            self._take()
        self._begin()

    def after_backward(self) -> None:
        """End the time of the backward; a manual optimization may go on to another forward."""
        self._end("backward")
        if self._inside:
            self._begin()

    def _run(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        count = memory.saved_bytes(self.module) if self.counts else nullcontext()
        with count as self._count:
            self._begin()
            self._inside = True
            try:
                output = own(*args, **kwargs)
            finally:
                self._inside = False
        if self.module.automatic_optimization:
            self._end("forward")
        elif self._count is not None and self.kept is None:  # a backward that Lightning knows not
            self._take()
        self._began = None
        return output

    def _take(self) -> None:
        assert self._count is not None
        found = self._count.by_class
        if self.kept is None or sum(found.values()) > sum(self.kept.values()):
            self.kept = found

    def _begin(self) -> None:
        self._wait()
        self._began = time.perf_counter()

    def _end(self, key: str) -> None:
        if self._began is not None:
            self._wait()
            self.seconds[key] = self.seconds.get(key, 0.0) + time.perf_counter() - self._began
            self._began = None

    def _wait(self) -> None:
        if self.module.device.type != "cpu":
            torch.accelerator.synchronize(self.module.device)
