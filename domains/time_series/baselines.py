"""Forecasts without a network, for every table.

Each takes ``past`` (B, L, C) in standardised units, the horizon H and the row ``origin`` (B,) of the first future
step, and gives (B, H, C). Only exponential smoothing is fitted; it looks at rows before the origin alone.
"""

import warnings
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


class Forecast(Protocol):
    """A baseline: ``fit`` once, then ``predict`` for batches of windows."""

    def fit(self, series: Array, first: int, season: int | None) -> None:
        """Learn from ``series`` (T, C); forecasts will be asked from origins of ``first`` on."""
        ...

    def predict(self, past: Tensor, horizon: int, origin: Tensor) -> Tensor:
        """Forecast (B, H, C)."""
        ...


class _Stateless:
    season = 1

    def fit(self, series: Array, first: int, season: int | None) -> None:
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


class ExponentialSmoothing:
    """Additive Holt-Winters smoothing: level, trend and season (Winters, 1960), by statsmodels.

    For each channel the parameters are estimated on the last ten seasons before an origin, anew along the
    test (60 times over all channels at most); in between, the states are carried on. A forecast therefore
    knows the rows before its origin, and none after. Whether the trend is damped is decided once, by the AIC.
    """

    SEASONS = 10
    FITS = 60

    def fit(self, series: Array, first: int, season: int | None) -> None:
        """Estimate and filter."""
        self._season = season or 1
        self._first = first
        shape = (len(series) - first + 1, series.shape[1])
        self._level, self._trend, self._damping = (np.zeros(shape) for _ in range(3))
        self._seasonal = np.zeros((*shape, self._season))
        span = self.SEASONS * max(self._season, 10)
        refits = max(self.FITS // shape[1], 1)
        step = max(self._season // 4, -(-shape[0] // refits), 1)
        for channel in range(shape[1]):
            values = series[:, channel]
            damped: bool | None = None
            for begin in range(first, len(series) + 1, step):
                past = values[max(0, begin - span) : begin]
                found = _holt_winters(past, season, damped)
                damped = bool(found.model.damped_trend)
                end = min(begin + step, len(series) + 1)
                self._carry(found, values[begin : end - 1], channel, begin - first)

    def _carry(self, found: Any, values: Array, channel: int, row: int) -> None:
        """Keep the states after the fit and after each further value (the recursion of Winters)."""
        given = found.params
        alpha, beta = given["smoothing_level"], given["smoothing_trend"]
        phi = given["damping_trend"] if found.model.damped_trend else 1.0
        seasonal = found.model.seasonal is not None
        gamma = given["smoothing_seasonal"] if seasonal else 0.0
        level, trend = float(found.level[-1]), float(found.trend[-1])
        season = list(found.season[-self._season :]) if seasonal else [0.0]
        for offset, value in enumerate([None, *values.tolist()]):
            if value is not None:
                before = level + phi * trend
                index = (offset - 1) % self._season
                level = alpha * (value - season[index]) + (1 - alpha) * before
                old, trend = trend, 0.0
                trend = beta * (level - (before - phi * old)) + (1 - beta) * phi * old
                season[index] = gamma * (value - before) + (1 - gamma) * season[index]
            at = (row + offset, channel)
            self._level[at], self._trend[at], self._damping[at] = level, trend, phi
            turn = offset % self._season
            self._seasonal[at] = season[turn:] + season[:turn]

    def predict(self, past: Tensor, horizon: int, origin: Tensor) -> Tensor:
        """Forecast (B, H, C) from the states that each origin's past has led to."""
        rows = origin.cpu().numpy() - self._first
        ahead = np.arange(1, horizon + 1)
        damped = np.cumsum(self._damping[rows][:, None] ** ahead[:, None], 1)  # (B, H, C)
        season = self._seasonal[rows][..., (ahead - 1) % self._season].swapaxes(1, 2)  # (B, H, C)
        forecast = self._level[rows][:, None] + damped * self._trend[rows][:, None] + season
        return torch.as_tensor(forecast, dtype=past.dtype, device=past.device)


def _holt_winters(past: Array, season: int | None, damped: bool | None) -> Any:
    """Fit a model; where ``damped`` is None both kinds, and the one of the lower AIC is taken."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing as HoltWinters

    fitted = []
    for kind in (False, True) if damped is None else (damped,):
        model = HoltWinters(
            past,
            trend="add",
            damped_trend=kind,
            seasonal="add" if season else None,
            seasonal_periods=season,
            initialization_method="estimated",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a search that ends early still gives a model
            fitted.append(model.fit())
    return min(fitted, key=lambda found: found.aic)


def available(season: int | None, lookback: int, channels: int) -> dict[str, Forecast]:
    """Choose the baselines that a series and its look-back allow.

    Args:
        season: steps in a season; None where there is none.
        lookback: L.
        channels: C; smoothing is left out above 50, where it would take minutes.
    """
    found: dict[str, Forecast] = {"repeat-last": RepeatLast(), "window mean": WindowMean()}
    if season and season > 1:
        if lookback >= season:
            found["seasonal repeat"] = SeasonalRepeat()
        if lookback >= 2 * season:
            found["seasonal repeat + drift"] = SeasonalDrift()
        if channels <= 50 and season <= 100:
            found["ETS"] = ExponentialSmoothing()
    return found
