"""Figures of series and forecasts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from domains.time_series.files import Series

Array = NDArray[np.float64]
PAST, TRUTH, FORECAST, BASELINE = "#555555", "#000000", "#0072B2", "#D55E00"  # Okabe and Ito


def draw(
    predictions: Path,
    folder: Path,
    series: Series,
    lookback: int,
    season: int | None,
    unit: str,
) -> list[Path]:
    """Draw test windows and the error by step ahead, from ``predictions.parquet``.

    Args:
        predictions: rows ``id`` (first future row), ``prediction`` (H C values) in the unit of the
            data.
        folder: where the pictures go.
        series: the whole series.
        lookback: L.
        season: steps in a season, for the repeated season; None repeats the last value.
        unit: the unit of all channels, or empty.
    """
    if not predictions.is_file():
        return []
    table = pq.read_table(predictions, columns=["id", "prediction"])
    origins = table["id"].to_numpy()
    channels = series.values.shape[1]
    shape = (len(origins), -1, channels)
    forecast = np.concatenate([c.flatten().to_numpy() for c in table["prediction"].chunks])
    forecast = forecast.reshape(shape).astype(np.float64)
    windows = _windows(series, origins, forecast, lookback, season, unit)
    errors = _errors(series, origins, forecast, season, unit)
    paths = [folder / "forecast.png", folder / "error_by_step.png"]
    for path, figure in zip(paths, (windows, errors), strict=True):
        figure.savefig(path, dpi=110)
    return paths


def forecast_picture(path: Path, series: Series, times: pd.DatetimeIndex, values: Array) -> None:
    """Draw the end of a series and the forecast (H, C) after it, up to six channels."""
    shown = min(values.shape[1], 6)
    figure = Figure(figsize=(11, 1 + 2.2 * shown), layout="constrained")
    axes = np.atleast_1d(figure.subplots(shown, 1, sharex=True))
    keep = max(4 * len(times), 50)
    for channel, axis in enumerate(axes):
        axis.plot(series.time[-keep:], series.values[-keep:, channel], color=PAST, label="past")
        joined = np.r_[series.values[-1, channel], values[:, channel]]
        axis.plot(
            series.time[-1:].append(times), joined, color=FORECAST, linewidth=2, label="forecast"
        )
        axis.set_title(series.columns[channel], loc="left", fontsize=10)
        _dates(axis)
    axes[0].legend(loc="upper left", frameon=False, ncols=2)
    figure.savefig(path, dpi=110)


def series_picture(path: Path, series: Series) -> None:
    """Draw the whole series, up to eight channels."""
    shown = min(len(series.columns), 8)
    figure = Figure(figsize=(11, 0.8 + 1.5 * shown), layout="constrained")
    axes = np.atleast_1d(figure.subplots(shown, 1, sharex=True))
    for channel, axis in enumerate(axes):
        axis.plot(series.time, series.values[:, channel], color=FORECAST, linewidth=0.6)
        axis.set_title(series.columns[channel], loc="left", fontsize=10)
        _dates(axis)
    figure.savefig(path, dpi=110)


def _windows(
    series: Series, origins: Array, forecast: Array, lookback: int, season: int | None, unit: str
) -> Figure:
    """Show the first, middle and last test window of up to three channels."""
    picked = sorted({0, len(origins) // 2, len(origins) - 1})
    channels = list(range(min(series.values.shape[1], 3)))
    figure = Figure(figsize=(4 * len(picked), 0.8 + 2.4 * len(channels)), layout="constrained")
    grid = figure.subplots(len(channels), len(picked), squeeze=False)
    horizon = forecast.shape[1]
    seen = min(lookback, 2 * horizon)
    for column, window in enumerate(picked):
        origin = int(origins[window])
        future = slice(origin, origin + horizon)
        naive = _repeated(series.values, origin, horizon, season)
        for row, channel in enumerate(channels):
            axis = grid[row, column]
            past = slice(origin - seen, origin)
            axis.plot(series.time[past], series.values[past, channel], color=PAST, label="past")
            axis.plot(
                series.time[future], series.values[future, channel], color=TRUTH, label="truth"
            )
            axis.plot(
                series.time[future],
                naive[:, channel],
                color=BASELINE,
                linestyle="--",
                linewidth=1.2,
                label="last season" if season else "last value",
            )
            axis.plot(
                series.time[future],
                forecast[window, :, channel],
                color=FORECAST,
                linewidth=2,
                label="forecast",
            )
            axis.axvline(series.time[origin], color="#bbbbbb", linewidth=0.8)
            axis.set_title(f"{series.columns[channel]}", loc="left", fontsize=10)
            if column == 0 and unit:
                axis.set_ylabel(unit)
            _dates(axis)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _errors(
    series: Series, origins: Array, forecast: Array, season: int | None, unit: str
) -> Figure:
    """Show the mean absolute error of each step ahead, over all test windows."""
    horizon = forecast.shape[1]
    rows = origins[:, None].astype(int) + np.arange(horizon)
    truth = series.values[rows]  # (N, H, C)
    naive = np.stack([_repeated(series.values, int(o), horizon, season) for o in origins])
    spread = 1.0 if unit else np.maximum(series.values.std(0), 1e-12)
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.subplots()
    steps = np.arange(1, horizon + 1)
    name = "last season repeated" if season else "last value repeated"
    for label, values, color, style in (
        (name, naive, BASELINE, "--"),
        ("forecast", forecast, FORECAST, "-"),
    ):
        error = (np.abs(values - truth) / spread).mean((0, 2))
        axis.plot(steps, error, color=color, linestyle=style, label=label)
    axis.set_xlabel("steps ahead")
    axis.set_ylabel(f"mean absolute error ({unit or 'standard deviations'})")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return figure


def _repeated(values: Array, origin: int, horizon: int, season: int | None) -> Array:
    """Repeat the last season, or the last value, over the horizon."""
    period = min(season or 1, origin)
    return values[origin - period + np.arange(horizon) % period]


def _dates(axis: Axes) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=7)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axis.grid(alpha=0.25)
    axis.margins(x=0.01)
