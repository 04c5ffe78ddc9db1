"""Under bf16-true the network alone is converted: targets, losses and metrics stay float32."""

from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MeanSquaredError

from core.half_precision import NetworkInHalf, cast
from core.task import Step, Task


class Item(NamedTuple):
    x: Tensor
    y: Tensor


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.seen = []

    def forward(self, x):
        made = torch.ones(3)  # takes the network's type
        self.seen.append((x.dtype, made.dtype))
        return self.linear(x * made)


class Fit(Task):
    def __init__(self):
        super().__init__(Net(), {"mse": MeanSquaredError()}, torch.optim.AdamW)
        self.register_buffer("count", torch.tensor(257.0))
        self.types = []

    def step(self, batch):
        prediction = self.network(batch.x)
        self.types.append((batch.y.dtype, prediction.dtype, torch.zeros(1).dtype))
        loss = (prediction - batch.y).square().mean()
        return Step(loss, prediction, batch.y)


def trainer(tmp_path, **settings):
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )


def data():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=draw)
    return DataLoader([Item(a, a.sum()[None] + 256.5) for a in x], 4)


def test_the_network_alone_is_in_bfloat16(tmp_path):
    task = Fit()
    loop = trainer(tmp_path, plugins=[NetworkInHalf()])
    loop.fit(task, data(), data())
    found = loop.test(task, data(), verbose=False)[0]
    assert loop.precision == "bf16-true"
    assert set(task.network.seen) == {(torch.bfloat16, torch.bfloat16)}
    assert set(task.types) == {(torch.float32, torch.float32, torch.float32)}
    assert {p.dtype for p in task.parameters()} == {torch.bfloat16}
    assert task.count == 257
    assert torch.get_default_dtype() == torch.float32
    batch = next(iter(data()))
    known = torch.cat([(task.network(b.x) - b.y).square() for b in data()]).mean()
    assert found["test/mse"] == pytest.approx(known.item(), rel=1e-6)
    assert len(task.network._forward_pre_hooks) == 1  # fit and test convert once
    assert batch.y.dtype == torch.float32


def test_a_failing_network_leaves_the_types_as_they_were(tmp_path):
    task = Fit()
    NetworkInHalf().convert_module(task)
    with pytest.raises(RuntimeError):
        task.network(torch.zeros(2, 5))
    assert torch.get_default_dtype() == torch.float32


def test_a_module_without_a_network_is_converted_whole():
    model = nn.Sequential(nn.Linear(2, 2))
    plugin = NetworkInHalf()
    assert plugin.convert_module(model)[0].weight.dtype == torch.bfloat16
    assert plugin.convert_input(torch.zeros(1)).dtype == torch.bfloat16
    with plugin.forward_context():
        assert torch.zeros(1).dtype == torch.bfloat16


def test_tensors_are_found_in_whatever_holds_them():
    given = Item(torch.zeros(1), [torch.ones(1, dtype=torch.long), {"a": torch.zeros(2)}, None])
    found = cast(given, torch.bfloat16)
    assert type(found) is Item
    assert found.x.dtype == torch.bfloat16
    assert found.y[0].dtype == torch.long
    assert found.y[1]["a"].dtype == torch.bfloat16
    assert cast(torch.zeros(1).double(), torch.float32, (torch.bfloat16,)).dtype == torch.float64


def test_means_go_on_past_what_bfloat16_counts_to(tmp_path):
    task = Fit()
    NetworkInHalf().convert_module(task)
    mean = task.losses["val"]
    assert isinstance(mean, MeanMetric)
    for _ in range(600):
        mean.update(torch.tensor(1.0), 1)
    assert float(mean.weight) == 600
