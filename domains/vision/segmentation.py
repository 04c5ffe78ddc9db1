"""Give every pixel of a photo its class."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from core.early_exit.criteria import mistakes
from core.errors import UserError
from core.metric_words import metric_words
from core.task import Step, Task
from domains.vision import losses
from domains.vision.class_file import VOID
from domains.vision.examples import SegmentationBatch
from domains.vision.files import png
from domains.vision.inference import Inference
from domains.vision.losses import Loss
from domains.vision.metrics import ClassAccuracy, ClassIoU, PixelAccuracy
from domains.vision.networks.outputs import SegmentationOutput

Weighting = Literal["none", "balanced", "sqrt", "median"]


class SemanticSegmentation(Task):
    """Learn classes of pixels; judge by IoU over the whole split.

    ``miou`` is the mean over the classes that the split or the predictions have, from one confusion
    matrix of all pixels; ``iou/NAME`` that of each class (0 where neither has it);
    ``pixel_accuracy`` and ``class_accuracy`` the shares of pixels found, of all and by class. The
    loss of validation and test is the plain cross-entropy by pixel, whatever is trained by. Void
    pixels count nowhere. Photos are judged at the size that the data give them, larger ones than
    the data's window in overlapping windows.

    Args:
        network: maps images (B, 3, H, W) to a ``SegmentationOutput``.
        optimizer: built on the task's parameters.
        scheduler: stepped each optimizer step, or each epoch; None keeps the rate.
        interval: ``step`` or ``epoch``.
        monitor: the metric a plateau scheduler watches.
        loss: ``ce``, ``ohem`` (hard pixels only), ``dice`` or ``focal``.
        auxiliary_weights: of the cross-entropy of each auxiliary output.
        class_weights: weigh classes by their rarity in training: ``balanced``, the root of that
            (``sqrt``), or median-frequency balancing (``median``); or K numbers.
        ohem_threshold: pixels less sure of their class than this are hard.
        ohem_pixels: pixels of a batch that are taken at least.
        test_scales: factors of the size; the probabilities of all are averaged in the test.
        test_flip: judge the mirrored photo too in the test.
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
        loss: Loss = "ce",
        auxiliary_weights: Sequence[float] = (0.4, 0.4),
        class_weights: Weighting | Sequence[float] = "none",
        ohem_threshold: float = 0.9,
        ohem_pixels: int = 131_072,
        test_scales: Sequence[float] = (1.0,),
        test_flip: bool = False,
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        classes = int(getattr(network, "classes", 2))
        metrics = segmentation_metrics([str(n) for n in range(classes)])
        super().__init__(
            network, metrics, optimizer, scheduler, interval, monitor, layer_decay, decay_all
        )
        if not 0 < ohem_threshold <= 1 or ohem_pixels < 0:
            raise UserError(
                f"model.ohem_threshold={ohem_threshold} must lie above 0 up to 1, and"
                f" model.ohem_pixels={ohem_pixels} not below 0"
            )
        self.loss = loss
        self.auxiliary_weights = tuple(auxiliary_weights)
        self.class_weights = class_weights
        self.ohem_threshold = ohem_threshold
        self.ohem_pixels = ohem_pixels
        self.inference = Inference(scales=tuple(test_scales), flip=test_flip)
        self.register_buffer("weights", torch.ones(classes))

    def setup(self, stage: str) -> None:
        """Take from the data the names of the classes and how rare they are."""
        data: Any = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        if names is None:
            return
        collection = MetricCollection(dict(segmentation_metrics(names)))
        for split in ("val", "test"):
            self.metrics[split] = collection.clone(prefix=f"{split}/").to(self.weights.device)
        if stage == "fit":
            self.weights.copy_(weights_of(self.class_weights, data.class_pixels(), names))

    def forward(self, batch: SegmentationBatch) -> SegmentationOutput:
        """Give the logits (B, K, H, W)."""
        output: SegmentationOutput = self.network(batch.images)
        return output

    def step(self, batch: SegmentationBatch) -> Step:
        """Judge one batch: prediction and target are labels (B, H, W)."""
        if not self.training:
            return self._evaluate(batch)
        output = self(batch)
        loss = self._loss(output.logits, batch.labels)
        shares = self.auxiliary_weights
        if output.auxiliary and len(shares) < len(output.auxiliary):
            raise UserError(
                f"model.auxiliary_weights={list(shares)}: the network has {len(output.auxiliary)}"
                " auxiliary outputs; give as many numbers"
            )
        for share, logits in zip(shares, output.auxiliary, strict=False):
            loss = loss + share * losses.cross_entropy(logits, batch.labels, self.weights)
        return Step(loss, output.logits.argmax(1), batch.labels)

    def mistakes(self, step: Step, batch: SegmentationBatch) -> Tensor:
        """Say which pixels (B, H, W) are wrong."""
        return mistakes(step.prediction, step.target, VOID)

    def weight(self, step: Step, batch: SegmentationBatch) -> Tensor | float:
        """Count the valid pixels."""
        return (step.target != VOID).sum()

    def items(self, step: Step, batch: SegmentationBatch) -> Mapping[str, Any]:
        """One row an image: its confusions, where there are any, and its mask as PNG."""
        columns: dict[str, list[Any]] = {
            key: [] for key in ("truth", "predicted", "pixels", "pixel_accuracy", "mask")
        }
        for found, target, size in zip(
            step.prediction, step.target, batch.sizes.tolist(), strict=True
        ):
            own, truth = (part[: size[0], : size[1]].cpu() for part in (found, target))
            valid = truth != VOID
            codes, counts = torch.unique(truth[valid] * 256 + own[valid], return_counts=True)
            columns["truth"].append((codes // 256).tolist())
            columns["predicted"].append((codes % 256).tolist())
            columns["pixels"].append(counts.tolist())
            right = counts[codes // 256 == codes % 256].sum()
            columns["pixel_accuracy"].append(float(right / counts.sum()))  # NaN if all is void
            columns["mask"].append(png(Image.fromarray(own.to(torch.uint8).numpy())))
        return {"id": batch.rows, "name": batch.ids, **columns}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss == "ohem":
            return losses.ohem(
                *(logits, labels, self.weights),
                threshold=self.ohem_threshold,
                least=self.ohem_pixels,
            )
        chosen = {"ce": losses.cross_entropy, "dice": losses.dice, "focal": losses.focal}
        return chosen[self.loss](logits, labels, self.weights)

    def _evaluate(self, batch: SegmentationBatch) -> Step:
        """Judge each photo by itself, without what fills up the batch."""
        testing = self._trainer is not None and self.trainer.testing
        plain = self.inference if testing else Inference()
        how = Inference(batch.window, plain.scales, plain.flip)
        prediction = torch.zeros_like(batch.labels)
        total = batch.images.new_zeros((), dtype=torch.float64)
        alike = bool((batch.sizes == batch.sizes[:1]).all())
        height, width = batch.sizes[0].tolist()
        whole = not batch.window or max(height, width) <= batch.window
        if alike and whole:
            found = how.probabilities(self.network, batch.images)
            prediction = found.argmax(1)
            total = _surprise(found, batch.labels)
        else:
            for at, (high, wide) in enumerate(batch.sizes.tolist()):
                for top, own in how.bands(self.network, batch.images[at, :, :high, :wide]):
                    rows = slice(top, top + own.shape[1])
                    prediction[at, rows, :wide] = own.argmax(0)
                    total = total + _surprise(own[None], batch.labels[at : at + 1, rows, :wide])
        count = (batch.labels != VOID).sum().clamp(min=1)
        return Step((total / count).float(), prediction, batch.labels)


def segmentation_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Give what judges the K classes."""
    count = len(names)
    words = metric_words(names)
    by_class = {f"iou/{word}": ClassIoU(count, n) for n, word in enumerate(words)}
    return {
        "miou": MulticlassJaccardIndex(count, ignore_index=VOID),
        "pixel_accuracy": PixelAccuracy(count),
        "class_accuracy": ClassAccuracy(count),
        **by_class,
    }


def weights_of(scheme: Weighting | Sequence[float], pixels: Tensor, names: Sequence[str]) -> Tensor:
    """Weigh K classes by the training pixels (K,) of each; one that training lacks has 1.

    Raises:
        UserError: if numbers are given, and not one a class.
    """
    if not isinstance(scheme, str):
        if len(scheme) != len(names) or min(scheme) < 0 or max(scheme) == 0:
            raise UserError(
                f"model.class_weights={list(scheme)}: give {len(names)} numbers of 0 or more, one"
                f" a class: {', '.join(names)}"
            )
        return torch.tensor(list(scheme), dtype=torch.float32)
    if scheme == "none":
        return torch.ones(len(names))
    found = torch.ones(len(names))
    there = pixels > 0
    counts = pixels[there].double()
    if scheme == "median":
        found[there] = (counts.median() / counts).float()
        return found
    rarity = (counts.sum() / (len(counts) * counts)) ** (0.5 if scheme == "sqrt" else 1.0)
    found[there] = (rarity * len(counts) / rarity.sum()).float()
    return found


def _surprise(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Sum -log of the probability (B, K, H, W) of the labels (B, H, W) over valid pixels."""
    valid = labels != VOID
    own = probabilities.gather(1, labels.where(valid, 0)[:, None])[:, 0]
    return -(own.clamp(min=1e-12).log() * valid).sum(dtype=torch.float64)
