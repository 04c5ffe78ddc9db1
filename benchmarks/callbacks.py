"""What each callback adds to a training step, beside the same trainer without it, as ratios.

``python benchmarks/callbacks.py`` trains the sides in turn in one process. Seconds are the process
time of a step, over all steps of a fit but its first ones. The meter's idle side measures at no
step; its full side as a run of the command does.
"""

import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import measure
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from core.callbacks.ema import EMAWeightAveraging
from core.callbacks.exact_resume import ExactResume
from core.callbacks.memory import MemoryMeter
from core.callbacks.nonfinite import NonFiniteGuard
from core.callbacks.precision import PrecisionGuard
from core.callbacks.signals import Signals

WARM, ROUNDS = 10, 5
CALLBACKS: dict[str, Callable[[], Sequence[Callback]]] = {
    "none": tuple,
    "an empty callback": lambda: [Callback()],
    "MemoryMeter, idle": lambda: [MemoryMeter(every_n_steps=10**9, first_steps=0)],
    "MemoryMeter": lambda: [MemoryMeter()],
    "PrecisionGuard, idle": lambda: [PrecisionGuard(every_n_steps=10**9)],
    "PrecisionGuard, each 50 steps": lambda: [PrecisionGuard()],
    "ExactResume": lambda: [ExactResume()],
    "NonFiniteGuard": lambda: [NonFiniteGuard()],
    "Signals": lambda: [Signals()],
    "EMAWeightAveraging": lambda: [EMAWeightAveraging()],
}


class Encoder(LightningModule):
    """A transformer of ``layers`` layers and width ``width``."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.network = nn.Sequential(nn.TransformerEncoder(block, layers), nn.Linear(width, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Learn anything."""
        loss: Tensor = self.network(batch[0]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Use AdamW in one pass."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)


def step(sizes: tuple[int, int, int], steps: int, callbacks: Sequence[Callback]) -> float:
    """Give the process time of a step in seconds."""
    width, layers, length = sizes
    torch.manual_seed(0)
    model, clock = Encoder(width, layers), measure.Clock(WARM)
    rows = TensorDataset(torch.randn(16 * steps, length, width))
    with tempfile.TemporaryDirectory() as folder:
        _trainer(steps, Path(folder), [clock, *callbacks]).fit(
            model, DataLoader(rows, batch_size=16)
        )
    return clock.seconds


def _trainer(steps: int, folder: Path, callbacks: list[Callback]) -> Trainer:
    return Trainer(
        max_steps=steps,
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    """Alternate the sides, there and back, and print the medians of the ratios."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    table = Table("callback", "network", "ms a step", "over none")
    for name, sizes, steps in (("small", (32, 1, 8), 500), ("larger", (64, 2, 32), 220)):
        seconds: dict[str, list[float]] = {side: [] for side in CALLBACKS}
        for number in range(ROUNDS):
            for side in list(CALLBACKS)[:: 1 if number % 2 == 0 else -1]:
                seconds[side].append(step(sizes, steps, CALLBACKS[side]()))
        for side, values in seconds.items():
            ratio = statistics.median(
                value / alone for value, alone in zip(values, seconds["none"], strict=True)
            )
            table.add_row(side, name, f"{1e3 * statistics.median(values):.3f}", f"{ratio:.4f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
