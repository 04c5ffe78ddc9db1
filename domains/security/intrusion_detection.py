"""Tell attacks from benign flows, and of which class they are."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from core.data_module import DataModule
from core.early_exit.in_task import test_batches
from core.early_exit.transform import exits_of
from core.errors import UserError
from core.metric_words import metric_words
from core.task import Step, Task
from core.tasks.calibration import Collected
from domains.security.alerts import FlowAlerts
from domains.security.baselines import FlowBaseline
from domains.security.flows import FlowBatch
from domains.security.metrics import (
    AttackRecall,
    AtThreshold,
    ClassF1,
    budget_metrics,
    detection_metrics,
)
from domains.security.preprocessing import FlowPreprocessing
from domains.security.scores import attack_logit, attack_score, likely_class
from domains.security.thresholds import STEPS, Point, budget_curve, threshold_within


class IntrusionDetection(Task):
    """Learn flows by cross-entropy; judge the verdicts by F1, detection rate and false alarms.

    The score of a flow is the probability that it is no benign one. By the threshold 0.5, the
    published one, are measured ``f1`` of the attacks, ``recall`` (the detection rate),
    ``false_alarm_rate``, ``precision`` and ``balanced_accuracy``; ``pr_auc`` by all thresholds.
    ``f1_at_budget``, ``recall_at_budget`` and ``false_alarm_rate_at_budget`` are by the lowest
    threshold that keeps to the budget on validation data, which need not hold on the test. Of K
    classes there is ``f1_macro`` too and, in the details, ``f1/CLASS``; an attack is of its
    likeliest class. ``recall/ATTACK`` is that of each kind of attack, ``recall_unseen`` that of all
    that training lacks. All are fractions of one.

    Args:
        network: maps numeric (B, W, N) and codes (B, W, C) to logits (B, 1), or (B, K).
        optimizer: built on the task's parameters.
        scheduler: stepped each epoch, or each optimizer step; None keeps the rate.
        interval: ``epoch`` or ``step``.
        monitor: the metric a plateau scheduler watches.
        false_alarm_budget: the share of benign flows that may be taken for attacks.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    threshold: Tensor
    curve: Tensor

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        interval: str = "epoch",
        monitor: str = "val/loss",
        false_alarm_budget: float = 0.01,
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        if not 0 < false_alarm_budget < 1:
            raise UserError(
                f"model.false_alarm_budget={false_alarm_budget} must lie between 0 and 1"
            )
        if getattr(network, "probabilities", False):
            raise UserError(
                "model.network.probabilities=true: the task learns from logits; leave it out"
            )
        super().__init__(
            network,
            detection_metrics(),
            *(optimizer, scheduler, interval, monitor, layer_decay, decay_all),
        )
        self.false_alarm_budget = false_alarm_budget
        self.attacks: tuple[str, ...] = ()
        self.class_names = ("benign", "attack")
        self.collected = Collected()
        self.register_buffer("threshold", torch.tensor(0.5, dtype=torch.float64))
        self.register_buffer("curve", torch.full((STEPS, 3), torch.nan, dtype=torch.float64))
        self._laps: list[tuple[int, float]] = []

    def setup(self, stage: str) -> None:
        """Take from the data the names of classes and attacks."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "attacks"):
            return
        self.attacks, self.class_names = tuple(data.attacks), tuple(data.class_names)
        device = self.threshold.device
        plain = {**detection_metrics(), **class_metrics(self.class_names)}
        self.metrics["val"] = MetricCollection(dict(plain), prefix="val/").to(device)
        kinds = attack_metrics(self.attacks, data.tested_attacks, data.new_attacks)
        found = {**plain, **budget_metrics(), **kinds}
        self.metrics["test"] = MetricCollection(dict(found), prefix="test/").to(device)

    def forward(self, batch: FlowBatch) -> Tensor:
        """Give the logits (B, 1) or (B, K)."""
        logits: Tensor = self.network(batch.numeric, batch.codes)
        return logits

    def step(self, batch: FlowBatch) -> Step:
        """Judge one batch: its prediction are logits, its target classes (B,)."""
        began = time.perf_counter()
        logits = self(batch).float()
        if self._trainer is not None and self.trainer.testing:
            if logits.is_cuda:
                torch.cuda.synchronize()
            self._laps.append((len(logits), time.perf_counter() - began))
        if logits.shape[1] == 1:
            target = (batch.labels > 0).long()
            loss = F.binary_cross_entropy_with_logits(logits[:, 0], target.float())
        else:
            target = batch.labels
            loss = F.cross_entropy(logits, target)
        return Step(loss, logits, target)

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: FlowBatch) -> None:
        """Feed verdicts, classes and kinds of attacks."""
        score = attack_score(step.prediction)
        metrics.update(
            preds=score,
            target=(step.target > 0).long(),
            classes=likely_class(step.prediction, score > 0.5),
            labels=step.target,
            attacks=batch.attacks,
        )

    def validation_step(self, batch: FlowBatch, batch_idx: int) -> None:
        """Judge one validation batch, and keep what the threshold is chosen by."""
        step = self._judge("val", batch)
        self.collected.update(attack_logit(step.prediction), step.target)

    def on_validation_epoch_end(self) -> None:
        """Choose the threshold."""
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self._choose()
        self.collected.reset()

    def _choose(self) -> None:
        """Choose the threshold by what was collected, and measure what others would come to."""
        if not self.collected.update_called:
            return
        logits, targets = (part.cpu() for part in self.collected.compute())
        scores, attack = logits.double().sigmoid().numpy(), targets.numpy() > 0
        chosen = threshold_within(scores, attack, self.false_alarm_budget)
        curve = budget_curve(scores, attack, self.false_alarm_budget)
        self._keep(0.5 if chosen is None else chosen, curve)

    def on_test_epoch_start(self) -> None:
        """Let the metrics judge by the chosen threshold.

        Early exits, which have chosen theirs just before, give other scores than in training: the
        threshold is chosen anew.
        """
        super().on_test_epoch_start()
        exits, data = exits_of(self.network), getattr(self.trainer, "datamodule", None)
        if exits is not None and isinstance(data, DataModule):
            loader = data.every_item(data.val_set)
            for batch in test_batches(self, loader, self.trainer.limit_val_batches):
                with self.trainer.precision_plugin.forward_context():
                    step = self.step(batch)
                self.collected.update(attack_logit(step.prediction), step.target)
            self._choose()
            self.collected.reset()
            exits.meter.clear()
        self._laps = []
        _judge_at(self.metrics["test"], float(self.threshold))

    def on_test_epoch_end(self) -> None:
        """Log what the whole test yields; what early exits measure after it is no lap of it."""
        laps, self._laps = self._laps, []
        super().on_test_epoch_end()
        self._laps = laps

    def items(self, step: Step, batch: FlowBatch) -> Mapping[str, Any]:
        """Give the place, class and kind of each flow, what it was taken for, and its score.

        ``prediction`` is by the threshold 0.5, ``alert`` by the chosen one.
        """
        score = attack_score(step.prediction)
        named = {"label": step.target, "prediction": likely_class(step.prediction, score > 0.5)}
        columns = {key: _named(places, self.class_names) for key, places in named.items()}
        if self.attacks:
            columns["attack"] = _named(batch.attacks, self.attacks)
        return {"id": batch.rows, **columns, "score": score, "alert": score > self.threshold}

    def epoch_outputs(self) -> Mapping[str, Tensor | float]:
        """Tell of a test by which threshold the budget was kept."""
        return {"budget/threshold": self.threshold} if self.trainer.testing else {}

    def figures(self) -> Mapping[str, float]:
        """Give the flows a second of the network in the test; its first batch warms up."""
        laps = self._laps[1:] or self._laps
        if not laps:
            return {}
        flows, seconds = map(sum, zip(*laps, strict=True))
        return {"flows_per_second": self.trainer.world_size * flows / seconds}

    def metrics_for(self, baseline: FlowBaseline) -> MetricCollection:
        """Judge a baseline by the threshold that its own scores on validation data give."""
        metrics = super().metrics_for(baseline)
        _judge_at(metrics, baseline.threshold(self.false_alarm_budget))
        return metrics

    def complete(self, preprocessing: Any) -> Any:
        """Let the preprocessing of flows judge files by what validation data have measured."""
        if not isinstance(preprocessing, FlowPreprocessing):
            return preprocessing
        curve = [Point(*row) for row in self.curve.tolist() if math.isfinite(row[0])]
        return FlowAlerts(preprocessing, float(self.threshold), curve)

    def begin_from(self, preprocessing: Any) -> None:
        """Take over what was measured on the validation data of the model's own training."""
        if isinstance(preprocessing, FlowAlerts):
            self._keep(preprocessing.threshold, preprocessing.curve)

    def _keep(self, threshold: float, curve: Sequence[Point]) -> None:
        self.threshold.fill_(threshold)
        self.curve.fill_(torch.nan)
        if curve:
            self.curve[: len(curve)] = torch.tensor(curve, dtype=torch.float64)


def class_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Give what judges K classes; of two there is nothing more to say."""
    if len(names) == 2:
        return {}
    words = metric_words(names)
    by_class = {f"f1/{word}": ClassF1(len(names), n) for n, word in enumerate(words)}
    return {"f1_macro": ClassF1(len(names)), **by_class}


def attack_metrics(
    names: Sequence[str], tested: Sequence[str], unseen: Sequence[str]
) -> dict[str, Metric]:
    """Give the recall of each kind of attack in the test, and of those that training lacks.

    Args:
        names: of the kinds of flows, the benign one first.
        tested: those that the test has.
        unseen: those of them that training lacks.
    """
    words = metric_words(names)
    found = {
        f"recall/{words[n]}": AttackRecall(len(names), [n])
        for n, name in enumerate(names)
        if n and name in tested
    }
    if unseen:
        places = [names.index(name) for name in unseen]
        found["recall_unseen"] = AttackRecall(len(names), places)
    return dict(found)


def _judge_at(metrics: Any, threshold: float) -> None:
    for metric in metrics.values():
        if isinstance(metric, AtThreshold):
            metric.threshold = threshold


def _named(places: Tensor, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(places.int().cpu().numpy(), list(names))
