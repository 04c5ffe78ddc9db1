"""How near the gradients come to the exact ones, in blocks of BERT-base's width."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.activation_compression import compress

sys.path.insert(0, str(Path(__file__).parent))
import saved_case
from test_bytes import bert


def compared(model, x, **settings):
    """Cosines of all gradients of a squared error to the exact ones, of the same dropout.

    The error's gradient lies partly along the normalised outputs, and that part is what norms take
    off; a gradient drawn at random has no such part, and would hide how far it is off.
    """
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    found = []
    for given in ({"exact": True}, settings):
        compress(model, **given)
        torch.manual_seed(5)
        model.zero_grad()
        F.mse_loss(model(x), target).backward()
        named = model.named_parameters()
        found.append({name: p.grad.clone() for name, p in named if p.grad is not None})
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


@pytest.mark.slow
def test_norms_of_twelve_blocks_below_which_the_first_one_trains():
    model = Blocks(12)
    model.requires_grad_(False)
    model.layers[0].requires_grad_(True)
    x = torch.randn(2, 32, 768, generator=torch.Generator().manual_seed(0))
    least = {
        mode: min(compared(model, x, ln_mode=mode).values()) for mode in ("int8", "int4", "topk")
    }
    assert least["int8"] >= 0.98
    assert least["int4"] >= 0.97
    assert least["topk"] < 0.6  # as published, and at more bytes than the four bits
