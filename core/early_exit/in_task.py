"""What a task does for a network that has early exits: learn at all of them, choose a threshold."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from core.data_module import DataModule
from core.early_exit.cost import Meter
from core.early_exit.curve import curve, speeds
from core.early_exit.threshold import ExitTable, joined
from core.early_exit.training import Moment
from core.early_exit.transform import EarlyExits, exits_of
from core.errors import UserError


class _Judged:
    """A judged batch that can say where it is wrong, by the task."""

    def __init__(self, task: Any, batch: Any) -> None:
        self.task = task
        self.batch = batch
        self.step = task.step(batch)
        self.loss = self.step.loss
        self.prediction = self.step.prediction
        self.target = self.step.target

    def mistakes(self) -> Tensor:
        found: Tensor = self.task.mistakes(self.step, self.batch)
        return found


def training_loss(task: LightningModule, batch: Any) -> Tensor:
    """Give the loss of a batch by the task's ``step``, at the exits where its network has any."""
    exits = exits_of(task.network)  # type: ignore[arg-type]
    if exits is None:
        plain: Tensor = task.step(batch).loss  # type: ignore[operator]
        return plain
    step = task.trainer.global_step
    total = max(task.trainer.estimated_stepping_batches, 1)
    return exits.training_loss(lambda: _Judged(task, batch), Moment(step, step / total))


def before_test(task: LightningModule) -> None:
    """Choose the threshold on validation data where that is wished, and begin to count.

    Every process sees all of the data, and so chooses the same.

    Raises:
        UserError: if there are no such data, or their items are not the rows of the network.
    """
    exits = exits_of(task.network)  # type: ignore[arg-type]
    if exits is None:
        return
    if exits.chosen is not None:
        data = getattr(task.trainer, "datamodule", None)
        tables = []
        if data is not None:
            part = data.val_set if isinstance(data, DataModule) else None
            loader = data.val_dataloader() if part is None else data.every_item(part)
            tables = exit_tables(task, exits, loader, task.trainer.limit_val_batches)
        if not tables:
            raise UserError(
                f"EarlyExit: threshold={exits.chosen!r} needs validation data; give it a number"
            )
        exits.choose(joined(tables))
    exits.meter.clear()


def after_test(task: LightningModule) -> dict[str, float]:
    """Give what the exits met in a test; where a curve is wished, judge the test at every exit.

    Returns:
        ``mean_exit``, and ``macs_share`` of the multiply-adds of all layers.
    """
    exits = exits_of(task.network)  # type: ignore[arg-type]
    if exits is None or not (met := exits.meter.report()):
        return {}
    trainer = task.trainer
    data = getattr(trainer, "datamodule", None)
    if exits.curve_wished and trainer.is_global_zero and isinstance(data, DataModule):
        loader = data.every_item(data.test_set)
        counted = exits.meter
        exits.measure(Meter(counted.depth))  # the test's own count is done
        try:
            limit = trainer.limit_test_batches
            batches = list(_batches(task, loader, limit))
            work = [lambda given=batch: task.step(given) for batch in batches]  # type: ignore[operator]
            with trainer.precision_plugin.forward_context():
                exits.speeds = speeds(exits.control, work)
            table = joined(exit_tables(task, exits, loader, limit))
            own = set(exits.thresholds.tolist())
            exits.curve = curve(table, [*own] if len(own) == 1 else ())
        except UserError:  # items that are not the network's rows have no curve
            exits.curve = []
        finally:
            exits.measure(counted)
    return {name: met[name] for name in ("mean_exit", "macs_share")}


def exit_tables(
    task: Any, exits: EarlyExits, loader: Iterable[Any], limit: int | float = 1.0
) -> list[ExitTable]:
    """Judge batches at every exit.

    Args:
        task: of a trainer, in eval mode.
        exits: those of its network.
        loader: batches as the data module gives them.
        limit: how many of them, or which share.
    """
    tables = []
    for batch in _batches(task, loader, limit):
        with task.trainer.precision_plugin.forward_context():
            tables.append(exits.table(lambda given=batch: _Judged(task, given)))  # type: ignore[misc]
    return tables


def _batches(task: Any, loader: Any, limit: int | float) -> Iterable[Any]:
    """Give batches as a test step is given them."""
    trainer = task.trainer
    count = limit if isinstance(limit, int) else int(limit * len(loader))
    for batch in islice(loader, count):
        yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
