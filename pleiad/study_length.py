"""How long a run of a study trains: a budget in steps, or in seconds, as keys of a fit.

A fit that ends by its number of steps may end inside an epoch, where Lightning validates no more.
So validations are laid out over the batches of the whole fit, and the last of them falls on its
end: the best checkpoint is chosen among them.
"""

import json
import math
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.errors import UserError
from pleiad.study import Cell

if TYPE_CHECKING:
    from pleiad.building import Built

VALIDATIONS = 5
"""The most validations of a fit with a budget; fewer where its batches do not divide so."""
STEPS = 20
"""Steps that are timed for a budget in seconds."""


class Spent(NamedTuple):
    """What a budget comes to: optimizer ``steps``, and the arguments of ``pleiad fit`` for them."""

    steps: int | None = None
    overrides: tuple[str, ...] = ()


def length_of(steps: int, batches: int, trainer: Mapping[str, Any]) -> Spent:
    """Lay a fit out over a number of optimizer steps.

    Nothing may end it earlier: ``EarlyStopping`` is taken out of its callbacks.

    Args:
        steps: optimizer steps.
        batches: in an epoch.
        trainer: the resolved configuration of the trainer.
    """
    every = total_batches(steps, batches, trainer.get("accumulate_grad_batches") or 1)
    count = next(k for k in range(VALIDATIONS, 0, -1) if every % k == 0)
    keys: dict[str, Any] = {
        "max_steps": steps,
        "max_epochs": -1,
        "val_check_interval": every // count,
        "check_val_every_n_epoch": None,
    }
    callbacks = trainer.get("callbacks") or []
    lasting = [node for node in callbacks if not node["class_path"].endswith(".EarlyStopping")]
    if len(lasting) < len(callbacks):
        keys["callbacks"] = lasting or None
    return Spent(steps, tuple(f"--trainer.{key}={json.dumps(v)}" for key, v in keys.items()))


def total_batches(steps: int, batches: int, accumulated: int) -> int:
    """Count the batches until an optimizer step; the last batch of an epoch always ends one.

    Example:
        >>> total_batches(steps=5, batches=5, accumulated=2)  # 2 + 2 + 1, then 2 + 2
        9
    """
    epochs, rest = divmod(steps, math.ceil(batches / accumulated))
    return epochs * batches + rest * accumulated


def batches_of(built: "Built") -> int:
    """Count the batches of an epoch of training.

    Raises:
        UserError: if that is not known before.
    """
    try:
        count = len(built.data.train_dataloader())
    except TypeError:
        raise UserError("a budget needs data with a known number of batches") from None
    limit = built.trainer_args.get("limit_train_batches")
    if limit is None:
        return count
    return min(count, limit) if isinstance(limit, int) else int(count * limit)


def step_seconds(cell: Cell) -> float:
    """Time a cell's optimizer steps, in a process of its own; give the seconds of one.

    Loading the batches is part of a step, validation is not. What a technique makes dearer or
    cheaper only later is not seen.

    Raises:
        UserError: if training fails.
    """
    from pleiad.estimate import measure
    from pleiad.run import Options, prepare, resolved

    options = Options(precision=cell.precision, trust=cell.trust, checkpoint=cell.checkpoint)
    experiment = resolved(cell.experiment, cell.overrides, options)
    built, _ = prepare(experiment, options)
    endless = {"max_steps": -1, "max_epochs": 1000}
    built = built._replace(trainer_args={**built.trainer_args, **endless})
    with tempfile.TemporaryDirectory() as folder:
        try:
            meter, _ = measure(built, Path(folder), STEPS, experiment.source)
        except Exception as error:  # training may raise anything
            told = " ".join(str(error).split())
            raise UserError(
                f"{cell.source}: failed while its steps were timed: {type(error).__name__}: {told}"
            ) from error
    return statistics.mean(meter.steps)
