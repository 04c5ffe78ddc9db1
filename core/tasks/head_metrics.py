"""The metrics of a classifier's heads: accuracy, F1, correlation, each over known answers alone."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelExactMatch,
    MultilabelF1Score,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.wrappers.abstract import WrapperMetric

from core.tasks.heads import Head


class OfHead(WrapperMetric):
    """A metric of one head, from the outputs and targets of all.

    Args:
        head: which.
        metric: takes classes or labels (B, K) of 0 and 1, and their targets; of a regression,
            values.
    """

    def __init__(self, head: Head, metric: Metric) -> None:
        super().__init__()
        self.head = head
        self.metric = metric

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take calibrated logits (B, K) and targets (B, T) of all heads."""
        known = self.head.known(targets)
        if not bool(known.any()):
            return
        own = predictions[known][:, self.head.outputs].float()
        target = self.head.target(targets[known])
        if self.head.kind == "single":
            self.metric.update(own.argmax(1), target)
        elif self.head.kind == "multi":
            self.metric.update((own >= 0).long(), target.long())
        else:
            self.metric.update(own.squeeze(1), target.float().squeeze(1))

    def compute(self) -> Tensor:
        """Give the metric's value."""
        alone = not torch.distributed.is_initialized()
        if alone and not self.metric.update_called:  # no answer is known
            return torch.tensor(torch.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a correlation with a constant is none
            value: Tensor = self.metric.compute()
        return value

    def reset(self) -> None:
        """Begin anew."""
        self.metric.reset()
        super().reset()


class Matthews(MulticlassConfusionMatrix):
    """The correlation of answers and truth; 0 where one of them is of one class alone.

    Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    That of torchmetrics 1.9 is far from 0 where two classes are answered by one alone.
    """

    def compute(self) -> Tensor:
        """Give the value."""
        table = super().compute().double()
        true, told, count = table.sum(1), table.sum(0), table.sum()
        covariance = table.trace() * count - true @ told
        spread = (count**2 - told @ told) * (count**2 - true @ true)
        return (covariance / spread.sqrt() if spread > 0 else torch.zeros_like(count)).float()


def metrics_of(heads: Sequence[Head]) -> dict[str, Metric]:
    """Choose the metrics of each head by its kind."""
    found: dict[str, Metric] = {}
    for head in heads:
        count = len(head.labels)
        metrics: dict[str, Metric]
        if head.kind == "single":
            count = max(count, 2)
            metrics = {
                "accuracy": MulticlassAccuracy(count, average="micro"),
                "f1_macro": MulticlassF1Score(count, average="macro"),
                "f1_weighted": MulticlassF1Score(count, average="weighted"),
                "matthews": Matthews(count),
            }
            if count == 2:
                metrics["f1"] = BinaryF1Score()
        elif head.kind == "multi":
            metrics = {
                "f1": MultilabelF1Score(count, average="micro"),
                "f1_macro": MultilabelF1Score(count, average="macro"),
                "f1_weighted": MultilabelF1Score(count, average="weighted"),
                "exact_match": MultilabelExactMatch(count),
            }
        else:
            metrics = {
                "mse": MeanSquaredError(),
                "mae": MeanAbsoluteError(),
                "pearson": PearsonCorrCoef(),
                "spearman": _spearman(),
            }
        found |= {head.metric(name): OfHead(head, metric) for name, metric in metrics.items()}
    return found


def _spearman() -> Metric:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all values
        return SpearmanCorrCoef()
