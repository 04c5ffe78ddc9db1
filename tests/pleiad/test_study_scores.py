"""Metrics told again from predictions, and how sure the difference of two methods is."""

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassF1Score,
    MultilabelF1Score,
)

from core.tasks.head_metrics import Matthews
from domains.nlp.spans import SpanScore
from pleiad.study_bootstrap import compare
from pleiad.study_scores import Items, Score, mean, read

N = 200


def draws(classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed)
    true = draw.integers(classes, size=N)
    told = np.where(draw.random(N) < 0.7, true, draw.integers(classes, size=N))
    return torch.tensor(told), torch.tensor(true)


def written(tmp_path, **columns):
    path = tmp_path / "predictions.parquet"
    pd.DataFrame({"id": range(len(next(iter(columns.values())))), **columns}).to_parquet(path)
    return path


@pytest.mark.parametrize("head", ["", "_tone"])
@pytest.mark.parametrize(
    ("name", "classes", "metric"),
    [
        ("f1_macro", 4, MulticlassF1Score(5, average="macro")),  # a class that never occurs
        ("f1_weighted", 4, MulticlassF1Score(4, average="weighted")),
        ("accuracy", 4, MulticlassF1Score(4, average="micro")),
        ("matthews", 4, Matthews(4)),
        ("f1", 2, BinaryF1Score()),
    ],
)
def test_metrics_of_labels(tmp_path, head, name, classes, metric):
    told, true = draws(classes)
    words = np.array(list("abcd"))
    columns = {f"label{head}": words[true], f"prediction{head}": words[told]}
    measured = float(metric(told, true))
    found = read(written(tmp_path, **columns), f"test/{name}{head}", measured)
    assert found is not None
    assert found.score.value() == pytest.approx(measured, abs=1e-6)
    assert read(written(tmp_path, **columns), f"test/{name}{head}", measured + 0.01) is None


@pytest.mark.parametrize(("name", "average"), [("f1", "micro"), ("f1_macro", "macro")])
def test_metrics_of_several_labels(tmp_path, name, average):
    draw = np.random.default_rng(0)
    true, told = draw.random((2, N, 3)) < 0.4
    lists = [[np.array(list("abc"))[row].tolist() for row in part] for part in (true, told)]
    measured = float(
        MultilabelF1Score(3, average=average)(*torch.tensor(np.stack([told, true])).long())
    )
    path = written(tmp_path, label=lists[0], prediction=lists[1])
    assert read(path, f"test/{name}", measured) is not None
    exact = float((true == told).all(1).mean())
    assert read(path, "test/exact_match", exact) is not None


def test_spans(tmp_path):
    tags = ["O", "B-A", "I-A", "B-B"]
    true, told = torch.tensor(np.random.default_rng(0).integers(4, size=(2, 30, 8)))
    true[:5, 6:] = -1
    columns = {
        "gold": [[tags[t] if t >= 0 else None for t in row] for row in true],
        "predicted": [[tags[t] for t in row] for row in told],
    }
    for name in ("f1", "precision", "recall"):
        metric = SpanScore(tags, name)
        metric.update(told, true)
        assert read(written(tmp_path, **columns), f"test/{name}", float(metric.compute()))


def test_columns_and_what_cannot_be_told_again(tmp_path):
    values = np.random.default_rng(0).random(N)
    values[3] = np.nan
    path = written(tmp_path, mse=values, label=values)
    found = read(path, "test/mse", float(np.nanmean(values)), block=24)
    assert found is not None
    assert len(np.unique(found.groups)) == 9
    assert read(path, "test/spearman", 0.5) is None
    assert read(path, "test/mse", float("nan")) is None
    assert read(tmp_path / "nothing.parquet", "test/mse", 0.5) is None
    frame = pd.DataFrame({"id": [1, 1], "mse": [0.0, 1.0]})
    frame.to_parquet(path)
    assert read(path, "test/mse", 0.5) is None  # rows that cannot be told apart


def items(values, ids=None, groups=None) -> Items:
    ids = np.arange(len(values)) if ids is None else np.array(ids)
    return Items(ids, ids if groups is None else np.array(groups), mean(np.array(values, float)))


def test_the_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    ours = draw.random(300)
    theirs = ours - 0.05 + 0.2 * draw.normal(size=300)
    found = compare([items(ours)], [items(theirs)])
    expected = stats.bootstrap(
        (ours, theirs),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=0.002)
    assert found.items == found.groups == 300


def test_by_hand():
    ours, theirs = items([1, 1, 1, 1]), items([0, 0, 0, 0])
    assert compare([ours], [theirs])[:2] == (1.0, 1.0)  # pairs that all differ alike
    two = compare([items([1, 0])], [items([0, 0])], resamples=4000)
    assert two[:2] == (0.0, 1.0)  # 00, 01, 10 and 11 are drawn: a quarter of draws at each end
    seeds = compare([items([1, 1]), items([0, 0])], [items([0, 0])] * 2)
    assert seeds[:2] == (0.0, 1.0)  # items alone would never differ
    assert compare([ours], [ours])[:2] == (0.0, 0.0)


def test_items_are_matched_by_id_and_drawn_by_group():
    ours = items([1, 1, 0, 5], ids=[1, 2, 3, 9], groups=[0, 0, 1, 2])
    theirs = items([0, 0, 0, 7], ids=[1, 2, 3, 4], groups=[0, 0, 1, 1])
    found = compare([ours], [theirs])
    assert (found.items, found.groups) == (3, 2)
    assert found[:2] == (0.0, 1.0)
    assert compare([items([1], ids=[1])], [items([1], ids=[2])]) is None


def test_an_interval_covers_as_often_as_it_says():
    draw = np.random.default_rng(3)
    inside = 0
    for seed in range(100):
        values = draw.normal(0.1, 1, 60)
        found = compare([items(values)], [items(np.zeros(60))], resamples=300, seed=seed)
        inside += found.low <= 0.1 <= found.high
    assert 88 <= inside <= 99


def test_a_ratio_is_resampled_as_a_ratio():
    draw = np.random.default_rng(0)
    parts = np.stack([draw.random(N), 1 + draw.random(N)], 1)
    score = Score(parts, lambda s: s[:, 0] / s[:, 1])
    zero = Score(np.zeros((N, 2)), lambda s: s[:, 0])
    ids = np.arange(N)
    found = compare([Items(ids, ids, score)], [Items(ids, ids, zero)])
    assert found.low < score.value() < found.high
