"""iTransformer: attention among variates, each a token of its whole look-back.

Liu et al., iTransformer: Inverted Transformers Are Effective for Time Series Forecasting, ICLR
2024. Sizes: B windows, V tokens (channels, then calendar marks), D width.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from domains.time_series import inverted
from domains.time_series.inverted import Activation, InvertedForecaster


class Attention(nn.Module):
    """Multi-head self-attention among all tokens.

    Args:
        width: D.
        heads: number of heads.
        dropout: on the attention weights and after the output projection.

    Raises:
        ValueError: if ``width`` is not divisible by ``heads``.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over ``x`` (B, V, D)."""
        split = (*x.shape[:2], self.heads, -1)
        q, k, v = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        dropout = self.drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (B, heads, V, D/heads)
        attended: Tensor = self.drop(self.out(mixed.transpose(1, 2).flatten(2)))  # (B, V, D)
        return attended


class ITransformer(InvertedForecaster):
    """Forecast each variate from its token, after the tokens attended to each other.

    Args:
        lookback: L, the steps seen.
        horizon: H, the steps forecast.
        channels: C, or None for any number; the weights do not depend on it.
        width: D.
        inner: width inside the feed-forward parts.
        heads: attention heads.
        depth: encoder layers.
        dropout: after the embedding and inside the layers.
        activation: ``gelu`` or ``relu``.
        normalise: take each window's mean and spread off, and put them back on the forecast.

    Raises:
        ValueError: if a size is below 1, there is no such activation, or ``width`` is not divisible
            by ``heads``.

    Example:
        >>> import torch
        >>> network = ITransformer(96, 24, 7, width=16, inner=16, heads=4)
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
        heads: int = 8,
        depth: int = 2,
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
            mixer=lambda: Attention(width, heads, dropout),
        )
        self.heads = heads

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "ITransformer":
        """Build from the official configuration and parameter names, for any number of channels.

        Args:
            config: the official options; those of training are accepted and have no effect.
            state_dict: the official entries.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        rules = ((r"\.mixer\.(query|key|value|out)\.", r".attention.\1_projection."),)
        return inverted.from_published(cls, config, state_dict, {"n_heads": "heads"}, rules)


def itransformer_etth1(lookback: int, horizon: int, channels: int | None = None) -> ITransformer:
    """Build the published size for ETTh1 and horizons of 96 and 192 hours."""
    return ITransformer(lookback, horizon, channels)
