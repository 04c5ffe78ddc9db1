"""The rules of the schedules beside tables by hand, without a training."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from core.callbacks.freezing import (
    LISA,
    AutoFreeze,
    BlockCoordinate,
    FreezeOut,
    GradualUnfreezing,
    Moment,
    SlimFit,
    Static,
)
from core.errors import UserError
from core.freezing.autofreeze import geometric_rule, median_rule
from core.freezing.prefixes import stop_times
from core.freezing.units import Unit

TIMES = {  # t0 = 0.8, L = 6: (0.8 + 0.2 i / 6) ** power
    1: [0.8, 0.833333, 0.866667, 0.9, 0.933333, 0.966667, 1.0],
    2: [0.64, 0.694444, 0.751111, 0.81, 0.871111, 0.934444, 1.0],
    3: [0.512, 0.578704, 0.650963, 0.729, 0.813037, 0.903296, 1.0],
}


def units(count):
    parts = [nn.Parameter(torch.ones(2)) for _ in range(count)]
    return [Unit(str(n), (str(n),), (p,)) for n, p in enumerate(parts)]


def moment(count, step=0, total=100, epoch=0):
    return Moment(units(count), step, total, epoch, frozenset(range(count)))


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("scaled", [True, False])
def test_freezeout_times_and_rates(power, scaled):
    assert stop_times(6, 0.8, power) == pytest.approx(TIMES[power], abs=1e-6)
    schedule = FreezeOut(t0=0.8, power=power, scaled=scaled)
    parameters = [nn.Parameter(torch.ones(1)) for _ in range(7)]
    groups = [{"params": [p], "stage": i, "full_lr": 0.1} for i, p in enumerate(parameters)]
    schedule.optimizers = [torch.optim.SGD(groups, lr=0.1)]
    for step in (0, 30, 60, 85, 99):
        active = schedule.choose(moment(6, step))
        t = step / 100
        assert active == [i for i in range(6) if t < TIMES[power][i]]
        for place, group in enumerate(schedule.optimizers[0].param_groups):
            stop = TIMES[power][place]
            first = 0.1 / stop if scaled else 0.1
            wanted = 0.5 * first * (1 + math.cos(math.pi * t / stop)) if t < stop else 0.0
            assert group["lr"] == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_the_geometric_rule_as_published():
    assert [geometric_rule(12, 1 / 3, epoch) for epoch in range(1, 6)] == [4, 7, 9, 10, 11]


def test_the_median_rule_on_planted_gradients():
    before = torch.tensor([10.0, 10.0, 10.0, 10.0, 10.0])
    now = torch.tensor([10.1, 9.7, 12.0, 10.2, 5.0])  # changes .01 .03 .2 .02 .5, median .03
    assert median_rule(before, now, 0) == 1
    assert median_rule(before, now, 1) == 2  # of .03 .2 .02 .5 the median is .115
    assert median_rule(before, now, 2) == 2  # of .2 .02 .5 it is .2
    assert median_rule(before, now, 4) == 4  # the last one stays
    assert median_rule(before, before, 0) == 0
    assert median_rule(torch.zeros(3), torch.zeros(3), 0) == 0


def test_autofreeze_looks_at_each_interval():
    schedule = AutoFreeze(interval=10)
    schedule.memory, schedule._most = {"frozen": 0, "before": None}, 3
    found = iter([torch.tensor([8.0, 8, 8]), torch.tensor([8.0, 9, 4]), torch.tensor([8.0, 9, 3])])
    schedule.take_gradients = lambda: next(found)
    sizes = {}
    for step in range(31):
        sizes[step] = len(list(schedule.choose(moment(3, step))))
    assert [sizes[step] for step in (9, 10, 19, 20, 29, 30)] == [3, 3, 3, 2, 2, 1]


def test_lisa_draws_each_stage_equally_often():
    schedule = LISA(gamma=2, every=1, seed=3)
    counts = Counter()
    for step in range(2000):
        drawn = list(schedule.choose(moment(8, step)))
        assert len(set(drawn)) == 2
        counts.update(drawn)
    assert all(abs(counts[n] / 2000 - 2 / 8) < 0.04 for n in range(8))  # four standard errors


def test_lisa_keeps_what_it_drew_for_an_interval():
    schedule = LISA(gamma=1, every=5)
    assert schedule.choose(moment(4, 3)) is not None  # a fit that begins
    schedule.active = frozenset([1])
    assert schedule.choose(moment(4, 4)) is None
    assert schedule.choose(moment(4, 5)) is not None


@pytest.mark.parametrize(
    ("order", "wanted"), [("up", [0, 1, 2, 0, 1, 2]), ("down", [2, 1, 0, 2, 1, 0])]
)
def test_one_block_after_the_other(order, wanted):
    for every in (1, 3):
        schedule = BlockCoordinate(every=every, order=order, momentum="keep")
        schedule._turns, schedule._own_rates, schedule.memory = 3, [], {"sweep": -1}
        found = [schedule.choose(moment(3, step)) for step in range(6 * every)]
        assert [number for (number,) in found[::every]] == wanted
        assert found[0] == found[every - 1]


def test_a_random_order_gives_each_block_its_turn():
    schedule = BlockCoordinate(every=1, order="random", seed=1)
    schedule._turns, schedule._own_rates, schedule.memory = 6, [], {"sweep": -1}
    found = [schedule.choose(moment(6, step))[0] for step in range(18)]
    sweeps = [found[n : n + 6] for n in (0, 6, 12)]
    assert all(sorted(sweep) == list(range(6)) for sweep in sweeps)
    assert sweeps[0] != sweeps[1]


def test_stages_thaw_from_the_top():
    schedule = GradualUnfreezing()
    schedule._alone = False
    found = [list(schedule.choose(moment(3, epoch=epoch))) for epoch in range(5)]
    assert found == [[], [2], [1, 2], [0, 1, 2], [0, 1, 2]]
    schedule._alone = True  # no head
    assert list(schedule.choose(moment(3))) == [2]
    schedule = GradualUnfreezing(every=10, by="step")
    schedule._alone = False
    assert [len(schedule.choose(moment(3, step))) for step in (0, 9, 10, 29, 30)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 0.95])
def test_slimfit_trains_each_unit_once_before_any_measure_decides(rate):
    count = 102
    schedule = SlimFit(freezing_rate=rate)
    schedule.units = units(count)
    schedule.begin(None)
    frozen = int(rate * count)
    seen = set()
    for step in range(math.ceil(count / (count - frozen))):
        active = schedule.choose(moment(count, step))
        assert len(active) == count - frozen
        seen |= set(active)
        for number in active:
            schedule.distances[number] = 1e-3 * (number + 1)
    assert seen == set(range(count))
    assert sorted(schedule.choose(moment(count, step))) == list(range(frozen, count))


def test_slimfit_warms_up_and_survives_numbers_that_are_none():
    schedule = SlimFit(freezing_rate=0.5, warmup_steps=2)
    schedule.units = units(4)
    schedule.begin(None)
    assert len(schedule.choose(moment(4, 1))) == 4
    schedule.distances = torch.tensor([torch.nan, 1.0, torch.inf, 0.5], dtype=torch.float64)
    assert sorted(schedule.choose(moment(4, 2))) == [1, 2]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SlimFit(freezing_rate=1.0), "freezing_rate=1.0"),
        (lambda: SlimFit(distance="l2"), "distance='l2'"),
        (lambda: SlimFit(mode="soft"), "mode='soft'"),
        (lambda: SlimFit(eps=0.0), "eps=0.0"),
        (lambda: SlimFit(momentum="x"), "momentum='x'"),
        (lambda: SlimFit(mode="legacy", momentum="reset"), "leaves nothing"),
        (lambda: FreezeOut(power=4), "power=4"),
        (lambda: FreezeOut().choose(moment(2, total=math.inf)), "no end"),
        (lambda: AutoFreeze(interval=1.5), "interval=1.5"),
        (lambda: AutoFreeze(rule="mean"), "rule='mean'"),
        (lambda: LISA(gamma=0), "gamma=0"),
        (lambda: BlockCoordinate(order="left"), "order='left'"),
        (lambda: GradualUnfreezing(by="hour"), "by='hour'"),
        (lambda: Static(), "give freeze or train"),
        (lambda: Static(freeze="a", train="b"), "Static: give freeze or"),
    ],
)
def test_settings_out_of_range(make, told):
    with pytest.raises(UserError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)
