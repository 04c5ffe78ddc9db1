"""Bring a moving volume onto a fixed one by a displacement of every voxel."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection

from core.errors import UserError
from core.metric_words import metric_words
from core.task import Step, Task
from domains.medical.judging import IMAGE_SCORES, LABEL_SCORES, VALIDATED, judge
from domains.medical.losses import bending_energy, diffusion, local_ncc
from domains.medical.networks.parts import RegistrationOutput
from domains.medical.pairs import PairBatch
from domains.medical.pictures import SHOWN, slices
from domains.medical.warping import warp

WEIGHTS_OF_SOFT_DICE = 1e-5


class Registration(Task):
    """Learn displacements without any truth; judge by volumes and, where there are any, labels.

    The loss is that of the images, plus ``smoothness`` times the regulariser, plus ``dice_weight``
    times one less the overlap of the labels. ``test/dice`` is the mean over labels, then pairs, of
    labels warped to the nearest voxel, ``test/dice_before`` that of the volumes as they came, and
    ``test/dice/NAME`` that of each label. ``hd95`` and ``hd95_surfel`` are two definitions of one
    distance in mm, see :func:`domains.medical.metrics.hausdorff_95`; ``sdlogj`` (as Learn2Reg has
    it) and ``sdlogj_plain`` two of the spread of volume changes, see
    :func:`domains.medical.deformation.sd_log_jacobian`. ``folding`` is the share of voxels where
    space folds; ``ssim`` that of slices; ``ncc`` and ``ncc_before`` are means of the squared local
    correlation over the mask. All leave out what fills a volume up; pairs count alike.

    Args:
        network: maps moving and fixed (B, 1, D, H, W) to a ``RegistrationOutput``.
        optimizer: built on the task's parameters.
        scheduler: stepped each optimizer step, or each epoch; None keeps the rate.
        interval: ``step`` or ``epoch``.
        monitor: the metric a plateau scheduler watches.
        image_loss: ``ncc``, the local correlation, of one or two modalities, or ``mse``.
        window: odd side of the cubes of ``ncc``, in voxels.
        regulariser: ``diffusion`` (squares of first differences), ``diffusion_l1`` or ``bending``
            (second differences).
        regularise: what is kept smooth: ``field`` is the velocity of a network that has one, else
            the displacement; ``displacement``; or ``warped``, the warped volume, as the training
            code of NestedMorph was released.
        smoothness: weight of the regulariser.
        dice_weight: weight of the soft overlap of labels, where training has some.
        symmetric: also learn from fixed to moving: by the inverse of a network that gives one, or
            else by a second pass.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.

    Raises:
        UserError: if a weight is below 0, or ``window`` is even.
    """

    labels: Tensor

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "step",
        monitor: str = "val/loss",
        image_loss: Literal["ncc", "mse"] = "ncc",
        window: int = 9,
        regulariser: Literal["diffusion", "diffusion_l1", "bending"] = "diffusion",
        regularise: Literal["field", "displacement", "warped"] = "field",
        smoothness: float = 1.0,
        dice_weight: float = 0.0,
        symmetric: bool = False,
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        super().__init__(
            *(network, _means(IMAGE_SCORES), optimizer, scheduler, interval, monitor),
            *(layer_decay, decay_all),
        )
        if window < 1 or window % 2 == 0:
            raise UserError(f"model.window={window} must be odd")
        if min(smoothness, dice_weight) < 0:
            raise UserError(
                f"model.smoothness={smoothness} and model.dice_weight={dice_weight} must not be"
                " below 0"
            )
        self.image_loss = image_loss
        self.window = window
        self.regulariser = regulariser
        self.regularise = regularise
        self.smoothness = smoothness
        self.dice_weight = dice_weight
        self.symmetric = symmetric
        self.words: tuple[str, ...] = ()
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64), persistent=False)
        self._judged: tuple[Tensor, dict[str, Tensor]] | None = None
        self._time = [0.0, 0]  # seconds of the network in the test, and pairs

    def setup(self, stage: str) -> None:
        """Take from the data the labels that are judged, and their names."""
        known: Mapping[int, str] = getattr(
            getattr(self.trainer, "datamodule", None), "label_names", {}
        )
        if self.dice_weight and not known:
            raise UserError(
                f"model.dice_weight={self.dice_weight}: the data have no labels; set it to 0"
            )
        self.labels = torch.tensor(list(known), dtype=torch.int64, device=self.device)
        self.words = tuple(metric_words(list(known.values())))
        own = [*IMAGE_SCORES, *(LABEL_SCORES if known else ())]
        details = [f"dice/{word}" for word in self.words]
        for split in ("val", "test"):
            names = [n for n in own if split == "test" or n in VALIDATED] + details
            collection = MetricCollection(dict(_means(names)))
            self.metrics[split] = collection.clone(prefix=f"{split}/").to(self.device)

    def forward(self, batch: PairBatch) -> RegistrationOutput:
        """Register a batch."""
        output: RegistrationOutput = self.network(batch.moving, batch.fixed)
        return output

    def step(self, batch: PairBatch) -> Step:
        """Judge one batch: the prediction is a displacement (B, 3, D, H, W), the target fixed."""
        start = self._now() if not self.training else 0.0
        output = self(batch)
        if not self.training and self._trainer is not None and self.trainer.testing:
            self._time[0] += self._now() - start
            self._time[1] += len(batch.rows)
        moving = (batch.moving, batch.moving_labels)
        fixed = (batch.fixed, batch.fixed_labels)
        loss = self._loss(output, moving, fixed, batch.mask)
        if self.symmetric or output.warped_fixed is not None:
            back = _reversed(output)
            if back is None:
                back = self.network(batch.fixed, batch.moving)
            loss = (loss + self._loss(back, fixed, moving, batch.mask)) / 2
        return Step(loss, output.flow, batch.fixed)

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: PairBatch) -> None:
        """Judge every pair by itself and feed the means."""
        scores = self._scores(step, batch, [str(name) for name in metrics.keys(keep_base=True)])
        for name, metric in metrics.items(keep_base=True, copy_state=False):
            metric.update(scores[name])

    def mistakes(self, step: Step, batch: PairBatch) -> Tensor:
        """Say how far the warped volume is from fixed."""
        return (warp(batch.moving, step.prediction) - batch.fixed).abs()

    def items(self, step: Step, batch: PairBatch) -> Mapping[str, Any]:
        """One row a pair: its scores, those of each label, and slices of the first pairs."""
        names = self.metrics["test"].keys(keep_base=True)  # type: ignore[operator]
        scores = self._scores(step, batch, list(names))
        drawn = [
            slices(batch, step.prediction, at) if row < SHOWN else b""
            for at, row in enumerate(batch.rows.tolist())
        ]
        columns = {name: value for name, value in scores.items() if "/" not in name}
        if self.words:
            columns["dice_by_label"] = torch.stack(
                [scores[f"dice/{word}"] for word in self.words], 1
            )
        return {"id": batch.rows, "name": batch.ids, **columns, "slices": drawn}

    def figures(self) -> Mapping[str, float]:
        """Give the seconds that a pair took in the network, in batches as they were tested."""
        seconds, pairs = self._time
        self._time = [0.0, 0]
        return {"seconds_per_pair": seconds / pairs} if pairs else {}

    def _scores(self, step: Step, batch: PairBatch, names: Sequence[str]) -> dict[str, Tensor]:
        if self._judged is None or self._judged[0] is not step.prediction:
            judged = judge(
                *(batch, step.prediction, self.labels, self.words), names=names, window=self.window
            )
            self._judged = (step.prediction, judged)
        return self._judged[1]

    def _loss(
        self,
        output: RegistrationOutput,
        moving: tuple[Tensor, Tensor],
        fixed: tuple[Tensor, Tensor],
        mask: Tensor,
    ) -> Tensor:
        if self.image_loss == "ncc":
            loss = local_ncc(output.warped, fixed[0], self.window, mask)
        else:
            error = (output.warped - fixed[0]).square() * mask
            loss = error.sum() / mask.sum().clamp_min(1)
        if self.smoothness:
            loss = loss + self.smoothness * self._roughness(output)
        if self.dice_weight:
            loss = loss + self.dice_weight * self._soft_dice(output.flow, moving[1], fixed[1])
        return loss

    def _roughness(self, output: RegistrationOutput) -> Tensor:
        """Penalise what is kept smooth; a coarse velocity times its coarseness, as VoxelMorph."""
        field, scale = output.flow, 1.0
        if self.regularise == "warped":
            field = output.warped
        elif self.regularise == "field" and output.velocity is not None:
            field = output.velocity
            scale = output.flow.shape[-1] / field.shape[-1]
        if self.regulariser == "bending":
            return scale * bending_energy(field)
        return scale * diffusion(field, "l1" if self.regulariser == "diffusion_l1" else "l2")

    def _soft_dice(self, flow: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        """Give one less the overlap of warped one-hot labels, over those that a pair has."""
        values = self.labels.view(-1, 1, 1, 1)
        truth = (fixed[:, None] == values).to(flow.dtype)  # (B, K, D, H, W)
        own = (moving[:, None] == values).to(flow.dtype)
        shared = 2 * (warp(own, flow) * truth).flatten(2).sum(2)
        total = (warp(own, flow) + truth).flatten(2).sum(2)
        there = (own.flatten(2).any(2) | truth.flatten(2).any(2)).to(flow.dtype)
        overlap = (shared + WEIGHTS_OF_SOFT_DICE) / (total + WEIGHTS_OF_SOFT_DICE)
        return ((1 - overlap) * there).sum() / there.sum().clamp_min(1)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _means(names: Sequence[str]) -> dict[str, Metric]:
    """Give a mean over pairs for each score; a pair that has none does not count."""
    return {name: MeanMetric(nan_strategy="ignore") for name in names}


def _reversed(output: RegistrationOutput) -> RegistrationOutput | None:
    """Give the way back of a network that has computed it."""
    if output.warped_fixed is None or output.inverse_flow is None:
        return None
    velocity = None if output.velocity is None else -output.velocity
    return RegistrationOutput(output.warped_fixed, output.inverse_flow, velocity)
