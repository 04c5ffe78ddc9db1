"""Keep the last and the best checkpoint, each named by a text pointer that never dangles."""

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from core.callbacks.ema import averaged
from core.checkpoint_io import hash_file, is_good, remove_orphans
from core.errors import UserError
from core.openers import read_text, write_atomic


class Checkpoints(Checkpoint):
    """Save the state of training where it can be resumed exactly.

    The folder holds ``*.ckpt`` and the text files ``last`` and ``best``, each with the name of a
    checkpoint. States are saved after a step inside an epoch (every ``every_n_steps`` or
    ``every_minutes``) and after an epoch with its validation; a state between the two would be
    resumed wrongly by Lightning and is never written. An older checkpoint goes only after the newer
    one was read back and found good.

    Args:
        folder: where; None takes ``checkpoints`` below the trainer's ``default_root_dir``.
        monitor: the validation metric that ranks checkpoints.
        mode: ``min`` or ``max``.
        every_n_steps: also save each so many optimizer steps; None: by time only.
        every_minutes: also save when so many minutes have passed since the last save; None: never.
    """

    def __init__(
        self,
        folder: str | None = None,
        monitor: str = "val/loss",
        mode: str = "min",
        every_n_steps: int | None = None,
        every_minutes: float | None = 15.0,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r} must be 'min' or 'max'")
        self.folder = Path(folder) if folder else Path()
        self._folder_given = folder is not None
        self.monitor = monitor
        self.mode = mode
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.best_score: float | None = None
        self._candidate: float | None = None
        self._last_step = 0
        self._last_time = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder; clean up after an interrupted write; refuse what cannot be written."""
        if not self._folder_given:
            self.folder = Path(trainer.default_root_dir) / "checkpoints"
        if stage == TrainerFn.FITTING and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_orphans(self.folder)
            probe = self.folder / ".writable"
            probe.touch()
            probe.unlink()

    def state_dict(self) -> dict[str, Any]:
        """Keep the best score."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know the best score again."""
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps and minutes from here."""
        self._last_step, self._last_time = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save inside an epoch when it is time; never between two accumulated batches."""
        if not resumes_exactly(trainer, batch_idx):
            return
        steps = trainer.global_step - self._last_step
        minutes = (time.monotonic() - self._last_time) / 60
        due = (self.every_n_steps is not None and steps >= self.every_n_steps) or (
            self.every_minutes is not None and minutes >= self.every_minutes
        )
        if (
            trainer.strategy.reduce_boolean_decision(due, all=False)
            if trainer.world_size > 1
            else due
        ):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the weights; inside an epoch keep them at once, at its end with the whole state."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UserError(f"checkpoints.monitor: no metric {self.monitor!r}; there are {known}")
        score = float(value)
        better = math.isfinite(score) and (
            self.best_score is None
            or (score < self.best_score if self.mode == "min" else score > self.best_score)
        )
        if not better:
            return
        self.best_score = score
        if trainer.is_last_batch:
            self._candidate = score
        else:
            self._write(trainer, f"weights-step={trainer.global_step:07d}.ckpt", ["best"], True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state after an epoch."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save the whole state now; called after a step or an epoch, on every process."""
        pointers = ["last"] if self._candidate is None else ["last", "best"]
        self._candidate = None
        name = f"epoch={trainer.current_epoch:04d}-step={trainer.global_step:07d}.ckpt"
        self._write(trainer, name, pointers, False)
        self._last_step, self._last_time = trainer.global_step, time.monotonic()

    def _write(self, trainer: Trainer, name: str, pointers: list[str], weights_only: bool) -> None:
        path = self.folder / name
        with averaged(trainer) if weights_only else nullcontext():  # else the callback's own part
            trainer.save_checkpoint(path, weights_only=weights_only)
        if not trainer.is_global_zero:
            return
        if hash_file(path).exists() and not is_good(path):
            raise OSError(
                f"{path}: what was just written does not read back; the disk may be failing"
            )
        for pointer in pointers:
            write_atomic(self.folder / pointer, name + "\n")
        kept = {
            read_text(self.folder / p).strip()
            for p in ("last", "best")
            if (self.folder / p).exists()
        }
        for old in self.folder.glob("*.ckpt"):
            if old.name not in kept:
                trainer.strategy.remove_checkpoint(old)


def resumes_exactly(trainer: Trainer, batch_idx: int) -> bool:
    """Say whether a state saved at the end of this batch would be resumed exactly.

    Not between accumulated batches, whose gradients are not saved; not before a validation, which
    Lightning would leave out; not at an epoch's last batch, whose end it would leave out.
    """
    accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
    each = trainer.val_check_batch
    over_epochs = trainer.check_val_every_n_epoch is None
    batch = trainer.fit_loop.epoch_loop.total_batch_idx if over_epochs else batch_idx
    validating = isinstance(each, int) and (batch + 1) % each == 0
    return not (accumulating or validating or trainer.is_last_batch)


def pointed(folder: Path, pointer: str) -> Path:
    """Follow ``last`` or ``best`` in a ``checkpoints`` folder.

    Raises:
        UserError: if there is no such pointer, or it points outside the folder or to nothing.
    """
    file = folder / pointer
    if not file.is_file():
        raise UserError(f"{file}: no such pointer; this run has saved none yet; start it anew")
    name = read_text(file, limit=4096).strip()
    if not name or Path(name).name != name or not (folder / name).is_file():
        raise UserError(f"{file}: points to {name!r}, which is not a checkpoint in {folder}")
    return folder / name
