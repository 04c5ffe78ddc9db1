"""Autoformer: decomposition into season and trend in every layer, and auto-correlation.

Wu et al., Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series
Forecasting, NeurIPS 2021. Scores of all delays are found from products of time steps, not by a
Fourier transform of each feature: the same sums, several times faster at these lengths.
Sizes: B windows, L look-back and H horizon steps, C channels, M calendar marks, D width,
T steps of the decoder (the label, which is the end of the look-back, and the horizon), S steps of
what is attended to.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.wide import wide
from domains.time_series import published

Activation = Literal["gelu", "relu"]


def decompose(x: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Split ``x`` (B, T, D) into season and trend; their sum is ``x``.

    Args:
        x: the series.
        kernel: odd width of the moving average that is the trend; the ends are repeated outwards.

    Returns:
        Season and trend, (B, T, D) each.
    """
    reach = (kernel - 1) // 2
    ends = x[:, :1].expand(-1, reach, -1), x[:, -1:].expand(-1, reach, -1)
    padded = torch.cat([ends[0], x, ends[1]], 1).mT  # (B, D, T + kernel - 1)
    trend = F.avg_pool1d(wide(padded), kernel, stride=1).mT  # (B, T, D)
    return (x - trend).to(x.dtype), trend.to(x.dtype)


def correlate(query: Tensor, key: Tensor) -> Tensor:
    """Score every delay: the mean over features of ``sum_t query[t + delay] * key[t]``.

    Steps are counted on a circle of T; a shorter key acts as if followed by zeros.

    Args:
        query: (B, T, D).
        key: (B, S, D) with S at most T.

    Returns:
        Scores (B, T), one for each delay from 0 to T - 1; at least float32.
    """
    products = wide(query @ key.mT) / query.shape[-1]  # (B, T, S)
    step = torch.arange(query.shape[1], device=query.device)
    partner = (step[:, None] + step[: key.shape[1]]) % len(step)  # (T, S), [delay, t]
    return products.gather(1, partner.expand(len(query), -1, -1)).sum(2)  # (B, T)


def weigh(scores: Tensor, count: int, shared: bool) -> Tensor:
    """Weigh the best delays by a softmax over them; the others weigh nothing.

    Args:
        scores: (B, T).
        count: how many delays are kept.
        shared: keep those that are best on average over the batch, instead of each window's own.

    Returns:
        Weights (B, T); the sum of each row is one.
    """
    ranked = scores.mean(0, keepdim=True) if shared else scores
    best = ranked.topk(count, -1).indices
    kept = torch.zeros_like(ranked, dtype=torch.bool).scatter(1, best, True)
    return scores.masked_fill(~kept, -math.inf).softmax(-1)


def aggregate(values: Tensor, weights: Tensor) -> Tensor:
    """Add up delayed values: ``sum_delay weights[delay] * values[t + delay]``, on a circle of T.

    Args:
        values: (B, S, D) with S at most T; acts as if followed by zeros.
        weights: (B, T).

    Returns:
        The weighted sum at each step (B, T, D).
    """
    step = torch.arange(weights.shape[1], device=weights.device)
    delay = (step[: values.shape[1]] - step[:, None]) % len(step)  # (T, S), [t, s]
    size = (len(weights), -1, -1)
    mixing = weights[:, None].expand(-1, len(step), -1).gather(2, delay.expand(size))  # (B, T, S)
    return mixing.to(values.dtype) @ values


class AutoCorrelation(nn.Module):
    """What attention is elsewhere: look one or more periods ahead instead of at similar steps.

    The best ``int(factor * ln T)`` delays are shared by the batch in training, as published, and
    found for each window in evaluation.

    Args:
        width: D.
        factor: c, how many delays are kept.
    """

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Correlate ``x`` (B, T, D) with the first T steps of ``memory`` (B, S, D)."""
        memory = memory[:, : x.shape[1]]
        scores = correlate(self.query(x), self.key(memory))  # (B, T)
        weights = weigh(scores, delays(x.shape[1], self.factor), shared=self.training)
        mixed: Tensor = self.out(aggregate(self.value(memory), weights))  # (B, T, D)
        return mixed


def delays(steps: int, factor: int) -> int:
    """Give the number of delays that are kept for a series of so many steps."""
    return int(factor * math.log(steps))


class SeasonalNorm(nn.Module):
    """Normalise each step, then take the mean over time off.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (B, T, D)."""
        normed = wide(self.norm(x))
        return (normed - normed.mean(1, keepdim=True)).to(x.dtype)


class Embedding(nn.Module):
    """Embed each step with its two neighbours on the circle, and its calendar marks.

    Args:
        channels: C.
        marks: M.
        width: D.
        dropout: after the sum.
    """

    def __init__(self, channels: int, marks: int, width: int, dropout: float) -> None:
        super().__init__()
        self.values = _circular(channels, width)
        self.marks = nn.Linear(marks, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, series: Tensor, marks: Tensor) -> Tensor:
        """Embed ``series`` (B, T, C) and ``marks`` (B, T, M) to (B, T, D)."""
        embedded: Tensor = self.drop(self.values(series.mT).mT + self.marks(marks))
        return embedded


class FeedForward(nn.Module):
    """Two linear maps of each step around an activation, without biases.

    Args:
        width: D.
        inner: width between the maps.
        dropout: after each map.
        activation: ``gelu`` or ``relu``.
    """

    def __init__(self, width: int, inner: int, dropout: float, activation: Activation) -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner, bias=False)
        self.contract = nn.Linear(inner, width, bias=False)
        self.activate = F.relu if activation == "relu" else F.gelu
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, T, D)."""
        mapped: Tensor = self.drop(self.contract(self.drop(self.activate(self.expand(x)))))
        return mapped


class EncoderLayer(nn.Module):
    """Auto-correlation, then the feed-forward part; only the season of each sum goes on.

    Args:
        width: D.
        inner: width inside the feed-forward part.
        kernel: width of the moving average.
        factor: c, how many delays are kept.
        dropout: on both branches.
        activation: ``gelu`` or ``relu``.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        kernel: int,
        factor: int,
        dropout: float,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.correlation = AutoCorrelation(width, factor)
        self.feed_forward = FeedForward(width, inner, dropout, activation)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x`` (B, L, D)."""
        x, _ = decompose(x + self.drop(self.correlation(x, x)), self.kernel)
        x, _ = decompose(x + self.feed_forward(x), self.kernel)
        return x


class DecoderLayer(nn.Module):
    """Correlate the decoder's steps among themselves and with the encoder's; hand the trends out.

    Args:
        width: D.
        channels: C.
        inner: width inside the feed-forward part.
        kernel: width of the moving average.
        factor: c, how many delays are kept.
        dropout: on all branches.
        activation: ``gelu`` or ``relu``.
    """

    def __init__(
        self,
        width: int,
        channels: int,
        inner: int,
        kernel: int,
        factor: int,
        dropout: float,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.self_correlation = AutoCorrelation(width, factor)
        self.cross_correlation = AutoCorrelation(width, factor)
        self.feed_forward = FeedForward(width, inner, dropout, activation)
        self.trend = _circular(width, channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Decode ``x`` (B, T, D) beside ``memory`` (B, L, D); also give the trend (B, T, C)."""
        x, first = decompose(x + self.drop(self.self_correlation(x, x)), self.kernel)
        x, second = decompose(x + self.drop(self.cross_correlation(x, memory)), self.kernel)
        x, third = decompose(x + self.feed_forward(x), self.kernel)
        trend: Tensor = self.trend((first + second + third).mT).mT  # (B, T, C)
        return x, trend


class Autoformer(nn.Module):
    """Forecast the season by an encoder and a decoder, and add up the trends they take off.

    In training the delays are shared by a batch, so that the forecast of one window depends on the
    others; in evaluation it does not.

    Args:
        lookback: L, the steps seen.
        horizon: H, the steps forecast.
        channels: C.
        marks: M, calendar marks of a step.
        label: steps of the look-back that the decoder starts with.
        width: D.
        heads: as published, a divisor of ``width``; all heads share their delays, so it changes
            nothing.
        inner: width inside the feed-forward parts.
        depth: encoder layers.
        decoder_depth: decoder layers.
        kernel: odd width of the moving average that is the trend.
        factor: c; the best ``int(c ln T)`` of T delays are kept.
        dropout: in the embeddings and on every branch.
        activation: ``gelu`` or ``relu``.

    Raises:
        ValueError: if a size is below 1, ``kernel`` even, ``label`` longer than ``lookback``,
            ``width`` not divisible by ``heads``, or ``factor`` keeps no delay or more than there
            are.

    Example:
        >>> network = Autoformer(96, 24, 7, width=16, heads=4, inner=32)
        >>> past, past_marks = torch.zeros(2, 96, 7), torch.zeros(2, 96, 4)
        >>> network(past, past_marks, torch.zeros(2, 24, 4)).shape
        torch.Size([2, 24, 7])
    """

    takes_marks: ClassVar[bool] = True

    def __init__(
        self,
        lookback: int,
        horizon: int,
        channels: int,
        marks: int = 4,
        *,
        label: int = 48,
        width: int = 512,
        heads: int = 8,
        inner: int = 2048,
        depth: int = 2,
        decoder_depth: int = 1,
        kernel: int = 25,
        factor: int = 3,
        dropout: float = 0.05,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        sizes = {"lookback": lookback, "horizon": horizon, "channels": channels, "marks": marks}
        sizes |= {"width": width, "heads": heads, "inner": inner, "depth": depth}
        sizes |= {"decoder_depth": decoder_depth, "kernel": kernel}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel} must be odd, such as {kernel + 1}")
        if not 0 <= label <= lookback:
            raise ValueError(f"label={label} must lie between 0 and lookback={lookback}")
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        if activation not in ("gelu", "relu"):
            raise ValueError(f"activation={activation!r} must be 'gelu' or 'relu'")
        for steps in (lookback, label + horizon):
            if not 1 <= delays(steps, factor) <= steps:
                raise ValueError(
                    f"factor={factor} keeps {delays(steps, factor)} of {steps} delays;"
                    f" it must keep 1 to {steps}"
                )
        self.lookback = lookback
        self.horizon = horizon
        self.channels = channels
        self.marks = marks
        self.label = label
        self.width = width
        self.heads = heads
        self.inner = inner
        self.depth = depth
        self.decoder_depth = decoder_depth
        self.kernel = kernel
        self.factor = factor
        self.dropout = dropout
        self.activation = activation
        self.encoder_embedding = Embedding(channels, marks, width, dropout)
        self.decoder_embedding = Embedding(channels, marks, width, dropout)
        self.encoder = nn.ModuleList(
            EncoderLayer(width, inner, kernel, factor, dropout, activation) for _ in range(depth)
        )
        self.encoder_norm = SeasonalNorm(width)
        self.decoder = nn.ModuleList(
            DecoderLayer(width, channels, inner, kernel, factor, dropout, activation)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = SeasonalNorm(width)
        self.head = nn.Linear(width, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embeddings of values as published; the other parts have torch's own start."""
        for embedding in (self.encoder_embedding, self.decoder_embedding):
            nn.init.kaiming_normal_(embedding.values.weight, nonlinearity="leaky_relu")

    @property
    def stages(self) -> nn.ModuleList:
        """The encoder layers, then the decoder layers."""
        return nn.ModuleList([*self.encoder, *self.decoder])

    def forward(self, past: Tensor, past_marks: Tensor, decoder_marks: Tensor) -> Tensor:
        """Map ``past`` (B, L, C) to its forecast (B, H, C), in the unit of ``past``.

        Args:
            past: the steps seen.
            past_marks: their calendar marks (B, L, M).
            decoder_marks: marks (B, H, M) of the steps to forecast; or, as published, of the label
                and these, (B, label + H, M). In the first case the label's are the last ones of
                ``past_marks``.
        """
        self._check(past, past_marks, decoder_marks)
        start = self.lookback - self.label
        if decoder_marks.shape[1] == self.horizon:
            decoder_marks = torch.cat([past_marks[:, start:], decoder_marks], 1)  # (B, T, M)
        season, trend = decompose(past, self.kernel)
        mean = wide(past).mean(1, keepdim=True).to(past.dtype).expand(-1, self.horizon, -1)
        trend = torch.cat([trend[:, start:], mean], 1)  # (B, T, C)
        season = F.pad(season[:, start:], (0, 0, 0, self.horizon))  # (B, T, C)
        memory = self.features(past, past_marks)
        x = self.decoder_embedding(season, decoder_marks)  # (B, T, D)
        for layer in self.decoder:
            x, change = layer(x, memory)
            trend = trend + change
        forecast: Tensor = trend + self.head(self.decoder_norm(x))
        return forecast[:, self.label :]

    def features(self, past: Tensor, past_marks: Tensor) -> Tensor:
        """Encode ``past`` (B, L, C) and its marks (B, L, M) to (B, L, D)."""
        x: Tensor = self.encoder_embedding(past, past_marks)
        for layer in self.encoder:
            x = layer(x)
        encoded: Tensor = self.encoder_norm(x)
        return encoded

    def _check(self, past: Tensor, past_marks: Tensor, decoder_marks: Tensor) -> None:
        steps = self.label + self.horizon
        allowed: dict[str, tuple[Tensor, list[tuple[int, int]]]] = {
            "past": (past, [(self.lookback, self.channels)]),
            "past_marks": (past_marks, [(self.lookback, self.marks)]),
            "decoder_marks": (decoder_marks, [(self.horizon, self.marks), (steps, self.marks)]),
        }
        for name, (tensor, shapes) in allowed.items():
            if tensor.shape[1:] not in shapes:
                needed = " or ".join(f"(B, {length}, {size})" for length, size in shapes)
                raise ValueError(f"{name} is {tuple(tensor.shape)}, needed {needed}")

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "Autoformer":
        """Build from the official configuration and parameter names.

        Args:
            config: the official options; those of training are accepted and have no effect.
            state_dict: the official entries; the unused tables of positions may be there.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape, or
                if the configuration asks for what the published network cannot do.
        """
        needed = {
            "seq_len": "lookback",
            "label_len": "label",
            "pred_len": "horizon",
            "enc_in": "channels",
            "freq": "marks",
            "d_model": "width",
            "n_heads": "heads",
            "d_ff": "inner",
            "e_layers": "depth",
            "d_layers": "decoder_depth",
            "moving_avg": "kernel",
            "factor": "factor",
        }
        optional = {"dropout": "dropout", "activation": "activation"}
        checked = ("embed", "dec_in", "c_out")
        given = published.arguments("Autoformer", config, needed, optional, checked)
        if config.get("embed", "timeF") != "timeF":
            raise ValueError(f"Autoformer config: embed={config['embed']!r} must be 'timeF'")
        for name in ("dec_in", "c_out"):
            if config.get(name, given["channels"]) != given["channels"]:
                raise ValueError(
                    f"Autoformer config: {name}={config[name]} must equal enc_in={config['enc_in']}"
                )
        if given["marks"] not in _MARKS:
            raise ValueError(
                f"Autoformer config: freq={config['freq']!r} must be one of {', '.join(_MARKS)}"
            )
        given["marks"] = _MARKS[given["marks"]]
        network = cls(**given)
        published.load(network, state_dict, _RULES, r"\.position_embedding\.pe$")
        return network


def _circular(inputs: int, outputs: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, 3, padding=1, padding_mode="circular", bias=False)


_MARKS = {"s": 6, "t": 5, "h": 4, "d": 3, "b": 3, "w": 2, "m": 1, "a": 1}
_RULES = (
    (r"^(enc|dec)oder_embedding\.values", r"\1_embedding.value_embedding.tokenConv"),
    (r"^(enc|dec)oder_embedding\.marks", r"\1_embedding.temporal_embedding.embed"),
    (r"^(en|de)coder_norm\.norm", r"\1coder.norm.layernorm"),
    (r"^encoder\.(\d)", r"encoder.attn_layers.\1"),
    (r"^decoder\.(\d)", r"decoder.layers.\1"),
    (r"\.(query|key|value|out)\.", r".\1_projection."),
    (r"\.(self_|cross_)?correlation\.", r".\1attention."),
    (r"\.feed_forward\.expand", ".conv1"),
    (r"\.feed_forward\.contract", ".conv2"),
    (r"\.trend\.", ".projection."),
    (r"^head", "decoder.projection"),
)


def autoformer_base(lookback: int, horizon: int, channels: int, marks: int = 4) -> Autoformer:
    """Build the paper's size, the same for all its sets; for illness ``label`` is 18 there."""
    return Autoformer(lookback, horizon, channels, marks)
