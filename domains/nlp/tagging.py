"""Give every word of a sentence its tag: entities, parts of speech, chunks."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from core.early_exit.criteria import mistakes
from core.task import Step, Task
from core.tasks.classification import ClassWeights, weights_from
from core.tasks.heads import read_heads
from domains.nlp.spans import NO_TAG, Scheme, SpanScore, marks_spans
from domains.nlp.tagged_batches import TaggedBatch, of_words


class Tagging(Task):
    """Learn the tag of each word by cross-entropy at its first piece.

    Where tags mark spans (``B-PER``), ``precision``, ``recall`` and ``f1`` are of whole spans, as
    seqeval counts them, and ``f1_macro`` is the mean over types; else they are ``accuracy`` of
    words and ``f1_macro`` over tags. With several heads a head's name stands behind them, and
    their losses are added. Words without a tag count nowhere.

    Args:
        network: maps tokens (W, L) to logits (W, L, K); it states its ``heads``, whose labels are
            the K outputs side by side.
        optimizer: built on the task's parameters.
        scheduler: stepped each optimizer step, or each epoch; None keeps the rate.
        interval: ``step`` or ``epoch``.
        monitor: the metric a plateau scheduler watches.
        class_weights: weigh tags by their rarity in training (``balanced``), by the root of it
            (``sqrt``), or not.
        scheme: count only spans that the scheme allows; None takes any, as the script of CoNLL.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    weights: Tensor

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "step",
        monitor: str = "val/loss",
        class_weights: ClassWeights = "none",
        scheme: Scheme | None = None,
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        self.heads = read_heads(getattr(network, "heads", ()))
        metrics: dict[str, Metric] = {}
        self._head_of: dict[str, int] = {}
        for number, head in enumerate(self.heads):
            for name, metric in head_metrics(head.labels, scheme).items():
                metrics[head.metric(name)] = metric
                self._head_of[head.metric(name)] = number
        super().__init__(
            network, metrics, optimizer, scheduler, interval, monitor, layer_decay, decay_all
        )
        self.class_weights = class_weights
        self.register_buffer("weights", torch.ones(self.heads[-1].outputs.stop))

    def setup(self, stage: str) -> None:
        """Take from the data how often each tag is in training."""
        if stage == "fit":
            data = getattr(self.trainer, "datamodule", None)
            self.weights.copy_(weights_from(data, self.heads, self.class_weights))

    def forward(self, batch: TaggedBatch) -> Tensor:
        """Give the logits (B, N, K) of each word."""
        return of_words(self.network, batch).float()

    def step(self, batch: TaggedBatch) -> Step:
        """Judge one batch: prediction and target are labels (B, N, H)."""
        logits = self(batch)
        losses, found = [], []
        for number, head in enumerate(self.heads):
            own, target = logits[..., head.outputs], batch.labels[..., number]
            known = target != NO_TAG
            loss = own.sum() * 0
            if bool(known.any()):
                loss = F.cross_entropy(own[known], target[known], self.weights[head.outputs])
            losses.append(loss)
            found.append(own.argmax(-1))
        return Step(torch.stack(losses).sum(), torch.stack(found, -1), batch.labels)

    def mistakes(self, step: Step, batch: TaggedBatch) -> Tensor:
        """Say which tags (B, N, H) are wrong."""
        return mistakes(step.prediction, step.target, NO_TAG)

    def weight(self, step: Step, batch: TaggedBatch) -> Tensor | float:
        """Count the tags."""
        return (step.target != NO_TAG).sum()

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: TaggedBatch) -> None:
        """Feed each metric the labels (B, N) of its head."""
        for name, number in self._head_of.items():
            metrics[name].update(
                step.prediction[..., number].contiguous(), step.target[..., number].contiguous()
            )

    def items(self, step: Step, batch: TaggedBatch) -> Mapping[str, Any]:
        """One row a sentence: its number, words, gold and predicted tags; no gold tag is null."""
        data: Any = getattr(self.trainer, "datamodule", None)
        lengths = batch.lengths.tolist()
        columns: dict[str, Any] = {"id": batch.rows}
        if hasattr(data, "test_words"):
            columns["words"] = [list(data.test_words(row)) for row in batch.rows.tolist()]
        for number, head in enumerate(self.heads):
            for name, values in (("gold", step.target), ("predicted", step.prediction)):
                rows = zip(values[..., number].tolist(), lengths, strict=True)
                columns[head.metric(name)] = [_told(row[:n], head.labels) for row, n in rows]
        return columns


def head_metrics(labels: Sequence[str], scheme: Scheme | None = None) -> dict[str, Metric]:
    """Give what judges the tags of one head."""
    if marks_spans(labels):
        return {
            "f1": SpanScore(labels, "f1", scheme=scheme),
            "precision": SpanScore(labels, "precision", scheme=scheme),
            "recall": SpanScore(labels, "recall", scheme=scheme),
            "f1_macro": SpanScore(labels, "f1", average="macro", scheme=scheme),
        }
    count = max(len(labels), 2)
    return {
        "accuracy": MulticlassAccuracy(count, average="micro", ignore_index=NO_TAG),
        "f1_macro": MulticlassF1Score(count, average="macro", ignore_index=NO_TAG),
    }


def _told(tags: Sequence[int], labels: Sequence[str]) -> list[str | None]:
    return [labels[tag] if tag >= 0 else None for tag in tags]
