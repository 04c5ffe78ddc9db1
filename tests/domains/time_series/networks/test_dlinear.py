import pytest
import torch

from domains.time_series.networks.dlinear import DLinear


def network(**kwargs) -> DLinear:
    torch.manual_seed(0)
    return DLinear(24, 6, 3, **{"kernel": 5, **kwargs})


@pytest.mark.parametrize(("individual", "maps"), [(False, 1), (True, 3)])
def test_shape_parameters_and_gradients(individual, maps):
    net = network(individual=individual)
    out = net(torch.randn(2, 24, 3))
    assert out.shape == (2, 6, 3)
    assert sum(p.numel() for p in net.parameters()) == maps * 2 * (24 * 6 + 6)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_moving_average_repeats_the_ends():
    net = network(kernel=3)
    trend = net.moving_average(torch.tensor([[[1.0, 2.0, 6.0, 3.0]]]))
    assert trend.tolist() == [[[pytest.approx(4 / 3), 3, pytest.approx(11 / 3), 4]]]


def test_by_hand():
    net = network(kernel=1)  # the trend is the series, nothing remains
    past = torch.randn(2, 24, 3)
    layer = net.trend_map[0]
    bias = layer.bias + net.seasonal_map[0].bias
    want = torch.einsum("hl,blc->bhc", layer.weight, past) + bias[:, None]
    torch.testing.assert_close(net(past), want)


def test_individual_maps_see_their_own_channel():
    net = network(individual=True)
    past = torch.randn(2, 24, 3)
    changed = past.clone()
    changed[..., 1] += 1
    same = (net(past) == net(changed)).all(0).all(0)
    assert same.tolist() == [True, False, True]


@pytest.mark.parametrize("individual", [False, True])
def test_from_published(individual):
    net = network(individual=individual, kernel=25)
    official = {}
    for name, tensor in net.state_dict().items():
        head, number, rest = name.split(".")
        theirs = {"seasonal_map": "Linear_Seasonal", "trend_map": "Linear_Trend"}[head]
        official[f"{theirs}.{number}.{rest}" if individual else f"{theirs}.{rest}"] = tensor
    config = {"seq_len": 24, "pred_len": 6, "enc_in": 3, "individual": individual}
    again = DLinear.from_published(config, official)
    past = torch.randn(2, 24, 3)
    assert torch.equal(again(past), net(past))
    official.pop(next(iter(official)))
    with pytest.raises(ValueError, match=r"missing Linear_Seasonal"):
        DLinear.from_published(config, official)
    with pytest.raises(ValueError, match="missing"):
        DLinear.from_published({"seq_len": 24}, official)


def test_mistakes():
    with pytest.raises(ValueError, match="kernel=4 must be odd"):
        network(kernel=4)
    with pytest.raises(ValueError, match="must be at least 1"):
        DLinear(0, 6, 3)
    with pytest.raises(ValueError, match=r"past is \(2, 23, 3\), needed \(B, 24, 3\)"):
        network()(torch.zeros(2, 23, 3))
