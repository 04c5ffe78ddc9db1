"""A small module, data and trainer for the tests of freezing; one test runs it in two processes."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from core.callbacks.freezing import LISA, AutoFreeze, SlimFit


class Net(nn.Module):
    """Four layers, three with norms, and a head."""

    def __init__(self, norm=nn.LayerNorm, dropout=0.0):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), norm(8), nn.GELU(), nn.Dropout(dropout))
            for _ in range(4)
        )
        self.head = nn.Linear(8, 1)

    @property
    def stages(self):
        return self.layers

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Module(pl.LightningModule):
    """A stranger's own module; ``trace`` holds what was trained in each step."""

    def __init__(self, network=None, optimizer=torch.optim.AdamW, schedule=False, lr=1e-2):
        super().__init__()
        self.network = network or Net()
        self.kind, self.schedule, self.lr = optimizer, schedule, lr
        self.trace = []

    def training_step(self, batch, batch_idx):
        self.trace.append(
            tuple(name for name, p in self.network.named_parameters() if p.requires_grad)
        )
        loss = (self.network(batch[0]) - batch[1]).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = self.kind(self.parameters(), lr=self.lr)
        if not self.schedule:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def data(count=48, batch=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=batch)


def trainer(*callbacks, **settings):
    own = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **own | settings)


SCHEDULES = {
    "slimfit": lambda: SlimFit(freezing_rate=0.7, seed=2),
    "lisa": lambda: LISA(gamma=1, every=3),
    "autofreeze": lambda: AutoFreeze(interval=2),
}


def shared(folder: Path, name: str) -> None:
    """Train in two processes; each writes what it trained and where it ended."""
    torch.manual_seed(1)
    module, schedule = Module(), SCHEDULES[name]()
    fit = trainer(schedule, devices=2, strategy="ddp", accumulate_grad_batches=2, max_epochs=4)
    fit.fit(module, data(96))
    torch.save(
        {
            "trace": module.trace,
            "weights": module.state_dict(),
            "distances": schedule.distances,
            "unused": fit.strategy._ddp_kwargs["find_unused_parameters"],
        },
        folder / f"{name}{fit.global_rank}.pt",
    )


if __name__ == "__main__":
    for each in SCHEDULES:
        shared(Path(sys.argv[1]), each)
    torch.distributed.destroy_process_group()
