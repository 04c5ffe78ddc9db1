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
    # of four layers 0, 2, 3, 3, 4, 4 are frozen: each new prefix is computed for one epoch
    assert fewer.counts == [16, 16, 16, 20]
    told = schedule.report()
    assert told["cached_batches"] == 8
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
    assert schedule.report()["cached_batches"] == 8


def test_samples_of_another_shape_are_other_entries():
    class Widths(Net):
        def forward(self, x):
            return super().forward(x).mean(1)

    def loader(epoch_lengths=(3, 5)):
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(8, 5, 4, generator=draw)

        class Turns(torch.utils.data.IterableDataset):
            turn = 0

            def __iter__(self):
                length = epoch_lengths[self.turn % 2]
                type(self).turn += 1
                yield {
                    "x": x[:, :length],
                    "y": x.sum((1, 2))[:, None],
                    "rows": torch.arange(8),
                }

        return DataLoader(Turns(), batch_size=None)

    _, schedule, _ = train(Widths, cache=True, epochs=12, loader=loader())
    plain, _, _ = train(Widths, cache=False, epochs=12, loader=loader())
    cached, _, _ = train(Widths, cache=True, epochs=12, loader=loader())
    assert schedule.report()["cached_batches"] >= 4
    for one, two in zip(plain.state_dict().values(), cached.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
