import torch
from torch import nn

from core.early_exit.cost import counted
from core.early_exit.transform import EarlyExit


class Given(nn.Module):
    """Gives a layer a parameter of its own as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 4))
        self.layer = nn.Linear(4, 5)

    def forward(self, x):
        return x @ self.layer(self.table)


def test_a_parameter_as_an_argument_in_inference():
    network, x = Given(), torch.ones(2, 3)
    plain, macs = counted(lambda: network(x))
    assert macs == 3 * 4 * 5 + 2 * 3 * 5
    with torch.inference_mode():
        result, again = counted(lambda: network(x))
    assert again == macs
    assert not result.requires_grad
    torch.testing.assert_close(result, plain)


class Tail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.head = nn.Linear(4, 2)
        self.asked = 0

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        self.asked += 1
        return self.head(x)


def test_where_nobody_can_leave_no_exit_is_asked():
    network = Tail()
    made = EarlyExit(network)
    network.eval()(torch.zeros(5, 4))
    assert network.asked == 1
    assert made.report()["mean_exit"] == 4
    network = Tail()
    made = EarlyExit(network, threshold=[1e9, 1e9, None])
    network.eval()(torch.zeros(5, 4))
    assert network.asked == 3  # the third exit has no threshold, the first two might let go
