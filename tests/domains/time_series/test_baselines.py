"""The naive rows of the literature, and exponential smoothing that knows no future."""

import numpy as np
import pytest
import torch

import data
from core.data_module import Baseline
from domains.time_series.baselines import ExponentialSmoothing, available
from domains.time_series.data import ForecastingData


def _one(values, first):
    """Starts and ends of a single series whose test begins at ``first``."""
    return np.array([0, len(values)]), np.array([[0, first, len(values)]])


def errors(sets: ForecastingData, baseline: Baseline) -> tuple[float, float]:
    """MSE and MAE of a baseline over every test window, standardised."""
    batches = [baseline(batch) for batch in sets.every_item(sets.test_set)]
    wrong = torch.cat([prediction - target for prediction, target in batches])
    return wrong.square().mean().item(), wrong.abs().mean().item()


@pytest.mark.data
@pytest.mark.parametrize(
    ("dataset", "name", "mse", "mae"),
    [
        ("etth1", "repeat-last", 1.294, 0.713),
        ("etth1", "seasonal repeat", 0.512, 0.433),
        ("etth1", "window mean", 0.701, 0.558),
        ("exchange_rate", "repeat-last", 0.081, 0.196),
    ],
)
def test_published_naive_rows(real_data, monkeypatch, dataset, name, mse, mae):
    monkeypatch.setattr(ExponentialSmoothing, "fit", lambda *_: None)  # not looked at here
    sets = ForecastingData(dataset, 96, 96)
    found = errors(sets, sets.baselines()[name])
    assert found == (pytest.approx(mse, abs=6e-4), pytest.approx(mae, abs=6e-4))


def test_rows_of_co2_in_ppm():
    sets = ForecastingData("co2", 104, 52)
    sets.setup()
    ppm = {
        name: errors(sets, each)[1] * sets.moments.std[0, 0]
        for name, each in sets.baselines().items()
    }
    assert ppm["repeat-last"] == pytest.approx(2.68, abs=0.01)
    assert ppm["seasonal repeat"] == pytest.approx(1.71, abs=0.01)
    assert ppm["seasonal repeat + drift"] == pytest.approx(0.88, abs=0.01)
    assert ppm["ETS"] < 0.60


def series(rows: int = 200) -> np.ndarray:
    steps = np.arange(rows)
    draw = np.random.default_rng(0).normal(size=rows) * 0.1
    return (0.02 * steps + np.sin(steps * 2 * np.pi / 12) + draw)[:, None]


def test_smoothing_knows_no_future():
    values = series()
    origins = torch.arange(120, 150)
    past = torch.zeros(30, 1, 1)
    honest, poisoned = ExponentialSmoothing(), ExponentialSmoothing()
    honest.fit(values, *_one(values, 120), 12)
    spoiled = values.copy()
    spoiled[149:] = 1e6  # the first row that no origin may know
    poisoned.fit(spoiled, *_one(spoiled, 120), 12)
    want = honest.predict(past, 12, origins)
    assert torch.equal(want, poisoned.predict(past, 12, origins))
    truth = np.stack([values[o : o + 12] for o in origins.tolist()])
    assert np.abs(want.numpy() - truth).mean() < 0.2


def test_smoothing_is_statsmodels_own_forecast():
    from statsmodels.tsa.holtwinters import ExponentialSmoothing as HoltWinters

    values = series()
    model = ExponentialSmoothing()
    model.fit(values, *_one(values, 150), 12)
    ours = model.predict(torch.zeros(1, 1, 1, dtype=torch.float64), 24, torch.tensor([150]))
    theirs = HoltWinters(values[30:150, 0], trend="add", seasonal="add", seasonal_periods=12).fit()
    np.testing.assert_allclose(ours[0, :, 0], theirs.forecast(24), atol=1e-6)


@pytest.mark.parametrize("rows", [10, 20, 30])
def test_smoothing_stands_short_and_constant_series(rows):
    for values in (series(rows + 10), np.zeros((rows + 10, 1))):
        model = ExponentialSmoothing()
        model.fit(values, *_one(values, rows), 12)
        forecast = model.predict(torch.zeros(1, 4, 1), 5, torch.tensor([rows + 2]))
        assert torch.isfinite(forecast).all()


def test_what_a_series_allows():
    assert list(available(None, 10, 1)) == ["repeat-last", "window mean"]
    assert "seasonal repeat" in available(24, 24, 1)
    assert "seasonal repeat + drift" not in available(24, 47, 1)
    assert "ETS" not in available(24, 48, 301)
    assert "seasonal repeat" not in available(
        data.entry("exchange_rate").facts["season_length"], 96, 8
    )
