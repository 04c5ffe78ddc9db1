"""Rank documents by scores, and judge rankings as trec_eval does.

Sizes: B questions, N documents, K ranks, R relevant documents of a question at most.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

NONE = -1
"""The row of a rank that no document holds."""
FAR = 2**62
"""The row of a relevant document that is not in the corpus, and of what fills up a list."""
UNIT = 2.0**-32
"""Values are added up in whole units, so that the order of adding changes no result."""


class Hits(NamedTuple):
    """Documents by falling score: ``scores`` and ``rows`` in the corpus, both (B, K)."""

    scores: Tensor
    rows: Tensor


def best(scores: Tensor, count: int, start: int = 0) -> Hits:
    """Give the best of ``scores`` (B, N) for rows from ``start`` on; ties keep the order of rows.

    Example:
        >>> best(torch.tensor([[1.0, 3.0, 3.0]]), 2).rows
        tensor([[1, 2]])
    """
    count = min(count, scores.shape[1])
    values, rows = scores.topk(count, dim=1, sorted=False)
    tied = (scores >= values.amin(1, keepdim=True)).sum(1) > count  # topk may take any of them
    if bool(tied.any()):
        values[tied], rows[tied] = (
            part[:, :count] for part in scores[tied].sort(dim=1, descending=True, stable=True)
        )
    rows, order = rows.sort(1)
    return merged([Hits(values.gather(1, order), rows + start)], count)


def merged(hits: Iterable[Hits], count: int) -> Hits:
    """Give the best of several, of which ties keep the order."""
    scores, rows = (torch.cat(parts, 1) for parts in zip(*hits, strict=True))
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return Hits(scores[:, :count], rows.gather(1, order[:, :count]))


def ranked_gains(rows: Tensor, judged: Tensor, gains: Tensor) -> Tensor:
    """Look up the gains (B, K) of ranked ``rows`` (B, K).

    Args:
        rows: rows of documents.
        judged: rows (B, R) of the relevant documents, rising; ``FAR`` where there is none.
        gains: their gains (B, R).
    """
    if not judged.shape[1]:
        return torch.zeros_like(rows, dtype=gains.dtype)
    place = torch.searchsorted(judged.contiguous(), rows.contiguous()).clamp(
        max=judged.shape[1] - 1
    )
    return gains.gather(1, place) * (judged.gather(1, place) == rows)


class RankingMetric(Metric):
    """The mean of a value of each question; questions without a relevant document are left out.

    ``update`` takes the gains (B, K) of the ranked documents, best first, and the gains (B, R) of
    all relevant documents, retrieved or not, filled up by zeros. K must reach as far as ``depth``,
    or to the end of the corpus.

    Args:
        depth: ranks looked at; None looks at all that are given.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, depth: int | None = None) -> None:
        super().__init__()
        self.depth = depth
        # names of its own: torchmetrics puts metrics together whose states look the same
        self.state = f"{type(self).__name__}_{depth}"
        self.add_state(self.state, torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def values(self, ranked: Tensor, gains: Tensor) -> Tensor:
        """Give the value (B,) of each question, from gains (B, K) within the depth and (B, R)."""
        raise NotImplementedError

    def update(self, ranked: Tensor, gains: Tensor) -> None:
        """Take the gains (B, K) of a ranking and those (B, R) of all relevant documents."""
        counted = (gains > 0).any(1)
        values = self.each(ranked, gains)[counted]
        total = getattr(self, self.state)
        total += torch.stack([(values / UNIT).round().long().sum(), counted.sum()])

    def each(self, ranked: Tensor, gains: Tensor) -> Tensor:
        """Give the value (B,) of each question, 0 where no document is relevant."""
        clean = (part.clamp(min=0).float() for part in (ranked[:, : self.depth], gains))
        return self.values(*clean).nan_to_num(0.0)

    def compute(self) -> Tensor:
        """Give the mean."""
        total, count = getattr(self, self.state)
        mean: Tensor = total * UNIT / count
        return mean


class NDCG(RankingMetric):
    """Normalised discounted cumulative gain: gains over log2(rank + 1), as a share of the best."""

    def values(self, ranked: Tensor, gains: Tensor) -> Tensor:
        """Give the value (B,) of each question."""
        ideal = gains.sort(1, descending=True).values[:, : self.depth]
        return _discounted(ranked) / _discounted(ideal)


class ReciprocalRank(RankingMetric):
    """One over the rank of the first relevant document, 0 where none is within the depth."""

    def values(self, ranked: Tensor, gains: Tensor) -> Tensor:
        """Give the value (B,) of each question."""
        ranks = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
        return ((ranked > 0) / ranks).amax(1)


class AveragePrecision(RankingMetric):
    """The precision at each relevant document, 0 for those not retrieved; the mean is MAP."""

    def values(self, ranked: Tensor, gains: Tensor) -> Tensor:
        """Give the value (B,) of each question."""
        found = ranked > 0
        ranks = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
        return (found.cumsum(1) / ranks * found).sum(1) / (gains > 0).sum(1)


class Recall(RankingMetric):
    """The share of the relevant documents that are within the depth."""

    def values(self, ranked: Tensor, gains: Tensor) -> Tensor:
        """Give the value (B,) of each question."""
        return (ranked > 0).sum(1) / (gains > 0).sum(1)


def ranking_metrics() -> dict[str, RankingMetric]:
    """Give the metrics of retrieval by the names that results carry."""
    return {
        "ndcg@10": NDCG(10),
        "mrr@10": ReciprocalRank(10),
        "map": AveragePrecision(),
        "recall@100": Recall(100),
    }


def _discounted(gains: Tensor) -> Tensor:
    ranks = torch.arange(2, gains.shape[1] + 2, device=gains.device)
    return (gains / ranks.log2()).sum(1)
