"""How near the gradients come to the exact ones, in blocks of BERT-base's width."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from core.activation_compression import compress

sys.path.insert(0, str(Path(__file__).parent))
import saved_case
from test_bytes import bert


def compared(model, x, **settings):
    """Cosines of all gradients to the exact ones, of the same draws of dropout."""
    found = []
    for given in ({"exact": True}, settings):
        compress(model, **given)
        torch.manual_seed(5)
        found.append(saved_case.gradients(model, model(x)))
    return saved_case.cosines(found[1], found[0])


class Blocks(nn.Module):
    """The encoder of BERT without what gives no gradient here."""

    def __init__(self, layers):
        super().__init__()
        self.layers = bert(layers).encoder.layer

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"range": "fixed"}])
def test_all_operations_with_all_trained(settings):
    x = torch.randn(2, 64, 768, generator=torch.Generator().manual_seed(0))
    found = compared(Blocks(4), x, **settings)
    assert min(found.values()) >= 0.98


class Chain(nn.Module):
    """LayerNorms between linear maps; the first map alone is trained, as the card measured it."""

    def __init__(self, layers):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.Sequential(
            *(nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128)) for _ in range(layers))
        )
        self.requires_grad_(False)
        self.parts[0][1].requires_grad_(True)

    def forward(self, x):
        for part in self.parts:
            x = x + part(x)
        return x


@pytest.mark.parametrize(("mode", "least", "most"), [("int8", 0.999, 1), ("int4", 0.98, 1), ("topk", 0, 0.97)])
def test_a_chain_of_twelve_frozen_norms(mode, least, most):
    x = torch.randn(4, 32, 128, generator=torch.Generator().manual_seed(0))
    found = compared(Chain(12), x, ln_mode=mode)
    print(mode, found)
    assert least <= min(found.values()) <= most + 1e-6


@pytest.mark.slow
def test_the_published_pruning_of_norms_is_far_off_and_four_bits_are_near():
    model = Blocks(12)
    model.requires_grad_(False)
    model.layers[0].requires_grad_(True)
    x = torch.randn(2, 64, 768, generator=torch.Generator().manual_seed(0))
    least = {
        mode: min(compared(model, x, ln_mode=mode).values()) for mode in ("int8", "int4", "topk")
    }
    assert least["int8"] >= 0.98
    assert least["int4"] >= 0.95
    assert least["topk"] < 0.8
