"""Evaluation in the order of length judges every item once and changes no result."""

import warnings
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from torchmetrics import MeanAbsoluteError

from core.callbacks.predictions import Predictions
from core.data_module import DataModule
from core.errors import UserError
from core.length_plan import Lengths, padded
from core.task import Step, Task

COUNT = 103


class Rows(Dataset):
    """Sequences of numbers of different lengths, with their sum to be predicted."""

    def __init__(self):
        draw = np.random.default_rng(0)
        self.lengths = draw.integers(1, 60, COUNT)
        self.values = [torch.from_numpy(draw.normal(size=n)).float() for n in self.lengths]

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return int(index), self.values[index]


def pad(batch):
    rows, values = zip(*batch, strict=True)
    return torch.tensor(rows), nn.utils.rnn.pad_sequence(values, batch_first=True)


class Data(DataModule):
    collate = staticmethod(pad)

    def __init__(self, by_length, **settings):
        super().__init__(**settings)
        self.by_length = by_length
        self.train_set = self.val_set = self.test_set = Rows()

    def lengths(self, dataset):
        return Lengths(dataset.lengths, 256) if self.by_length else None


class Sums(Task):
    def __init__(self):
        super().__init__(
            nn.Linear(1, 1), {"mae": MeanAbsoluteError()}, partial(torch.optim.SGD, lr=1e-4)
        )
        nn.init.ones_(self.network.weight)
        nn.init.zeros_(self.network.bias)

    def step(self, batch):
        _, values = batch
        prediction = self.network(values.sum(1, keepdim=True).abs())[:, 0]
        target = values.sum(1)
        return Step((prediction - target).square().mean(), prediction, target)

    def items(self, step, batch):
        return {"id": batch[0], "prediction": step.prediction}


def as_process(data, rank, world):
    data._rank = lambda: (rank, world)
    return data


def judged(folder, data):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[Predictions(folder / "predictions.parquet")],
    )
    (found,) = trainer.test(Sums(), data, verbose=False)
    assert sum(trainer.num_test_batches) == len(data.test_dataloader())
    return found, pd.read_parquet(folder / "predictions.parquet")


def test_the_order_of_length_changes_no_result(tmp_path):
    plain, rows = judged(tmp_path, Data(by_length=False))
    found, sorted_rows = judged(tmp_path, Data(by_length=True))
    assert found == pytest.approx(plain, rel=1e-5)
    assert list(sorted_rows["id"]) == list(rows["id"]) == list(range(COUNT))
    np.testing.assert_allclose(sorted_rows["prediction"], rows["prediction"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["val_dataloader", "test_dataloader"])
def test_the_longest_come_first_within_the_budget(name):
    data = Data(by_length=True)
    widths = []
    for rows, values in getattr(data, name)():
        widths.append(values.shape[1])
        assert padded(data.test_set.lengths[rows]).max() * len(rows) <= 256
    assert widths[0] == data.test_set.lengths.max()
    assert list(padded(np.array(widths))) == sorted(padded(np.array(widths)), reverse=True)
    everything = [rows for rows, _ in data.every_item(data.test_set)]
    assert sorted(torch.cat(everything).tolist()) == list(range(COUNT))


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("size", [1, 8, 17, 256])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_share_every_item_in_as_many_batches(by_length, size, world):
    shares = []
    for rank in range(world):
        data = as_process(Data(by_length, eval_batch_size=size), rank, world)
        shares.append([rows.tolist() for rows, _ in data.test_dataloader()])
    assert len({len(share) for share in shares}) == 1
    seen = [i for share in shares for batch in share for i in batch]
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.slow
def test_one_and_two_processes_learn_and_judge_the_same(tmp_path):
    found = {}
    for devices, strategy in ((1, "auto"), (2, "ddp_fork")):
        folder = tmp_path / str(devices)
        folder.mkdir()
        module = Sums()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fork beside threads
            trainer = pl.Trainer(
                accelerator="cpu",
                devices=devices,
                strategy=strategy,
                max_epochs=2,
                use_distributed_sampler=False,
                logger=False,
                default_root_dir=folder,
                enable_progress_bar=False,
                enable_checkpointing=False,
                callbacks=[Predictions(folder / "predictions.parquet")],
            )
            trainer.fit(module, Data(by_length=True, batch_size=16, seed=5))
            trainer.test(module, Data(by_length=True), verbose=False)
        rows = pd.read_parquet(folder / "predictions.parquet")
        found[devices] = (module.network.weight.item(), module.network.bias.item(), rows)
    assert found[1][0] != 1.0
    assert found[2][:2] == pytest.approx(found[1][:2], rel=1e-5)
    assert list(found[2][2]["id"]) == list(range(COUNT))
    np.testing.assert_allclose(found[2][2]["prediction"], found[1][2]["prediction"], rtol=1e-4)


def test_training_batches_follow_the_lengths():
    data = Data(by_length=True, batch_size=16)
    sizes = [len(rows) for rows, _ in data.train_dataloader()]
    assert len(sizes) == len(data.plan())
    assert set(sizes) == {4, 8}
    assert sum(sizes) == COUNT - COUNT % 8


def test_a_budget_too_small_names_the_way_out():
    data = as_process(Data(by_length=True, batch_size=16), 0, 8)
    with pytest.raises(UserError, match=r"data.token_budget=256 has no room .* set it to 512"):
        data.train_dataloader()
    data.lengths = lambda dataset: Lengths(dataset.lengths, 32)
    with pytest.raises(UserError, match=r"data: item \d+ of 5\d tokens .*set token_budget to"):
        data.plan()
