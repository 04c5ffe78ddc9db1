"""What the suite adds to a training step over a bare PyTorch loop of the same network and loader.

``python benchmarks/step_overhead.py`` alternates the sides in one process and prints milliseconds
of process time a step: a bare loop, Lightning alone, and all callbacks and loggers of a run
(without the checkpoint at an epoch's end).
"""

import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import measure
import torch
from lightning.pytorch import Trainer

from core.metrics_csv import MetricsCSV  # noqa: F401 - part of what is measured
from domains.time_series.data import ForecastingData
from pleiad import building, run
from pleiad.experiments import resolve

STEPS, WARM, ROUNDS = 200, 20, 7


def bare(built: building.Built) -> float:
    """Train with a plain loop."""
    network, data = built.task.network, built.data
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    for number, batch in enumerate(data.train_dataloader()):
        if number == WARM:
            began = time.process_time()
        if number == STEPS:
            break
        loss = torch.nn.functional.mse_loss(network(batch.past), batch.future)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.process_time() - began) / (STEPS - WARM)


def lightning_alone(built: building.Built) -> float:
    """Train with Lightning's trainer and nothing else."""
    clock = measure.Clock(WARM)
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit(built.task, built.data)
    return clock.seconds


def suite(built: building.Built) -> float:
    """Train as `pleiad fit` does."""
    clock = measure.Clock(WARM)
    with tempfile.TemporaryDirectory() as folder:
        trainer = run.make_trainer(built, Path(folder), [clock])
        trainer.fit(built.task, built.data)
    return clock.seconds


def main() -> None:
    """Alternate the sides and print the medians."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    keys = [
        f"--trainer.max_steps={STEPS}",
        "--trainer.limit_val_batches=0",
        "--trainer.accelerator=cpu",
    ]
    keys += ["--trainer.enable_model_summary=false", "--trainer.callbacks=[]"]
    sides = {"bare loop": bare, "Lightning alone": lightning_alone, "pleiad": suite}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            built = building.build(resolve("time_series/dlinear_etth1", keys))
            assert isinstance(built.data, ForecastingData)
            built.data.setup()
            times[name].append(side(built) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        over = value - medians["bare loop"]
        print(f"{name:<16} {value:7.3f} ms a step, {over:+7.3f} over the bare loop")


if __name__ == "__main__":
    main()
