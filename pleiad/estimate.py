"""``pleiad fit NAME --estimate``: how long and how much memory, measured by ten steps."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import filesize
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from core.errors import UserError
from core.memory import Kept, peak_bytes, saved_bytes
from core.precision import faster_precision
from core.progress import clock
from pleiad.building import Built, build, transform
from pleiad.run import Options, make_trainer, prepare, readable_errors
from pleiad.run import resolved as resolve

WARM_STEPS = 2
"""Steps that are not counted: they allocate memory and choose kernels."""
STEPS = 10
FEW_STEPS = 5
"""Counted steps of another precision."""
VALIDATION_BATCHES = 4
WORTH = 0.02
"""A switch is told if it saves this share of the whole time."""
PRECISIONS = ("32-true", "bf16-mixed")


class Switch(NamedTuple):
    """An option to type, what it does, and the seconds that it saves of the whole fit."""

    option: str
    effect: str
    saves: float


class Estimate(NamedTuple):
    """What a fit will take; times in seconds, memory in bytes.

    ``steps`` and ``validation_batches`` are those of an epoch.
    """

    name: str
    step: float
    steps: int
    epoch: float
    validation_batches: int
    validation: float
    test: float
    epochs: float
    total: float
    memory: int
    precision: str
    switches: tuple[Switch, ...]


def estimate(
    name: str,
    overrides: Sequence[str],
    options: Options,
    tell: Callable[[str], None] = lambda line: None,
) -> Estimate:
    """Check everything, take ten steps and a few validation batches, keep nothing.

    Raises:
        UserError: for a mistake in the input, or a fit without an end.
    """
    if options.ckpt_path is not None:
        raise UserError("--estimate measures a new run; leave --ckpt_path out")
    experiment = resolve(name, overrides, options)
    built, _ = prepare(experiment, options, tell=tell)
    if built.trainer_args.get("fast_dev_run"):
        raise UserError("--estimate measures a whole fit; leave --trainer.fast_dev_run out")
    with tempfile.TemporaryDirectory() as folder:
        meter, trainer = measure(built, Path(folder), STEPS, experiment.source)
        memory = peak_bytes()
        step = statistics.mean(meter.steps)
        steps = math.ceil(int(trainer.num_training_batches) / trainer.accumulate_grad_batches)
        total_steps = trainer.estimated_stepping_batches
        if not math.isfinite(total_steps):
            raise UserError(f"{experiment.source}: the fit has no end; set --trainer.max_epochs")
        epochs = total_steps / steps
        batch = statistics.mean(meter.validation) if meter.validation else 0.0
        limits = built.trainer_args
        found = len(built.data.val_dataloader())
        batches = _limited(found, limits.get("limit_val_batches"))
        tests = len(built.data.test_dataloader())
        test = batch * _limited(tests, limits.get("limit_test_batches"))
        validation = batch * batches * _validations(limits, int(trainer.num_training_batches))
        total = epochs * (step * steps + validation) + test
        switches = [
            *_precision(built, step * total_steps, meter, Path(folder), experiment, options),
            *_evaluation(built, meter, epochs * validation + test, Path(folder)),
            *_length(built, epochs, total_steps, total - test),
        ]
    worth = [switch for switch in switches if switch.saves > WORTH * total]
    worth.sort(key=lambda switch: -switch.saves)
    return Estimate(
        name=experiment.name,
        step=step,
        steps=steps,
        epoch=step * steps,
        validation_batches=batches,
        validation=validation,
        test=test,
        epochs=epochs,
        total=total,
        memory=memory,
        precision=str(trainer.precision),
        switches=(*worth, *_memory(built, meter.kept_bytes)),
    )


def table(found: Estimate) -> RenderableType:
    """Show an estimate: what it takes, when it ends, which options would cut it."""
    shown = Table(title=found.name, title_justify="left", show_header=False)
    shown.add_column(style="bold")
    shown.add_column()
    parts = {
        "a step": span(found.step),
        "an epoch": f"{found.steps:,} steps, {span(found.epoch)}",
        "its validation": f"{found.validation_batches:,} batches, {span(found.validation)}",
        "the test": span(found.test),
        "in all": f"{found.epochs:.3g} epochs, {span(found.total)}",
        "the end": f"{clock(found.total)}, if begun now and not stopped early",
        "peak memory": filesize.decimal(found.memory),
        "precision": found.precision,
    }
    for name, text in parts.items():
        shown.add_row(name, Text(text))
    switches = Table(show_header=False, box=None)
    for switch in found.switches:
        switches.add_row(Text(switch.option, "cyan"), Text(switch.effect))
    return Group(shown, Text("what would cut it:"), switches)


def span(seconds: float) -> str:
    """Write a length of time for a reader."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


class _Meter(Callback):
    """Time optimizer steps and validation batches; stop after enough of them.

    ``kept_bytes`` is what one step keeps for its backward pass, the parameters left out.
    """

    def __init__(self, steps: int) -> None:
        self.wanted = steps
        self.steps: list[float] = []
        self.validation: list[float] = []
        self.kept_bytes = 0
        self._since = 0.0
        self._counting: AbstractContextManager[Kept] | None = None
        self._kept: Kept

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin the clock where no step has just ended; look at the memory of the first step."""
        if batch_idx == 0 or not self._since:
            self._since = _now(trainer)
        if trainer.global_step == 0 and self._counting is None:
            self._counting = saved_bytes(pl_module)
            self._kept = self._counting.__enter__()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Look no longer."""
        if self._counting is not None and trainer.global_step == 0:
            self._counting.__exit__(None, None, None)
            self.kept_bytes = self._kept.total
            self._counting = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take the time since the step before; loading the data is a part of it."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        now = _now(trainer)
        self.steps.append(now - self._since)
        self._since = now
        if len(self.steps) >= self.wanted + WARM_STEPS:
            trainer.should_stop = True

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin the clock."""
        self._since = _now(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Take the time."""
        self.validation.append(_now(trainer) - self._since)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the validation out of the step that follows."""
        self._since = _now(trainer)

    def drop_first(self) -> None:
        """Leave out the first steps, and the first validation batch, where there are more."""
        self.steps = self.steps[WARM_STEPS:] or self.steps[-1:]
        self.validation = self.validation[1:] or self.validation


def measure(built: Built, folder: Path, steps: int, source: str) -> tuple[_Meter, Trainer]:
    """Train for a few steps and validate a few batches; give their times and the trainer."""
    meter = _Meter(steps)
    limit = _limited(VALIDATION_BATCHES, built.trainer_args.get("limit_val_batches"))
    few = {"num_sanity_val_steps": 0, "limit_val_batches": limit, "enable_progress_bar": False}
    short = built._replace(
        trainer_args={**built.trainer_args, **few, "min_epochs": None, "min_steps": None}
    )
    trainer = make_trainer(short, folder, [meter], logging=False)
    with readable_errors(source, trainer):
        trainer.fit(built.task, built.data)
    if not meter.validation and limit:
        judge = make_trainer(short, folder, [meter], logging=False)
        judge.validate(built.task, built.data, verbose=False)
    meter.drop_first()
    return meter, trainer


def _precision(
    built: Built,
    training: float,
    meter: _Meter,
    folder: Path,
    experiment: Any,
    options: Options,
) -> list[Switch]:
    """Measure the precision that a probe of this machine finds faster."""
    now = str(built.trainer_args.get("precision") or "32-true")
    now = "32-true" if now == "32" else now
    other = faster_precision()
    if now not in PRECISIONS or other == now:
        return []
    rebuilt = build(experiment, other, options.trust)._replace(data=built.data)
    rebuilt = transform(rebuilt, experiment)
    found, _ = measure(rebuilt, folder, FEW_STEPS, experiment.source)
    step, was = statistics.mean(found.steps), statistics.mean(meter.steps)
    effect = f"{span(step)} instead of {span(was)} a step (measured)"
    return [Switch(f"--precision={other}", effect, training * (1 - step / was))]


def _evaluation(built: Built, meter: _Meter, judging: float, folder: Path) -> list[Switch]:
    """Measure evaluation in batches four times as large."""
    size = getattr(built.data, "eval_batch_size", None)
    items = len(getattr(built.data, "val_set", ()))
    if size is None or not meter.validation or items < 8 * size:
        return []
    built.data.eval_batch_size = 4 * size  # type: ignore[attr-defined]
    larger = _Meter(0)
    args = {**built.trainer_args, "limit_val_batches": 2, "enable_progress_bar": False}
    judge = make_trainer(built._replace(trainer_args=args), folder, [larger], logging=False)
    judge.validate(built.task, built.data, verbose=False)
    built.data.eval_batch_size = size  # type: ignore[attr-defined]
    larger.drop_first()
    was = statistics.mean(meter.validation)
    share = statistics.mean(larger.validation) / (4 * was)
    effect = f"validation and test in {share:.0%} of the time (measured)"
    return [Switch(f"--data.eval_batch_size={4 * size}", effect, judging * (1 - share))]


def _length(built: Built, epochs: float, steps: float, training: float) -> list[Switch]:
    """Compute what half as many epochs, or steps, would save."""
    limit = built.trainer_args.get("max_steps") or -1
    by_steps = limit != -1 and steps >= limit
    whole = int(limit if by_steps else round(epochs))
    if whole < 2:
        return []
    key = "trainer.max_steps" if by_steps else "trainer.max_epochs"
    saved = training * (1 - (whole // 2) / whole)
    return [Switch(f"--{key}={whole // 2}", f"{span(saved)} less (computed)", saved)]


def _memory(built: Built, kept: int) -> list[Switch]:
    """Compute what half the batch, accumulated twice, would save of what a step keeps."""
    size = getattr(built.data, "batch_size", 1)
    if size % 2 or not kept:
        return []
    twice = 2 * (built.trainer_args.get("accumulate_grad_batches") or 1)
    option = f"--data.batch_size={size // 2} --trainer.accumulate_grad_batches={twice}"
    held = filesize.decimal(kept)
    effect = f"about {filesize.decimal(kept // 2)} less memory, of {held} that a batch keeps"
    return [Switch(option, effect, 0.0)]


def _validations(args: Mapping[str, Any], batches: int) -> float:
    """Count the validations of an epoch."""
    interval = args.get("val_check_interval") or 1.0
    each = args.get("check_val_every_n_epoch", 1)
    if isinstance(interval, int):
        return batches / interval if each is None else batches // interval / each
    return 1 / float(interval) / (each or 1)


def _limited(count: int, limit: float | int | None) -> int:
    """Apply a limit of Lightning's, a number of batches or a share of them."""
    if limit is None:
        return count
    return min(count, limit) if isinstance(limit, int) else int(count * limit)


def _now(trainer: Trainer) -> float:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
