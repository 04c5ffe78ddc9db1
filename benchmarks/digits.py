"""Which weights to train: SlimFit beside random and fixed choices, on handwritten digits.

``python benchmarks/digits.py [--seeds N] [--steps N ...] [--methods NAME ...]``. A small vision
transformer learns digits that lie on their side, and is then fine-tuned on upright ones (1,000
to train on, 797 to test; scikit-learn's set). Every method begins from the same weights and sees
the same batches. Accuracy is that of the last step, on digits that nothing was chosen by; its
standard error is about 0.7 points a seed. Head and last norm are trained in every step.
"""

import argparse
import json
import logging
import statistics
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from core.callbacks.freezing import Freezing, Moment, SlimFit

TRAINED = 1_000
WIDTH, LAYERS, HEADS = 64, 4, 4
RATE = 1e-3
BATCH = 32
SOURCE_STEPS = 1_000


class Block(nn.Module):
    """A layer of attention and a layer of two products, the norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map states (B, L, D) to states."""
        seen = self.norms[0](x)  # (B, L, D)
        parts = [part(seen) for part in (self.query, self.key, self.value)]
        heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.outer(F.gelu(self.inner(self.norms[1](x))))


class Digits(LightningModule):
    """A vision transformer of 8 x 8 images in patches of 2 x 2."""

    def __init__(self, rate: float = RATE, steps: int = SOURCE_STEPS) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))  # of standard deviation 1: it learns
        self.places = nn.Parameter(torch.randn(1, 17, WIDTH))  # 4 points worse from 0.02
        self.patches = nn.Linear(4, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))
        self.rate, self.steps = rate, steps

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 8, 8) to logits (B, 10)."""
        patches = images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(-1, 16, 4)
        x = torch.cat([self.first.expand(len(images), -1, -1), self.patches(patches)], 1)
        logits: Tensor = self.head(self.blocks(x + self.places)[:, 0])
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Learn from one batch."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, object]:
        """AdamW, and a rate that falls to zero."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class RandomChoice(Freezing):
    """Train units of SlimFit's kind by chance."""

    def __init__(self, freezing_rate: float, seed: int, always_train: list[str]) -> None:
        super().__init__(seed=seed, always_train=always_train)
        self.freezing_rate = freezing_rate

    def find_units(self, module: LightningModule):  # noqa: ANN201 - as SlimFit's
        """Take SlimFit's units."""
        return SlimFit(always_train=self.always_train).find_units(module)

    def choose(self, now: Moment) -> Iterable[int]:
        """Draw them anew."""
        frozen = int(self.freezing_rate * len(now.units))
        chosen: list[int] = torch.randperm(len(now.units), generator=self.generator).tolist()
        return chosen[frozen:]


class LastUnits(RandomChoice):
    """Train the last units alone."""

    def choose(self, now: Moment) -> Iterable[int]:
        """Take the last."""
        return range(int(self.freezing_rate * len(now.units)), len(now.units))


class Method(NamedTuple):
    """A method's callbacks, made from the seed, and its rate as a multiple of full training's."""

    callbacks: Callable[[int], list[Callback]]
    rates: float


def slimfit(share: float, always: list[str]) -> Callable[[int], list[Callback]]:
    return lambda seed: [SlimFit(freezing_rate=share, seed=seed, always_train=always)]


HEAD = ["head"]
METHODS = {
    "full": Method(lambda seed: [], 1),
    "SlimFit, 90 %": Method(slimfit(0.9, HEAD), 4),
    "SlimFit, 95 %": Method(slimfit(0.95, HEAD), 4),
    "random, 95 %": Method(lambda seed: [RandomChoice(0.95, seed, HEAD)], 4),
    "last units, 95 %": Method(lambda seed: [LastUnits(0.95, seed, HEAD)], 4),
    "SlimFit, 95 %, rate x 2": Method(slimfit(0.95, HEAD), 2),
    "SlimFit, 95 %, full's rate": Method(slimfit(0.95, HEAD), 1),
}


def fit(module: Digits, parts: tuple[Tensor, Tensor], seed: int, callbacks: list[Callback]) -> None:
    loader = DataLoader(
        TensorDataset(*parts), BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    trainer = Trainer(
        max_steps=module.steps,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)


@torch.inference_mode()
def accuracy(module: Digits, parts: tuple[Tensor, Tensor]) -> float:
    module.eval()
    return float((module(parts[0]).argmax(1) == parts[1]).float().mean())


def main() -> None:
    """Fine-tune by every method and print mean, spread and how often SlimFit was better."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 2_000])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    asked = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    read = load_digits()
    images = torch.tensor(read.images / 16, dtype=torch.float32)
    labels = torch.tensor(read.target)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(asked.seeds):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        train, test = order[:TRAINED], order[TRAINED:]
        torch.manual_seed(seed)
        source = Digits()
        fit(source, (images[train].rot90(1, (1, 2)), labels[train]), seed, [])
        state = source.state_dict()
        for steps in asked.steps:
            for name in asked.methods:
                method = METHODS[name]
                module = Digits(RATE * method.rates, steps)
                module.load_state_dict(state)
                torch.manual_seed(seed)
                fit(module, (images[train], labels[train]), seed, method.callbacks(seed))
                judged = accuracy(module, (images[test], labels[test]))
                found.setdefault(str(steps), {}).setdefault(name, []).append(judged)
    for steps, rows in found.items():
        table = Table("method", "accuracy", "± sd", "of the seeds SlimFit, 95 % is better in")
        for name, values in rows.items():
            wins = sum(
                a > b for a, b in zip(rows.get("SlimFit, 95 %", values), values, strict=True)
            )
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells = [statistics.mean(values), spread]
            table.add_row(name, *(f"{100 * cell:.2f}" for cell in cells), f"{wins}/{len(values)}")
        Console(width=100).print(f"{steps} steps of {BATCH}, {asked.seeds} seeds", table)
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "digits.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
