"""Forecasting on files of one's own: forms, masks, covariates, splits, intervals, predictions."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import nn

import data as catalogue
from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained, transformed
from domains.time_series import intervals
from domains.time_series.covariates import WithCovariates
from domains.time_series.forecast_files import ForecastFiles
from domains.time_series.forecasting import Forecasting, MeanAbsoluteScaledError
from domains.time_series.networks.dlinear import DLinear
from domains.time_series.networks.patchtst import PatchTST
from domains.time_series.own_data import OwnForecastingData
from domains.time_series.windows import Rows, Window, Windows

LOOKBACK, HORIZON = 12, 4
ADAM = partial(torch.optim.Adam, lr=0.02)
Own = partial(OwnForecastingData, lookback=LOOKBACK, horizon=HORIZON, batch_size=8)


def long(lengths, start="2024-01-01", seed=0):
    """One row a series and day: a week's pattern that covariates are added to."""
    rng = np.random.default_rng(seed)
    frames = []
    for name, length in lengths.items():
        promo = rng.integers(0, 2, length)
        frame = pd.DataFrame({"unique_id": name, "ds": pd.date_range(start, periods=length)})
        frame["y"] = np.arange(length) % 7 + 5.0 * promo + 0.1 * rng.standard_normal(length)
        frame["promo"] = promo
        frame["sky"] = rng.choice(["sun", "rain"], length)
        frame["seen"] = rng.standard_normal(length)
        frame["area"] = name[0]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


LENGTHS = {"a1": 90, "a2": 60, "b1": 75, "b2": 80}
COVARIATES = {"known_future": "promo,sky", "past": "seen", "static": "area"}


@pytest.fixture
def saved(tmp_path):
    def write(frame, name="x.csv"):
        frame.to_csv(tmp_path / name, index=False)
        return str(tmp_path / name)

    return write


class Zero(nn.Module):
    """Forecast the mean of training."""

    def __init__(self, horizon=HORIZON):
        super().__init__()
        self.horizon = horizon

    def forward(self, past):
        return torch.zeros_like(past[:, :1]).expand(-1, self.horizon, -1)


def made(path, **options):
    sets = Own(path, **options)
    sets.setup()
    return sets


def batch_of(windows):
    return windows.__getitems__(range(len(windows)))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def refused(path, **options):
    with pytest.raises(UserError) as told:
        made(path, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


# Forms of files


@pytest.mark.data
def test_a_long_file_gives_the_windows_of_a_wide_one(real_data, saved):
    wide = pd.read_csv(catalogue.locate("etth1"), nrows=400)
    melted = wide.melt("date", var_name="unique_id", value_name="y")
    one = made(saved(wide, "wide.csv"))
    other = made(saved(melted.sample(frac=1, random_state=0), "long.csv"))
    assert one.fingerprint() == other.fingerprint()
    for name in ("train_set", "val_set", "test_set"):
        assert equal(batch_of(getattr(one, name)), batch_of(getattr(other, name)))
    assert "rows were not in the order of time and were sorted" in other.summary()[2]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    lookback=st.integers(1, 6),
    horizon=st.integers(1, 5),
    stride=st.integers(1, 4),
)
def test_no_window_crosses_series(lengths, lookback, horizon, stride):
    starts = np.r_[0, np.cumsum(lengths)]
    count, total = len(lengths), starts[-1]
    owner = torch.tensor(np.repeat(np.arange(count), lengths), dtype=torch.float32)[:, None]
    each, none = torch.arange(float(count))[:, None], torch.zeros(total, 0)
    shift = torch.zeros(count, dtype=torch.long)
    rows = Rows(owner, None, none, shift, starts, each, each, each, owner, owner[:, :0], each)
    windows = Windows(rows, lookback, horizon, starts[:-1], starts[1:], stride)
    room = np.array(lengths) - lookback - horizon
    assert len(windows) == np.where(room >= 0, room // stride + 1, 0).sum()
    if not len(windows):
        return
    batch = batch_of(windows)
    series = batch.offset[:, 0]
    assert torch.equal(batch.past, series[:, None].expand_as(batch.past))
    assert torch.equal(batch.future, series[:, None].expand_as(batch.future))
    assert torch.equal(batch.known[..., 0], series.expand(-1, lookback + horizon))
    assert torch.equal(batch.static, series)
    last = torch.tensor(starts[1:])[series[:, 0].long()]
    assert bool((batch.origin + horizon <= last).all())


def test_series_of_any_length_are_scaled_each_by_itself(saved):
    frame = long({**LENGTHS, "short": 5})
    sets = made(saved(frame))
    assert sets.series.ids == ("a1", "a2", "b1", "b2", "short")
    assert "1 of 5 series are too short for a test window of 12 + 4 steps" in sets.notes
    train = frame[frame.unique_id == "b1"].y.to_numpy()[: 75 - 7 - 15]
    assert sets.moments.mean[2, 0] == pytest.approx(train.mean())
    assert sets.moments.std[2, 0] == pytest.approx(train.std())


def test_files_of_a_folder(saved, tmp_path):
    wide = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=80), "u": np.arange(80.0) % 7})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    saved(wide, "one/p.csv"), saved(wide[9:], "one/q.csv")
    assert made(str(tmp_path / "one")).series.ids == ("p", "q")
    assert made(str(tmp_path / "one" / "*.csv")).series.ids == ("p", "q")
    saved(long({"a": 70}), "two/p.csv"), saved(long({"b": 70}), "two/q.csv")
    sets = made(str(tmp_path / "two"), static="area")
    assert sets.series.covariates.names[2] == ("area=a", "area=b")  # each file has but one of them
    saved(wide, "two/z.csv")
    assert "z.csv: has not the form of" in refused(str(tmp_path / "two"))
    (tmp_path / "none").mkdir()
    assert "there is no CSV file" in refused(str(tmp_path / "none"))


def test_files_for_validation_and_test_go_on(saved):
    frame = long({"a": 80})[["unique_id", "ds", "y"]]
    parts = {"train": frame[:40], "val": frame[40:55], "test": frame[55:]}
    given = {name: saved(part, f"{name}.csv") for name, part in parts.items()}
    sets = made(given["train"], val=given["val"], test=given["test"])
    assert sets.ends.tolist() == [[40, 55, 80]]
    word = frame.assign(part=np.repeat(["Train", "val", "TEST"], [40, 15, 25]))
    same = made(saved(word), split="column:part")
    assert same.fingerprint() == sets.fingerprint()
    assert equal(batch_of(same.test_set), batch_of(sets.test_set))
    over = saved(frame[38:55], "over.csv")
    assert "over.csv:2: 2024-02-08 of 'a' stands in" in refused(
        given["train"], val=over, test=given["test"]
    )
    assert "give both files or none" in refused(given["train"], val=given["val"])


def test_yes_and_no_of_the_command_line():
    parser = ArgumentParser()
    parser.add_class_arguments(OwnForecastingData, "data")
    told = [
        parser.parse_args(["--data.train=x.csv", *more]).data.together
        for more in ([], ["--data.together=yes"], ["--data.together=no"])
    ]
    assert told == ["auto", True, False]


# Masks


def gappy(saved):
    wide = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=90)})
    for number, name in enumerate("uv"):
        wide[name] = np.sin(np.arange(90) * (number + 1)) * 3 + number
    holes = np.random.default_rng(1).random((90, 2)) < 0.2
    wide[["u", "v"]] = wide[["u", "v"]].mask(holes)
    return wide, made(saved(wide))


def test_what_is_masked_counts_neither_in_loss_nor_scale_nor_metrics(saved):
    wide, sets = gappy(saved)
    train = wide[["u", "v"]].to_numpy()[: sets.ends[0, 0]]
    np.testing.assert_allclose(sets.moments.mean[0], np.nanmean(train, 0))
    np.testing.assert_allclose(sets.moments.std[0], np.nanstd(train, 0))
    batch = batch_of(sets.test_set)
    assert not batch.observed.all()
    poisoned = batch._replace(future=batch.future.masked_fill(~batch.observed, 1e6))
    torch.manual_seed(0)
    task = Forecasting(DLinear(LOOKBACK, HORIZON, 2), ADAM)
    seen = []
    for part in (batch, poisoned):
        task.zero_grad()
        step = task.step(part)
        step.loss.backward()
        metrics = task.metrics["test"]
        metrics.reset()
        task.update_metrics(metrics, step, part)
        gradient = torch.cat([p.grad.flatten() for p in task.network.parameters()])
        items = task.items(step, part)
        seen.append([step.loss, gradient, *metrics.compute().values(), items["mse"], items["mae"]])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_the_mean_loss_does_not_depend_on_the_batches(saved):
    _, sets = gappy(saved)
    task = Forecasting(Zero(), ADAM)
    whole = batch_of(sets.val_set)
    parts = [Window(*(field[i : i + 2] for field in whole)) for i in range(0, len(whole.past), 2)]
    told = [(task.step(part).loss, task.weight(task.step(part), part)) for part in parts]
    mean = sum(loss * weight for loss, weight in told) / sum(weight for _, weight in told)
    torch.testing.assert_close(mean, task.step(whole).loss)


def test_a_part_without_a_known_value_is_refused_and_a_series_told(saved):
    frame = long(LENGTHS)[["unique_id", "ds", "y"]]
    frame.loc[frame.unique_id == "b2", "y"] = np.nan
    assert "1 series have no known value in training: b2" in made(saved(frame)).notes
    wide = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=90), "u": 1.0 * np.arange(90)})
    for rows, part in ((slice(0, 63), "training"), (slice(72, None), "test")):
        empty = wide.copy()
        empty.iloc[rows, 1] = np.nan
        assert f"the {part} part ({len(empty.iloc[rows])} rows) holds no known" in refused(
            saved(empty)
        )


# Covariates


@pytest.mark.parametrize("kind", ["dlinear", "patchtst"])
def test_the_wrapper_starts_as_the_bare_network(saved, kind):
    sets = made(saved(long(LENGTHS)), **COVARIATES)
    torch.manual_seed(0)
    network = DLinear(LOOKBACK, HORIZON, 1)
    if kind == "patchtst":
        network = PatchTST(
            LOOKBACK, HORIZON, channels=1, patch=4, stride=2, width=8, heads=2, inner=8, depth=1
        )
    network.eval()
    wrapped = transformed(network, sets.transforms(), "x.yaml").eval()
    batch = batch_of(sets.test_set)
    assert batch.known.shape[1:] == (LOOKBACK + HORIZON, 3)  # promo, sky=rain, sky=sun
    assert batch.beside.shape[1:] == (LOOKBACK, 1)
    assert batch.static.shape[1:] == (2,)
    covered = wrapped(batch.past, batch.known, batch.beside, batch.static)
    assert torch.equal(covered, network(batch.past))
    assert covered.shape == batch.future.shape


def test_a_planted_effect_is_found(saved):
    path = saved(long({f"s{i}": 120 for i in range(4)}))
    errors = {}
    for known in (None, "promo"):
        sets = made(path, known_future=known, together=False)
        torch.manual_seed(0)
        network = transformed(DLinear(LOOKBACK, HORIZON, 1), sets.transforms(), "x.yaml")
        task = Forecasting(network, ADAM)
        train, test = batch_of(sets.train_set), batch_of(sets.test_set)
        optimizer = ADAM(network.parameters())
        for _ in range(150):
            optimizer.zero_grad()
            task.step(train).loss.backward()
            optimizer.step()
        errors[known] = float(task.step(test).loss.detach())
    assert errors["promo"] < 0.1 * errors[None]


def test_covariates_are_standardised_by_training_rows(saved):
    frame = long({"a": 100})
    frame.loc[70:, "seen"] = 1e6  # validation and test
    sets = made(saved(frame), past="seen")
    known = frame["seen"][:70]
    assert sets.standards[1].mean[0] == pytest.approx(known.mean())
    frame.loc[[3, 5], "seen"] = np.nan
    sets = made(saved(frame), past="seen")
    assert sets.train_set.rows.beside[3, 0] == 0
    assert "covariates are missing in 2 rows, where their mean stands" in sets.series.repairs


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        ({}, {"known_future": "promo", "past": "promo"}, "named by --data.known_future already"),
        ({}, {"target": "y", "past": "y"}, "named by --data.target already"),
        ({}, {"past": "wind"}, "--data.past=wind: there is no such column"),
        ({"seen": np.inf}, {"past": "seen"}, ":2: column 'seen': 305 infinite values"),
        ({"promo": np.nan}, {"known_future": "promo"}, "every cell is empty; leave it out"),
        ({}, {"static": "promo"}, "changes within the series 'a1'; name it by"),
        ({}, {"known_future": "ds"}, "90 different words are more than the 50"),
        ({}, {"gaps": "keep"}, "takes one column a series, without ids, covariates or parts"),
        ({}, {"split": "group:none"}, "--data.split=group:none: there is no such column"),
        ({"area": "one"}, {"split": "group:area"}, "groups in the data: 1, too few for"),
        ({}, {"split": "group:sky"}, "the group of 'a1' is"),
        ({}, {"split": "group:area", "folds": 3}, "groups in the data: 2, too few for 3 folds"),
        ({}, {"split": "time:ds"}, "write time (the column is --data.time)"),
        ({}, {"split": "column"}, "or column:NAME"),
        ({}, {"split": "column:sky"}, "is none of train, val and test"),
        ({}, {"fold": 1}, "data.fold=1 needs data.folds"),
        ({}, {"folds": 2}, "data.folds=2 must be at least 3"),
        ({}, {"season_length": 0}, "data.season_length=0 must be at least 1"),
        ({}, {"together": True}, "--data.together=yes, but the series begin or end at"),
        ({"unique_id": None}, {}, ":2: column 'unique_id': no id; fill it in"),
        ({}, {"id": "store"}, "--data.id=store: there is no such column"),
        ({"sky": 1.0, "unique_id": "a"}, {}, "stands in line 2 already"),
    ],
)
def test_refused(saved, change, options, told):
    assert told in refused(saved(long(LENGTHS).assign(**change)), **options)


def test_series_of_two_steps_are_told_apart(saved):
    frame = long({"a": 90, "b": 60})
    later = frame.unique_id == "b"
    for step, written in (("6h", "06:00:00"), ("MS", "31 days")):
        frame.loc[later, "ds"] = pd.date_range("2024-01-01", periods=60, freq=step)
        told = refused(saved(frame, f"{step}.csv"))
        assert f"{step}.csv:92: 'b' has a row every {written}, but 'a' every 1 day" in told


# Splits


def test_windows_folds_and_shares(saved):
    path = saved(long({"a": 100})[["unique_id", "ds", "y"]])
    assert made(path).ends.tolist() == [[70, 80, 100]]
    rolling = made(path, windows=3)
    assert rolling.ends.tolist() == [[76, 88, 100]]
    assert batch_of(rolling.test_set).origin.tolist() == [88, 92, 96]
    assert batch_of(rolling.val_set).origin.tolist() == [76, 80, 84]
    folds = [made(path, folds=3, fold=fold) for fold in range(3)]
    tested = [(int(sets.ends[0, 1]), int(sets.ends[0, 2])) for sets in folds]
    assert tested == [(40, 60), (60, 80), (80, 100)]  # one after the other, each once
    assert [int(sets.ends[0, 0]) for sets in folds] == [20, 40, 60]


@pytest.mark.parametrize("rule", ["random", "group:area"])
def test_whole_series_are_split_saved_and_placed_again(saved, tmp_path, rule):
    lengths = {f"{g}{i}": 40 + i for g in "pqrs" for i in range(3)}
    frame = long(lengths)
    sets = made(saved(frame), split=rule)
    begins, stops = sets.series.starts[:-1], sets.series.starts[1:]
    ends = sets.ends
    part = np.select([ends[:, 0] > begins, ends[:, 1] > begins], [0, 1], 2)
    assert set(part) == {0, 1, 2}
    assert np.array_equal(ends[:, 2], stops)
    if rule != "random":
        groups = pd.Series(part).groupby([name[0] for name in sets.series.ids])
        assert (groups.nunique() == 1).all()
    assert f"{(part > 0).sum()} series have no training row and are scaled by" in str(sets.notes)
    assert set(sets.baselines()) >= {"repeat-last", "ETS"}  # also where nothing was for training
    sets.keep(tmp_path)
    more = pd.concat([long({"z9": 50}), frame]).sample(frac=1, random_state=0)
    again = made(saved(more, "more.csv"), split=str(tmp_path / "splits.parquet"))
    where = dict(zip(sets.series.ids, part, strict=True))
    for name, first, end in zip(
        again.series.ids, again.series.starts[:-1], again.ends, strict=True
    ):
        if name in where:
            assert np.select([end[0] > first, end[1] > first], [0, 1], 2) == where[name]


def test_equal_series_in_two_parts_are_told(saved):
    frame = long({f"s{i}": 40 for i in range(12)})[["unique_id", "ds", "y"]]
    assert "equal in every cell" not in str(made(saved(frame), split="random").series.repairs)
    twice = pd.concat([frame, frame.assign(unique_id="t" + frame.unique_id)])
    assert "equal in every cell" in str(made(saved(twice), split="random").series.repairs)


def test_predictions_name_the_series_and_the_time(saved):
    frame = long(LENGTHS)[["unique_id", "ds", "y"]]
    sets = made(saved(frame))
    named = sets.named(batch_of(sets.test_set).origin)
    first = pd.DataFrame(named).groupby("series").start.min()
    starts = sets.series.starts[:-1]
    for name, start, end in zip(sets.series.ids, starts, sets.ends[:, 1], strict=True):
        assert first[name] == frame[frame.unique_id == name].ds.iloc[end - start]


def test_an_epoch_draws_no_more_windows_than_asked(saved):
    path = saved(long(LENGTHS))
    sets = made(path, epoch_windows=16)
    assert (sets.plan().draw, len(sets.plan())) == (16, 2)
    assert made(path).plan().draw is None


# Metrics and intervals


def hand(prediction, target, scale=2.0, offset=10.0, naive=4.0):
    """A batch of one channel in standardised units, and a task that forecasts ``prediction``."""
    future = torch.tensor(target)[:, :, None]
    count, horizon, _ = future.shape
    one = torch.ones(count, 1, 1)
    none = torch.zeros(count, horizon, 0)
    batch = Window(
        past=future, future=future, past_marks=none, future_marks=none,
        origin=torch.arange(count), offset=one * offset, scale=one * scale,
        observed=torch.ones_like(future).bool(), naive=one * naive,
        known=none, beside=none, static=none[:, 0],
    )  # fmt: skip
    return batch, torch.tensor(prediction)[:, :, None]


def test_mase_and_wape_by_hand():
    batch, prediction = hand([[1.0, 2.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, -1.0]])
    task = Forecasting(Zero(2), ADAM)
    task.network.forward = lambda past: prediction
    metrics = task.metrics["test"]
    task.update_metrics(metrics, task.step(batch), batch)
    told = {name.removeprefix("test/"): float(value) for name, value in metrics.compute().items()}
    # errors in the unit of the data 0, 4, 2, 2; values 12, 10, 12, 8; naive 4
    assert told["mase"] == pytest.approx((0 + 4 + 2 + 2) / 4 / 4)
    assert told["wape"] == pytest.approx(8 / 42)
    assert told["mse"] == pytest.approx((0 + 4 + 1 + 1) / 4)


def test_mase_leaves_out_series_without_a_naive_error():
    metric = MeanAbsoluteScaledError()
    naive = torch.tensor([2.0, torch.nan])
    metric.update(torch.tensor([3.0, 9.0]), torch.tensor([1.0, 1.0]), naive)
    assert metric.compute() == 1


def test_the_naive_error_is_that_of_the_last_season(saved):
    frame = long({"a": 100})
    sets = made(saved(frame))
    train = frame["y"].to_numpy()[:70]
    assert sets.moments.naive[0, 0] == pytest.approx(np.abs(train[7:] - train[:-7]).mean())
    sets = made(saved(long(LENGTHS)), split="random")  # series without a training row have one, too
    assert np.isfinite(sets.moments.naive).all()


def noise(saved, rows, **options):
    values = np.random.default_rng(3).standard_normal(rows)
    frame = pd.DataFrame({"date": pd.date_range("1990-01-01", periods=rows), "u": values})
    return made(saved(frame), val_fraction=0.4, test_fraction=0.4, **options)


def test_intervals_hold_what_they_say_of_exchangeable_errors(saved):
    sets = noise(saved, 6000)
    widths = intervals.half_widths(Forecasting(Zero(), ADAM), sets)
    error = batch_of(sets.test_set).future.abs()
    for level in (50, 80, 95):
        assert float((error <= widths[level]).float().mean()) == pytest.approx(
            level / 100, abs=0.03
        )


def test_the_rank_is_that_of_a_finite_sample(saved):
    sets = noise(saved, 100, windows=9)
    error = batch_of(sets.val_set).future.abs().sort(0).values  # (9, H, C)
    widths = intervals.half_widths(Forecasting(Zero(), ADAM), sets)
    assert torch.equal(widths[80], error[8 - 1])  # ceil(0.8 * 10)
    assert torch.equal(widths[85], error[9 - 1])  # ceil(0.85 * 10)
    assert torch.equal(widths[50], error[5 - 1])
    assert torch.equal(widths[99], error[-1])  # of nine errors none says more
    assert intervals.plain(widths)["80"][0] == [float(f"{widths[80][0, 0]:.4g}")]


# Predictions


@pytest.fixture
def fitted(saved):
    sets = made(saved(long(LENGTHS), "train.csv"), **COVARIATES)
    task = Forecasting(
        WithCovariates(Zero(), LOOKBACK, HORIZON, 1, known=3, past=1, static=2), ADAM
    )
    sets.half_widths = intervals.plain(intervals.half_widths(task, sets))
    return sets.preprocessing, task.network


def plan(frame, steps=HORIZON):
    last = frame.groupby("unique_id").ds.max()
    rows = [
        {"unique_id": name, "ds": day, "promo": 1, "sky": "sun"}
        for name, day in last.items()
        for day in pd.date_range(day, periods=steps + 1)[1:]
    ]
    return pd.DataFrame(rows)


def test_all_that_was_fitted_survives_json(fitted):
    files, _ = fitted
    assert files.known == ("promo", "sky")
    assert files.levels == {"sky": ["rain", "sun"], "area": ["a", "b"]}
    content = json.loads(json.dumps(files.to_json()))
    assert set(content) == {field for field in files.__dataclass_fields__ if field != "options"}
    assert ForecastFiles.from_json(content) == files


def test_a_long_forecast_has_nixtlas_columns(fitted, saved, tmp_path):
    files, network = fitted
    frame = long({"b1": 20, "a1": 30}, start="2024-06-01")
    output = tmp_path / "out.csv"
    future = saved(plan(frame), "plan.csv")
    told = files.predict_file(
        network, tmp_path / saved(frame), output, future=future, levels="80,95"
    )
    assert told.endswith("4 steps of 2 series, 2024-06-21 to 2024-07-04")
    wrote = pd.read_csv(output)
    bounds = [f"Zero-{side}-{level}" for level in (80, 95) for side in ("lo", "hi")]
    assert list(wrote.columns) == ["unique_id", "ds", "Zero", *bounds]
    assert wrote["unique_id"].tolist() == ["a1"] * 4 + ["b1"] * 4
    half = np.array(files.half_widths["80"])[:, 0] * files.std[0]
    np.testing.assert_allclose(wrote["Zero-hi-80"][:4] - wrote["Zero"][:4], half, rtol=1e-4)


def test_short_and_unseen_series_are_told(saved, tmp_path):
    files = made(saved(long(LENGTHS), "train.csv"), together=False).preprocessing
    frame = long({"new": 40, "a1": 40, "a2": 9, "b1": 30}, seed=5)
    frame.loc[frame.unique_id == "b1", "y"] = np.nan
    output = tmp_path / "out.csv"
    told = files.predict_file(Zero(), tmp_path / saved(frame), output)
    assert "1 series that training has not seen are scaled by their own rows: new" in told
    assert "1 series shorter than 12 steps are forecast by their last season: a2" in told
    assert "1 series have no known value and are left empty: b1" in told
    wrote = pd.read_csv(output, keep_default_na=False).set_index("unique_id")
    own = frame[frame.unique_id == "new"].y.mean()
    np.testing.assert_allclose(wrote.loc["new", "Zero"].astype(float), own, rtol=1e-5)
    np.testing.assert_allclose(wrote.loc["a1", "Zero"].astype(float), files.mean[0], rtol=1e-5)
    a2 = frame[frame.unique_id == "a2"].y.to_numpy()
    np.testing.assert_allclose(wrote.loc["a2", "Zero"].astype(float), a2[-7:-3], rtol=1e-5)
    notes = {"new": "", "a1": "", "a2": "seasonal repeat: too short", "b1": "no known value"}
    assert wrote["note"].groupby(level=0).first().to_dict() == notes
    assert set(wrote.loc["b1", "Zero"]) == {""}


def test_a_model_takes_either_form(saved, tmp_path):
    wide = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=60)})
    for number, name in enumerate("uv"):
        wide[name] = np.arange(60) % 7 + number
    melted = wide.melt("date", var_name="unique_id", value_name="y")
    inputs = [tmp_path / saved(wide, "w.csv"), tmp_path / saved(melted, "l.csv")]
    for together in (True, False):
        for source in inputs:
            files = made(str(source), together=together).preprocessing
            for read in inputs:
                files.predict_file(Zero(), read, tmp_path / "out.csv")
                wrote = pd.read_csv(tmp_path / "out.csv")
                if read.name == "l.csv":
                    wrote = wrote.pivot(index="date", columns="unique_id", values="Zero")
                assert wrote["v"].to_numpy() - wrote["u"].to_numpy() == pytest.approx(1)


def test_a_folder_of_wide_files_is_known_by_its_names(saved, tmp_path):
    (tmp_path / "shops").mkdir()
    for number, name in enumerate(("p", "q")):
        wide = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=60)})
        wide["u"] = np.arange(60.0) * (number + 1)
        saved(wide, f"shops/{name}.csv")
    sets = made(str(tmp_path / "shops"))
    told = sets.preprocessing.predict_file(Zero(), tmp_path / "shops/q.csv", tmp_path / "out.csv")
    assert "not seen" not in told
    assert pd.read_csv(tmp_path / "out.csv")["u"].tolist() == pytest.approx(
        [sets.moments.mean[1, 0]] * 4
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: p.assign(ds=p.ds + pd.Timedelta("900D")), "16 of 16 rows to forecast: a1 2024"),
        (lambda p: p.drop(index=[2]), "promo, sky missing for 1 of 16 rows to forecast: a1 2024"),
        (lambda p: p.assign(promo=p.promo.where(p.index != 5)), "missing for 1 of 16 rows"),
        (lambda p: pd.concat([p, p[3:4]]), "plan.csv:18: a1 2024-04-03 00:00:00 stands twice"),
        (lambda p: p.drop(columns="sky"), "the covariate 'sky' is missing; there is unique_id"),
        (lambda p: p.assign(promo="yes"), "column 'promo' holds words, but numbers in training"),
    ],
)
def test_a_plan_that_does_not_fit(fitted, saved, tmp_path, change, told):
    files, network = fitted
    frame = long(LENGTHS)
    future = saved(change(plan(frame)), "plan.csv")
    with pytest.raises(UserError) as error:
        files.predict_file(network, tmp_path / saved(frame), tmp_path / "o.csv", future=future)
    assert told in str(error.value)
    assert "--data" not in str(error.value)
    assert not (tmp_path / "o.csv").exists()


def test_a_plan_is_needed_where_training_had_one_and_new_words_are_told(fitted, saved, tmp_path):
    files, network = fitted
    frame = long(LENGTHS)
    source, output = tmp_path / saved(frame), tmp_path / "o.csv"
    with pytest.raises(UserError, match="needs promo, sky of the steps to forecast; give them by"):
        files.predict_file(network, source, output)
    fog = saved(plan(frame).assign(sky="fog"), "plan.csv")
    told = files.predict_file(network, source, output, future=fog)
    assert "words in 'sky' that training has not seen stand for none of its words: fog" in told
    bare = made(saved(frame)).preprocessing
    with pytest.raises(UserError, match="takes no covariates of the future; leave it out"):
        bare.predict_file(Zero(), source, output, future=fog)
    with pytest.raises(UserError, match=r"holds no intervals; train it again with validation"):
        bare.predict_file(Zero(), source, output, levels="80")
    with pytest.raises(UserError, match=r"'99\.5' must be a whole number of percent from 50 to 99"):
        files.predict_file(network, source, output, future=fog, levels="99.5")


def test_a_network_with_covariates_comes_back_from_its_folder(saved, tmp_path):
    sets = made(saved(long(LENGTHS), "train.csv"), **COVARIATES)
    torch.manual_seed(0)
    network = transformed(DLinear(LOOKBACK, HORIZON, 1), sets.transforms(), "x.yaml")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    save_pretrained(
        network, tmp_path / "model", preprocessing=sets.preprocessing, transforms=sets.transforms()
    )
    again = from_pretrained(tmp_path / "model")
    batch = batch_of(sets.test_set)
    given = (batch.past, batch.known, batch.beside, batch.static)
    assert torch.equal(again.network(*given), network.eval()(*given))
    assert again.preprocessing == sets.preprocessing
    frame = long(LENGTHS)
    future = saved(plan(frame), "plan.csv")
    told = again.preprocessing.predict_file(
        again.network, tmp_path / saved(frame), tmp_path / "out.csv", future=future
    )
    assert "4 steps of 4 series" in told
    assert "DLinear" in pd.read_csv(tmp_path / "out.csv").columns
