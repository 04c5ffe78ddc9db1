"""Thresholds chosen on validation samples: what they cost, and what they guarantee."""

import pytest
import torch

from core.early_exit.threshold import (
    ExitTable,
    exits_at,
    learn_then_test,
    losses_at,
    p_value,
    smallest_cost,
)
from core.errors import UserError

TAUS = torch.linspace(1, 0, 101).tolist()


def world(count, generator):
    """Draw samples: surer exits are more often right, and a later exit is surer."""
    ease = torch.rand(count, 1, generator=generator)
    surety = (ease + 0.15 * torch.arange(6)).clamp(0, 1)
    right = torch.rand(count, 6, generator=generator) < 0.5 + 0.5 * surety
    right |= torch.rand(count, 1, generator=generator) < 0.6
    return ExitTable(surety[:, :5], (~right).float())


def test_samples_leave_at_the_first_exit_that_is_sure_enough():
    scores = torch.tensor([[0.2, 0.9, 0.1], [0.8, 0.1, 0.9], [0.1, 0.2, 0.3]])
    assert exits_at(scores, 0.8).tolist() == [2, 1, 4]
    assert exits_at(scores, 2.0).tolist() == [4, 4, 4]
    assert exits_at(scores, -1.0).tolist() == [1, 1, 1]
    losses = torch.arange(12).view(3, 4).float()
    assert losses_at(ExitTable(scores, losses), 0.8)[1].tolist() == [1, 4, 11]


def test_the_cheapest_threshold_within_the_drop_is_taken():
    table = world(2000, torch.Generator().manual_seed(0))
    choice = smallest_cost(table, 0.02, TAUS)
    last = table.losses[:, -1].mean()
    allowed = {
        tau: exits.float().mean()
        for tau in TAUS
        for exits, losses in [losses_at(table, tau)]
        if losses.mean() <= last + 0.02
    }
    assert choice.mean_exit == pytest.approx(float(min(allowed.values())), abs=1e-6)
    assert choice.loss <= last + 0.02
    assert 1 < choice.mean_exit < 6
    costs = [smallest_cost(table, delta).mean_exit for delta in (0.001, 0.01, 0.05, 0.2)]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("test", ["binomial", "hoeffding"])
def test_the_guarantee_holds_over_two_hundred_resamples(test):
    alpha, delta = 0.1, 0.05
    truth = world(200_000, torch.Generator().manual_seed(99))
    harm = {tau: float(_harm(truth, tau)) for tau in TAUS}
    assert max(harm.values()) > delta  # a careless threshold would violate it
    broken, cost = 0, 0.0
    for seed in range(200):
        table = world(500, torch.Generator().manual_seed(seed))
        choice = learn_then_test(table, delta, alpha, test, TAUS)
        broken += choice.threshold is not None and harm[choice.threshold] > delta
        cost += choice.mean_exit / 200
    assert broken / 200 <= alpha + 0.03
    assert cost < 5.9 if test == "binomial" else cost <= 6
    careless = 0
    for seed in range(200):
        table = world(500, torch.Generator().manual_seed(seed))
        tau = max((t for t in TAUS if float(_harm(table, t)) <= delta), key=lambda t: -t)
        careless += harm[tau] > delta
    assert careless / 200 > alpha + 0.03


def _harm(table, tau):
    return (losses_at(table, tau)[1] - table.losses[:, -1]).clamp(min=0).mean()


def test_p_values_are_those_of_the_binomial_distribution():
    stats = pytest.importorskip("scipy.stats")
    for count, wrong, delta in ((100, 3, 0.05), (500, 10, 0.03), (20, 0, 0.1), (50, 50, 0.5)):
        harm = torch.zeros(count)
        harm[:wrong] = 1
        wanted = stats.binom.cdf(wrong, count, delta)
        assert p_value(harm, delta, "binomial") == pytest.approx(wanted, rel=1e-9)


def test_without_a_safe_threshold_nobody_leaves():
    table = ExitTable(torch.rand(50, 3), torch.tensor([[1.0, 1.0, 1.0, 0.0]]).expand(50, 4))
    for choice in (smallest_cost(table, 0.01), learn_then_test(table, 0.01)):
        assert choice.threshold is None
        assert choice.mean_exit == 4


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"delta": 0}, "delta=0"),
        ({"delta": 0.1, "alpha": 1.5}, "alpha=1.5"),
        ({"delta": 0.1, "test": "t"}, "test='t'"),
    ],
)
def test_mistakes_are_told(given, fault):
    table = world(10, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=fault):
        learn_then_test(table, **given)
    halves = ExitTable(table.scores, table.losses[:, -1:] / 2 + torch.tensor([0.3] * 5 + [0.0]))
    with pytest.raises(UserError, match="hoeffding"):
        learn_then_test(halves, 0.1)
