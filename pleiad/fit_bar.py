"""The progress bar of a fit: Lightning's, with the time at which the whole fit will end."""

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text

from core.progress import ends


class FitBar(RichProgressBar):
    """Lightning's bar without the version number that a run folder has no use for."""

    def __init__(self) -> None:
        super().__init__()
        self.end = FitEndColumn()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the clock."""
        super().on_train_start(trainer, pl_module)
        stops = any(isinstance(c, EarlyStopping) for c in trainer.callbacks)  # type: ignore[attr-defined]
        self.end.begin(trainer.global_step, trainer.estimated_stepping_batches, stops)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Note the step."""
        super().on_train_batch_end(trainer, *args)
        self.end.step = trainer.global_step
        self.end.bar = self.train_progress_bar_id

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell no end beside the bar of the test."""
        super().on_train_end(trainer, pl_module)
        self.end.begin(0, math.inf, False)

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Add the column of the end."""
        return [*super().configure_columns(trainer), self.end]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Give the metrics to show."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return dict(metrics)

    def _get_train_description(self, current_epoch: int) -> str:
        """Name the epoch; the last one only where epochs end the fit, not steps."""
        return super()._get_train_description(current_epoch).replace("/-2", "")


class FitEndColumn(ProgressColumn):
    """When the fit ends over all its epochs, by the mean time of the steps of this session.

    Validations count as they come, so that the time is told too short before the first one.
    """

    max_refresh = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.bar: int | None = None
        self.begin(0, math.inf, False)

    def begin(self, step: int, last: float, stops: bool) -> None:
        """Begin the clock at ``step`` of ``last``; ``stops`` says that the fit may end sooner."""
        self.first = self.step = step
        self.last = last
        self.stops = stops
        self.began = time.monotonic()

    def render(self, task: Task) -> Text:
        """Show nothing beside other bars, and nothing where no end is known."""
        done = self.step - self.first
        if task.id != self.bar or not done or not math.isfinite(self.last):
            return Text("")
        left = (time.monotonic() - self.began) / done * max(0, self.last - self.step)
        return Text(f"fit {ends(left)}{' or sooner' if self.stops else ''}", style="cyan")
