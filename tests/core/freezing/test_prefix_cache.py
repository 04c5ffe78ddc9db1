"""Frozen stages are computed once for each sample and then skipped, with the same outcome."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from core.callbacks.freezing import AutoFreeze
from core.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
from freezing_case import Module, Net, trainer


class Named(Module):
    """Batches are mappings that name their samples."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


class Skips(Net):
    """What the first layer gives is used behind the frozen ones too."""

    def forward(self, x):
        first = self.layers[0](self.embed(x))
        last = first
        for layer in self.layers[1:]:
            last = layer(last)
        return self.head(first + last)


class Noisy(Net):
    """Dropout between the embedding and the layers, in no stage."""

    def __init__(self):
        super().__init__(dropout=0.2)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = self.drop(self.embed(x))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Ragged(Net):
    """Gives its samples as one row."""

    def forward(self, x):
        x = self.embed(x).reshape(1, -1, 8)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)[0]


def batches(shuffle=True, rows="rows"):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=draw)
    items = [{"x": each, "y": each.sum(0, keepdim=True), rows: n} for n, each in enumerate(x)]
    return DataLoader(items, batch_size=8, shuffle=shuffle, generator=draw)


class Calls(pl.Callback):
    """Count how often each layer computes."""

    def on_train_start(self, trainer, pl_module):
        self.counts = [0] * 4
        for place, layer in enumerate(pl_module.network.layers):
            layer[0].register_forward_hook(self.counter(place))

    def counter(self, place):
        def count(*_):
            self.counts[place] += 1

        return count


def train(network, cache, epochs=6, loader=None, **settings):
    torch.manual_seed(0)
    schedule = AutoFreeze(rule="geometric", cache=cache, **settings)
    module, calls = Named(network()), Calls()
    trainer(schedule, calls, max_epochs=epochs).fit(module, batches() if loader is None else loader)
    return module, schedule, calls


def test_what_is_known_is_skipped_and_the_outcome_is_the_same():
    plain, _, every = train(Net, cache=False)
    cached, schedule, fewer = train(Net, cache=True)
    for one, two in zip(plain.state_dict().values(), cached.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    assert every.counts == [24] * 4  # four batches an epoch
    # of four layers 0, 2, 3, 3, 4, 4 are frozen: each prefix is computed for an epoch and a batch
    assert fewer.counts == [18, 18, 18, 21]
    told = schedule.report()
    assert told["cached_batches"] == 6
    assert told["frozen_stages"] == 4
    assert "forward" not in vars(cached.network.layers[0])
    cached.network.layers[0](torch.zeros(1, 8))


def test_memory_is_bounded():
    _, schedule, calls = train(Net, cache=True, cache_bytes=10 * 8 * 4)
    assert calls.counts == [24] * 4  # ten of 32 samples fit, so no batch is known
    assert schedule.report()["cached_batches"] == 0


def test_noise_between_the_frozen_is_held():
    module, schedule, _ = train(Noisy, cache=True)
    assert schedule.report()["cached_batches"] > 0
    assert module.network.drop.training


def test_what_cannot_be_skipped_is_told():
    _, schedule, calls = train(Ragged, cache=True)
    assert "a row a sample" in schedule.report()["notes"][-1]
    assert calls.counts == [24] * 4
    with pytest.raises(UserError, match="skip connections"):
        train(Skips, cache=True)


def test_batches_have_to_name_their_samples():
    with pytest.raises(UserError, match="name their samples in `rows`, and a dict has none"):
        train(Net, cache=True, loader=batches(rows="place"))
    _, schedule, _ = train(
        Net, cache=True, loader=batches(rows="place"), sample_id=lambda batch: batch["place"]
    )
    assert schedule.report()["cached_batches"] == 6


class Padded(Net):
    """Reads rows of numbers (B, L), padded by zeros at the end, which its mean leaves out."""

    def forward(self, x):
        mask = (x != 0).float()
        states = self.embed(x[..., None].expand(-1, -1, 4))
        for layer in self.layers:
            states = layer(states)
        return self.head((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def padded(front=False, changing=False):
    draw = torch.Generator().manual_seed(0)
    items = [torch.rand(2 + n % 7, generator=draw) + 0.1 for n in range(32)]

    def collate(numbers):
        own = [items[n] * (torch.rand(1) + 0.5 if changing else 1) for n in numbers]
        side = "left" if front else "right"
        x = nn.utils.rnn.pad_sequence(own, batch_first=True, padding_side=side)
        y = torch.stack([items[n].mean() for n in numbers])[:, None]
        return {"x": x, "y": y, "rows": numbers}

    return DataLoader(range(32), batch_size=8, shuffle=True, generator=draw, collate_fn=collate)


def test_padding_may_differ():
    plain, _, _ = train(Padded, cache=False, loader=padded())
    cached, schedule, _ = train(Padded, cache=True, loader=padded())
    assert schedule.report()["cached_batches"] == 6
    for one, two in zip(plain.state_dict().values(), cached.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["front", "changing"])
def test_samples_that_change_are_not_kept(how):
    _, schedule, calls = train(Padded, cache=True, loader=padded(**{how: True}))
    assert "samples change from epoch to epoch" in schedule.report()["notes"][-1]
    assert calls.counts == [24] * 4
