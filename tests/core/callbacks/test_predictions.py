from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from core.callbacks import predictions
from core.callbacks.predictions import Predictions


class Module:
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
