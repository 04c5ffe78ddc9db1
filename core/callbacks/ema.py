"""Running averages of the weights, which are what is validated, kept as best and tested."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from torch import Tensor, nn


class EMAWeightAveraging(lightning_callbacks.EMAWeightAveraging):
    """Average the weights over the steps, with exponentially falling weight.

    Lightning's callback of this name, mended: frozen weights and whole numbers stay what they are
    to the last bit, before the first update the weights of training are validated and saved, the
    average lies on the device of training, what a task measures at the end of a validation belongs
    to it, and what is validated after the fit is what was loaded. There is no update after a
    validation and before the weights that it judged are saved.

    Args:
        decay: what stays of the average at each update.
        update_every_n_steps: optimizer steps between two updates.
        update_starting_at_step: the first step, from 0 on, that counts.
        use_buffers: average floating-point buffers too; else they are those of the last step.
        device: where the average lies; None takes that of training.
    """

    def __init__(
        self,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        use_buffers: bool = True,
        device: str | None = None,
    ) -> None:
        if not 0 <= decay < 1 or update_every_n_steps < 1:
            raise ValueError(
                f"decay={decay} must be from 0 to below 1"
                f" and update_every_n_steps={update_every_n_steps} at least 1"
            )
        super().__init__(device, use_buffers, decay, update_every_n_steps, update_starting_at_step)
        self.decay = decay
        self._kwargs["avg_fn"] = _Average(decay)

    def report(self) -> dict[str, Any]:
        """Say in a few plain values what was done, for ``results.json``."""
        return {"decay": self.decay}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin the average where the network is trained.

        What builds the optimizer may be of a kind that cannot be copied, and is of no use to it.
        """
        if self._device is None:
            self._device = trainer.strategy.root_device
        aside = {name: value for name, value in vars(pl_module).items() if callable(value)}
        vars(pl_module).update(dict.fromkeys(aside))
        try:
            super().setup(trainer, pl_module, stage)
        finally:
            vars(pl_module).update(aside)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the buffers that no checkpoint holds."""
        assert self._average_model is not None
        ours = dict(self._average_model.module.named_modules())
        for name, module in pl_module.named_modules():
            for buffer in module._non_persistent_buffers_set:
                own, now = ours[name]._buffers[buffer], module._buffers[buffer]
                if own is not None and now is not None:
                    own.copy_(now)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average."""
        self._keep_up(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in place: the task may measure something on it yet, and keep that."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on training with the weights of training."""
        super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the network, and nothing here."""
        self._keep_up(pl_module)
        super().on_train_end(trainer, pl_module)
        self._average_model = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the weights, and those of training beside it."""
        self._keep_up(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def _keep_up(self, pl_module: LightningModule) -> None:
        """Before the first update the average is the network of now, not that of the beginning."""
        average = self._average_model
        if average is not None and not bool(average.n_averaged):
            with torch.no_grad():
                for own, now in zip(_tensors(average.module), _tensors(pl_module), strict=True):
                    own.copy_(now)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class _Average:
    """An exponential average that leaves equal values as they are, and takes whole numbers over."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, average: Tensor, now: Tensor, count: Tensor) -> Tensor:
        if not average.is_floating_point():
            return now
        return torch.lerp(average, now, 1 - self.decay)


@contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """Have the averaged weights in the network, where a callback of the trainer averages them."""
    active = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, lightning_callbacks.WeightAveraging)
        and callback._average_model is not None
    ]
    for callback in active:
        callback._swap_models(trainer.lightning_module)
    try:
        yield
    finally:
        for callback in reversed(active):
            callback._swap_models(trainer.lightning_module)
