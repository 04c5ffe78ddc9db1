"""Answer a question by a part of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection

from core.task import Step, Task
from domains.nlp.answer_decoding import allowed, decode, logits_of, predictions, targets
from domains.nlp.answer_files import AnswerFiles
from domains.nlp.answer_windows import UNKNOWN, AnswerBatch
from domains.nlp.squad_metrics import (
    ENGLISH_ARTICLES,
    NEVER,
    AnswerableF1,
    AnswerExactMatch,
    AnswerF1,
    AnswerMetric,
    NullAccuracy,
    NullThreshold,
    exact_match,
    f1,
)


class Answering(Task):
    """Learn where answers begin and end; judge the texts by exact match and F1, fractions of one.

    The loss is the cross-entropy of the first and of the last token, each among the tokens of the
    context and position 0, which stands for no answer in the window (Devlin et al., BERT, 2019).
    All windows of a question are scored together, and the best span of all is the answer. Of data
    in which questions may have no answer, none is given where its score exceeds that of the best
    span by more than a threshold, which is chosen on validation for the best F1; validation itself
    is judged at that threshold, as SQuAD's script does.

    Args:
        network: maps tokens to logits of being first and last (W, L, 2).
        optimizer: built on the task's parameters.
        scheduler: stepped each epoch, or each step; None keeps the rate.
        interval: ``epoch`` or ``step``.
        max_answer: tokens in an answer at most.
        articles: words that do not count in exact match and F1.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    threshold: Tensor

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "epoch",
        max_answer: int = 30,
        articles: Sequence[str] = ENGLISH_ARTICLES,
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        if max_answer < 1:
            raise ValueError(f"max_answer={max_answer} must be at least 1")
        metrics = {"exact_match": AnswerExactMatch(), "f1": AnswerF1()}
        super().__init__(
            network,
            metrics,
            optimizer,
            scheduler,
            interval,
            layer_decay=layer_decay,
            decay_all=decay_all,
        )
        self.max_answer = max_answer
        self.articles = tuple(articles)
        self.register_buffer("threshold", torch.tensor(NEVER))
        self._nullable = False

    def setup(self, stage: str) -> None:
        """Judge questions without an answer by themselves too, where the data have any."""
        data = getattr(self.trainer, "datamodule", None)
        if self._nullable or not getattr(data, "nullable", False):
            return
        self._nullable = True
        judged = {"f1_answerable": AnswerableF1, "null_accuracy": NullAccuracy}
        for metrics in map(self._collection, ("val", "test")):
            metrics.add_metrics({name: metric() for name, metric in judged.items()})
        self._collection("val").add_metrics({"null_threshold": NullThreshold()})
        self._set_threshold("val", None)

    def forward(self, batch: AnswerBatch) -> Tensor:
        """Give the logits (W, L, 2) of each position to be first and last."""
        if self.training:
            logits: Tensor = self.network(*batch.tokens)
            return logits.float()
        return logits_of(self.network, batch.tokens)

    def step(self, batch: AnswerBatch) -> Step:
        """Judge one batch.

        Of questions the prediction (Q, 3) holds the first character, the one after the last, and
        by how much the score of no answer exceeds that of this one; the target (Q, 2) holds the
        gold answer's characters, -1 where there are none. Of windows in training both are
        positions (W, 2).
        """
        logits = self(batch)
        masked = logits.masked_fill(~allowed(batch)[..., None], -torch.inf)
        losses = F.cross_entropy(
            masked.mT.flatten(0, 1),  # (2 W, L)
            batch.positions.flatten(),
            ignore_index=UNKNOWN,
            reduction="sum",
        )
        loss = losses / _known(batch).clamp(min=1) / 2
        if not batch.asked:
            return Step(loss, masked.argmax(1), batch.positions)
        found = decode(logits, batch, self.max_answer)
        return Step(loss, predictions(found), targets(batch.asked))

    def weight(self, step: Step, batch: AnswerBatch) -> Tensor | float:
        """Count the windows of which the answer is known."""
        return _known(batch)

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: AnswerBatch) -> None:
        """Judge the text of each answer."""
        exact, overlap = self._scores(step, batch)
        device = next(iter(metrics.values(copy_state=False))).device
        metrics.update(
            torch.tensor(exact, device=device),
            torch.tensor(overlap, device=device),
            step.prediction[:, 2].float().to(device),
            torch.tensor([not question.answers for question in batch.asked], device=device),
        )

    def items(self, step: Step, batch: AnswerBatch) -> Mapping[str, Any]:
        """One row a question: what was answered and what is right."""
        exact, overlap = self._scores(step, batch)
        given = [
            "" if gap > float(self.threshold) else text
            for text, gap in zip(_texts(step, batch), step.prediction[:, 2].tolist(), strict=True)
        ]
        return {
            "id": batch.rows,
            "question_id": [question.id for question in batch.asked],
            "question": [question.text for question in batch.asked],
            "answer": given,
            "gold": [next(iter(question.golds), "") for question in batch.asked],
            "exact_match": exact,
            "f1": overlap,
            "null_gap": step.prediction[:, 2],
            "context_characters": [len(question.context) for question in batch.asked],
        }

    def on_validation_epoch_end(self) -> None:
        """Keep the threshold at which answers are withheld."""
        super().on_validation_epoch_end()
        if self._nullable:
            self.threshold.copy_(self._collection("val")["null_threshold"].compute())

    def on_test_start(self) -> None:
        """Judge the test at the threshold that validation chose."""
        self._set_threshold("test", float(self.threshold))

    def complete(self, preprocessing: Any) -> Any:
        """Hand on how answers are read, where the preprocessing takes it."""
        if not isinstance(preprocessing, AnswerFiles):
            return preprocessing
        threshold = float(self.threshold) if self._nullable else None
        return replace(preprocessing, max_answer=self.max_answer, threshold=threshold)

    def begin_from(self, preprocessing: Any) -> None:
        """Take the threshold over at which answers were withheld."""
        if isinstance(preprocessing, AnswerFiles) and preprocessing.threshold is not None:
            self.threshold.fill_(preprocessing.threshold)

    def _collection(self, split: str) -> MetricCollection:
        metrics = self.metrics[split]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def _set_threshold(self, split: str, threshold: float | None) -> None:
        for metric in self._collection(split).values(copy_state=False):
            assert isinstance(metric, AnswerMetric)
            metric.threshold = threshold

    def _scores(self, step: Step, batch: AnswerBatch) -> tuple[list[float], list[float]]:
        """Give exact match and F1 of each answer, were it given."""
        texts = _texts(step, batch)
        pairs = [(text, one.golds) for text, one in zip(texts, batch.asked, strict=True)]
        return (
            [exact_match(text, golds, self.articles) for text, golds in pairs],
            [f1(text, golds, self.articles) for text, golds in pairs],
        )


def _texts(step: Step, batch: AnswerBatch) -> list[str]:
    """Cut the best answers from their contexts."""
    spans = step.prediction[:, :2].long().tolist()
    return [one.context[a:b] for (a, b), one in zip(spans, batch.asked, strict=True)]


def _known(batch: AnswerBatch) -> Tensor:
    """Count the windows of which the answer is known."""
    return (batch.positions[:, 0] != UNKNOWN).sum()
