"""A 40-step run with everything that makes resuming hard; the kill tests run it as a program."""

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.batch_plan import PlannedIndex
from core.callbacks.checkpoints import Checkpoints, pointed
from core.callbacks.exact_resume import ExactResume
from core.callbacks.signals import Signals
from core.checkpoint_io import SafeCheckpointIO
from core.data_module import DataModule
from core.length_plan import Lengths
from core.metrics_csv import MetricsCSV, MetricsPosition


class Noisy(Dataset):
    """Items whose augmentation is drawn from their own seed."""

    def __init__(self, augment: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(84, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = 0.0
        if self.augment and isinstance(index, PlannedIndex):
            noise = 0.1 * torch.randn(4, generator=index.generator())
        return self.x[index] + noise, self.y[index]


class Data(DataModule):
    def setup(self, stage: str | None = None) -> None:
        self.train_set, self.val_set, self.test_set = Noisy(True), Noisy(False), Noisy(False)


class LengthData(Data):
    """Items of different lengths; their batches differ in size."""

    def lengths(self, dataset):
        generator = torch.Generator().manual_seed(0)
        return Lengths(torch.randint(1, 40, (len(dataset),), generator=generator).numpy(), 128)


class Model(pl.LightningModule):
    """A user's own module: it does not extend Task."""

    def __init__(self, schedule: str, seen: Path | None = None) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.schedule = schedule
        self.losses: list[tuple[int, float]] = []
        self.seen = seen

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (self.network(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.losses.append((self.trainer.global_step, loss.item()))
        self.log("train/loss", loss)
        if self.seen is not None:
            with self.seen.open("a") as file:
                file.write(f"{self.trainer.global_step}\n")
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        if self.schedule == "onecycle":
            total = self.trainer.estimated_stepping_batches
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=total)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def make(
    folder: Path,
    *,
    schedule="onecycle",
    workers=0,
    seed=1,
    extra=(),
    every=1,
    seen=None,
    kind=Data,
    **kwargs,
):
    model, data = Model(schedule, seen), kind(batch_size=8, num_workers=workers, seed=seed)
    settings = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
        "logger": MetricsCSV(folder),
        "plugins": [SafeCheckpointIO()],
        "callbacks": [
            ExactResume(seed),
            MetricsPosition(),
            Signals(),
            Checkpoints(every_n_steps=every, every_minutes=None),
            *extra,
        ],
    }
    return model, data, pl.Trainer(**settings | kwargs)


def main(folder: Path, workers: int, seen: Path | None = None) -> None:
    """Train, or go on from `last` if there is one; write the outcome as JSON."""
    torch.set_num_threads(1)
    last = folder / "checkpoints" / "last"
    pl.seed_everything(1 if not last.exists() else 99, verbose=False)
    model, data, trainer = make(
        folder, workers=workers, seed=1 if not last.exists() else 99, seen=seen
    )
    trainer.fit(model, data, ckpt_path=pointed(last.parent, "last") if last.exists() else None)
    (found,) = trainer.test(model, data, verbose=False)
    weights = {k: v.double().tolist() for k, v in model.state_dict().items()}
    (folder / "outcome.json").write_text(json.dumps({"test": found, "weights": weights}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
