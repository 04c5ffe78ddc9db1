"""DLinear: one linear map for the trend of each channel and one for what remains.

Zeng et al., Are Transformers Effective for Time Series Forecasting?, AAAI 2023.
Sizes: B windows, L look-back steps, H horizon steps, C channels, K moving-average width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.layers.wide import wide
from domains.time_series.published import arguments, load


class DLinear(nn.Module):
    """Forecast trend and remainder by a linear map each, and add them.

    Args:
        lookback: L, the steps seen.
        horizon: H, the steps forecast.
        channels: C; matters only when ``individual``.
        kernel: K, an odd width of the moving average that is the trend.
        individual: a pair of maps for each channel instead of one for all.

    Raises:
        ValueError: if a size is below 1 or ``kernel`` is even.

    Example:
        >>> DLinear(lookback=96, horizon=24, channels=7)(torch.zeros(2, 96, 7)).shape
        torch.Size([2, 24, 7])
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        channels: int,
        *,
        kernel: int = 25,
        individual: bool = False,
    ) -> None:
        super().__init__()
        if min(lookback, horizon, channels) < 1:
            raise ValueError(f"{lookback=}, {horizon=} and {channels=} must be at least 1")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} must be odd, such as {kernel + 1}")
        self.lookback = lookback
        self.horizon = horizon
        self.channels = channels
        self.kernel = kernel
        self.individual = individual
        maps = channels if individual else 1
        self.seasonal_map = nn.ModuleList(nn.Linear(lookback, horizon) for _ in range(maps))
        self.trend_map = nn.ModuleList(nn.Linear(lookback, horizon) for _ in range(maps))

    def forward(self, past: Tensor) -> Tensor:
        """Map ``past`` (B, L, C) to its forecast (B, H, C), in the unit of ``past``."""
        if past.shape[1:] != (self.lookback, self.channels):
            raise ValueError(
                f"past is {tuple(past.shape)}, needed (B, {self.lookback}, {self.channels})"
            )
        series = past.mT  # (B, C, L)
        trend = self.moving_average(series)
        remainder = series - trend
        forecast = self._map(self.seasonal_map, remainder) + self._map(self.trend_map, trend)
        return forecast.mT  # (B, H, C)

    def moving_average(self, series: Tensor) -> Tensor:
        """Average K neighbours along the last axis; the ends are repeated outwards."""
        reach = (self.kernel - 1) // 2
        padded = torch.cat(
            [series[..., :1].expand(-1, -1, reach), series, series[..., -1:].expand(-1, -1, reach)],
            -1,
        )  # (B, C, L + K - 1)
        return nn.functional.avg_pool1d(wide(padded), self.kernel, stride=1).to(series.dtype)

    def _map(self, maps: nn.ModuleList, series: Tensor) -> Tensor:
        if not self.individual:
            mapped: Tensor = maps[0](series)  # (B, C, H)
            return mapped
        each = [layer(series[:, channel]) for channel, layer in enumerate(maps)]
        return torch.stack(each, 1)  # (B, C, H)

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "DLinear":
        """Build from the official configuration and parameter names.

        Args:
            config: ``seq_len``, ``pred_len``, ``enc_in``; ``individual`` and ``moving_avg`` (25)
                where given.
            state_dict: ``Linear_Seasonal.*`` and ``Linear_Trend.*``, with a channel number if
                individual.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        sizes = {"seq_len": "lookback", "pred_len": "horizon", "enc_in": "channels"}
        options = {"individual": "individual", "moving_avg": "kernel"}
        given = arguments("DLinear", config, sizes, options, unused=_UNUSED)
        network = cls(**{**given, "individual": bool(given.get("individual", False))})
        number = r"\1" if network.individual else ""
        rules = [
            (r"^seasonal_map(\.\d+)", f"Linear_Seasonal{number}"),
            (r"^trend_map(\.\d+)", f"Linear_Trend{number}"),
        ]
        load(network, state_dict, rules)
        return network


_UNUSED = [
    "label_len",
    "freq",
    "embed",
    "embed_type",
    "dec_in",
    "c_out",
    "d_model",
    "n_heads",
    "e_layers",
    "d_layers",
    "d_ff",
    "factor",
    "dropout",
    "activation",
    "train_only",
    "test_flop",
    "use_multi_gpu",
    "devices",
]
"""Keys of the published command that belong to other networks."""
