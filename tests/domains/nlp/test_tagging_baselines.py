"""Baselines of tagging by hand, and figures."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from transformers import AutoModel

from core.networks.hugging_face import HuggingFace
from data import find_model
from domains.nlp.frozen import frozen
from domains.nlp.spans import NO_TAG
from domains.nlp.tagged_batches import TaggedBatch
from domains.nlp.tagging_baselines import MajorityTag, Probe, judged, judged_by_words
from domains.nlp.tagging_pictures import draw
from domains.nlp.tokens import Tokens

SENTENCES = [["Rome", "is", "red"], ["rome", "Rome", "is"], ["Rome"]]
LABELS = [
    np.array([[1, 0], [0, 1], [0, 0]]),
    np.array([[0, 0], [0, 2], [0, NO_TAG]]),
    np.array([[1, 2]]),
]


def test_a_word_gets_its_most_frequent_tag():
    model = MajorityTag(SENTENCES, LABELS)
    # "ROME" is looked for as "rome", which has each tag twice: the first label
    assert model(["Rome", "rome", "ROME", "is", "new"]).tolist() == [
        [1, 2],
        [0, 0],
        [0, 0],
        [0, 1],
        [0, 0],
    ]
    assert model([]).shape == (0, 2)


def batch_of(ids, labels, lengths):
    ids = torch.tensor(ids)
    tokens = Tokens(ids, torch.ones_like(ids), torch.zeros_like(ids))
    places = torch.arange(ids.numel()).reshape(ids.shape)
    rows = torch.arange(len(ids))
    return TaggedBatch(tokens, places, torch.tensor(labels), torch.tensor(lengths), rows)


def test_a_baseline_of_words_gives_labels_in_the_form_of_a_batch():
    batch = batch_of([[0, 1, 2], [3, 0, 0]], [[[1, 0]] * 3, [[0, 2]] * 3], [3, 1])
    sentences = [["Rome", "is", "new"], ["ROME"]]
    predict = judged_by_words(MajorityTag(SENTENCES, LABELS), sentences.__getitem__)
    prediction, target = predict(batch)
    assert prediction.tolist() == [[[1, 2], [0, 1], [0, 0]], [[0, 0], [0, 0], [0, 0]]]
    assert target is batch.labels


class States(nn.Module):
    """Give the states that a table has for each token."""

    def __init__(self):
        super().__init__()
        self.table = torch.eye(4)

    def forward(self, ids, mask, types=None):
        return self.table[ids]


def test_a_probe_finds_what_states_say():
    ids = [[0, 1, 2, 3], [3, 2, 1, 0]] * 5
    labels = [[[i % 2, 1] for i in row] for row in ids]
    labels[0][0] = [NO_TAG, NO_TAG]
    batch = batch_of(ids, labels, [4, 3] * 5)
    prediction, _ = judged(Probe(States(), [batch]))(batch)
    assert prediction[1].tolist() == labels[1]
    assert prediction[..., 1].unique().tolist() == [1]  # one tag in training: that tag


def test_the_frozen_network_is_the_published_one():
    network = frozen("minilm", HuggingFace)
    ids = torch.tensor([[101, 7592, 2088, 102]])
    with torch.inference_mode():
        own = network(ids, torch.ones_like(ids))
        theirs = AutoModel.from_pretrained(find_model("minilm"))(ids).last_hidden_state
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in network.parameters())


def test_without_weights_there_is_no_frozen_network(tmp_path):
    assert frozen(str(tmp_path), HuggingFace) is None


@pytest.mark.parametrize(
    ("labels", "name"),
    [(["O", "B-X", "B-Y"], "f1_by_type.png"), (["NOUN", "VERB", "ADJ"], "confusion.png")],
)
def test_figures_take_words_without_a_tag(tmp_path, labels, name):
    gold = [[labels[0], labels[1], None], [labels[2]]]
    found = [[labels[0], labels[1], labels[1]], [labels[0]]]
    path = tmp_path / "predictions.parquet"
    pq.write_table(pa.table({"id": [0, 1], "gold": gold, "predicted": found}), path)
    (picture,) = draw(path, tmp_path, [("", labels)])
    assert picture == tmp_path / name
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert draw(tmp_path / "none.parquet", tmp_path, [("", labels)]) == []
