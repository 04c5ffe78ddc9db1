"""What a classifier's outputs say about probabilities, measured on validation data."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from core.tasks.heads import Head

FEWEST = 5
"""Items with a label, and without it, that a threshold of its own needs."""
STEPS = 200
"""The most steps that a curve of accuracy is kept with."""


class Collected(Metric):
    """Keep logits (N, K) and targets (N, T) of a whole split, over all processes."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch."""
        self.logits.append(logits.detach().float())
        self.targets.append(targets.detach().float())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Give all of them."""
        return dim_zero_cat(self.logits), dim_zero_cat(self.targets)


def temperature(head: Head, logits: Tensor, targets: Tensor) -> float:
    """Find the temperature that makes the targets most likely.

    Guo et al., On Calibration of Modern Neural Networks, 2017.

    Args:
        head: of kind ``single`` or ``multi``.
        logits: (N, K) of this head.
        targets: (N,) classes or (N, K) labels.
    """
    if head.kind == "regression" or not len(logits):
        return 1.0

    def loss(log: Tensor) -> Tensor:
        scaled = logits.double() / log.exp()
        if head.kind == "single":
            return F.cross_entropy(scaled, targets)
        return F.binary_cross_entropy_with_logits(scaled, targets.double())

    grid = torch.linspace(float(np.log(0.05)), float(np.log(20.0)), 61, dtype=torch.float64)
    for _ in range(3):  # the loss has one valley in the logarithm
        losses = torch.stack([loss(log) for log in grid])
        best = int(losses.argmin())
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
        grid = torch.linspace(low, high, 21, dtype=torch.float64)
    return float(grid[len(grid) // 2].exp())


def thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Choose for each label the probability from which on its F1 is best.

    A label that too few items have, or lack, keeps 0.5; of equal thresholds the one nearest to 0.5
    is taken.

    Args:
        probabilities: (N, K).
        targets: (N, K), 0 or 1.
    """
    found = torch.full((probabilities.shape[1],), 0.5, dtype=torch.float64)
    for label, (scores, truth) in enumerate(zip(probabilities.T, targets.T, strict=True)):
        positive = int(truth.sum())
        if min(positive, len(truth) - positive) < FEWEST:
            continue
        scores, order = scores.double().sort(descending=True)
        hits = truth[order].double().cumsum(0)
        f1 = 2 * hits / (torch.arange(1, len(scores) + 1) + positive)
        ends = torch.cat([scores[:-1] != scores[1:], torch.tensor([True])])
        cuts = torch.cat([(scores[:-1] + scores[1:]) / 2, scores[-1:] / 2])
        best = f1[ends].max()
        equal = cuts[ends & (f1 >= best - 1e-9)]
        found[label] = equal[(equal - 0.5).abs().argmin()]
    return found.clamp(1e-4, 1 - 1e-4)


def accuracy_curve(confidence: NDArray[Any], correct: NDArray[Any]) -> list[list[float]]:
    """Say how right the most confident answers are.

    Args:
        confidence: (N,) of each answer.
        correct: (N,) whether it is right.

    Returns:
        Rows of a threshold, the accuracy of the answers from it on, and their share.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_ = confidence[order]
    counts = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(correct[order]) / counts
    ends = np.flatnonzero(np.append(sorted_[1:] != sorted_[:-1], True))
    if len(ends) > STEPS:
        ends = ends[np.linspace(0, len(ends) - 1, STEPS).round().astype(int)]
    rows = zip(sorted_[ends], accuracy[ends], counts[ends] / len(order), strict=True)
    return [[float(value) for value in row] for row in rows]


def threshold_for(curve: list[list[float]], accuracy: float) -> float | None:
    """Give the lowest confidence from which on answers are so accurate; None if none is."""
    enough = [threshold for threshold, reached, _ in curve if reached >= accuracy]
    return min(enough) if enough else None
