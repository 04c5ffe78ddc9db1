"""GaLore: plain SGD at full rank, a rotated Adam, a small state, exact resume."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from core.checkpoint_io import SafeCheckpointIO, read_checkpoint
from core.errors import UserError
from core.optimizers.galore import GaLore, directions


def weights():
    draw = torch.Generator().manual_seed(5)
    shapes = [(40, 12), (12, 40), (13,), (9, 9)]
    return [nn.Parameter(torch.randn(s, generator=draw)) for s in shapes]


def train(parameters, optimizer, steps, start=0):
    for step in range(start, start + steps):
        for number, parameter in enumerate(parameters):
            draw = torch.Generator().manual_seed(100 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()


@pytest.mark.parametrize("rank", [12, 999])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_at_full_rank_is_sgd(rank, momentum):
    ours, theirs = weights(), weights()
    settings = {"lr": 0.05, "momentum": momentum}
    train(ours, GaLore(ours, rank=rank, scale=1.0, base="sgd", **settings), 30)
    train(theirs, torch.optim.SGD(theirs, **settings), 30)
    for own, known in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, known, atol=1e-5, rtol=1e-5)


def test_adam_at_full_rank_sees_a_rotated_gradient():
    ours, theirs = weights(), weights()
    train(ours, GaLore(ours, lr=0.01, rank=12, scale=1.0), 10)
    train(theirs, torch.optim.Adam(theirs, lr=0.01), 10)
    for own, known in zip(ours, theirs, strict=True):
        if own.ndim == 2:
            assert float((own - known).detach().abs().max()) > 0.01
        else:
            torch.testing.assert_close(own, known)


def test_one_step_by_hand():
    (weight,) = [nn.Parameter(torch.zeros(20, 10))]
    weight.grad = torch.randn(20, 10, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(weight.grad, full_matrices=False)
    GaLore([weight], lr=0.1, rank=3, scale=0.5, base="sgd").step()
    known = -0.05 * (left[:, :3] * values[:3]) @ right[:3]
    torch.testing.assert_close(weight.detach(), known, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(200, 16), (16, 200), (16, 16)])
def test_the_directions_are_those_of_the_decomposition(shape):
    draw = torch.Generator().manual_seed(2)
    gradient = torch.randn(shape, generator=draw) * torch.logspace(0, -2, shape[1])
    found = directions(gradient, 4)
    torch.testing.assert_close(found.mT @ found, torch.eye(4), atol=1e-5, rtol=0)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    known = right[:4].mT if shape[0] >= shape[1] else left[:, :4]
    torch.testing.assert_close(found @ found.mT, known @ known.mT, atol=1e-3, rtol=0)


def test_the_directions_change_when_told_and_the_moments_stay():
    (weight,) = [nn.Parameter(torch.zeros(12, 12))]
    optimizer = GaLore([weight], rank=8, update_every=3)
    kept = []
    for step in range(7):
        weight.grad = torch.randn(12, 12, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        kept.append(optimizer.state[weight]["projection"].clone())
    same = [torch.equal(a, b) for a, b in pairwise(kept)]
    assert same == [True, True, False, True, True, False]
    assert int(optimizer.state[weight]["step"]) == 7


def test_bytes_of_the_state():
    weight = nn.Parameter(torch.zeros(512, 512))
    optimizer, adam = GaLore([weight], rank=32), torch.optim.Adam([weight])
    weight.grad = torch.randn(512, 512)
    optimizer.step()
    adam.step()

    def held(which):
        values = which.state[weight].values()
        return sum(v.nbytes for v in values if isinstance(v, torch.Tensor) and v.ndim)

    assert held(adam) == 2 * 512 * 512 * 4
    assert held(optimizer) == 3 * 512 * 32 * 4


@pytest.mark.parametrize("base", ["adam", "sgd"])
def test_resumed_it_ends_in_the_same_bits(tmp_path, base):
    settings = {"lr": 0.01, "rank": 8, "update_every": 4, "base": base, "momentum": 0.5}
    whole, first = weights(), weights()
    train(whole, GaLore(whole, **settings), 15)
    optimizer = GaLore(first, **settings)
    train(first, optimizer, 6)
    content = {"state_dict": {}, "weights": first, "optimizer": optimizer.state_dict()}
    SafeCheckpointIO().save_checkpoint(content, tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt")
    again = [nn.Parameter(p.detach()) for p in read["weights"]]
    resumed = GaLore(again, lr=0.5)
    resumed.load_state_dict(read["optimizer"])
    train(again, resumed, 9, 6)
    for own, known in zip(again, whole, strict=True):
        assert torch.equal(own, known)


def test_it_learns_and_decays():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))
    x = torch.randn(256, 16)
    optimizer = GaLore(network.parameters(), lr=0.02, rank=8, update_every=20, scale=1.0)
    losses = []
    for _ in range(150):
        loss = (network(x) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    weight = nn.Parameter(torch.ones(16, 16))
    weight.grad = torch.zeros(16, 16)
    GaLore([weight], lr=0.1, weight_decay=0.5, rank=8).step()
    torch.testing.assert_close(weight.detach(), torch.full((16, 16), 0.95))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "rank=0"),
        ({"base": "lion"}, "base='lion' must be adam or sgd"),
        ({"scale": -1.0}, "scale=-1.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
    ],
)
def test_mistakes_are_told(settings, told):
    with pytest.raises(UserError, match=told):
        GaLore(weights(), **settings)
