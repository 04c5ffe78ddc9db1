"""Rankings and their metrics: by hand, beside torchmetrics, on Cranfield."""

import math

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.retrieval import (
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalRecall,
)

from domains.nlp.bm25 import BM25
from domains.nlp.ranking import (
    FAR,
    NDCG,
    AveragePrecision,
    Recall,
    ReciprocalRank,
    best,
    merged,
    ranked_gains,
    ranking_metrics,
)
from domains.nlp.trec import read_documents, read_judgements, read_topics, renumbered

RANKED = torch.tensor([[0, 2, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
GAINS = torch.tensor([[1, 2, 3], [1, 0, 0], [1, 0, 0], [0, 0, 0]])
"""Of the first question one document of gain 3 is not retrieved; the last has none relevant."""


def _mean(metric, ranked=RANKED, gains=GAINS):
    metric.update(ranked, gains)
    return float(metric.compute())


def test_ndcg_by_hand():
    got = 2 / math.log2(3) + 1 / math.log2(5)
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert _mean(NDCG(10)) == pytest.approx((got / ideal + 0 + 1) / 3)
    at_two = (2 / math.log2(3)) / (3 + 2 / math.log2(3))
    assert _mean(NDCG(2)) == pytest.approx((at_two + 0 + 1) / 3)


def test_mrr_map_and_recall_by_hand():
    assert _mean(ReciprocalRank(10)) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert _mean(ReciprocalRank(1)) == pytest.approx((0 + 0 + 1) / 3)
    assert _mean(AveragePrecision()) == pytest.approx(((1 / 2 + 2 / 4) / 3 + 0 + 1) / 3)
    assert _mean(Recall(100)) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert _mean(Recall(2)) == pytest.approx((1 / 3 + 0 + 1) / 3)


def test_judged_as_not_relevant_counts_nowhere():
    ranked, gains = torch.tensor([[-1, 1]]), torch.tensor([[1]])
    assert _mean(NDCG(10), ranked, gains) == pytest.approx(1 / math.log2(3))
    assert _mean(AveragePrecision(), ranked, gains) == pytest.approx(1 / 2)


def test_full_rankings_are_judged_as_torchmetrics_judges_them():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 60, generator=generator)
    gains = torch.randint(-3, 4, (40, 60), generator=generator).clamp(min=0)
    ranked = gains.gather(1, best(scores, 60).rows)
    flat = {
        "preds": scores.flatten(),
        "target": gains.flatten(),
        "indexes": torch.arange(40).repeat_interleave(60),
    }
    theirs = {
        NDCG(10): RetrievalNormalizedDCG(top_k=10),
        ReciprocalRank(10): RetrievalMRR(top_k=10),
        Recall(20): RetrievalRecall(top_k=20),
    }
    for ours, peer in theirs.items():
        target = flat["target"] if isinstance(ours, NDCG) else flat["target"] > 0
        peer.update(flat["preds"], target, flat["indexes"])
        assert _mean(ours, ranked, gains) == pytest.approx(float(peer.compute()), abs=1e-6)


def test_average_precision_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(3)
    ranked = torch.randint(0, 2, (30, 20), generator=generator)
    gains = torch.cat([ranked, torch.ones(30, 2, dtype=torch.int64)], 1)  # two not retrieved
    wanted = []
    for row in ranked.tolist():
        precisions = [sum(row[:rank]) / rank for rank in range(1, 21) if row[rank - 1]]
        wanted.append(sum(precisions) / (sum(row) + 2))
    assert _mean(AveragePrecision(), ranked, gains) == pytest.approx(sum(wanted) / 30, abs=1e-6)


def test_batches_of_any_size_and_order_give_the_same_bits():
    generator = torch.Generator().manual_seed(1)
    gains = torch.randint(0, 3, (97, 8), generator=generator)
    ranked = gains.gather(1, torch.rand(97, 8, generator=generator).argsort(1))
    found = set()
    for size in (1, 10, 97):
        metrics = MetricCollection(ranking_metrics())
        for part in torch.randperm(97, generator=generator).split(size):
            metrics.update(ranked[part], gains[part])
        found.add(tuple(float(value) for value in metrics.compute().values()))
    assert len(found) == 1


def test_metrics_that_agree_at_first_are_not_put_together():
    metrics = MetricCollection(ranking_metrics())
    metrics.update(torch.tensor([[1, 0]]), torch.tensor([[1]]))
    metrics.update(torch.tensor([[0, 1]]), torch.tensor([[1]]))
    found = metrics.compute()
    assert found["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert found["mrr@10"] == pytest.approx(3 / 4)
    assert found["recall@100"] == 1


def test_ties_keep_the_order_of_documents_through_chunks():
    generator = torch.Generator().manual_seed(2)
    scores = torch.randint(0, 4, (5, 50), generator=generator).float()
    wanted = np.argsort(-scores.numpy(), axis=1, kind="stable")
    for count in (1, 7, 50):
        assert (best(scores, count).rows.numpy() == wanted[:, :count]).all()
        for size in (1, 8, 33):
            hits = [best(part, count, size * i) for i, part in enumerate(scores.split(size, 1))]
            assert (merged(hits, count).rows.numpy() == wanted[:, :count]).all()


def test_gains_are_looked_up_and_unknown_documents_never_found():
    judged = torch.tensor([[2, 5, FAR], [FAR, FAR, FAR]])
    gains = torch.tensor([[1, 3, 2], [1, 0, 0]])
    rows = torch.tensor([[5, 0, 2], [5, 2, 0]])
    assert ranked_gains(rows, judged, gains).tolist() == [[3, 0, 1], [0, 0, 0]]
    assert ranked_gains(rows, judged[:, :0], gains[:, :0]).tolist() == [[0] * 3, [0] * 3]


@pytest.mark.data
def test_bm25_on_cranfield(real_data):
    folder = real_data / "nlp" / "cranfield"
    documents = read_documents(folder / "cran.all.1400.xml")
    judged = read_judgements(folder / "cranqrel.trec.txt")
    topics = renumbered(read_topics(folder / "cran.qry.xml"), judged)
    rows = {name: row for row, name in enumerate(documents.ids)}
    table = np.zeros((225, 1400), np.int64)
    for query, document, gain in judged.itertuples(index=False):
        table[topics.ids.index(query), rows[document]] = gain
    gains = torch.from_numpy(table)
    scores = torch.from_numpy(BM25(documents.whole()).scores(topics.texts).toarray())
    ranked = gains.gather(1, best(scores, 1000).rows)
    found = {name: _mean(metric, ranked, gains) for name, metric in ranking_metrics().items()}
    assert found["ndcg@10"] == pytest.approx(0.360, abs=5e-4)
    assert found["map"] == pytest.approx(0.277, abs=5e-4)
    assert found["recall@100"] == pytest.approx(0.696, abs=5e-4)
