"""What judges the detection of attacks, beside what torchmetrics has.

All metrics of verdicts take ``preds`` (B,), the score of an attack from 0 to 1, and ``target`` (B,)
int64, 1 for an attack; a flow is an attack where its score lies above the threshold. Those of
classes take ``classes`` and ``labels`` (B,), those of kinds of attacks ``preds`` and ``attacks``.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAveragePrecision,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    BinaryStatScores,
    MulticlassF1Score,
)
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.wrappers.abstract import WrapperMetric


class FalseAlarmRate(BinaryStatScores):
    """Share of the benign flows that are taken for attacks; 0 where there is no benign flow."""

    def compute(self) -> Tensor:
        """Give the share."""
        _, false, benign, _ = self._final_state()
        return false / (false + benign).clamp(min=1)


class BalancedAccuracy(BinaryStatScores):
    """Mean of the share of attacks that are found and the share of benign flows that pass."""

    def compute(self) -> Tensor:
        """Give the mean."""
        found, false, benign, missed = self._final_state()
        shares = found / (found + missed).clamp(min=1), benign / (benign + false).clamp(min=1)
        return sum(shares, torch.zeros(())) / 2


class PRArea(BinaryAveragePrecision):
    """Average precision, the area below precision over recall; NaN where there is no attack."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Give the area."""
        if not bool(dim_zero_cat(self.target).any()):
            return torch.tensor(torch.nan)
        area: Tensor = super().compute()
        return area.float()


class AtThreshold(WrapperMetric):
    """A metric of verdicts by a threshold that validation data have chosen.

    Args:
        metric: takes verdicts.
    """

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric
        self.threshold = 0.5

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take a batch."""
        self.metric.update((preds > self.threshold).long(), target)

    def compute(self) -> Tensor:
        """Give the metric's value."""
        value: Tensor = self.metric.compute()
        return value

    def reset(self) -> None:
        """Begin anew."""
        self.metric.reset()
        super().reset()


class ClassF1(MulticlassF1Score):
    """F1 over K classes, benign among them: the mean of those that occur, or that of one.

    Args:
        count: K.
        label: the class; None for the mean.
    """

    def __init__(self, count: int, label: int | None = None) -> None:
        super().__init__(count, average="none")
        self.label = label

    def update(self, classes: Tensor, labels: Tensor) -> None:
        """Take a batch."""
        super().update(classes, labels)

    def compute(self) -> Tensor:
        """Give the score."""
        scores: Tensor = super().compute()
        if self.label is not None:
            return scores[self.label]
        found, false, _, missed = self._final_state()
        return scores[found + false + missed > 0].mean()


class AttackRecall(Metric):
    """Share of the flows of some kinds of attacks that are found; NaN where there is none.

    Args:
        count: A, the kinds of flows, the benign one among them.
        kinds: the places of those that count.
    """

    full_state_update = False
    hits: Tensor
    flows: Tensor

    def __init__(self, count: int, kinds: Sequence[int]) -> None:
        super().__init__()
        self.kinds = list(kinds)
        for name in ("hits", "flows"):
            self.add_state(name, torch.zeros(count, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, attacks: Tensor) -> None:
        """Take a batch."""
        count = len(self.flows)
        self.hits += torch.bincount(attacks[preds > 0.5], minlength=count)
        self.flows += torch.bincount(attacks, minlength=count)

    def compute(self) -> Tensor:
        """Give the share."""
        return self.hits[self.kinds].sum() / self.flows[self.kinds].sum()


def detection_metrics() -> dict[str, Metric]:
    """Give what judges the verdict at the threshold 0.5, and the scores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all values
        area = PRArea()
    return {
        "f1": BinaryF1Score(),
        "recall": BinaryRecall(),
        "false_alarm_rate": FalseAlarmRate(),
        "precision": BinaryPrecision(),
        "pr_auc": area,
        "balanced_accuracy": BalancedAccuracy(),
    }


def budget_metrics() -> dict[str, Metric]:
    """Give what judges the verdict at the threshold that keeps to the budget of false alarms."""
    return {
        "f1_at_budget": AtThreshold(BinaryF1Score()),
        "recall_at_budget": AtThreshold(BinaryRecall()),
        "false_alarm_rate_at_budget": AtThreshold(FalseAlarmRate()),
    }
