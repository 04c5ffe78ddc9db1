import pytest
import torch

from domains.nlp.networks.text_embedder import TextEmbedder, pooled

STATES = torch.arange(12.0).reshape(2, 3, 2)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
LEFT = torch.tensor([[0, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "mask", "expected"),
    [
        ("mean", MASK, [[1.0, 2.0], [8.0, 9.0]]),
        ("first", MASK, [[0.0, 1.0], [6.0, 7.0]]),
        ("last", MASK, [[2.0, 3.0], [10.0, 11.0]]),
        ("mean", LEFT, [[3.0, 4.0], [8.0, 9.0]]),
        ("first", LEFT, [[2.0, 3.0], [6.0, 7.0]]),
        ("last", LEFT, [[4.0, 5.0], [10.0, 11.0]]),
    ],
)
def test_pooling_by_hand(pooling, mask, expected):
    assert pooled(STATES, mask, pooling).tolist() == expected


def test_vectors_have_length_one(config):
    ids = torch.randint(4, 60, (2, 8))
    network = TextEmbedder(config).eval()
    vectors = network(ids, torch.ones_like(ids))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    raw = TextEmbedder(config, normalise=False).eval()
    raw.load_state_dict(network.state_dict())
    lengths = raw(ids, torch.ones_like(ids)).norm(dim=1, keepdim=True)
    torch.testing.assert_close(raw(ids, torch.ones_like(ids)) / lengths, vectors)


def test_no_pooler_that_nothing_would_train():
    config = {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 12, "vocab_size": 9}
    assert not [name for name, _ in TextEmbedder(config).named_parameters() if "pooler" in name]


def test_an_unknown_pooling_is_named():
    with pytest.raises(ValueError, match="pooling='max' must be"):
        TextEmbedder({"model_type": "bert"}, pooling="max")
