"""How far weights move, and what gradients sum to, beside figures by hand."""

import pytest
import torch
from torch import nn

from core.freezing.measures import GradientSums, Snapshot, norm_ratio, relative_mean
from core.freezing.units import Unit


def units(*values):
    parameters = [nn.Parameter(torch.tensor(value)) for value in values]
    return [Unit(str(n), (str(n),), (p,)) for n, p in enumerate(parameters)]


def test_the_metric_by_hand():
    """|W - W'| / |W| of each element, and their mean."""
    for old, new, wanted in [
        ([1.0, 2.0, -4.0], [1.1, 1.9, -4.0], (0.1 + 0.05 + 0.0) / 3),
        ([[0.5, -0.25]], [[0.25, -0.5]], (0.5 + 1.0) / 2),
        ([0.0, 2.0], [0.0, 3.0], (0.0 + 0.5) / 2),  # a padding row stays zero
    ]:
        found = relative_mean(torch.tensor(old), torch.tensor(new))
        assert float(found) == pytest.approx(wanted, abs=1e-7)
    assert relative_mean(torch.tensor([0.0, 1.0]), torch.tensor([1e-3, 1.0])).isfinite()
    assert float(norm_ratio(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))) == pytest.approx(
        0.1, abs=1e-7
    )
    assert norm_ratio(torch.zeros(2), torch.ones(2)).isfinite()


def test_a_snapshot_measures_only_what_it_took():
    several = units([1.0, 2.0], [1.0], [4.0])
    for unit in several:
        unit.parameters[0].grad = torch.ones_like(unit.parameters[0])
    snapshot = Snapshot()
    snapshot.take(several, [0, 2])
    with torch.no_grad():
        for unit in several:
            unit.parameters[0].add_(1)
    found = snapshot.measure(several, "relative_mean", 1e-8)
    assert found == {0: pytest.approx(0.75), 2: pytest.approx(0.25)}
    assert snapshot.measure(several, "relative_mean", 1e-8) == {}
    for unit in several:
        unit.parameters[0].grad = None
    snapshot.take(several, [0])  # no gradient, no step
    assert snapshot.measure(several, "relative_mean", 1e-8) == {}


def test_a_unit_of_several_parameters_weighs_them_by_size():
    pair = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))]
    for parameter in pair:
        parameter.grad = torch.ones_like(parameter)
    unit = [Unit("pair", ("a", "b"), tuple(pair))]
    snapshot = Snapshot()
    snapshot.take(unit, [0])
    with torch.no_grad():
        pair[0].mul_(1.1)
    assert snapshot.measure(unit, "relative_mean", 1e-8)[0] == pytest.approx(0.075, abs=1e-7)


def test_gradients_are_summed_before_their_norm():
    several = units([0.0, 0.0], [0.0])
    sums = GradientSums()
    for gradient in ([1.0, -1.0], [1.0, 3.0], [float("inf"), 0.0]):  # the last overflowed
        several[0].parameters[0].grad = torch.tensor(gradient)
        sums.add(several, [0, 1])
    again = GradientSums()
    again.load_state_dict(sums.state_dict(), several)
    assert again.take(2).tolist() == [2.0 + 2.0, 0.0]
    assert again.take(2).tolist() == [0.0, 0.0]
