"""What a task does for a network that has early exits: learn at all, choose who leaves where."""

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from core.adapter_targets import EXITS
from core.data_module import DataModule
from core.early_exit.cost import Meter
from core.early_exit.curve import curve, speeds
from core.early_exit.derived import Derived
from core.early_exit.exit_gate import ExitGate
from core.early_exit.threshold import ExitTable, joined
from core.early_exit.training import Moment
from core.early_exit.transform import EarlyExits, exits_of
from core.errors import UserError

KEPT = "early_exits"
"""The folder in a run's that holds its derived sets."""


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

    def quality(self) -> Tensor:
        found: Tensor = self.task.quality(self.step, self.batch)
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


def before_fit(task: LightningModule) -> None:
    """Open the gate: what training changes it was not fitted to."""
    exits = exits_of(task.network)  # type: ignore[arg-type]
    if exits is not None and exits.gate is not None:
        exits.gate.open()


def before_test(task: LightningModule) -> None:
    """Choose the threshold on validation data, or fit the gate on training data; begin to count.

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
    if exits.gate is not None and exits.gate.beta is not None:
        exits.gate.fit(derived_of(task, exits.gate))
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
            batches = test_batches(task, loader, limit)
            work = (lambda given=batch: task.step(given) for batch in batches)  # type: ignore[operator]
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


def derived_of(task: Any, gate: ExitGate) -> Derived:
    """Give the derived set of a gate: read from the run's folder, or made and kept there.

    Of training data without augmentation; the file's name tells weights, task and data.

    Args:
        task: of a trainer, in eval mode.
        gate: of its network.

    Raises:
        UserError: if there are no such data, or their items are not the rows of the network.
    """
    trainer = task.trainer
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, DataModule):
        raise UserError(
            f"EarlyExit: beta={gate.beta} needs a core.data_module.DataModule, whose training data"
            " the gate is fitted to; take a threshold"
        )
    source = _source(task, data)
    folder = Path(trainer.default_root_dir)
    path = folder / KEPT / f"{source[:16]}.safetensors"
    if path.is_file():
        return Derived.load(path, source)

    def batches() -> Iterable[tuple[list[str], Tensor, Tensor]]:
        loader, first = data.every_item(data.plain_train_set()), 0
        for batch in test_batches(task, loader, trainer.limit_train_batches):
            with trainer.precision_plugin.forward_context():
                quality, features = gate.examine(lambda given=batch: _Judged(task, given))  # type: ignore[misc]
            yield [str(first + at) for at in range(len(quality))], quality, features
            first += len(quality)

    try:
        derived = Derived.gather(batches(), gate.depths, source)
    except ValueError as error:
        raise UserError(f"EarlyExit: no gate can be fitted: {error}") from None
    if (folder / "config.yaml").is_file() and trainer.is_global_zero:  # a run's folder
        derived.save(path)
    return derived


def _source(task: Any, data: DataModule) -> str:
    """Tell weights, settings of the task, precision and data by a SHA-256."""
    trainer = task.trainer
    plain = {name: v for name, v in vars(task).items() if isinstance(v, int | float | str)}
    told = {
        "task": {name: value for name, value in plain.items() if name[0] != "_"},
        "precision": str(trainer.precision),
        "limit": trainer.limit_train_batches,
        "data": [data.fingerprint(), data.facts],
    }
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in task.network.state_dict().items():
        if not any(part in f".{name}" for part in (f".{EXITS}.gate.", f".{EXITS}.thresholds")):
            found.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


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
    for batch in test_batches(task, loader, limit):
        with task.trainer.precision_plugin.forward_context():
            tables.append(exits.table(lambda given=batch: _Judged(task, given)))  # type: ignore[misc]
    return tables


def test_batches(task: Any, loader: Any, limit: int | float) -> Iterable[Any]:
    """Give batches as a test step of a task is given them: how many of a loader, or which share."""
    trainer = task.trainer
    count = limit if isinstance(limit, int) else int(limit * len(loader))
    for batch in islice(loader, count):
        yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
