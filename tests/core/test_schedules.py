"""Schedules beside those of transformers, and in a task."""

import pytest
import torch
from torch import nn

from core.schedules import PolyLR, WarmupConstant, WarmupCosine, WarmupLinear

TOTAL = 23


def rates(schedule, steps=TOTAL + 2):
    optimizer = schedule.optimizer
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


def optimizer():
    one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    return torch.optim.SGD([{"params": [one]}, {"params": [two], "lr": 0.03}], 0.1)


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 3), (5, 5), (0, 0), (40, 40)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (WarmupLinear, "get_linear_schedule_with_warmup"),
        (WarmupCosine, "get_cosine_schedule_with_warmup"),
        (WarmupConstant, "get_constant_schedule_with_warmup"),
    ],
)
def test_equal_those_of_transformers(ours, theirs, warmup, steps):
    transformers = pytest.importorskip("transformers")
    total = {} if ours is WarmupConstant else {"num_training_steps": TOTAL}
    want = getattr(transformers, theirs)(optimizer(), steps, **total)
    found = rates(ours(optimizer(), TOTAL, warmup), TOTAL)
    for one, other in zip(found, rates(want, TOTAL), strict=True):
        assert one == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize("kind", [WarmupLinear, WarmupCosine])
def test_rates_end_at_zero_and_stay_there(kind):
    found = rates(kind(optimizer(), TOTAL))
    assert found[-2:] == [[0.0, 0.0], [0.0, 0.0]]
    assert found[3] == [0.1, 0.03]


def test_goes_on_from_a_state():
    whole = rates(WarmupCosine(optimizer(), TOTAL))
    began = WarmupCosine(optimizer(), TOTAL)
    rates(began, 7)
    again = WarmupCosine(optimizer(), 999, 0.9)
    again.load_state_dict(began.state_dict())
    again.optimizer.load_state_dict(began.optimizer.state_dict())
    assert rates(again, TOTAL - 5) == whole[7:]


@pytest.mark.parametrize(
    ("total", "warmup", "told"),
    [(None, 0.1, "total_steps=None"), (0, 0.1, "total_steps=0"), (9, 1.5, "warmup=1.5 must be a")],
)
def test_mistakes_are_told(total, warmup, told):
    with pytest.raises(ValueError, match=told):
        WarmupLinear(optimizer(), total, warmup)


def test_a_polynomial_falls_to_zero_and_may_be_cut_short():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.01)
    schedule = PolyLR(optimizer, total_steps=100)
    rates = [schedule.get_last_lr()[0]]
    for _ in range(100):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates[0] == 0.01
    assert rates[50] == pytest.approx(0.01 * 0.5**0.9)
    assert rates[80] == pytest.approx(0.01 * 0.2**0.9)
    assert rates[100] == 0
    for wrong in ({"total_steps": None}, {"total_steps": 0}, {"total_steps": 5, "power": 0.0}):
        with pytest.raises(ValueError, match="PolyLR"):
            PolyLR(optimizer, **wrong)
