"""The published protocol: borders, windows, scale, calendar."""

import numpy as np
import pandas as pd
import pytest
import torch

import data
from core.errors import UserError
from domains.time_series.calendar_features import calendar_features
from domains.time_series.data import ForecastingData, usual_season
from domains.time_series.own_data import OwnForecastingData


@pytest.mark.data
@pytest.mark.parametrize(
    ("dataset", "lookback", "horizon", "windows"),
    [
        ("etth1", 96, 96, (8449, 2785, 2785)),
        ("etth1", 96, 720, (7825, 2161, 2161)),
        ("ettm1", 96, 96, (34369, 11425, 11425)),
        ("exchange_rate", 96, 96, (5120, 665, 1422)),
        ("illness", 36, 24, (617, 74, 170)),
    ],
)
def test_window_counts_of_the_protocol(real_data, dataset, lookback, horizon, windows):
    sets = ForecastingData(dataset, lookback, horizon)
    sets.setup()
    assert tuple(map(len, (sets.train_set, sets.val_set, sets.test_set))) == windows


@pytest.mark.parametrize(
    ("dataset", "windows"),
    [
        ("weather", (36696, 5175, 10444)),
        ("electricity", (18221, 2537, 5165)),
        ("traffic", (12089, 1661, 3413)),
    ],
)
def test_window_counts_of_sets_to_fetch_by_hand(dataset, windows):
    sets = ForecastingData(dataset, 96, 96)
    train, val, test = sets.borders(sets.entry.facts["rows"])
    assert (train - 191, val - train - 95, test - val - 95) == windows


@pytest.mark.data
def test_windows_hold_the_rows_of_the_file(real_data):
    sets = ForecastingData("etth1", 96, 24, eval_batch_size=100)
    sets.setup()
    raw = pd.read_csv(data.locate("etth1")).iloc[:, 1:].to_numpy()
    train = raw[:8640]
    last = sets.test_set[len(sets.test_set) - 1]
    want = (raw[14400 - 24 : 14400] - train.mean(0)) / train.std(0)
    np.testing.assert_allclose(last.future, want, atol=1e-5)
    np.testing.assert_allclose(last.future * last.scale + last.offset, raw[14376:14400], atol=1e-3)
    first = sets.val_set[0]
    np.testing.assert_allclose(
        first.past, (raw[8544:8640] - train.mean(0)) / train.std(0), atol=1e-5
    )
    seen = torch.cat([batch.origin for batch in sets.every_item(sets.test_set)])
    assert torch.equal(seen, torch.arange(11520, 14400 - 24 + 1))


def test_scale_knows_training_rows_only(tmp_path):
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=200), "a": np.arange(200.0)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.loc[140:, "a"] = 1e9
    frame.to_csv(tmp_path / "b.csv", index=False)
    made = [
        OwnForecastingData(str(tmp_path / name), lookback=10, horizon=5)
        for name in ("a.csv", "b.csv")
    ]
    for sets in made:
        sets.setup()
    assert made[0].ends.tolist() == [[140, 160, 200]]
    assert made[0].moments.mean[0, 0] == made[1].moments.mean[0, 0] == pytest.approx(69.5)
    assert made[0].moments.std[0, 0] == made[1].moments.std[0, 0]


def test_calendar_features():
    time = pd.DatetimeIndex(["2016-07-01 00:45", "2016-12-31 23:59"])  # a Friday, a Saturday
    hourly = calendar_features(time)
    want = [[-0.5, 4 / 6 - 0.5, -0.5, 182 / 365 - 0.5], [0.5, 5 / 6 - 0.5, 0.5, 0.5]]
    np.testing.assert_allclose(hourly, want, atol=1e-6)
    minutes = calendar_features(time, minutes=True)
    np.testing.assert_allclose(minutes[:, 1:], hourly)
    np.testing.assert_allclose(minutes[:, 0], [45 / 59 - 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        *(("h", 24), ("15min", 96), ("D", 7), ("B", 5), ("W-SAT", 52), ("MS", 12), ("QE", 4)),
        *(("YS", None), ("7h", None), ("2D", None)),
    ],
)
def test_usual_seasons(freq, season):
    assert usual_season(freq) == season


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"data.lookback=0 and data.horizon=5"):
        ForecastingData("co2", 0, 5)
    with pytest.raises(UserError, match="belongs to nlp"):
        ForecastingData("sst")
    with pytest.raises(UserError, match=r"data.val_fraction=1.5 must lie between"):
        OwnForecastingData("x.csv", val_fraction=1.5)
    with pytest.raises(UserError, match="leave no rows"):
        OwnForecastingData("x.csv", val_fraction=0.5, test_fraction=0.5)
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=10), "a": range(10)})
    frame.to_csv(tmp_path / "ten.csv", index=False)
    with pytest.raises(UserError, match=r"ten.csv: the training part has 7 of 10 rows"):
        OwnForecastingData(str(tmp_path / "ten.csv")).setup()
