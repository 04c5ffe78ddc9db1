"""What a task does for a network that has early exits: learn at all of them, choose a threshold."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from core.early_exit.training import Moment
from core.early_exit.transform import exits_of
from core.errors import UserError


def training_loss(task: LightningModule, batch: Any) -> Tensor:
    """Give the loss of a batch by the task's ``step``, at the exits where its network has any."""
    exits = exits_of(task.network)  # type: ignore[arg-type]
    if exits is None:
        plain: Tensor = task.step(batch).loss  # type: ignore[operator]
        return plain
    step = task.trainer.global_step
    total = max(task.trainer.estimated_stepping_batches, 1)
    return exits.training_loss(lambda: task.step(batch), Moment(step, step / total))  # type: ignore[operator]


def before_test(task: LightningModule) -> None:
    """Choose the threshold on validation data where that is wished, and begin to count."""
    exits = exits_of(task.network)  # type: ignore[arg-type]
    if exits is None:
        return

    def judge(batch: Any) -> Any:
        return task.step(task.transfer_batch_to_device(batch, task.device, 0))  # type: ignore[operator]

    exits.before_test(judge, _validation(task, exits.chosen) if exits.chosen else ())


def _validation(task: LightningModule, wish: str) -> Iterable[Any]:
    data = getattr(task.trainer, "datamodule", None)
    if data is None:
        raise UserError(
            f"EarlyExit: threshold={wish!r} needs a data module with validation data; give it a"
            " number"
        )
    found: Iterable[Any] = (
        data.every_item(data.val_set) if hasattr(data, "every_item") else data.val_dataloader()
    )
    return found
