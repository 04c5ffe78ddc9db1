"""What the inverted forecasters share: each variate's whole look-back is one token.

Liu et al., iTransformer: Inverted Transformers Are Effective for Time Series Forecasting, ICLR
2024. The networks differ only in how they mix the tokens.
Sizes: B windows, L look-back and H horizon steps, C channels, M calendar marks, V = C + M tokens,
D width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.wide import wide
from domains.time_series import published

Activation = Literal["gelu", "relu"]


class InvertedLayer(nn.Module):
    """Mix the tokens, then map each of them; both parts are added and normalised after.

    Args:
        mixer: maps tokens (B, V, D) to what is added to them.
        width: D.
        inner: width inside the feed-forward part.
        dropout: after each map of the feed-forward part.
        activation: ``gelu`` or ``relu``.
    """

    def __init__(
        self, mixer: nn.Module, width: int, inner: int, dropout: float, activation: Activation
    ) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm_mixed = nn.LayerNorm(width)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm_mapped = nn.LayerNorm(width)
        self.activate = F.relu if activation == "relu" else F.gelu
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x`` (B, V, D)."""
        x = self.norm_mixed(x + self.mixer(x))
        hidden = self.drop(self.activate(self.expand(x)))
        mapped: Tensor = self.norm_mapped(x + self.drop(self.contract(hidden)))
        return mapped


class InvertedForecaster(nn.Module):
    """Embed, encode and forecast variate by variate; calendar marks are further tokens.

    Args:
        lookback: L, the steps seen.
        horizon: H, the steps forecast.
        channels: C, or None for any number; the weights do not depend on it.
        width: D.
        inner: width inside the feed-forward parts.
        depth: encoder layers.
        dropout: after the embedding and inside the layers.
        activation: ``gelu`` or ``relu``.
        normalise: take each window's mean and spread off, and put them back on the forecast.
        mixer: makes the part of a layer that mixes the tokens.

    Raises:
        ValueError: if a size is below 1, or there is no such activation.
    """

    takes_marks: ClassVar[bool] = True

    def __init__(
        self,
        lookback: int,
        horizon: int,
        channels: int | None,
        *,
        width: int,
        inner: int,
        depth: int,
        dropout: float,
        activation: Activation,
        normalise: bool,
        mixer: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        sizes = {"lookback": lookback, "horizon": horizon, "channels": channels, "width": width}
        sizes |= {"inner": inner, "depth": depth}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if activation not in ("gelu", "relu"):
            raise ValueError(f"activation={activation!r} must be 'gelu' or 'relu'")
        self.lookback = lookback
        self.horizon = horizon
        self.channels = channels
        self.width = width
        self.inner = inner
        self.depth = depth
        self.dropout = dropout
        self.activation = activation
        self.normalise = normalise
        self.embed = nn.Linear(lookback, width)
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            InvertedLayer(mixer(), width, inner, dropout, activation) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, horizon)

    @property
    def stages(self) -> nn.ModuleList:
        """The encoder layers, in order."""
        return self.layers

    def forward(
        self, past: Tensor, past_marks: Tensor | None = None, future_marks: Tensor | None = None
    ) -> Tensor:
        """Map ``past`` (B, L, C) to its forecast (B, H, C), in the unit of ``past``.

        Args:
            past: the steps seen.
            past_marks: their calendar marks (B, L, M), tokens after those of the channels.
            future_marks: not looked at.
        """
        channels = past.shape[2] if past.ndim == 3 and self.channels is None else self.channels
        if past.shape[1:] != (self.lookback, channels):
            raise ValueError(
                f"past is {tuple(past.shape)}, needed (B, {self.lookback}, {channels or 'C'})"
            )
        if past_marks is not None and past_marks.shape[:2] != past.shape[:2]:
            raise ValueError(
                f"past_marks is {tuple(past_marks.shape)}, needed ({len(past)}, {self.lookback}, M)"
            )
        if not self.normalise:
            return self._forecast(past, past_marks)
        series = wide(past)
        mean = series.mean(1, keepdim=True).detach()  # (B, 1, C)
        spread = (series.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        normed = ((series - mean) / spread).to(past.dtype)
        return self._forecast(normed, past_marks) * spread + mean

    def features(self, past: Tensor, past_marks: Tensor | None = None) -> Tensor:
        """Encode ``past`` (B, L, C), already normalised, and marks (B, L, M) to (B, V, D)."""
        series = past if past_marks is None else torch.cat([past, past_marks], 2)  # (B, L, V)
        x: Tensor = self.drop(self.embed(series.mT))  # (B, V, D)
        for layer in self.layers:
            x = layer(x)
        encoded: Tensor = self.norm(x)
        return encoded

    def _forecast(self, past: Tensor, past_marks: Tensor | None) -> Tensor:
        tokens = self.features(past, past_marks)[:, : past.shape[2]]  # (B, C, D)
        forecast: Tensor = self.head(tokens).mT  # (B, H, C)
        return forecast


Network = TypeVar("Network", bound=InvertedForecaster)


def from_published(
    network: Callable[..., Network],
    config: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    needed: Mapping[str, str],
    rules: Sequence[tuple[str, str]],
    ignored: str | None = None,
) -> Network:
    """Build an inverted forecaster from official options and entries.

    Args:
        network: its class.
        config: the official options; those of training are accepted and have no effect.
        state_dict: the official entries.
        needed: options of this network's mixer, and our names.
        rules: patterns and replacements that turn our names below ``mixer`` into the official ones.
        ignored: a pattern of official entries that no output depends on, if there are any.

    Raises:
        ValueError: listing keys and entries that are unknown, missing or of another shape.
    """
    name = getattr(network, "__name__", "network")
    given = published.arguments(name, config, {**_NEEDED, **needed}, _OPTIONAL, _UNUSED)
    given["normalise"] = bool(given["normalise"])
    built = network(**given)
    published.load(built, state_dict, [*rules, *_RULES], ignored)
    return built


_NEEDED = {
    "seq_len": "lookback",
    "pred_len": "horizon",
    "d_model": "width",
    "d_ff": "inner",
    "e_layers": "depth",
    "use_norm": "normalise",
}
_OPTIONAL = {"dropout": "dropout", "activation": "activation"}
_UNUSED = (
    *("embed", "freq", "label_len", "enc_in", "dec_in", "c_out", "d_layers", "moving_avg"),
    *("factor", "n_heads", "d_state"),
)
_RULES = (
    (r"^embed\.", "enc_embedding.value_embedding."),
    (r"^layers\.", "encoder.attn_layers."),
    (r"\.expand\.", ".conv1."),
    (r"\.contract\.", ".conv2."),
    (r"\.norm_mixed\.", ".norm1."),
    (r"\.norm_mapped\.", ".norm2."),
    (r"^norm\.", "encoder.norm."),
    (r"^head\.", "projector."),
)
