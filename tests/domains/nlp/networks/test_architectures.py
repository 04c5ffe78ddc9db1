"""Every network under every architecture: padding, parts, gradients."""

import pytest
import torch

from domains.nlp.networks.sequence_classifier import SequenceClassifier
from domains.nlp.networks.span_extractor import SpanExtractor
from domains.nlp.networks.text_embedder import TextEmbedder
from domains.nlp.networks.token_classifier import TokenClassifier

LENGTHS = (5, 16, 9)
HEADS = [
    {"name": "topic", "kind": "single", "labels": ["a", "b", "c"]},
    {"name": "mood", "kind": "multi", "labels": ["good", "bad"]},
]
NETWORKS = [SequenceClassifier, TokenClassifier, SpanExtractor, TextEmbedder]


def build(cls, config):
    torch.manual_seed(0)
    heads = {"heads": HEADS} if cls in (SequenceClassifier, TokenClassifier) else {}
    network = cls(config, **heads).eval()
    for parameter in network.parameters():  # published deviations are too small to see a fault
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def batch(pad):
    ids = torch.randint(4, 60, (3, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    types = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = pad
        mask[row, length:] = 0
        types[row, 3:length] = 1
    return ids, mask, types


@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize("pad", [0, 57])  # 57 is no padding of any of them: the mask decides
def test_padding_changes_nothing(cls, config, pad):
    network = build(cls, config)
    ids, mask, types = batch(pad)
    with torch.no_grad():
        together = network(ids, mask, types)
        for row, n in enumerate(LENGTHS):
            alone = network(*(part[row : row + 1, :n] for part in (ids, mask, types)))[0]
            own = together[row] if together.ndim == 2 else together[row, :n]
            torch.testing.assert_close(own, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", NETWORKS)
def test_shapes(cls, config):
    shape = build(cls, config)(*batch(0)).shape
    expected = {
        SequenceClassifier: (3, 5),
        TokenClassifier: (3, 16, 5),
        SpanExtractor: (3, 16, 2),
        TextEmbedder: (3, 16),
    }
    assert shape == expected[cls]


@pytest.mark.parametrize("cls", NETWORKS)
def test_stages_and_head_hold_every_parameter_once(cls, config):
    network = build(cls, config)
    stages, head = network.stages, network.head
    held = [id(p) for module in (*stages, *head) for p in module.parameters()]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in network.parameters()}
    own_layers = 1 if config["model_type"] == "albert" else 2  # ALBERT applies its layer twice
    assert len(stages) == own_layers + 1
    names = {id(p): name for name, p in network.named_parameters()}
    words = [names[id(p)] for p in stages[0].parameters()]
    assert any(len(p) == 60 for p in stages[0].parameters()), words  # the table of tokens
    assert not any(".layer.0." in name or ".layers.0." in name for name in words)
    if cls in (SequenceClassifier, TokenClassifier):
        last = [m for outer in head for m in outer.modules() if isinstance(m, torch.nn.Linear)][-1]
        assert last.out_features == network.outputs == 5


@pytest.mark.parametrize("cls", NETWORKS)
def test_the_stages_run_in_their_order(cls, config):
    network = build(cls, config)
    called = []
    for number, stage in enumerate(network.stages[1:], 1):
        stage.register_forward_hook(lambda *_, number=number: called.append(number))
    for module in network.head:
        for inner in module.modules():
            if any(True for _ in inner.parameters(recurse=False)):
                inner.register_forward_hook(lambda *_: called.append(99))
    with torch.no_grad():
        network(*batch(0))
    assert called == sorted(called)
    assert {1, *range(1, len(network.stages))} <= set(called)


@pytest.mark.parametrize("cls", NETWORKS)
def test_a_gradient_for_every_parameter(cls, config):
    network = build(cls, config).train()
    output = network(*batch(0))
    (output * torch.randn_like(output)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_types_matter_where_there_are_some():
    config = {
        "model_type": "bert",
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    ids, mask, types = batch(0)
    for kinds, equal in ((2, False), (1, True)):
        network = build(TextEmbedder, {**config, "type_vocab_size": kinds})
        with torch.no_grad():
            assert torch.equal(network(ids, mask, types), network(ids, mask)) is equal
