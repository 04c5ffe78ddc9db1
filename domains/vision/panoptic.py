"""Find the things of a photo one by one, and the stuff around them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from core.metric_words import metric_words
from core.task import Step, Task
from domains.vision.class_file import VOID
from domains.vision.files import png
from domains.vision.mask_inference import class_scores, find_segments
from domains.vision.mask_losses import MaskCriterion
from domains.vision.metrics import (
    ClassIoU,
    PanopticQuality,
    Segments,
    photo_quality,
)
from domains.vision.networks.outputs import MaskOutput
from domains.vision.panoptic_data import PanopticBatch
from domains.vision.panoptic_files import PanopticFiles

PARTS = {"": "all", "_things": "things", "_stuff": "stuff"}


class PanopticSegmentation(Task):
    """Learn masks and their classes; judge segments by panoptic quality, pixels by IoU.

    ``pq``, ``sq`` and ``rq`` by the rule of COCO over the split, of all classes and of things and
    stuff (``pq_things``); ``miou`` of the classes of pixels; ``pq/NAME`` and ``iou/NAME`` of each
    class. All are fractions of one. The loss is a sum over the layers that tell masks, so it begins
    high.

    Args:
        network: maps images (B, 3, H, W) to a ``MaskOutput``; H and W may be any.
        optimizer: built on the task's parameters.
        scheduler: stepped each optimizer step, or each epoch; None keeps the rate.
        interval: ``step`` or ``epoch``.
        monitor: the metric a plateau scheduler watches.
        points: at which a mask is compared; 0 compares every pixel.
        class_weight: of the cross-entropy of classes.
        mask_weight: of the binary cross-entropy of masks.
        dice_weight: of the dice of masks.
        no_object: what a query without a mask counts in the cross-entropy.
        score: least probability of the class of a segment.
        overlap: least share of a mask that no other takes.
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
        points: int = 12_544,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object: float = 0.1,
        score: float = 0.8,
        overlap: float = 0.8,
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        classes = int(getattr(network, "classes", 2))
        self._segments: list[Segments] = []
        metrics = panoptic_metrics([True] * classes, [str(n) for n in range(classes)])
        super().__init__(
            network, metrics, optimizer, scheduler, interval, monitor, layer_decay, decay_all
        )
        self.criterion = MaskCriterion(class_weight, mask_weight, dice_weight, no_object, points)
        self.score = score
        self.overlap = overlap
        self.register_buffer("things", torch.ones(classes, dtype=torch.bool), persistent=False)

    def setup(self, stage: str) -> None:
        """Take from the data the names of the classes and which are things."""
        data: Any = getattr(self.trainer, "datamodule", None)
        things = getattr(data, "things", None)
        if things is None:
            return
        self.things = torch.tensor(things, device=self.device)
        collection = MetricCollection(dict(panoptic_metrics(things, data.class_names)))
        for split in ("val", "test"):
            self.metrics[split] = collection.clone(prefix=f"{split}/").to(self.device)

    def forward(self, batch: PanopticBatch) -> MaskOutput:
        """Give the masks of the queries and their classes."""
        output: MaskOutput = self.network(batch.images)
        return output

    def step(self, batch: PanopticBatch) -> Step:
        """Judge one batch: prediction and target are labels (B, H, W)."""
        output = self(batch)
        loss: Tensor = self.criterion(output, batch.masks, batch.mask_classes, batch.labels != VOID)
        if self.training:
            return Step(loss, batch.labels, batch.labels)
        size = batch.labels.shape[-2], batch.labels.shape[-1]
        labels = class_scores(output.class_logits, output.mask_logits, size).argmax(1)
        self._segments = [
            find_segments(
                *(classes, masks, size, self.things), score=self.score, overlap=self.overlap
            )
            for classes, masks in zip(output.class_logits, output.mask_logits, strict=True)
        ]
        for segments, (height, width) in zip(self._segments, batch.sizes.tolist(), strict=True):
            segments.map = segments.map[:height, :width]
        return Step(loss, labels, batch.labels)

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: PanopticBatch) -> None:
        """Feed pixels and segments."""
        metrics.update(
            preds=step.prediction,
            target=step.target,
            predictions=self._segments,
            targets=[batch.truth(at) for at in range(len(batch.ids))],
        )

    def quality(self, step: Step, batch: PanopticBatch) -> Tensor:
        """Give the panoptic quality (B,) of each photo by itself; NaN of one without segments."""
        classes = len(self.things)
        return torch.tensor(
            [
                photo_quality(found, batch.truth(at), classes)
                for at, found in enumerate(self._segments)
            ]
        )

    def items(self, step: Step, batch: PanopticBatch) -> Mapping[str, Any]:
        """One row an image: its segments as a PNG of their numbers, and the class of each."""
        valid = step.target != VOID
        right = ((step.prediction == step.target) & valid).flatten(1).sum(1)
        return {
            "id": batch.rows,
            "name": batch.ids,
            "segments": [len(own.classes) for own in self._segments],
            "pixel_accuracy": right / valid.flatten(1).sum(1),  # NaN if all is void
            "mask": [
                png(Image.fromarray(own.map.cpu().numpy().astype(np.uint16)))
                for own in self._segments
            ],
            "labels": [own.classes.tolist() for own in self._segments],
        }

    def complete(self, preprocessing: Any) -> Any:
        """Hand on what makes a segment."""
        if not isinstance(preprocessing, PanopticFiles):
            return preprocessing
        return replace(preprocessing, score=self.score, overlap=self.overlap)


def panoptic_metrics(things: Sequence[bool], names: Sequence[str]) -> dict[str, Metric]:
    """Give what judges K classes."""
    count = len(things)
    metrics: dict[str, Metric] = {"miou": MulticlassJaccardIndex(count, ignore_index=VOID)}
    for ending, part in PARTS.items():
        for what in ("pq", "sq", "rq"):
            metrics[f"{what}{ending}"] = PanopticQuality(things, part, what)
    for number, word in enumerate(metric_words(names)):
        metrics[f"pq/{word}"] = PanopticQuality(things, number)
        metrics[f"iou/{word}"] = ClassIoU(count, number)
    return metrics
