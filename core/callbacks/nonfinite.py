"""Stop before a loss that is not a number reaches the weights that are saved."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from core.callbacks.precision import PrecisionGuard
from core.errors import UserError


class NonFiniteGuard(Callback):
    """Stop training when the loss is NaN or infinite.

    Args:
        every_n_steps: how often to look; each look waits for the device. Saving a checkpoint always
            looks first, so nothing is saved from a loss that was not finite.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self._bad: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember a bad loss; look when it is time."""
        if any(guard.batch_skipped for guard in _guards(trainer)):
            return
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            bad = ~torch.isfinite(loss.detach()).all()
            self._bad = bad if self._bad is None else self._bad | bad
        if (batch_idx + 1) % self.every_n_steps == 0:
            self._look(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look before anything is saved."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        seen, self._bad = self._bad is not None and bool(self._bad), None
        if seen:
            raise UserError(
                f"the training loss is not finite in epoch {trainer.current_epoch},"
                f" at or before step {trainer.global_step}{_place(trainer)};"
                " nothing was saved from it."
                " Try a smaller --model.optimizer.lr, --trainer.gradient_clip_val=1,"
                " or look for extreme values in the data"
            )


def _guards(trainer: Trainer) -> list[PrecisionGuard]:
    return [c for c in trainer.callbacks if isinstance(c, PrecisionGuard)]  # type: ignore[attr-defined]


def _place(trainer: Trainer) -> str:
    """Name the module where it began, where one that looks for it is on."""
    found = next((guard.found for guard in _guards(trainer) if guard.found), None)
    return f", first in {found['module']}" if found else ""
