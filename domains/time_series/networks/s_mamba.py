"""S-Mamba: two Mamba blocks scan the variates, one from each end.

Wang et al., Is Mamba Effective for Time Series Forecasting?, 2024 (arXiv 2403.11144). The scan runs
along the variates and then the calendar marks, never along time.
Sizes: B windows, V tokens (channels, then calendar marks), D width.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from core.layers.state_space import Mamba
from domains.time_series import inverted
from domains.time_series.inverted import Activation, InvertedForecaster


class BothWays(nn.Module):
    """Add a scan of the tokens and a scan of the reversed tokens, with weights of their own.

    Args:
        width: D.
        state: N, numbers that a scan keeps for each feature.
    """

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.onward = Mamba(width, state=state, conv=2, expand=1)
        self.reverse = Mamba(width, state=state, conv=2, expand=1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x`` (B, V, D)."""
        mixed: Tensor = self.onward(x) + self.reverse(x.flip(1)).flip(1)
        return mixed


class SMamba(InvertedForecaster):
    """Forecast each variate from its token, after both scans passed over all tokens.

    Args:
        lookback: L, the steps seen.
        horizon: H, the steps forecast.
        channels: C, or None for any number; the weights do not depend on it.
        width: D.
        inner: width inside the feed-forward parts.
        depth: encoder layers.
        state: N, numbers that a scan keeps for each feature.
        dropout: after the embedding and inside the layers.
        activation: ``gelu`` or ``relu``.
        normalise: take each window's mean and spread off, and put them back on the forecast.

    Raises:
        ValueError: if a size is below 1, or there is no such activation.

    Example:
        >>> import torch
        >>> network = SMamba(96, 24, 7, width=16, inner=16)
        >>> network(torch.zeros(2, 96, 7), torch.zeros(2, 96, 4)).shape
        torch.Size([2, 24, 7])
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        channels: int | None = None,
        *,
        width: int = 256,
        inner: int = 256,
        depth: int = 2,
        state: int = 2,
        dropout: float = 0.1,
        activation: Activation = "gelu",
        normalise: bool = True,
    ) -> None:
        super().__init__(
            lookback,
            horizon,
            channels,
            width=width,
            inner=inner,
            depth=depth,
            dropout=dropout,
            activation=activation,
            normalise=normalise,
            mixer=lambda: BothWays(width, state),
        )
        self.state = state

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "SMamba":
        """Build from the official configuration and parameter names, for any number of channels.

        Args:
            config: the official options; those of training are accepted and have no effect.
            state_dict: the official entries; the blocks ``man``, ``man2`` and ``a``, which no
                output depends on, may be there.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        return inverted.from_published(
            cls,
            config,
            state_dict,
            {"d_state": "state"},
            (
                (r"\.mixer\.onward\.", ".attention."),
                (r"\.mixer\.reverse\.", ".attention_r."),
                (r"\.dt_bias$", ".dt_proj.bias"),
            ),
            r"^encoder\.attn_layers\.\d+\.(man|man2|a)\.",
        )


def s_mamba_etth1(lookback: int, horizon: int, channels: int | None = None) -> SMamba:
    """Build the published size for ETTh1 and ETTh2, and for ETTm1 and ETTm2 at 96 steps ahead."""
    return SMamba(lookback, horizon, channels)


def s_mamba_exchange(lookback: int, horizon: int, channels: int | None = None) -> SMamba:
    """Build the published size for exchange rates."""
    return SMamba(lookback, horizon, channels, width=128, inner=128, state=32)


def s_mamba_weather(lookback: int, horizon: int, channels: int | None = None) -> SMamba:
    """Build the published size for weather."""
    return SMamba(lookback, horizon, channels, width=512, inner=512, depth=3)


def s_mamba_traffic(lookback: int, horizon: int, channels: int | None = None) -> SMamba:
    """Build the published size for traffic."""
    return SMamba(lookback, horizon, channels, width=512, inner=512, depth=4, state=32)
