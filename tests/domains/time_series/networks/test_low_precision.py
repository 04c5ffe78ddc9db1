"""Every forecaster keeps its softmax, means and scans in float32 while the rest is in bfloat16."""

import math

import pytest
import torch

from domains.time_series.networks.autoformer import (
    Autoformer,
    SeasonalNorm,
    aggregate,
    correlate,
    decompose,
    weigh,
)
from domains.time_series.networks.dlinear import DLinear
from domains.time_series.networks.itransformer import ITransformer
from domains.time_series.networks.patchtst import Attention, Norm, PatchTST, ReversibleNorm
from domains.time_series.networks.s_mamba import SMamba

L, H, C, M = 48, 12, 3, 4


def draw(*shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(3))


def far(low, full):
    """The error relative to the size of the values."""
    return float(((low.float() - full).norm() / full.norm()).detach())


NETWORKS = {
    "dlinear": lambda: (DLinear(L, H, C), ()),
    "itransformer": lambda: (ITransformer(L, H, C, width=32, inner=32, heads=4), ()),
    "s_mamba": lambda: (SMamba(L, H, C, width=32, inner=32), ()),
    "patchtst": lambda: (PatchTST(L, H, C), ()),
    "autoformer": lambda: (autoformer(), (draw(2, L, M), draw(2, H, M))),
}


def autoformer():
    return Autoformer(L, H, C, M, width=32, inner=32)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("level", [0.0, 1000.0])
def test_a_network_in_mixed_precision_is_near_its_float32(name, level):
    torch.manual_seed(0)
    network, marks = NETWORKS[name]()
    network.eval()
    past = draw(2, L, C) + level  # far from 0, as the sales of a shop are
    with torch.no_grad():
        full = network(past, *marks)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(past, *marks)
    assert torch.isfinite(low).all()
    assert far(low, full) < 2e-2
    if not level or name not in ("dlinear", "autoformer"):  # those two see the level itself
        assert far(low - level, full - level) < 4e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_in_bfloat16_alone_runs_and_learns(name):
    torch.manual_seed(0)
    network, marks = NETWORKS[name]()
    network.bfloat16()
    out = network(draw(2, L, C).bfloat16(), *(m.bfloat16() for m in marks))
    out.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_delays_are_weighed_and_chosen_in_float32():
    query, key = draw(4, 96, 16), draw(4, 96, 16)
    scores = correlate(query.bfloat16(), key.bfloat16())
    assert scores.dtype == torch.float32
    assert far(scores, correlate(query, key)) < 2e-2
    weights = weigh(scores * 1e3, 5, shared=False)
    assert torch.isfinite(weights).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert aggregate(key.bfloat16(), weights).dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", [25, 13])
def test_means_over_time_are_taken_in_float32(kernel):
    series = draw(2, 336, 4) + 30
    kept = series.bfloat16()
    _, trend = decompose(kept, kernel)
    _, full = decompose(kept.float(), kernel)
    assert torch.equal(trend, full.bfloat16())
    norm = SeasonalNorm(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert far(norm(kept), norm(kept.float())) < 2e-2
    normed, mean, spread = ReversibleNorm(4, affine=False)(kept)
    known, *_ = ReversibleNorm(4, affine=False)(kept.float())
    assert (normed.dtype, mean.dtype, spread.dtype) == (torch.bfloat16, *[torch.float32] * 2)
    assert torch.equal(normed, known.bfloat16())


@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_norms_take_their_statistics_in_float32(kind):
    norm = Norm(16, kind)
    x = (draw(8, 50, 16) + 100).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = norm(x)
    assert far(low, norm(x.float())) < 2e-2


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("logits", [10, 1000])
def test_attention_holds_large_logits(residual, logits):
    torch.manual_seed(0)
    attention = Attention(32, 4, 0.0).eval()
    x = draw(2, 40, 32)
    with torch.no_grad():
        for part in (attention.query, attention.key):
            part.weight.copy_(torch.eye(32) * math.sqrt(logits / 4))
            part.bias.zero_()
        full, scores = attention(x, None, residual)
        if residual:
            assert float(scores.max()) > logits
        with torch.autocast("cpu", torch.bfloat16):
            low, kept = attention(x, None, residual)
    assert torch.isfinite(low).all()
    if residual:
        assert kept.dtype == torch.float32
    if logits == 10:  # the larger ones are rounded by 2 and more before the softmax
        assert far(low, full) < 2e-2
