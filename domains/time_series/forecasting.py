"""Forecast the next steps of every channel at once."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import (
    MeanAbsoluteError,
    MeanMetric,
    MeanSquaredError,
    Metric,
    MetricCollection,
    WeightedMeanAbsolutePercentageError,
)

from core.task import Step, Task
from domains.time_series import intervals
from domains.time_series.data import WindowData
from domains.time_series.windows import Window, forecast

LEVELS = (80, 95)
"""The levels, in percent, of which the coverage is measured."""


class MeanAbsoluteScaledError(MeanAbsoluteError):
    """MASE: the error beside that of repeating the last season in training.

    Hyndman and Koehler, Another look at measures of forecast accuracy, 2006. Values of which that
    error is not known or zero are left out.
    """

    def update(  # type: ignore[override]
        self, preds: Tensor, target: Tensor, naive: Tensor
    ) -> None:
        """Take predictions, targets and the error in training, of equal shapes and one unit."""
        known = naive.isfinite()
        super().update((preds / naive)[known], (target / naive)[known])


class Forecasting(Task):
    """Learn by squared error; judge by MSE and MAE over every window, step and channel.

    The published protocol reports both in standardised units (``units: scaled``); with ``units:
    data`` they are in the unit of the file, as WAPE (the sum of errors as a share of the sum of
    values) and MASE always are. Values that are masked count nowhere.

    Args:
        network: maps past (B, L, C) to forecast (B, H, C), in standardised units; where it states
            ``takes_marks``, it also takes the marks of the past and of the future, and where it
            states ``takes_covariates``, the covariates.
        optimizer: built on the network's parameters.
        scheduler: stepped each epoch, or each step; None keeps the rate.
        interval: ``epoch`` or ``step``.
        units: the unit of the metrics.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "epoch",
        units: Literal["scaled", "data"] = "scaled",
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        metrics: dict[str, Metric] = {
            "mse": MeanSquaredError(),
            "mae": MeanAbsoluteError(),
            "mase": MeanAbsoluteScaledError(),
            "wape": WeightedMeanAbsolutePercentageError(),
        }
        super().__init__(
            network,
            metrics,
            optimizer,
            scheduler,
            interval,
            layer_decay=layer_decay,
            decay_all=decay_all,
        )
        self.units = units
        self.coverage = nn.ModuleDict({str(level): MeanMetric() for level in LEVELS})
        self._half_widths: dict[int, Tensor] = {}
        self._data: WindowData | None = None

    def forward(self, batch: Window) -> Tensor:
        """Forecast (B, H, C) from ``batch.past``, and whatever else the network takes."""
        return forecast(self.network, batch)

    def step(self, batch: Window) -> Step:
        """Judge one batch."""
        predicted = self(batch)
        if bool(batch.observed.all()):
            return Step(F.mse_loss(predicted, batch.future), predicted, batch.future)
        error = (predicted - batch.future).square() * batch.observed
        return Step(error.sum() / batch.observed.sum().clamp(min=1), predicted, batch.future)

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: Window) -> None:
        """Feed the metrics in the chosen unit."""
        seen = batch.observed
        scale, offset, naive = (
            part.expand_as(seen)[seen] for part in (batch.scale, batch.offset, batch.naive)
        )
        scaled = {"preds": step.prediction[seen].to(scale.dtype), "target": step.target[seen]}
        unit = 1.0 if self.units == "scaled" else scale
        values = {name: value * unit for name, value in scaled.items()}
        raw = {name: value * scale + offset for name, value in scaled.items()}
        if not len(scale):
            return
        metrics["mse"].update(**values)
        metrics["mae"].update(**values)
        metrics["wape"].update(**raw)
        metrics["mase"].update(**raw, naive=naive)

    def weight(self, step: Step, batch: Window) -> Tensor | float:
        """Count the known values, as a number of whole windows."""
        if bool(batch.observed.all()):
            return len(step.target)
        return batch.observed.sum() / batch.observed[0].numel()

    def items(self, step: Step, batch: Window) -> Mapping[str, Any]:
        """One row a window: its first future row, its errors, both series in the data's unit.

        In a run, ``series`` and ``start`` name the series and the time of that row.
        """
        unit = 1.0 if self.units == "scaled" else batch.scale
        error = (step.prediction - step.target) * unit
        error = error.masked_fill(~batch.observed, torch.nan)
        target = step.target * batch.scale + batch.offset
        return {
            "id": batch.origin,
            **(self._data.named(batch.origin) if self._data is not None else {}),
            "mse": error.square().nanmean((1, 2)),
            "mae": error.abs().nanmean((1, 2)),
            "target": target.masked_fill(~batch.observed, torch.nan),
            "prediction": step.prediction * batch.scale + batch.offset,
        }

    def on_test_start(self) -> None:
        """Measure on validation windows how wide intervals have to be."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, WindowData):
            return
        self._data = data
        found = intervals.half_widths(self, data)
        data.half_widths = intervals.plain(found)
        self._half_widths = {level: found[level].to(self.device) for level in LEVELS}

    def test_step(self, batch: Window, batch_idx: int) -> Mapping[str, Any]:
        """Judge one test batch, and count what lies within the intervals."""
        judged = super().test_step(batch, batch_idx)
        step: Step = judged["step"]
        error = (step.prediction - step.target).abs()[batch.observed]
        for level, width in self._half_widths.items():
            inside = error <= width.expand_as(step.prediction)[batch.observed]
            self.coverage[str(level)].update(inside.float())  # type: ignore[operator]
        return judged

    def on_test_epoch_end(self) -> None:
        """Log the coverage of the intervals."""
        super().on_test_epoch_end()
        for level in self._half_widths:
            self.log(f"test/coverage_{level}", self.coverage[str(level)])  # type: ignore[arg-type]
