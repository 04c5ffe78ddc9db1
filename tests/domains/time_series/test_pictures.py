"""Pictures: they are drawn, of a readable size, from the right windows."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from PIL import Image

from domains.time_series import pictures
from domains.time_series.series import Series


@pytest.fixture
def series():
    time = pd.date_range("2024-01-01", periods=120, freq="h")
    values = np.sin(np.arange(120) * 2 * np.pi / 24)[:, None] * np.arange(1, 6) + 3
    return Series(
        values=values,
        time=time,
        columns=("a", "b", "c", "d", "e"),
        freq="h",
        repairs=(),
        source="x.csv",
        time_column="date",
    )


def _predictions(path, series, horizon, origins):
    windows = np.stack([series.values[o : o + horizon] for o in origins]).astype(np.float32)
    flat = pa.array(windows.reshape(-1))
    each = horizon * series.values.shape[1]
    table = {"id": origins, "prediction": pa.FixedSizeListArray.from_arrays(flat, each)}
    pq.write_table(pa.table(table), path)


@pytest.mark.parametrize("season", [24, None])
def test_draw_makes_both_pictures(tmp_path, series, season):
    source = tmp_path / "predictions.parquet"
    _predictions(source, series, 12, np.arange(60, 109))
    made = pictures.draw(source, tmp_path, series, 48, season, "ppm")
    assert len(made) == 2
    for path in made:
        with Image.open(path) as image:
            assert image.width >= 800


def test_one_window_is_enough(tmp_path, series):
    source = tmp_path / "predictions.parquet"
    _predictions(source, series, 12, np.array([60]))
    assert len(pictures.draw(source, tmp_path, series, 48, 24, "")) == 2


def test_no_predictions_no_pictures(tmp_path, series):
    assert pictures.draw(tmp_path / "none.parquet", tmp_path, series, 48, 24, "") == []


def test_error_by_step_is_zero_for_the_truth(tmp_path, series, monkeypatch):
    source = tmp_path / "predictions.parquet"
    _predictions(source, series, 12, np.arange(60, 109))
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    pictures.draw(source, tmp_path, series, 48, 24, "ppm")
    lines = {line.get_label(): line for axis in figures[-1].axes for line in axis.lines}
    np.testing.assert_allclose(lines["forecast"].get_ydata(), np.zeros(12), atol=1e-6)
    assert lines["forecast"].get_xdata().tolist() == list(range(1, 13))


def test_series_and_forecast_pictures(tmp_path, series):
    future = pd.date_range("2024-01-06", periods=12, freq="h")
    values = series.values[None, :12]
    pictures.forecast_picture(tmp_path / "f.png", series, [future], values, {80: values * 0.1})
    pictures.series_picture(tmp_path / "s.png", series)
    for name in ("f.png", "s.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width >= 1000
