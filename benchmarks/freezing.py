"""What freezing buys: MiniLM's backward pass by what is frozen, and a step under each callback.

``python benchmarks/freezing.py`` prints process time on one thread: backward over forward, and a
step as a ratio to one with no callback. Frozen first layers shorten the backward pass; scattered
ones only save gradients and what the optimizer remembers.
"""

import re
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from measure import start
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification

from core.callbacks.freezing import (
    LISA,
    AutoFreeze,
    BlockCoordinate,
    FreezeOut,
    GradualUnfreezing,
    SlimFit,
    Static,
)
from data import find_model

BATCH, LENGTH, ROUNDS, STEPS = 32, 26, 7, 6
TRAINED = {  # by what trains: a pattern of names, and the ratio measured before on another machine
    "all": (".", 1.25),
    "prefix emb+0..2 frozen": (r"layer\.[345]\.|pooler|classifier", 0.63),
    "prefix emb+0..4 frozen": (r"layer\.5\.|pooler|classifier", 0.20),
    "suffix 3..5 frozen": (r"embeddings|layer\.[012]\.|pooler|classifier", 1.00),
    "only layer 2 + head": (r"layer\.2\.|pooler|classifier", 0.56),
    "only layer 0 + head": (r"layer\.0\.|pooler|classifier", 0.79),
    "LISA: emb + layer 2 + head": (r"embeddings|layer\.2\.|pooler|classifier", 0.86),
    "biases only": (r"bias", 0.76),
}
CALLBACKS: dict[str, Callable[[], list[Callback]]] = {
    "none": list,
    "SlimFit, rate 0 (idle)": lambda: [SlimFit(freezing_rate=0.0)],
    "Static, one bias (idle)": lambda: [Static(freeze="classifier.bias")],
    "AutoFreeze, before a decision (idle)": lambda: [AutoFreeze(interval=1000)],
    "SlimFit, rate 0.95": lambda: [SlimFit(freezing_rate=0.95)],
    "LISA, 1 of 6": lambda: [LISA(gamma=1, every=3)],
    "BlockCoordinate": lambda: [BlockCoordinate(every=3)],
    "FreezeOut, t0 0.3": lambda: [FreezeOut(t0=0.3)],
    "GradualUnfreezing": lambda: [GradualUnfreezing(every=2, by="step")],
}


class Module(LightningModule):
    """MiniLM with a classifier, in a plain module; keeps the process time of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.seconds: list[float] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Give the loss."""
        loss: Tensor = self.model(**batch).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


class Clock(Callback):
    """Process time of a step, from before the schedule chooses to behind its measures."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # noqa: ANN001, D102
        pl_module.seconds.append(time.process_time())


def network() -> nn.Module:
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(find_model("minilm"))
    return model.train()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(1000, 20000, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": torch.arange(BATCH) % 2}


def passes(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[float, float]:
    model.zero_grad(set_to_none=True)
    began = time.process_time()
    loss = model(**inputs).loss
    middle = time.process_time()
    loss.backward()
    return middle - began, time.process_time() - middle


def backward_ratios() -> Table:
    table = Table("what trains", "backward / forward", "measured before")
    model, inputs = network(), batch()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in TRAINED}
    for number in range(ROUNDS + 1):
        for name, (pattern, _) in TRAINED.items():
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad_(re.search(pattern, parameter_name) is not None)
            found = passes(model, inputs)
            if number:
                times[name].append(found)
    for name, (_, before) in TRAINED.items():
        forward, backward = (statistics.median(each) for each in zip(*times[name], strict=True))
        table.add_row(name, f"{backward / forward:.2f}", f"{before:.2f}")
    return table


def steps(make: Callable[[], list[Callback]]) -> float:
    """Give the median process time of a step, without the first two."""
    torch.manual_seed(0)
    module = Module()
    trainer = Trainer(
        max_steps=STEPS + 2,
        accelerator="cpu",
        callbacks=[*make(), Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch() for _ in range(STEPS + 2)], batch_size=None))
    ends = module.seconds[1:]
    return statistics.median(after - before for before, after in pairwise(ends))


def step_ratios() -> Table:
    table = Table("callback", "s a step", "ratio to none")
    times: dict[str, list[float]] = {name: [] for name in CALLBACKS}
    for _ in range(3):
        for name, make in CALLBACKS.items():
            times[name].append(steps(make))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        table.add_row(name, f"{value:.3f}", f"{value / medians['none']:.3f}")
    return table


def main() -> None:
    start()
    console = Console(width=100)
    console.print(backward_ratios())
    console.print(step_ratios())


if __name__ == "__main__":
    main()
