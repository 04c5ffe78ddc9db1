"""Say which class, which labels or which value an item has: one question or several at once."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from core.errors import UserError
from core.task import Step, Task
from core.tasks import calibration
from core.tasks.head_metrics import metrics_of
from core.tasks.heads import Head, read_heads

ClassWeights = Literal["none", "balanced", "sqrt"]


class Classification(Task):
    """Learn labels by cross-entropy, judge them by accuracy, F1 and correlation.

    A batch gives ``inputs``, the arguments of the network, ``targets`` (B, T), ``rows`` (B,), the
    places of its items in their split, and, where an item is several rows of the inputs, such as
    the windows of a long text, ``owner`` (R,), the item of each row: their logits are averaged. The
    network gives logits (R, K). The loss is the mean over all known answers, times the number of
    heads. What is measured on validation data goes into the checkpoint: a temperature a head, and
    for labels that do not exclude one another a threshold each.

    Args:
        network: a network; the meaning of its outputs is its attribute ``heads``.
        optimizer: builds the optimizer.
        scheduler: builds the scheduler.
        interval: step the scheduler each ``epoch`` or each optimizer ``step``.
        monitor: the metric a plateau scheduler watches.
        class_weights: weigh classes by their rarity in training (``balanced``), by the root of it
            (``sqrt``), or not.
        label_smoothing: share of a target that is spread over all classes.
        thresholds: ``validation`` chooses the threshold of each label, ``half`` keeps 0.5.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    temperature: Tensor
    threshold: Tensor
    weights: Tensor
    curves: Tensor
    collected: calibration.Collected

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        interval: str = "step",
        monitor: str = "val/loss",
        class_weights: ClassWeights = "none",
        label_smoothing: float = 0.0,
        thresholds: Literal["validation", "half"] = "validation",
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        self.heads = read_heads(getattr(network, "heads", ()))
        metrics = metrics_of(self.heads)
        super().__init__(
            network, metrics, optimizer, scheduler, interval, monitor, layer_decay, decay_all
        )
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing={label_smoothing} must lie from 0 to below 1")
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.thresholds = thresholds
        outputs = self.heads[-1].outputs.stop
        self.register_buffer("temperature", torch.ones(len(self.heads)))
        self.register_buffer("threshold", torch.full((outputs,), 0.5))
        self.register_buffer("weights", torch.ones(outputs))
        self.collected = calibration.Collected()
        self.register_buffer("curves", torch.full((len(self.heads), calibration.STEPS, 3), -1.0))

    def setup(self, stage: str) -> None:
        """Take from the data how often each label is in training."""
        if stage == "fit":
            data = getattr(self.trainer, "datamodule", None)
            self.weights.copy_(weights_from(data, self.heads, self.class_weights))

    def forward(self, batch: Any) -> Tensor:
        """Give the logits (B, K)."""
        logits: Tensor = self.network(*batch.inputs)
        owner = getattr(batch, "owner", None)
        return logits if owner is None else mean_by(logits, owner, len(batch.targets))

    def step(self, batch: Any) -> Step:
        """Predict and judge one batch."""
        logits = self(batch)
        losses = [self._loss(head, logits[:, head.outputs], batch.targets) for head in self.heads]
        loss = torch.stack(losses).sum() * len(losses) / max(self._answers(batch.targets), 1)
        testing = self._trainer is not None and self.trainer.testing
        prediction = self.calibrated(logits) if testing else logits
        return Step(loss, prediction, batch.targets)

    def weight(self, step: Step, batch: Any) -> float:
        """Count the known answers: the mean over a split then depends on no batch."""
        return self._answers(batch.targets)

    def mistakes(self, step: Step, batch: Any) -> Tensor:
        """Say of each head (B, H) whether its answer is wrong; of several labels, the share."""
        found = []
        for head in self.heads:
            own, target = step.prediction[:, head.outputs].detach(), head.target(step.target)
            if head.kind == "single":
                wrong = (own.argmax(1) != target).float()
            elif head.kind == "multi":
                wrong = ((own > 0) != (target > 0)).float().mean(1)
            else:
                wrong = (own.float() - target).tanh().abs().mean(1)
            found.append(wrong.masked_fill(~head.known(step.target), torch.nan))
        return torch.stack(found, 1)

    def calibrated(self, logits: Tensor) -> Tensor:
        """Divide logits by the temperature, and move them so that thresholds lie at 0."""
        moved = logits.float().clone()
        for number, head in enumerate(self.heads):
            own = head.outputs
            if head.kind != "regression":
                moved[:, own] = moved[:, own] / self.temperature[number]
            if head.kind == "multi":
                moved[:, own] = moved[:, own] - self.threshold[own].logit()
        return moved

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Judge one validation batch, and keep what calibration needs."""
        step = self._judge("val", batch)
        self.collected.update(step.prediction, step.target)

    def on_validation_epoch_end(self) -> None:
        """Measure temperatures and thresholds."""
        super().on_validation_epoch_end()
        logits, targets = (part.cpu() for part in self.collected.compute())
        self.collected.reset()
        if not self.trainer.sanity_checking:
            self._calibrate(logits, targets)

    def items(self, step: Step, batch: Any) -> Mapping[str, Any]:
        """Give the place, the label, the answer and its probability of each item."""
        columns: dict[str, Any] = {"id": batch.rows}
        for number, head in enumerate(self.heads):
            told = self.answers(number, step.prediction)
            target = head.target(step.target).cpu()
            known = head.known(step.target).cpu().tolist()
            truth = [
                _told(head, value) if sure else None
                for value, sure in zip(target, known, strict=True)
            ]
            kind = _arrow(head)  # stated, as a batch may hold no answer that tells
            columns[head.metric("label")] = pa.array(truth, kind)
            columns[head.metric("prediction")] = pa.array(told.labels, kind)
            if head.kind != "regression":
                columns[head.metric("probability")] = told.probability
        return columns

    def answers(self, number: int, calibrated: Tensor) -> "Answers":
        """Read the answers of a head from calibrated logits (B, K)."""
        head = self.heads[number]
        own = calibrated[:, head.outputs].float()
        shift = self.threshold[head.outputs].logit()
        return read_answers(head, own + shift if head.kind == "multi" else own, shift.sigmoid())

    def complete(self, preprocessing: Any) -> Any:
        """Hand on what was measured on validation data, where the preprocessing takes it."""
        if not hasattr(preprocessing, "calibrated"):
            return preprocessing
        return preprocessing.calibrated(
            self.temperature.tolist(),
            self.threshold.tolist(),
            [[row for row in curve.tolist() if row[0] >= 0] for curve in self.curves],
        )

    def begin_from(self, preprocessing: Any) -> None:
        """Take over what was measured on the validation data of the model's own training."""
        if not getattr(preprocessing, "temperature", None):
            return
        self.temperature.copy_(torch.tensor(preprocessing.temperature))
        self.threshold.copy_(torch.tensor(preprocessing.threshold))
        self.curves.fill_(-1)
        for number, curve in enumerate(preprocessing.curves):
            if curve:
                self.curves[number, : len(curve)] = torch.tensor(curve)

    def _answers(self, targets: Tensor) -> int:
        return sum(int(head.known(targets).sum()) for head in self.heads)

    def _loss(self, head: Head, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum the loss of a head over the items whose answer is known."""
        known = head.known(targets)
        logits, target = logits[known].float(), head.target(targets[known])
        if not len(target):
            return logits.sum()
        weights = self.weights[head.outputs]
        if head.kind == "single":
            return F.cross_entropy(
                logits,
                target,
                weight=weights,
                label_smoothing=self.label_smoothing,
                reduction="sum",
            )
        if head.kind == "multi":
            smooth = target * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = F.binary_cross_entropy_with_logits(
                logits, smooth, pos_weight=weights, reduction="none"
            )
            return losses.mean(1).sum()
        return F.mse_loss(logits, target, reduction="none").mean(1).sum()

    def _calibrate(self, logits: Tensor, targets: Tensor) -> None:
        self.curves.fill_(-1)
        for number, head in enumerate(self.heads):
            known = head.known(targets)
            own, target = logits[known][:, head.outputs], head.target(targets[known])
            if head.kind == "regression" or not len(own):
                continue
            found = calibration.temperature(head, own, target)
            self.temperature[number] = found
            if head.kind == "multi" and self.thresholds == "validation":
                chosen = calibration.thresholds((own.double() / found).sigmoid(), target)
                self.threshold[head.outputs] = chosen.to(self.threshold)
            threshold = self.threshold[head.outputs].cpu()
            told = read_answers(head, own / found, threshold)
            truth = [_told(head, value) for value in target]
            correct = np.array([a == b for a, b in zip(told.labels, truth, strict=True)])
            sure = told.probability.double().numpy()
            curve = torch.tensor(calibration.accuracy_curve(sure, correct))
            self.curves[number, : len(curve)] = curve.to(self.curves)


def mean_by(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Average the rows (R, K) that belong together, by their owner (R,): float32 (count, K)."""
    values = values.float()
    sums = values.new_zeros(count, values.shape[1]).index_add(0, owner, values)
    return sums / torch.bincount(owner, minlength=count)[:, None]


class Answers(NamedTuple):
    """What a head says of B items: labels (or values), and how sure it is of each, (B,)."""

    labels: list[Any]
    probability: Tensor


def read_answers(head: Head, logits: Tensor, threshold: Tensor) -> Answers:
    """Read answers from logits (B, K) that a temperature has divided.

    Of labels that do not exclude one another those are given whose probability reaches their
    ``threshold`` (K,); the probability of the answer is that of its least sure decision.
    """
    logits = logits.detach().cpu()
    if head.kind == "regression":
        values = logits[:, 0].tolist() if logits.shape[1] == 1 else logits.tolist()
        return Answers(values, torch.ones(len(logits)))
    if head.kind == "single":
        probability, best = logits.softmax(1).max(1)
        return Answers([head.labels[n] for n in best.tolist()], probability)
    scores = logits.sigmoid()
    chosen = scores >= threshold.cpu()
    sure = torch.where(chosen, scores, 1 - scores).min(1).values
    return Answers([_told(head, row) for row in chosen], sure)


def weights_from(data: Any, heads: Sequence[Head], scheme: ClassWeights) -> Tensor:
    """Weigh the labels (K,) of all heads by how often ``data`` have them in training.

    Raises:
        UserError: if the data do not count their labels.
    """
    if scheme == "none":
        return torch.ones(heads[-1].outputs.stop)
    counts = getattr(data, "label_counts", None)
    if counts is None:
        raise UserError(f"model.class_weights={scheme} needs data that count their labels")
    return label_weights(heads, counts(), scheme)


def label_weights(heads: Sequence[Head], counts: Sequence[Tensor], scheme: ClassWeights) -> Tensor:
    """Weigh the labels of all heads by their rarity.

    Args:
        heads: of all outputs.
        counts: for each head, for ``single`` the items (K,) of each class, for ``multi`` the items
            with and without each label (2, K).
        scheme: ``balanced`` weighs by the inverse share, ``sqrt`` by its root.

    Returns:
        (K,) of all heads: of a class in the cross-entropy, or of the items that have a label
        against those that lack it.
    """
    power = {"balanced": 1.0, "sqrt": 0.5, "none": 0.0}[scheme]
    weights = []
    for head, count in zip(heads, counts, strict=True):
        if head.kind == "regression":
            weights.append(torch.ones(len(head.labels)))
        elif head.kind == "single":
            found = (count.sum() / (len(count) * count.clamp(min=1))) ** power
            weights.append(found * len(count) / found.sum() if scheme == "sqrt" else found)
        else:
            weights.append((count[1] / count[0].clamp(min=1)).clamp(max=100) ** power)
    return torch.cat(weights).float()


def _arrow(head: Head) -> Any:
    """Give the type of a column of answers."""
    one = pa.float64() if head.kind == "regression" else pa.string()
    several = head.kind == "multi" or (head.kind == "regression" and len(head.labels) > 1)
    return pa.list_(one) if several else one


def _told(head: Head, value: Tensor) -> Any:
    """Write a target or an answer by its labels."""
    if head.kind == "single":
        return head.labels[int(value)]
    if head.kind == "multi":
        return [name for name, given in zip(head.labels, value.tolist(), strict=True) if given > 0]
    return float(value[0]) if len(value) == 1 else value.tolist()
