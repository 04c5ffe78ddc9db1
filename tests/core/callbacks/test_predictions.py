from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from core.callbacks import predictions
from core.callbacks.predictions import Predictions, exit_by_item
from core.early_exit.transform import EarlyExit


class Module(nn.Module):
    """Gives the batch itself as columns."""

    def items(self, step, batch):
        return batch


def write(folder, batches_by_rank):
    """Run the callback as each of several processes."""
    world = len(batches_by_rank)
    for rank in reversed(range(world)):
        trainer = SimpleNamespace(
            global_rank=rank,
            world_size=world,
            is_global_zero=rank == 0,
            strategy=SimpleNamespace(barrier=lambda name: None),
        )
        callback = Predictions(folder / "predictions.parquet")
        for number, batch in enumerate(batches_by_rank[rank]):
            callback.on_test_batch_end(trainer, Module(), {"step": None}, batch, number)
        callback.on_test_end(trainer, Module())
    assert [path.name for path in folder.iterdir()] == ["predictions.parquet"]
    return pd.read_parquet(folder / "predictions.parquet")


def batches(ids, size=7):
    values = torch.as_tensor(np.array(ids))
    return [
        {"id": part, "double": part * 2.0, "text": [f"row {i}" for i in part.tolist()]}
        for part in values.split(size)
    ]


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("at_once", [2**28, 500])
def test_rows_are_in_the_order_of_id(tmp_path, monkeypatch, world, at_once):
    monkeypatch.setattr(predictions, "SORTED_AT_ONCE", at_once)
    ids = np.random.default_rng(0).permutation(200)
    rows = write(tmp_path, [batches(ids[rank::world]) for rank in range(world)])
    assert list(rows["id"]) == list(range(200))
    assert list(rows["double"]) == [2.0 * i for i in range(200)]
    assert list(rows["text"]) == [f"row {i}" for i in range(200)]
    groups = pq.read_metadata(tmp_path / "predictions.parquet").num_row_groups
    assert (groups > 5) == (at_once == 500)


@pytest.mark.parametrize("at_once", [2**28, 50])
def test_rows_of_one_id_stay_together(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(predictions, "SORTED_AT_ONCE", at_once)
    texts = ["b", "a", "b", "c", "a", "b"]
    rows = write(tmp_path, [[{"id": texts, "place": torch.arange(6)}]])
    assert list(rows["id"]) == sorted(texts)
    assert list(rows["place"]) == [1, 4, 0, 2, 5, 3]


def test_rows_in_order_are_left_as_they_were_written(tmp_path):
    write(tmp_path, [batches(range(20), size=5)])
    assert pq.read_metadata(tmp_path / "predictions.parquet").num_row_groups == 4


def test_rows_without_id(tmp_path):
    rows = write(tmp_path, [[{"x": torch.tensor([2.0, 1.0])}]])
    assert list(rows["x"]) == [2.0, 1.0]


def test_one_row(tmp_path):
    assert list(write(tmp_path, [batches([3])])["id"]) == [3]


class Stack(nn.Module):
    """Three layers, and the batch itself as the rows' places."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))

    def items(self, step, batch):
        return {"id": batch}


@pytest.mark.parametrize("times", [1, 2])
def test_the_exit_of_each_item_is_told(tmp_path, times):
    module, found = Stack(), [1, 3, 2, 3]
    control = EarlyExit(module.network).exits.control
    callback = Predictions(tmp_path / "predictions.parquet")
    trainer = SimpleNamespace(
        global_rank=0,
        world_size=1,
        is_global_zero=True,
        strategy=SimpleNamespace(barrier=lambda name: None),
    )
    module.eval()
    callback.on_test_start(trainer, module)
    for number, ids in enumerate(torch.arange(4).split(2)):
        callback.on_test_batch_start(trainer, module, ids, number)
        for _ in range(times):
            with control.depth(torch.tensor(found)[ids]):
                module.network(torch.zeros(2, 4))
        callback.on_test_batch_end(trainer, module, {"step": None}, ids, number)
        assert control.passes is None
    callback.on_test_end(trainer, module)
    assert pd.read_parquet(tmp_path / "predictions.parquet")["exit"].tolist() == found


def test_passes_of_no_one_item_have_no_exit():
    assert exit_by_item([torch.tensor([1, 2, 3])], 2).to_pylist() == [None, None]
    assert exit_by_item([], 1).to_pylist() == [None]
    assert exit_by_item([torch.tensor([1]), torch.tensor([2])], 1).to_pylist() == [1.5]
    several = [torch.tensor([1, 2]), torch.tensor([2, 4])]
    assert exit_by_item(several, 2).to_pylist() == [1.5, 3.0]
