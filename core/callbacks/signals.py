"""Answer SIGTERM, SIGINT and SIGUSR1: save at the next step, leave with the right status."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from core.callbacks.checkpoints import Checkpoints, resumes_exactly

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
SIGUSR1 = getattr(signal, "SIGUSR1", None)  # absent on Windows


class Signals(Callback):
    """Save and stop on SIGTERM (status 143) or SIGINT (130); save and go on with SIGUSR1.

    The state is saved after the step under way, or after the validation under way, so that it
    resumes exactly. A second SIGTERM or SIGINT leaves at once; what was saved before stays.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._save = False
        self._before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen from before the first step; only the main thread may."""
        if stage != TrainerFn.FITTING or self._before:
            return
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT, SIGUSR1):
            if number is not None:
                self._before[number] = signal.signal(number, self._receive)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Act on a signal after a whole optimizer step inside an epoch."""
        if resumes_exactly(trainer, batch_idx):
            self._act(trainer, saved=False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on a signal that came while the last epoch ended; its state has been saved."""
        self._act(trainer, saved=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening; a signal that came in the last moments still counts."""
        self._restore()
        self._act(trainer, saved=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop listening."""
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == SIGUSR1:
            self._save = True
        elif self._received is not None:
            os._exit(STATUS[signal.Signals(number)])
        else:
            self._received = number

    def _act(self, trainer: Trainer, saved: bool) -> None:
        stop, save = self._received is not None, self._save
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            save = trainer.strategy.reduce_boolean_decision(save, all=False)
        if not (stop or save):
            return
        self._save = False
        if not saved:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoints):
                    callback.save(trainer)
        if stop:
            number = self._received or signal.SIGTERM
            raise SystemExit(STATUS[signal.Signals(number)])

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
