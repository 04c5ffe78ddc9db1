"""Find the documents that answer a question, by vectors of both."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection

from core.errors import UserError
from core.task import Step, Task
from domains.nlp.embedding import embed
from domains.nlp.index import DEPTH, Spread, by_both, by_vectors, spread
from domains.nlp.networks.text_embedder import TextEmbedder
from domains.nlp.ranking import ranked_gains, ranking_metrics
from domains.nlp.retrieval_data import PairBatch, QuestionBatch, RetrievalData
from domains.nlp.retrieval_files import RetrievalFiles
from domains.nlp.tokens import Tokens


class Retrieval(Task):
    """Learn to tell a question's answer from those of the other questions in a batch.

    The loss is the cross-entropy of the answer among all documents of the batch, of every process
    (van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018;
    Karpukhin et al., Dense Passage Retrieval, 2020). Other answers of the same question, and copies
    of the answer, are left out. Judged are the 1000 best of the whole corpus, by the definitions of
    trec_eval; in the test also by the standardised sum with BM25 (``ndcg@10_hybrid`` and
    ``map_hybrid``).

    Args:
        network: maps tokens (B, L) to vectors (B, D); one for questions and documents.
        optimizer: built on the network's parameters.
        scheduler: stepped each epoch, or each step; None keeps the rate.
        interval: ``epoch`` or ``step``.
        temperature: what dot products are divided by in the loss.
        both_ways: also tell an answer's question from the others.
        layer_decay: the rate of each of the network's ``stages`` as a share of the next one's.
        decay_all: False frees biases and norms from weight decay.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        interval: Literal["epoch", "step"] = "epoch",
        temperature: float = 0.05,
        both_ways: bool = True,
        layer_decay: float | None = None,
        decay_all: bool = True,
    ) -> None:
        super().__init__(
            *(network, ranking_metrics(), optimizer, scheduler, interval),
            layer_decay=layer_decay,
            decay_all=decay_all,
        )
        if temperature <= 0:
            raise UserError(f"model.temperature={temperature} must be above 0")
        self.temperature = temperature
        self.both_ways = both_ways
        fused = {name: ranking_metrics()[name] for name in ("ndcg@10", "map")}
        self.hybrid = MetricCollection(dict(fused), prefix="test/", postfix="_hybrid")
        self._documents = torch.empty(0, 0)
        self._spread: Spread | None = None
        self._asked = torch.empty(0, 0)
        self._fused = torch.empty(0, 0)

    def forward(self, batch: Tokens) -> Tensor:
        """Give the vectors (B, D) of texts, in single precision."""
        vectors: Tensor = self.network(*batch)
        return vectors.float()

    def step(self, batch: PairBatch | QuestionBatch) -> Step:
        """Judge pairs by the loss, or questions by their rankings.

        Of questions, ``prediction`` are the rows (B, K) of the documents, best first, and
        ``target`` the gains (B, K) of these.
        """
        if isinstance(batch, PairBatch):
            return self._learned(batch)
        vectors = self(batch.tokens)
        with torch.autocast(self.device.type, enabled=False):  # scores in bfloat16 would be ties
            hits = by_vectors(vectors, self._documents, DEPTH)
            loss = self._surprise(vectors, hits.scores, batch)
        self._asked = vectors
        return Step(loss, hits.rows, ranked_gains(hits.rows, batch.judged, batch.gains))

    def weight(self, step: Step, batch: QuestionBatch) -> Tensor | float:
        """Count the questions that have a relevant document."""
        return self._known(batch).any(1).sum()

    def update_metrics(self, metrics: MetricCollection, step: Step, batch: QuestionBatch) -> None:
        """Feed the gains of the ranking, and those of all that is relevant."""
        metrics.update(step.target, batch.gains)

    def items(self, step: Step, batch: QuestionBatch) -> Mapping[str, Any]:
        """One row a question: its scores alone and with BM25, and the ids of its first ten."""
        asked = self._data.asked("test")
        rows = batch.rows.tolist()
        metrics = ranking_metrics()
        found = {name: m.each(step.target, batch.gains) for name, m in metrics.items()}
        fused = {f"{name}_hybrid": m.each(self._fused, batch.gains) for name, m in metrics.items()}
        ids = asked.documents.ids
        return {
            "id": batch.rows,
            "query": [asked.questions.ids[row] for row in rows],
            **{"relevant": (batch.gains > 0).sum(1), **found, **fused},
            "documents": [[ids[row] for row in best] for best in step.prediction[:, :10].tolist()],
        }

    def complete(self, preprocessing: Any) -> Any:
        """Say how the network makes one vector of a text."""
        network = self.network
        if not isinstance(preprocessing, RetrievalFiles) or not isinstance(network, TextEmbedder):
            return preprocessing
        return replace(
            preprocessing,
            pooling=network.pooling,
            normalise=network.normalise,
            width=network.model.config.hidden_size,
        )

    def on_validation_epoch_start(self) -> None:
        """Encode the corpus of the validation."""
        self._encode("val")

    def on_test_epoch_start(self) -> None:
        """Encode the corpus of the test."""
        self._encode("test")
        self._spread = spread(self._documents)

    def test_step(self, batch: QuestionBatch, batch_idx: int) -> Mapping[str, Any]:
        """Judge one test batch, alone and together with BM25."""
        judged = super().test_step(batch, batch_idx)
        words = self._data.words("test", batch.rows)
        assert self._spread is not None
        with torch.autocast(self.device.type, enabled=False):
            hits = by_both(self._asked, self._documents, self._spread, words, DEPTH)
        self._fused = ranked_gains(hits.rows, batch.judged, batch.gains)
        self.hybrid.update(self._fused, batch.gains)
        return judged

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the ranking together with BM25."""
        super().on_test_epoch_end()
        self.log_dict(self.hybrid)

    @property
    def _data(self) -> RetrievalData:
        data: RetrievalData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def _encode(self, split: str) -> None:
        """Encode the corpus once, each process its share."""
        texts, rank, world = self._data.documents(split), self.global_rank, self.trainer.world_size
        count = -(-len(texts) // world)
        rows = [row % len(texts) for row in range(rank, world * count, world)]
        with self.trainer.precision_plugin.forward_context():
            own = embed(self.network, texts, self._data.tokenizer.pad_token_id, rows)
        whole = self.all_gather(own).reshape(world, count, -1)  # type: ignore[union-attr]
        self._documents = whole.transpose(0, 1).flatten(0, 1)[: len(texts)]

    def _surprise(self, vectors: Tensor, scores: Tensor, batch: QuestionBatch) -> Tensor:
        """Give the cross-entropy of a question's relevant documents among the ranked ones."""
        known = self._known(batch)
        rows = batch.judged.where(known, 0)
        own = (self._documents[rows] @ vectors[:, :, None]).squeeze(2) / self.temperature
        lost = (scores / self.temperature).logsumexp(1, keepdim=True) - own
        each = (lost * known).sum(1) / known.sum(1).clamp(min=1)
        return each.sum() / known.any(1).sum().clamp(min=1)

    def _known(self, batch: QuestionBatch) -> Tensor:
        """Say which relevant documents (B, R) are in the corpus."""
        return (batch.judged < len(self._documents)) & (batch.gains > 0)

    def _learned(self, batch: PairBatch) -> Step:
        count = len(batch.asked)
        asked, found = self(batch.questions), self(batch.documents)
        answers, others = found[:count], found[count:]
        every_asked, every_answer = self._gathered(asked), self._gathered(answers)
        documents = torch.cat([every_answer, self._gathered(others)])
        right = batch.answers[:count]
        ids = torch.cat([self._gathered(right), self._gathered(batch.answers[count:])])
        questions = self._gathered(batch.asked)
        own = torch.arange(count, device=asked.device) + self.global_rank * count
        with torch.autocast(self.device.type, enabled=False):
            scores = asked @ documents.mT / self.temperature  # (B, documents)
            same = ids == right[:, None]
            same[:, : len(questions)] |= questions == batch.asked[:, None]
            loss = _among(scores, same, own)
            if self.both_ways:
                back = answers @ every_asked.mT / self.temperature  # (B, questions)
                loss = (loss + _among(back, same[:, : len(questions)], own)) / 2
        return Step(loss, scores.detach(), scores.detach())

    def _gathered(self, part: Tensor) -> Tensor:
        """Put the parts of all processes together; gradients go back to each."""
        if self.trainer.world_size == 1 or not len(part):
            return part
        gathered: Tensor = self.all_gather(part, sync_grads=part.requires_grad)  # type: ignore[assignment]
        return gathered.flatten(0, 1)


def _among(scores: Tensor, same: Tensor, own: Tensor) -> Tensor:
    """Give the cross-entropy of each row's ``own`` place, without others that are right too.

    Args:
        scores: (B, N).
        same: (B, N), where a place is right for a row.
        own: (B,) the place that counts.
    """
    wrong = same.scatter(1, own[:, None], False)
    return F.cross_entropy(scores.masked_fill(wrong, -torch.inf), own)
