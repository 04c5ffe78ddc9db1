"""The task of tagging: loss by hand, no dependence on batches or windows, what it learns."""

import math
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from core.callbacks.predictions import Predictions
from core.errors import UserError
from domains.nlp.networks.token_classifier import TokenClassifier
from domains.nlp.spans import NO_TAG
from domains.nlp.tagged_batches import TaggedBatch
from domains.nlp.tagging import Tagging
from domains.nlp.tagging_data import TaggingData
from domains.nlp.tokens import Tokens

TINY = {
    **{"model_type": "bert", "vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128},
}
"""A small random encoder that knows the tokens of the pretrained one."""
ADAM = partial(torch.optim.Adam, lr=0.003)
HEADS = [
    {"name": "ner", "kind": "single", "labels": ["O", "B-LOC"]},
    {"name": "pos", "kind": "single", "labels": ["X", "Y", "Z"]},
]


class Known(nn.Module):
    """Give the logits that a table has for each token."""

    def __init__(self, table, heads=HEADS):
        super().__init__()
        self.heads = heads
        self.table = nn.Parameter(torch.as_tensor(table, dtype=torch.float))

    def forward(self, ids, mask, types=None):
        return self.table[ids]


def one_batch(ids, labels, lengths):
    ids = torch.tensor(ids)
    tokens = Tokens(ids, torch.ones_like(ids), torch.zeros_like(ids))
    places = torch.arange(ids.numel()).reshape(ids.shape)
    rows = torch.arange(len(ids))
    return TaggedBatch(tokens, places, torch.tensor(labels), torch.tensor(lengths), rows)


TABLE = [[0, 2, 0, 0, 3], [1, 0, 0, 0, 0]]
BATCH = one_batch(
    [[0, 1], [1, 1]],
    [[[1, 2], [1, NO_TAG]], [[0, 0], [NO_TAG, NO_TAG]]],
    [2, 1],
)


def cross_entropy(logits, label):
    return math.log(sum(math.exp(x) for x in logits)) - logits[label]


def test_the_loss_is_the_mean_over_tags_of_each_head_and_their_sum():
    step = Tagging(Known(TABLE), ADAM).step(BATCH)
    ner = [cross_entropy([0, 2], 1), cross_entropy([1, 0], 1), cross_entropy([1, 0], 0)]
    pos = [cross_entropy([0, 0, 3], 2), cross_entropy([0, 0, 0], 0)]
    assert step.loss.item() == pytest.approx(np.mean(ner) + np.mean(pos), abs=1e-6)
    assert step.prediction.tolist() == [[[1, 2], [0, 0]], [[0, 0], [0, 0]]]


def test_words_without_a_tag_have_no_gradient():
    batch = BATCH._replace(labels=torch.full_like(BATCH.labels, NO_TAG))
    step = Tagging(Known(TABLE), ADAM).step(batch)
    step.loss.backward()
    assert step.loss == 0


def test_metrics_are_named_by_their_heads():
    task = Tagging(Known(TABLE), ADAM)
    metrics = task.metrics["test"]
    task.update_metrics(metrics, task.step(BATCH), BATCH)
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found == pytest.approx(
        {
            "test/f1_ner": 2 / 3,  # one of two spans found, none too many
            "test/precision_ner": 1,
            "test/recall_ner": 0.5,
            "test/f1_macro_ner": 2 / 3,
            "test/accuracy_pos": 1,
            "test/f1_macro_pos": 1,
        }
    )
    assert task.weight(task.step(BATCH), BATCH) == 5


def test_a_network_without_heads_is_refused():
    with pytest.raises(UserError, match="heads"):
        Tagging(nn.Linear(1, 1), ADAM)


WORDS = ["red", "blue", "Rome", "Oslo", "walks", "বাংলাদেশের", "\ufe0f"]
TAGS = {"Rome": "B-LOC", "Oslo": "B-LOC", "বাংলাদেশের": "B-LOC"}


def corpus(count, longest, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.choice(WORDS, rng.integers(1, longest)) for _ in range(count)]
    return "\n\n".join("\n".join(f"{w}\t{TAGS.get(w, 'O')}" for w in row) for row in rows)


@pytest.fixture
def data_of(tmp_path):
    def build(content, **options):
        path = tmp_path / "x.conll"
        path.write_text(content, "utf-8")
        options = {"val": str(path), "test": str(path), **options}
        data = TaggingData(train=str(path), tokenizer="minilm", **options)
        data.setup()
        return data

    return build


def predicted(task, data):
    """The predictions of all test sentences, in order."""
    found = {}
    with torch.inference_mode():
        for batch in data.every_item(data.test_set):
            prediction = task.step(batch).prediction
            for at, row in enumerate(batch.rows.tolist()):
                found[row] = prediction[at, : batch.lengths[at], 0].tolist()
    return [found[row] for row in sorted(found)]


def test_windows_and_batches_change_nothing_that_a_word_alone_decides(data_of):
    content = corpus(12, 60)
    whole = data_of(content)
    table = torch.zeros(30522, 2)
    for word in TAGS:
        first = whole.tokenizer(word, add_special_tokens=False)["input_ids"][0]
        table[first, 1] = 1
    task = Tagging(Known(table, whole.corpus.heads), ADAM)
    wanted = [[int(tag != "O") for tag in sentence.tags[0]] for sentence in whole.corpus.parts[2]]
    assert predicted(task, whole) == wanted
    for options in ({"max_length": 9}, {"max_length": 16, "eval_batch_size": 1}):
        assert predicted(task, data_of(content, **options)) == wanted


def test_padding_and_batches_change_no_logit(data_of):
    data = data_of(corpus(20, 30))
    torch.manual_seed(0)
    task = Tagging(TokenClassifier(TINY, data.corpus.heads), ADAM).eval()
    together = data.test_set.__getitems__(range(20))
    with torch.inference_mode():
        all_logits = task(together)
        for at in range(20):
            alone = data.test_set[at]
            own = all_logits[at, : alone.lengths[0]]
            torch.testing.assert_close(task(alone)[0], own, atol=1e-5, rtol=0)


def test_rare_tags_weigh_more_where_it_is_asked_for(data_of):
    data = data_of(corpus(30, 9))
    task = Tagging(TokenClassifier(TINY, data.corpus.heads), ADAM, class_weights="balanced")
    task._trainer = type("Fake", (), {"datamodule": data})()
    task.setup("fit")
    counts = data.label_counts()[0]
    assert task.weights.tolist() == pytest.approx((counts.sum() / (2 * counts)).tolist())


def test_it_learns_and_writes_one_row_a_sentence(data_of, tmp_path):
    data = data_of(corpus(60, 12), batch_size=16)
    torch.manual_seed(0)
    task = Tagging(TokenClassifier(TINY, data.corpus.heads), ADAM)
    trainer = Trainer(
        max_epochs=12,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Predictions(tmp_path / "predictions.parquet")],
        default_root_dir=tmp_path,
    )
    trainer.fit(task, data)
    (found,) = trainer.test(task, data, verbose=False)
    assert found["test/f1"] > 0.95
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert sorted(row["id"] for row in rows) == list(range(60))
    for row in rows:
        assert row["words"] == list(data.test_words(row["id"]))
        assert row["gold"] == [TAGS.get(word, "O") for word in row["words"]]
        assert len(row["predicted"]) == len(row["words"])
    (picture,) = data.pictures(tmp_path / "predictions.parquet", tmp_path)
    assert picture.name == "f1_by_type.png"
