"""Figures of series and forecasts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from domains.time_series.series import Series

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


def forecast_picture(
    path: Path,
    series: Series,
    times: Sequence[pd.DatetimeIndex],
    values: Array,
    widths: Mapping[int, Array],
) -> None:
    """Draw the ends of up to six series or channels, the forecasts after them, and intervals.

    Args:
        path: the PNG.
        series: S series.
        times: H times for each series.
        values: forecasts (S, H, C).
        widths: from a level in percent to half the width of its interval (S, H, C).
    """
    pairs = [(s, c) for s in range(len(values)) for c in range(values.shape[2])][:6]
    figure = Figure(figsize=(11, 1 + 2.2 * len(pairs)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(pairs), 1))
    for axis, (one, channel) in zip(axes, pairs, strict=True):
        ahead, forecast = times[one], values[one, :, channel]
        end = series.starts[one + 1]
        begin = max(series.starts[one], end - max(4 * len(ahead), 50))
        axis.plot(
            series.time[begin:end], series.values[begin:end, channel], color=PAST, label="past"
        )
        for level, width in sorted(widths.items(), reverse=True):
            half = width[one, :, channel]
            axis.fill_between(
                ahead,
                forecast - half,
                forecast + half,
                color=FORECAST,
                alpha=0.18,
                linewidth=0,
                label=f"{level} % interval",
            )
        joined = np.r_[series.values[end - 1, channel], forecast]
        axis.plot(
            series.time[end - 1 : end].append(ahead),
            joined,
            color=FORECAST,
            linewidth=2,
            label="forecast",
        )
        axis.set_title(_name(series, one, channel), loc="left", fontsize=10)
        _dates(axis)
    axes[0].legend(loc="upper left", frameon=False, ncols=2 + len(widths))
    figure.savefig(path, dpi=110)


def series_picture(path: Path, series: Series) -> None:
    """Draw up to eight series or channels whole."""
    pairs = [(s, c) for s in range(len(series.ids)) for c in range(len(series.columns))][:8]
    figure = Figure(figsize=(11, 0.8 + 1.5 * len(pairs)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(pairs), 1, sharex=True))
    for axis, (one, channel) in zip(axes, pairs, strict=True):
        rows = slice(series.starts[one], series.starts[one + 1])
        axis.plot(series.time[rows], series.values[rows, channel], color=FORECAST, linewidth=0.6)
        axis.set_title(_name(series, one, channel), loc="left", fontsize=10)
        _dates(axis)
    figure.savefig(path, dpi=110)


def _name(series: Series, one: int, channel: int) -> str:
    """What a panel shows: the channel, or the series where there are several."""
    return series.ids[one] or series.columns[channel]


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
        one = int(np.searchsorted(series.starts, origin, "right")) - 1
        naive = _repeated(series, origin, horizon, season)
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
            axis.set_title(_name(series, one, channel), loc="left", fontsize=10)
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
    naive = np.stack([_repeated(series, int(o), horizon, season) for o in origins])
    spread: float | Array = 1.0
    if not unit:
        frame = pd.DataFrame(series.values).groupby(series.owner)
        spread = np.maximum(frame.transform("std", ddof=0).to_numpy()[origins], 1e-12)[:, None]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.subplots()
    steps = np.arange(1, horizon + 1)
    name = "last season repeated" if season else "last value repeated"
    for label, values, color, style in (
        (name, naive, BASELINE, "--"),
        ("forecast", forecast, FORECAST, "-"),
    ):
        error = np.nanmean(np.abs(values - truth) / spread, (0, 2))
        axis.plot(steps, error, color=color, linestyle=style, label=label)
    axis.set_xlabel("steps ahead")
    axis.set_ylabel(f"mean absolute error ({unit or 'standard deviations'})")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return figure


def _repeated(series: Series, origin: int, horizon: int, season: int | None) -> Array:
    """Repeat the last season, or the last value, over the horizon."""
    start = series.starts[np.searchsorted(series.starts, origin, "right") - 1]
    period = min(season or 1, origin - start)
    repeated: Array = series.values[origin - period + np.arange(horizon) % period]
    return repeated


def _dates(axis: Axes) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=7)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axis.grid(alpha=0.25)
    axis.margins(x=0.01)
