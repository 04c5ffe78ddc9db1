"""What every domain's LightningModule shares: loops, logging, metrics, optimizer and scheduler."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric, MetricCollection

from core.early_exit.criteria import by_item, mistakes
from core.early_exit.in_task import after_test, before_fit, before_test, training_loss
from core.errors import UserError
from core.parameter_groups import check_layers, check_schedule, parameter_groups, scale_rates


class Step(NamedTuple):
    """One judged batch: a scalar ``loss``, ``prediction`` and ``target`` (equal shapes)."""

    loss: Tensor
    prediction: Tensor
    target: Tensor


class Task(LightningModule):
    """Train a network, judge it, log the same names in every domain.

    A subclass gives ``forward(batch)`` and ``step(batch) -> Step``. Logged are ``train/loss`` each
    logged step, ``val/loss`` and ``val/<metric>`` each validation, ``test/<metric>`` once.

    Args:
        network: a plain module.
        metrics: name to metric; copied for each split.
        optimizer: builds the optimizer from parameters or parameter groups.
        scheduler: builds the scheduler from the optimizer; ``total_steps`` is filled in where it
            takes one.
        interval: step the scheduler each ``epoch`` or each optimizer ``step``.
        monitor: the metric a plateau scheduler watches.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    def __init__(
        self,
        network: nn.Module,
        metrics: Mapping[str, Metric],
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        interval: str = "epoch",
        monitor: str = "val/loss",
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        if interval not in ("epoch", "step"):
            raise ValueError(f"interval={interval!r} must be 'epoch' or 'step'")
        check_layers(network, layer_decay)
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.interval = interval
        self.monitor = monitor
        self.layer_decay = layer_decay
        self.decay_all = decay_all
        collection = MetricCollection(dict(metrics))
        self.metrics = nn.ModuleDict(
            {split: collection.clone(prefix=f"{split}/") for split in ("val", "test")}
        )
        self.losses = nn.ModuleDict({split: MeanMetric() for split in ("val", "test")})

    def step(self, batch: Any) -> Step:
        """Predict one batch and judge it."""
        raise TypeError(f"{type(self).__name__} must define step(batch) -> Step")

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: Any) -> None:
        """Feed one judged batch to the metrics."""
        metrics.update(step.prediction.contiguous(), step.target.contiguous())

    def mistakes(self, step: Step, batch: Any) -> Tensor:
        """Say where answers (B, ...) are wrong: 1, else 0, NaN where none is known.

        Early exits learn from it and choose their threshold by it; of values it is |tanh| of the
        error.
        """
        return mistakes(step.prediction, step.target)

    def quality(self, step: Step, batch: Any) -> Tensor:
        """Say how good the answer to each item is (B,): best 1, NaN where it is not known.

        A gate of early exits learns from it.
        """
        return 1 - by_item(self.mistakes(step, batch))

    def weight(self, step: Step, batch: Any) -> Tensor | float:
        """Say how much a batch's loss counts in the mean over its split."""
        return len(step.target)

    def epoch_outputs(self) -> Mapping[str, Tensor | float]:
        """Give values that only a whole split yields, logged after ``val`` and ``test``."""
        return {}

    def items(self, step: Step, batch: Any) -> Mapping[str, Any]:
        """Give the columns of ``predictions.parquet`` for one test batch, one entry an item."""
        return {}

    def figures(self) -> Mapping[str, float]:
        """Give what another test would not repeat exactly, such as a speed; kept in the results."""
        return {}

    def metrics_for(self, baseline: Any) -> MetricCollection:
        """Give the metrics of the test that a baseline of the data is judged by, on its own."""
        metrics = self.metrics["test"]
        assert isinstance(metrics, MetricCollection)
        return metrics.clone()

    def complete(self, preprocessing: Any) -> Any:
        """Add to the preprocessing that travels in ``model/`` what was fitted with the network."""
        return preprocessing

    def begin_from(self, preprocessing: Any) -> None:
        """Take over from a model's preprocessing what :meth:`complete` had added to it."""

    def parameter_groups(self) -> Iterable[Any]:
        """Give the optimizer's parameters or groups; only what is trained."""
        return parameter_groups(self.network, self.layer_decay, self.decay_all)

    def on_fit_start(self) -> None:
        """Give the metrics states that training may touch; an earlier validation's may not be.

        A gate of early exits that was fitted to other weights is opened.
        """
        before_fit(self)
        for metrics in (*self.metrics.values(), *self.losses.values()):
            metrics.reset()  # type: ignore[operator]

    def on_train_start(self) -> None:
        """Refuse to go on past the end of a schedule that was laid out for fewer steps.

        Raises:
            UserError: naming both numbers of steps.
        """
        asked = self.trainer.estimated_stepping_batches
        for config in self.trainer.lr_scheduler_configs:
            laid_out = getattr(config.scheduler, "total_steps", None)
            if config.interval == "step" and laid_out is not None and laid_out < asked:
                raise UserError(
                    f"the schedule {type(config.scheduler).__name__} was laid out for {laid_out}"
                    f" steps and cannot go on to {asked}; keep to the length it began with"
                )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Learn from one batch, at each exit of a network that has early exits."""
        loss = training_loss(self, batch)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Judge one validation batch."""
        self._judge("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> Mapping[str, Any]:
        """Judge one test batch and pass on what was predicted, under ``step``."""
        return {"step": self._judge("test", batch)}

    def on_test_epoch_start(self) -> None:
        """Let early exits choose their threshold on validation data, or fit their gate."""
        before_test(self)

    def on_validation_epoch_end(self) -> None:
        """Log what the whole validation split yields."""
        self._log_outputs("val")

    def on_test_epoch_end(self) -> None:
        """Log what the whole test split yields, and at which exits of a network it left."""
        self._log_outputs("test")
        self.log_dict({f"test/{k}": v for k, v in after_test(self).items()}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Build the optimizer and its scheduler."""
        optimizer = self.optimizer(self.parameter_groups())
        scale_rates(optimizer)
        if self.scheduler is None:
            return optimizer
        build = self.scheduler
        if _wants_total_steps(build):
            if self.interval != "step":
                raise UserError(
                    "the schedule is laid out over all optimizer steps; set --model.interval=step"
                )
            total = self.trainer.estimated_stepping_batches
            if total == math.inf:
                raise UserError(
                    "a schedule over all steps needs their number, and the fit has no end;"
                    " set --trainer.max_epochs or --trainer.max_steps"
                )
            try:
                scheduler = partial(build, total_steps=int(total))(optimizer)  # type: ignore[call-arg]
            except ZeroDivisionError:  # OneCycleLR whose rise is a single step
                raise UserError(
                    f"the schedule cannot be laid out over {int(total)} optimizer steps; train"
                    " longer, or take --model.scheduler=WarmupLinear"
                ) from None
        else:
            scheduler = build(optimizer)
        check_schedule(optimizer, scheduler)
        config = {"scheduler": scheduler, "interval": self.interval, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, those of a fused optimizer in bfloat16 too.

        Lightning refuses these in all mixed precision, though only float16 scales gradients.

        Raises:
            UserError: if the optimizer is fused and the gradients are scaled.
        """
        if not gradient_clip_val:
            return
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None:
            kind = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val, kind)
            return
        try:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        except RuntimeError as error:
            if not optimizer.defaults.get("fused"):
                raise
            raise UserError(
                "a fused optimizer cannot clip gradients in float16; give"
                " --model.optimizer.fused=false, or --precision bf16-mixed"
            ) from error

    def on_train_epoch_end(self) -> None:
        """Step a plateau scheduler before the epoch's checkpoint is written, to resume exactly."""
        for config in self.trainer.lr_scheduler_configs:
            metric = self.trainer.callback_metrics.get(config.monitor or self.monitor)
            if isinstance(config.scheduler, ReduceLROnPlateau) and metric is not None:
                config.scheduler.step(metric)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step any scheduler but a plateau one, which `on_train_epoch_end` has stepped."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def _judge(self, split: str, batch: Any) -> Step:
        step = self.step(batch)
        metrics = self.metrics[split]
        self.update_metrics(metrics, step, batch)  # type: ignore[arg-type]
        size = len(step.target)
        # Lightning's own mean over processes divides by a rounded count
        mean = self.losses[split]
        mean.update(step.loss.detach().float(), self.weight(step, batch))  # type: ignore[operator]
        self.log(f"{split}/loss", mean, on_epoch=True, batch_size=size, prog_bar=split == "val")  # type: ignore[arg-type]
        self.log_dict(metrics, on_epoch=True, batch_size=size)  # type: ignore[arg-type]
        return step

    def _log_outputs(self, split: str) -> None:
        outputs = self.epoch_outputs()
        self.log_dict({f"{split}/{name}": value for name, value in outputs.items()}, sync_dist=True)


def _wants_total_steps(build: LRSchedulerCallable) -> bool:
    """Say whether a scheduler takes ``total_steps`` and was not given a number."""
    given = build.keywords if isinstance(build, partial) else {}
    if "total_steps" in given:
        return given["total_steps"] is None
    return "total_steps" in signature(build).parameters
