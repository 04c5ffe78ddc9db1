"""Metrics that torchmetrics lacks: scores of one class, and panoptic quality by the COCO rule."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from domains.vision.class_file import VOID


class ClassIoU(MulticlassJaccardIndex):
    """Intersection over union of one class over a whole split; 0 where the split lacks it.

    Args:
        classes: K.
        label: the class.
    """

    def __init__(self, classes: int, label: int) -> None:
        super().__init__(classes, average="none", ignore_index=VOID)
        self.label = label

    def compute(self) -> Tensor:
        """Give the score of the class."""
        found: Tensor = super().compute()[self.label]
        return found


class ClassAccuracy(MulticlassConfusionMatrix):
    """Mean over the classes that the split has of the share of their pixels that were found.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, ignore_index=VOID)

    def compute(self) -> Tensor:
        """Give the mean."""
        total = self.confmat.sum(1).float()
        return (self.confmat.diag() / total)[total > 0].mean()


class PixelAccuracy(MulticlassConfusionMatrix):
    """Share of the pixels, void apart, whose class was found.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes, ignore_index=VOID)

    def compute(self) -> Tensor:
        """Give the share."""
        return self.confmat.diag().sum() / self.confmat.sum().clamp(min=1)


class PanopticQuality(Metric):
    """Panoptic quality as COCO counts it (Kirillov et al., CVPR 2019; panopticapi).

    Segments of one class match where their intersection over union is above 0.5; what a prediction
    has on void of the truth is left out of the union. A segment of the truth without a match is
    missed, even where the prediction is void there; crowds are never missed. A predicted segment
    without a match is wrong, unless more than half of it lies on void or on a crowd of its class.

    Args:
        things: whether each of the K classes has instances.
        part: ``all``, ``things`` or ``stuff``; or the number of one class.
        what: ``pq``, ``sq`` (mean IoU of matches) or ``rq`` (share recognised).
    """

    full_state_update = False
    iou: Tensor
    counts: Tensor

    def __init__(self, things: Sequence[bool], part: str | int = "all", what: str = "pq") -> None:
        super().__init__()
        classes = len(things)
        chosen = {"all": [True] * classes, "things": things, "stuff": [not t for t in things]}
        if isinstance(part, int):
            self.chosen = torch.arange(classes) == part
        else:
            self.chosen = torch.tensor(list(chosen[part]))
        self.what = what
        self.add_state("iou", torch.zeros(classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(
            "counts", torch.zeros(classes, 3, dtype=torch.int64), dist_reduce_fx="sum"
        )  # found, wrong, missed

    def update(self, predictions: Sequence[Any], targets: Sequence[Any]) -> None:
        """Judge images, each given as :class:`Segments`."""
        for prediction, target in zip(predictions, targets, strict=True):
            iou, counts = judge_segments(prediction, target, len(self.iou))
            self.iou += iou.to(self.iou.device)
            self.counts += counts.to(self.counts.device)

    def compute(self) -> Tensor:
        """Average over the classes that occur in truth or prediction."""
        found, wrong, missed = self.counts.double().unbind(1)
        total = found + wrong / 2 + missed / 2
        counted = (total > 0) & self.chosen.to(total.device)
        sq = self.iou / found.clamp(min=1)
        rq = found / total.clamp(min=0.5)
        value = {"pq": sq * rq, "sq": sq, "rq": rq}[self.what]
        return value[counted].mean().float() if bool(counted.any()) else value.new_zeros(()).float()


class Segments:
    """The segments of one image.

    Args:
        map: (H, W) the number of each pixel's segment, from 1; 0 is void.
        classes: (n,) the class of each segment.
        crowd: (n,) whether a segment is a crowd; None for none of them.
    """

    def __init__(self, map: Tensor, classes: Tensor, crowd: Tensor | None = None) -> None:
        self.map = map
        self.classes = classes
        self.crowd = torch.zeros(len(classes), dtype=torch.bool) if crowd is None else crowd


def photo_quality(prediction: Segments, target: Segments, classes: int) -> float:
    """Give the panoptic quality of one image, over the classes that occur in it; else NaN."""
    iou, counts = judge_segments(prediction, target, classes)
    total = counts.double() @ torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64)
    return float((iou / total)[total > 0].mean())


def judge_segments(prediction: Segments, target: Segments, classes: int) -> tuple[Tensor, Tensor]:
    """Count one image: the sum of IoU (K,), and found, wrong and missed segments (K, 3)."""
    n, m = len(prediction.classes), len(target.classes)
    pairs = prediction.map.long().cpu() * (m + 1) + target.map.long().cpu()
    shared = torch.bincount(pairs.flatten(), minlength=(n + 1) * (m + 1)).view(n + 1, m + 1)
    own, truth = shared.sum(1)[1:], shared.sum(0)[1:]  # (n,), (m,)
    void, inter = shared[1:, 0], shared[1:, 1:]
    kinds, kinds_of_truth = prediction.classes.cpu(), target.classes.cpu()
    crowd = target.crowd.cpu()
    same = kinds[:, None] == kinds_of_truth  # (n, m)
    union = own[:, None] + truth - inter - void[:, None]
    ratio = inter.double() / union.clamp(min=1)
    match = same & (ratio > 0.5) & ~crowd
    iou = torch.zeros(classes, dtype=torch.float64)
    iou.index_add_(0, kinds, (ratio * match).sum(1))
    forgiven = void + (inter * (same & crowd)).sum(1)
    wrong = ~match.any(1) & (own > 0) & ~(forgiven.double() / own.clamp(min=1) > 0.5)
    missed = ~match.any(0) & ~crowd & (truth > 0)
    counts = torch.stack(
        [
            torch.bincount(kinds[match.any(1)], minlength=classes),
            torch.bincount(kinds[wrong], minlength=classes),
            torch.bincount(kinds_of_truth[missed], minlength=classes),
        ],
        1,
    )
    return iou, counts
