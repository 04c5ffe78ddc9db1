"""Find the things of a photo one by one, and the stuff around them."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from core.task import Step, Task
from domains.vision.class_file import VOID
from domains.vision.mask_inference import class_scores, find_segments
from domains.vision.metrics import PanopticQuality
from domains.vision.networks.outputs import MaskOutput
from domains.vision.panoptic_data import PanopticBatch

PARTS = {"": "all", "_things": "things", "_stuff": "stuff"}


class PanopticSegmentation(Task):
    """Learn masks and their classes; judge segments by panoptic quality, pixels by IoU.

    ``pq``, ``sq`` and ``rq`` by the rule of COCO over the split, of all classes and of things and
    stuff (``pq_things``); ``miou`` of the classes of pixels. All are fractions of one.

    Args:
        network: maps images (B, 3, H, W) to a ``MaskOutput``; H and W may be any.
        criterion: maps that output, the masks, a list of (n, H, W), their classes, a list of (n,),
            and what is not void (B, H, W) to the loss.
        optimizer: built on the task's parameters.
        scheduler: stepped each optimizer step, or each epoch; None keeps the rate.
        interval: ``step`` or ``epoch``.
        monitor: the metric a plateau scheduler watches.
        score: least probability of the class of a segment.
        overlap: least share of a mask that no other takes.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    def __init__(
        self,
        network: nn.Module,
        criterion: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "step",
        monitor: str = "val/loss",
        score: float = 0.8,
        overlap: float = 0.8,
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        classes = int(getattr(network, "classes", 2))
        self._segments: list[Any] = []
        super().__init__(
            *(network, panoptic_metrics([True] * classes), optimizer, scheduler),
            interval,
            monitor,
            layer_decay,
            decay_all,
        )
        self.criterion = criterion
        self.score = score
        self.overlap = overlap
        self.register_buffer("things", torch.ones(classes, dtype=torch.bool), persistent=False)

    def setup(self, stage: str) -> None:
        """Take from the data which classes are things."""
        things = getattr(getattr(self.trainer, "datamodule", None), "things", None)
        if things is None:
            return
        self.things = torch.tensor(things, device=self.device)
        collection = MetricCollection(dict(panoptic_metrics(list(things))))
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
        truth = [batch.truth(at) for at in range(len(batch.ids))]
        for name, metric in metrics.items(keep_base=True, copy_state=False):
            if name == "miou":
                metric.update(step.prediction, step.target)
            else:
                metric.update(self._segments, truth)

    def items(self, step: Step, batch: PanopticBatch) -> Mapping[str, Any]:
        """One row an image: its name, and the number of its segments."""
        valid = step.target != VOID
        right = ((step.prediction == step.target) & valid).flatten(1).sum(1)
        return {
            "id": batch.rows,
            "name": batch.ids,
            "segments": [len(own.classes) for own in self._segments],
            "pixel_accuracy": right / valid.flatten(1).sum(1).clamp(min=1),
        }


def panoptic_metrics(things: list[bool]) -> dict[str, Metric]:
    """Give what judges K classes."""
    metrics: dict[str, Metric] = {"miou": MulticlassJaccardIndex(len(things), ignore_index=VOID)}
    for ending, part in PARTS.items():
        for what in ("pq", "sq", "rq"):
            metrics[f"{what}{ending}"] = PanopticQuality(things, part, what)
    return metrics
