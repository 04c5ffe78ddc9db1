"""Make a resumed run the same run: every random draw of a step follows from the step's number."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler

from core.batch_plan import mix_seed


class ExactResume(Callback):
    """Seed torch, numpy and random before every training batch from (seed, epoch, batch, rank).

    Together with a :class:`core.data_module.DataModule` and
    :class:`core.callbacks.checkpoints.Checkpoints` a run that was killed and resumed ends in the
    same weights, bit for bit, as one that was not.

    Args:
        seed: the run's seed; a resumed run keeps the seed it began with.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def state_dict(self) -> dict[str, Any]:
        """Keep the seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the seed of the interrupted run."""
        self.seed = state_dict["seed"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop again where early stopping had stopped, accumulate what this epoch accumulates.

        Lightning forgets both when it goes on inside an epoch.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience > 0:
                trainer.should_stop = True
            if isinstance(callback, GradientAccumulationScheduler):
                trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(
                    trainer.current_epoch
                )

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Seed this step."""
        seed = mix_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
