"""Forecast the next steps of every channel at once."""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from core.task import Step, Task
from domains.time_series.data import Window


class Forecasting(Task):
    """Learn by squared error; judge by MSE and MAE over every window, step and channel.

    The published protocol reports both in standardised units (``units: scaled``); with ``units:
    data`` they are in the unit of the file.

    Args:
        network: maps past (B, L, C) to forecast (B, H, C), in standardised units; where it states
            ``takes_marks``, it also takes the marks of the past and of the future.
        optimizer: built on the network's parameters.
        scheduler: stepped each epoch, or each step; None keeps the rate.
        interval: ``epoch`` or ``step``.
        units: the unit of the metrics.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "epoch",
        units: Literal["scaled", "data"] = "scaled",
    ) -> None:
        metrics = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}
        super().__init__(network, metrics, optimizer, scheduler, interval)
        self.units = units

    def forward(self, batch: Window) -> Tensor:
        """Forecast (B, H, C) from ``batch.past``, and the calendar if the network takes it."""
        takes_marks = getattr(self.network, "takes_marks", False)
        marks = (batch.past_marks, batch.future_marks) if takes_marks else ()
        forecast: Tensor = self.network(batch.past, *marks)
        return forecast

    def step(self, batch: Window) -> Step:
        """Judge one batch."""
        forecast = self(batch)
        return Step(F.mse_loss(forecast, batch.future), forecast, batch.future)

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: Window) -> None:
        """Feed the metrics in the chosen unit."""
        unit = 1.0 if self.units == "scaled" else batch.scale
        metrics.update((step.prediction * unit).contiguous(), (step.target * unit).contiguous())

    def items(self, step: Step, batch: Window) -> Mapping[str, Any]:
        """One row a window: its first future row, its errors, both series in the data's unit."""
        unit = 1.0 if self.units == "scaled" else batch.scale
        error = (step.prediction - step.target) * unit
        return {
            "id": batch.origin,
            "mse": error.square().mean((1, 2)),
            "mae": error.abs().mean((1, 2)),
            "target": step.target * batch.scale + batch.offset,
            "prediction": step.prediction * batch.scale + batch.offset,
        }
