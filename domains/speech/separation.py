"""Give each talker of a recording a channel of their own."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection

from core.task import Step, Task
from domains.speech.estimates import packed
from domains.speech.metrics import Average, improvement, score_names, thorough
from domains.speech.mixtures import MixtureBatch
from domains.speech.si_sdr import best_order, ordered, pairs, separation_loss

KEPT = 100
"""So many mixtures of the test keep their estimates."""


class Separation(Task):
    """Learn by negative SI-SDR with permutation-invariant training; judge by its improvement.

    ``si_sdr_i`` is the SI-SDR in dB of the estimates in their best order minus that of the
    unprocessed mixture, ``si_sdr`` the first alone: means over the talkers of a mixture, then over
    mixtures. The test adds ``sdr_i`` (BSS-eval SDR, 512 taps), and ``pesq`` and ``stoi`` where
    their packages are installed. A reference that is silent throughout counts in the loss by how
    far its estimate lies below the mixture, down to 30 dB, and in no metric. The networks
    normalise over the whole recording, so each sees its own length: no network sees the zeros that
    fill up a batch.

    Args:
        network: maps mixtures (B, L) to estimates (B, C, L).
        optimizer: built on the task's parameters.
        scheduler: stepped each epoch, or each optimizer step; None keeps the rate.
        interval: ``epoch`` or ``step``.
        monitor: the metric a plateau scheduler watches.
        threshold: in training mixtures whose loss in dB is below this already are left out of the
            mean; None keeps all.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "epoch",
        monitor: str = "val/loss",
        threshold: float | None = -30.0,
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        metrics = {name: Average(name) for name in ("si_sdr_i", "si_sdr")}
        super().__init__(
            network, metrics, optimizer, scheduler, interval, monitor, layer_decay, decay_all
        )
        self.metrics["test"] = MetricCollection(
            {name: Average(name) for name in score_names()}, prefix="test/"
        )
        self.threshold = threshold
        self.rate = 8000
        self._scores: dict[str, Tensor] = {}  # of the last test batch

    def setup(self, stage: str) -> None:
        """Take the sample rate from the data."""
        self.rate = getattr(getattr(self.trainer, "datamodule", None), "rate", self.rate)

    def forward(self, batch: MixtureBatch) -> Tensor:
        """Give estimates (B, C, L), each mixture taken at its own length; zeros fill the rest."""
        lengths = batch.lengths.tolist()
        longest = batch.mixture.shape[-1]
        if min(lengths) == longest:
            whole: Tensor = self.network(batch.mixture)
            return whole
        found = [
            self.network(batch.mixture[at : at + 1, :length]) for at, length in enumerate(lengths)
        ]
        filled = [nn.functional.pad(own, (0, longest - own.shape[-1])) for own in found]
        return torch.cat(filled)

    def step(self, batch: MixtureBatch) -> Step:
        """Judge one batch; the prediction is in the order of the references."""
        estimates = self(batch)
        scores = pairs(estimates, batch.sources, batch.mixture, batch.lengths).scores
        order = best_order(scores)
        threshold = self.threshold if self.training else None
        loss = separation_loss(ordered(scores, order), threshold)
        prediction = estimates.gather(1, order[..., None].expand_as(estimates))
        return Step(loss, prediction, batch.sources)

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: MixtureBatch) -> None:
        """Judge each mixture of a batch; a test by the slower measures too."""
        parts = (step.prediction, step.target, batch.mixture, batch.lengths)
        if "sdr_i" in metrics:
            self._scores = thorough(*parts, self.rate)
            metrics.update(self._scores)
        else:
            metrics.update(improvement(*parts))

    def items(self, step: Step, batch: MixtureBatch) -> Mapping[str, Any]:
        """One row a mixture: its scores, those of each talker, and the first ones' estimates."""
        estimates = [
            packed(own[:, :length], self.rate) if row < KEPT else b""
            for own, length, row in zip(
                step.prediction, batch.lengths.tolist(), batch.rows.tolist(), strict=True
            )
        ]
        return {
            "id": batch.rows,
            "name": batch.names,
            "seconds": batch.lengths / self.rate,
            **self._scores,
            "estimates": estimates,
        }
