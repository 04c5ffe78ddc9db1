"""The loss by hand, rankings beside brute force, and a run that learns."""

from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from core.callbacks.predictions import Predictions
from core.errors import UserError
from domains.nlp.bm25 import BM25
from domains.nlp.embedding import embed
from domains.nlp.ranking import NDCG, best
from domains.nlp.retrieval import Retrieval
from domains.nlp.retrieval_data import PairBatch, RetrievalData
from domains.nlp.tokens import Encoded, pad

ADAM = partial(torch.optim.Adam, lr=1e-3)


@pytest.fixture
def data(collection):
    return RetrievalData(dataset=str(collection), tokenizer="minilm", max_length=32, batch_size=2)


def _trainer(folder, **more):
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "accelerator": "cpu", "default_root_dir": folder}
    return Trainer(**options, **more)


def _pairs(questions, documents, asked, answers):
    def rows(texts):
        return pad([Encoded(np.array(t, np.int32), np.zeros(len(t), np.int8)) for t in texts], 0)

    return PairBatch(rows(questions), rows(documents), torch.tensor(asked), torch.tensor(answers))


BATCH = _pairs(
    [[101, 5, 102], [101, 6, 7, 102], [101, 8, 102]],
    [
        [101, 15, 102],
        [101, 16, 102],
        [101, 15, 102],
        [101, 18, 102],
        [101, 19, 102],
        [101, 20, 102],
    ],
    [0, 1, 1],
    [0, 1, 0, 3, 4, 5],
)
"""Three pairs with a negative each: the third answers as the first, and asks as the second."""
LEFT_OUT = torch.tensor(
    [[0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool
)


@pytest.mark.parametrize("both_ways", [False, True])
def test_the_loss_is_the_cross_entropy_without_what_is_right_too(
    tiny_embedder, tmp_path, both_ways
):
    task = Retrieval(tiny_embedder, ADAM, temperature=0.1, both_ways=both_ways)
    task.trainer = _trainer(tmp_path)
    asked, found = tiny_embedder(*BATCH.questions), tiny_embedder(*BATCH.documents)
    scores = (asked @ found.T / 0.1).masked_fill(LEFT_OUT, -torch.inf)
    wanted = F.cross_entropy(scores, torch.arange(3))
    if both_ways:
        back = (found[:3] @ asked.T / 0.1).masked_fill(LEFT_OUT[:, :3], -torch.inf)
        wanted = (wanted + F.cross_entropy(back, torch.arange(3))) / 2
    torch.testing.assert_close(task.step(BATCH).loss, wanted)


def test_a_temperature_is_above_zero(tiny_embedder):
    with pytest.raises(UserError, match=r"model\.temperature=0"):
        Retrieval(tiny_embedder, ADAM, temperature=0)


def test_the_test_ranks_the_whole_corpus_alone_and_with_words(tiny_embedder, data, tmp_path):
    task = Retrieval(tiny_embedder, ADAM)
    trainer = _trainer(tmp_path, callbacks=[Predictions(tmp_path / "p.parquet")])
    (found,) = trainer.test(task, data, verbose=False)
    asked = data.asked("test")
    with torch.no_grad():
        documents = embed(tiny_embedder, data.documents("test"), 0)
        questions = embed(tiny_embedder, data.test_set.encoded, 0)
    dense = questions @ documents.T
    words = torch.from_numpy(BM25(asked.documents.whole()).scores(asked.questions.texts).toarray())
    gains = torch.zeros(3, 6, dtype=torch.int64)
    for row, (places, own) in enumerate(zip(asked.judged.rows, asked.judged.gains, strict=True)):
        gains[row, places] = torch.from_numpy(own)
    parts = [(p - p.mean(1, True)) / p.std(1, correction=0, keepdim=True) for p in (dense, words)]
    for name, scores in (("ndcg@10", dense), ("ndcg@10_hybrid", parts[0] + parts[1])):
        wanted = NDCG(10).each(gains.gather(1, best(scores, 6).rows), gains)
        assert found[f"test/{name}"] == pytest.approx(float(wanted.mean()), abs=1e-6)
        rows = pq.read_table(tmp_path / "p.parquet").to_pandas().set_index("id").sort_index()
        np.testing.assert_allclose(rows[name], wanted, atol=1e-6)
    assert list(rows["query"]) == ["q0", "q1", "q2"]
    assert rows["documents"][0][0] == f"d{int(dense[0].argmax())}"
    (again,) = trainer.test(
        task,
        RetrievalData(
            dataset=data.files["dataset"], tokenizer="minilm", max_length=32, eval_batch_size=1
        ),
        verbose=False,
    )
    assert again == pytest.approx(found, abs=1e-5)
    assert data.pictures(tmp_path / "p.parquet", tmp_path)[0].is_file()


def test_baselines_are_judged_by_the_metrics_of_the_task(data):
    data.setup()
    (batch,) = data.every_item(data.test_set)
    rows, gains = data.baselines()["BM25"](batch)
    assert rows.shape == gains.shape == (3, 6)
    places = {int(row): place for place, row in enumerate(batch.rows)}
    assert [int(rows[places[n], 0]) for n in range(3)] == [0, 1, 2]


def test_training_finds_the_answers(tiny_embedder, data, tmp_path):
    data.fractions = (0.4, 0.6, 0.0)
    task = Retrieval(tiny_embedder.train(), partial(torch.optim.Adam, lr=1e-2))
    trainer = _trainer(tmp_path, max_epochs=30, num_sanity_val_steps=0, log_every_n_steps=1)
    data.setup()
    before = trainer.validate(task, data, verbose=False)[0]["val/loss"]
    trainer.fit(task, data)
    assert trainer.callback_metrics["train/loss"] < 0.7
    assert trainer.callback_metrics["val/loss"] < before
    assert {"val/ndcg@10", "val/mrr@10", "val/map", "val/recall@100"} <= set(
        trainer.callback_metrics
    )
