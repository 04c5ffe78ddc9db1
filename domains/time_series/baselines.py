"""Forecasts without a network, for every table.

Each takes ``past`` (B, L, C) in standardised units, the horizon H and the row ``origin`` (B,) of
the first future step, and gives (B, H, C). Only exponential smoothing is fitted; it looks at rows
before the origin alone.
"""

import warnings
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


SMOOTHED = 300
"""Channels of all series together that are smoothed at most."""


class Forecast(Protocol):
    """A baseline: ``fit`` once, then ``predict`` for batches of windows."""

    def fit(self, values: Array, starts: Rows, ends: Rows, season: int | None) -> None:
        """Learn from ``values`` (T, C) of series that begin at ``starts`` (S + 1,).

        Forecasts will be asked from origins in the test part of each series, which lies between
        the last two of its ``ends`` (S, 3).
        """
        ...

    def predict(self, past: Tensor, horizon: int, origin: Tensor) -> Tensor:
        """Forecast (B, H, C)."""
        ...


class _Stateless:
    season = 1

    def fit(self, values: Array, starts: Rows, ends: Rows, season: int | None) -> None:
        """Keep the season."""
        self.season = season or 1


class RepeatLast(_Stateless):
    """The last value, repeated."""

    def predict(self, past: Tensor, horizon: int, origin: Tensor) -> Tensor:
        """Forecast (B, H, C)."""
        return past[:, -1:].expand(-1, horizon, -1)


class WindowMean(_Stateless):
    """The mean of the look-back, repeated."""

    def predict(self, past: Tensor, horizon: int, origin: Tensor) -> Tensor:
        """Forecast (B, H, C)."""
        return past.mean(1, keepdim=True).expand(-1, horizon, -1)


class SeasonalRepeat(_Stateless):
    """The last season, repeated."""

    def predict(self, past: Tensor, horizon: int, origin: Tensor) -> Tensor:
        """Forecast (B, H, C)."""
        times = -(-horizon // self.season)
        return past[:, -self.season :].repeat(1, times, 1)[:, :horizon]


class SeasonalDrift(SeasonalRepeat):
    """The last season, repeated, plus for each season ahead the last change of its mean."""

    def predict(self, past: Tensor, horizon: int, origin: Tensor) -> Tensor:
        """Forecast (B, H, C)."""
        last = past[:, -self.season :].mean(1, keepdim=True)
        before = past[:, -2 * self.season : -self.season].mean(1, keepdim=True)
        ahead = torch.arange(horizon, device=past.device) // self.season + 1  # (H,)
        drift = (last - before) * ahead[:, None]  # (B, H, C)
        return super().predict(past, horizon, origin) + drift


class States(NamedTuple):
    """Holt-Winters states at T origins of one channel: what is known before each.

    ``level``, ``trend`` and ``damping`` are (T,); ``seasonal`` (T, m) begins with the next step's.
    """

    level: Array
    trend: Array
    damping: Array
    seasonal: Array

    def forecast(self, horizon: int) -> Array:
        """Forecast (T, H)."""
        ahead = np.arange(1, horizon + 1)
        damped = np.cumsum(self.damping[:, None] ** ahead, 1)
        season = self.seasonal[:, (ahead - 1) % self.seasonal.shape[1]]
        return self.level[:, None] + damped * self.trend[:, None] + season


class ExponentialSmoothing:
    """Additive Holt-Winters smoothing: level, trend and season (Winters, 1960), by statsmodels.

    For each channel the parameters are estimated on the last ten seasons before an origin, anew
    along the test (60 times over all channels at most); in between, the states are carried on. A
    forecast therefore knows the rows before its origin, and none after. Whether there is a trend,
    and whether it is damped, is decided by the error of forecasts one season ahead over the eight
    seasons before the test.
    """

    SEASONS = 10
    JUDGED = 8
    FITS = 60
    CHOOSING = 20
    """Channels of all series above which the trend is damped, without a choice."""

    def fit(self, values: Array, starts: Rows, ends: Rows, season: int | None) -> None:
        """Estimate and filter; the season is left out of a series that holds less than two."""
        self._starts, self._first = starts, ends[:, 1]
        count = len(ends) * values.shape[1]
        self._series = [
            self._filtered(values[start:end], first - start, season, count) if first < end else []
            for start, first, end in zip(starts[:-1], ends[:, 1], ends[:, 2], strict=True)
        ]

    def _filtered(self, series: Array, first: int, season: int | None, count: int) -> list[States]:
        """Give the states of each channel (T, C) at the origins from ``first`` on."""
        if season and first < 2 * season:
            season = None  # a season cannot be told from less than two of it
        period = season or 1
        span = self.SEASONS * max(period, 10)
        refits = max(self.FITS // count, 1)
        step = max(period // 4, -(-(len(series) - first + 1) // refits), 1)
        channels = []
        for values in series.T:
            known = span + self.JUDGED * max(period, 10)
            past = values[max(0, first - known) : first]
            kind = self._choose(past, season) if count <= self.CHOOSING else "damped"
            if first < 4:  # nothing can be estimated
                kind, season = "none", None
            pieces = []
            for begin in range(first, len(series) + 1, step):
                found = _holt_winters(values[max(0, begin - span) : begin], season, kind)
                pieces.append(_states(found, values[begin : begin + step - 1], period))
            parts = zip(*pieces, strict=True)
            channels.append(States(*(np.concatenate(part) for part in parts)))
        return channels

    def _choose(self, past: Array, season: int | None) -> str:
        period = season or 1
        judged = min(self.JUDGED * max(period, 10), len(past) * 2 // 3)
        seen, later = past[:-judged], past[-judged:]
        horizon = min(max(period, 10), judged)
        if len(seen) < max(2 * period, 10):
            return "none"
        truth = np.lib.stride_tricks.sliding_window_view(later, horizon)
        errors = {}
        for kind in TRENDS:
            found = _holt_winters(seen, season, kind)
            forecast = _states(found, later, period).forecast(horizon)[: len(truth)]
            errors[kind] = float(np.square(forecast - truth).mean())
        return min(errors, key=lambda kind: errors[kind])

    def predict(self, past: Tensor, horizon: int, origin: Tensor) -> Tensor:
        """Forecast (B, H, C) from the states that each origin's past has led to."""
        origins = origin.cpu().numpy()
        owner = np.searchsorted(self._starts, origins, "right") - 1
        result = np.empty((len(origins), horizon, past.shape[2]))
        for series in np.unique(owner):
            chosen = owner == series
            rows = origins[chosen] - self._first[series]
            for channel, states in enumerate(self._series[series]):
                at = States(*(part[rows] for part in states))
                result[chosen, :, channel] = at.forecast(horizon)
        return torch.as_tensor(result, dtype=past.dtype, device=past.device)


TRENDS: dict[str, dict[str, Any]] = {
    "none": {"trend": None},
    "damped": {"trend": "add", "damped_trend": True},
    "additive": {"trend": "add", "damped_trend": False},
}


def _holt_winters(past: Array, season: int | None, kind: str) -> Any:
    from statsmodels.tsa.holtwinters import ExponentialSmoothing as HoltWinters

    model = HoltWinters(
        past,
        **TRENDS[kind],
        seasonal="add" if season else None,
        seasonal_periods=season,
        initialization_method="estimated",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a search that ends early still gives a model
        return model.fit()


def _states(found: Any, values: Array, period: int) -> States:
    """Give the state after a fit and after each further value, by the recursion of Winters."""
    given, model = found.params, found.model
    alpha = given["smoothing_level"]
    beta = given["smoothing_trend"] if model.trend else 0.0
    gamma = given["smoothing_seasonal"] if model.seasonal else 0.0
    phi = given["damping_trend"] if model.damped_trend else float(bool(model.trend))
    level = float(found.level[-1])
    trend = float(found.trend[-1]) if model.trend else 0.0
    season = list(found.season[-period:]) if model.seasonal else [0.0] * period
    states = [(level, trend, phi, season)]
    for value in values.tolist():
        expected = level + phi * trend
        last, level = level, alpha * (value - season[0]) + (1 - alpha) * expected
        trend = beta * (level - last) + (1 - beta) * phi * trend
        season = [*season[1:], gamma * (value - expected) + (1 - gamma) * season[0]]
        states.append((level, trend, phi, season))
    return States(*(np.asarray(part) for part in zip(*states, strict=True)))


def available(season: int | None, lookback: int, channels: int) -> dict[str, Forecast]:
    """Choose the baselines that series and their look-back allow.

    Args:
        season: steps in a season; None where there is none.
        lookback: L.
        channels: of all series together; smoothing is left out where it would take minutes.
    """
    found: dict[str, Forecast] = {"repeat-last": RepeatLast(), "window mean": WindowMean()}
    if season and season > 1:
        if lookback >= season:
            found["seasonal repeat"] = SeasonalRepeat()
        if lookback >= 2 * season:
            found["seasonal repeat + drift"] = SeasonalDrift()
        if channels <= SMOOTHED and season <= 100:
            found["ETS"] = ExponentialSmoothing()
    return found
