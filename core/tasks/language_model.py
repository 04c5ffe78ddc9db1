"""Learn to tell the next token from those before it: of texts, molecules or code."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from core.task import Step, Task

UNTOLD = -100
"""The target where no token is to be told."""


class TokenBatch(NamedTuple):
    """B sequences of tokens.

    Attributes:
        ids: (B, L) int64, padded at the end.
        lengths: (B,) tokens without padding.
        rows: (B,) the places of the sequences in their split.
        begins: (B,) the first token that is to be told, for sequences that go on from a given
            part; None tells all but the very first.
    """

    ids: Tensor
    lengths: Tensor
    rows: Tensor
    begins: Tensor | None = None


def token_batch(
    sequences: Sequence[NDArray[Any]],
    rows: Sequence[int],
    padding: int,
    begins: Sequence[int] | None = None,
) -> TokenBatch:
    """Put sequences of token numbers (L,) together, padded to the longest one."""
    lengths = np.array([len(each) for each in sequences])
    ids = np.full((len(sequences), lengths.max()), padding, np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(sequences)
    return TokenBatch(
        torch.from_numpy(ids),
        torch.from_numpy(lengths),
        torch.tensor(rows),
        None if begins is None else torch.tensor(begins),
    )


class Perplexity(MeanMetric):
    """The inverse of the probability of a token, in the geometric mean over all tokens."""

    def compute(self) -> Tensor:
        """Give the exponential of the mean surprise."""
        return super().compute().exp()


class CausalLanguageModel(Task):
    """Learn the next token by cross-entropy; judge by ``perplexity`` per token.

    A batch gives what :class:`TokenBatch` holds, ``begins`` or not. The network maps ``ids`` (B, L)
    and ``lengths`` (B,) to the logits (B, L, V) of what follows each token. Padding counts nowhere,
    and every token as much as any other, whatever the batches.

    Args:
        network: called as ``network(ids, lengths=lengths)``.
        optimizer: built on the task's parameters.
        scheduler: stepped each optimizer step, or each epoch; None keeps the rate.
        interval: ``step`` or ``epoch``.
        monitor: the metric a plateau scheduler watches.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "step",
        monitor: str = "val/loss",
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        metrics = {"perplexity": Perplexity()}
        super().__init__(
            network, metrics, optimizer, scheduler, interval, monitor, layer_decay, decay_all
        )

    def forward(self, batch: TokenBatch) -> Tensor:
        """Give the logits (B, L - 1, V) of every token but the first."""
        logits: Tensor = self.network(batch.ids[:, :-1], lengths=batch.lengths - 1)
        return logits.float()

    def step(self, batch: TokenBatch) -> Step:
        """Judge one batch.

        ``prediction`` is the log-probability (B, L - 1) of each token that was to be told, and
        ``target`` that token, :data:`UNTOLD` where there is none.
        """
        target = targets(batch)
        told = -F.cross_entropy(
            self(batch).flatten(0, 1), target.flatten(), ignore_index=UNTOLD, reduction="none"
        ).view_as(target)
        loss = -told.sum() / (target != UNTOLD).sum().clamp(min=1)
        return Step(loss, told.detach(), target)

    def weight(self, step: Step, batch: TokenBatch) -> Tensor:
        """Count the tokens that were to be told."""
        return (step.target != UNTOLD).sum()

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: TokenBatch) -> None:
        """Feed the surprise of a token, and how many there are."""
        metrics.update(step.loss.detach(), self.weight(step, batch))

    def mistakes(self, step: Step, batch: TokenBatch) -> Tensor:
        """Say how much probability (B, L - 1) other tokens had; NaN where none was to be told."""
        return (1 - step.prediction.exp()).masked_fill(step.target == UNTOLD, torch.nan)

    def items(self, step: Step, batch: TokenBatch) -> Mapping[str, Any]:
        """One row a sequence: its number, the tokens told and their log-likelihood."""
        return {
            "id": batch.rows,
            "tokens": (step.target != UNTOLD).sum(1),
            "log_likelihood": step.prediction.sum(1),
        }


def targets(batch: TokenBatch) -> Tensor:
    """Give the tokens (B, L - 1) that are to be told; :data:`UNTOLD` where there is none."""
    place = torch.arange(1, batch.ids.shape[1], device=batch.ids.device)
    asked = place < batch.lengths[:, None]
    begins = getattr(batch, "begins", None)
    if begins is not None:
        asked &= place >= begins[:, None]
    return batch.ids[:, 1:].masked_fill(~asked, UNTOLD)
