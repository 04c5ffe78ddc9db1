"""PatchTST: a transformer encoder over the patches of each channel, shared by all channels.

Nie et al., A Time Series is Worth 64 Words: Long-term Forecasting with Transformers, ICLR 2023.
Instance normalisation: Kim et al., Reversible Instance Normalization, ICLR 2022. Attention scores
carried from layer to layer: He et al., RealFormer, 2021.
Sizes: B windows, L look-back and H horizon steps, C channels, P patch length, N patches, D width.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.wide import wide
from domains.time_series.published import arguments, load


class ReversibleNorm(nn.Module):
    """Take each window's mean and spread off, and put them back on the forecast.

    Args:
        channels: C.
        affine: learn a scale and a shift of each channel after the normalisation.
    """

    def __init__(self, channels: int, affine: bool) -> None:
        super().__init__()
        if affine:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        self.affine = affine
        self.eps = 1e-5

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise ``past`` (B, L, C) over time; give mean and spread (B, 1, C) too.

        No gradient flows through mean and spread, as published.
        """
        series = wide(past)
        mean = series.mean(1, keepdim=True).detach()  # (B, 1, C)
        spread = (series.var(1, keepdim=True, unbiased=False) + self.eps).sqrt().detach()
        normed = ((series - mean) / spread).to(past.dtype)
        if self.affine:
            normed = normed * self.weight + self.bias
        return normed, mean, spread

    def inverse(self, forecast: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """Take ``forecast`` (B, H, C) back to the unit of the past."""
        if self.affine:
            forecast = (forecast - self.bias) / (self.weight + self.eps**2)
        return forecast * spread + mean


class Attention(nn.Module):
    """Multi-head self-attention that can add the scores of the layer before to its own.

    Args:
        width: D.
        heads: number of heads.
        dropout: after the output projection.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, scores: Tensor | None, residual: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over ``x`` (B, N, D); ``scores`` (B, heads, N, N) come from the layer before."""
        split = (*x.shape[:2], self.heads, -1)
        q, k, v = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        if residual:
            own = wide(q @ k.mT) / math.sqrt(q.shape[-1])  # (B, heads, N, N)
            scores = own if scores is None else own + scores
            mixed = scores.softmax(-1).to(v.dtype) @ v  # (B, heads, N, D / heads)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.drop(self.out(mixed.transpose(1, 2).flatten(2))), scores  # (B, N, D)


class Norm(nn.Module):
    """Normalise the last axis: by statistics of the batch for each feature, or of each token.

    Args:
        width: D.
        kind: ``batch`` or ``layer``.
    """

    def __init__(self, width: int, kind: Literal["batch", "layer"]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if kind == "batch" else nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (B, N, D)."""
        if isinstance(self.norm, nn.LayerNorm):
            normed: Tensor = self.norm(x)
            return normed
        tokens: Tensor = self.norm(x.flatten(0, 1))  # (B N, D)
        return tokens.view_as(x)


class Layer(nn.Module):
    """One post-norm encoder layer: attention, then two linear maps around a GELU.

    Args:
        width: D.
        heads: number of heads.
        inner: width between the linear maps.
        dropout: on both branches and inside the second.
        norm: ``batch`` or ``layer``.
    """

    def __init__(
        self, width: int, heads: int, inner: int, dropout: float, norm: Literal["batch", "layer"]
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.norm_attention = Norm(width, norm)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.norm_inner = Norm(width, norm)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, scores: Tensor | None = None, residual: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Encode ``x`` (B, N, D); pass the attention scores on."""
        mixed, scores = self.attention(x, scores, residual)
        x = self.norm_attention(x + self.drop(mixed))
        hidden = self.contract(self.drop(F.gelu(self.expand(x))))
        return self.norm_inner(x + self.drop(hidden)), scores


class PatchTST(nn.Module):
    """Cut each channel into patches, encode them, and map all of them to the horizon at once.

    Args:
        lookback: L, the steps seen.
        horizon: H, the steps forecast.
        channels: C.
        patch: P, steps in a patch.
        stride: steps between two patches; as many are repeated at the end of the series.
        width: D.
        depth: encoder layers.
        heads: attention heads.
        inner: width inside the feed-forward part.
        dropout: in the encoder.
        head_dropout: before the output.
        norm: ``batch`` as published, or ``layer``.
        residual_attention: add each layer's attention scores to the next one's, as published.
        reversible: normalise each window and undo it on the forecast.
        affine: with learnt scale and shift; the published runs have none.

    Raises:
        ValueError: if a size is below 1, a patch longer than the padded series, or ``width`` not
            divisible by ``heads``.

    Example:
        >>> PatchTST(96, 24, 7, width=16, heads=4)(torch.zeros(2, 96, 7)).shape
        torch.Size([2, 24, 7])
    """

    def __init__(
        self,
        lookback: int,
        horizon: int,
        channels: int,
        *,
        patch: int = 16,
        stride: int = 8,
        width: int = 128,
        depth: int = 3,
        heads: int = 16,
        inner: int = 256,
        dropout: float = 0.2,
        head_dropout: float = 0.0,
        norm: Literal["batch", "layer"] = "batch",
        residual_attention: bool = True,
        reversible: bool = True,
        affine: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"lookback": lookback, "horizon": horizon, "channels": channels, "patch": patch}
        sizes |= {"stride": stride, "width": width, "depth": depth, "heads": heads, "inner": inner}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if patch > lookback:
            raise ValueError(f"patch={patch} is longer than lookback={lookback}; make it smaller")
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        if norm not in ("batch", "layer"):
            raise ValueError(f"norm={norm!r} must be 'batch' or 'layer'")
        self.lookback = lookback
        self.horizon = horizon
        self.channels = channels
        self.patch = patch
        self.stride = stride
        self.width = width
        self.depth = depth
        self.heads = heads
        self.inner = inner
        self.dropout = dropout
        self.head_dropout = head_dropout
        self.norm = norm
        self.residual_attention = residual_attention
        self.reversible = reversible
        self.affine = affine
        self.patches = (lookback - patch) // stride + 2
        self.revin = ReversibleNorm(channels, affine) if reversible else None
        self.embed = nn.Linear(patch, width)
        self.position = nn.Parameter(torch.empty(self.patches, width))
        self.drop = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, inner, dropout, norm) for _ in range(depth))
        self.head = nn.Sequential(
            nn.Flatten(1), nn.Linear(self.patches * width, horizon), nn.Dropout(head_dropout)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the positions as published; the other parts have torch's own start."""
        nn.init.uniform_(self.position, -0.02, 0.02)

    @property
    def stages(self) -> nn.ModuleList:
        """The encoder layers, in order."""
        return self.layers

    def features(self, past: Tensor) -> Tensor:
        """Encode ``past`` (B, L, C), already normalised, to (B C, N, D)."""
        series = past.mT.flatten(0, 1)  # (B C, L)
        padded = torch.cat([series, series[:, -1:].expand(-1, self.stride)], 1)
        x: Tensor = self.embed(padded.unfold(1, self.patch, self.stride))  # (B C, N, D)
        x = self.drop(x + self.position)
        scores = None
        for layer in self.layers:
            x, scores = layer(x, scores, self.residual_attention)
        return x

    def forward(self, past: Tensor) -> Tensor:
        """Map ``past`` (B, L, C) to its forecast (B, H, C), in the unit of ``past``."""
        if past.shape[1:] != (self.lookback, self.channels):
            raise ValueError(
                f"past is {tuple(past.shape)}, needed (B, {self.lookback}, {self.channels})"
            )
        if self.revin is None:
            return self._forecast(past)
        normed, mean, spread = self.revin(past)
        forecast: Tensor = self.revin.inverse(self._forecast(normed), mean, spread)
        return forecast

    def _forecast(self, past: Tensor) -> Tensor:
        encoded = self.features(past)  # (B C, N, D)
        # Published order of the flattened axis: feature by feature, each over all patches.
        flat: Tensor = self.head(encoded.mT)  # (B C, H)
        forecast = flat.reshape(len(past), self.channels, self.horizon)
        return forecast.mT  # (B, H, C)

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "PatchTST":
        """Build from the official supervised configuration and parameter names.

        Args:
            config: ``seq_len``, ``pred_len``, ``enc_in``, ``patch_len``, ``stride``, ``d_model``,
                ``n_heads``, ``d_ff``, ``e_layers``; ``dropout``, ``head_dropout``, ``revin`` and
                ``affine`` where given.
            state_dict: names that begin with ``model.``.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape, or
                naming an official option that is not supported.
        """
        options = {
            **{name: name for name in ("dropout", "head_dropout", "affine", *_FIXED)},
            "revin": "reversible",
        }
        given = arguments("PatchTST", config, _SIZES, options, unused=_UNUSED)
        for name, only in _FIXED.items():
            if (value := given.pop(name, only)) != only:
                raise ValueError(f"PatchTST config: {name}={value!r}; only {only!r} is supported")
        given["reversible"] = bool(given.get("reversible", True))
        given["affine"] = bool(given.get("affine", False)) and given["reversible"]
        network = cls(**given)
        scale = (network.width // network.heads) ** -0.5
        for name, tensor in state_dict.items():
            if name.endswith(_SCALE) and not math.isclose(float(tensor), scale, rel_tol=1e-5):
                raise ValueError(f"{name} is {float(tensor)}; only the fixed {scale} is supported")
        load(network, state_dict, _RULES, ignored=rf"{_SCALE}$")
        return network


_SIZES = {
    "seq_len": "lookback",
    "pred_len": "horizon",
    "enc_in": "channels",
    "patch_len": "patch",
    "stride": "stride",
    "d_model": "width",
    "e_layers": "depth",
    "n_heads": "heads",
    "d_ff": "inner",
}
_FIXED = {
    "individual": False,
    "decomposition": False,
    "subtract_last": False,
    "padding_patch": "end",
}
_UNUSED = [
    "random_seed",
    "label_len",
    "freq",
    "embed",
    "embed_type",
    "dec_in",
    "c_out",
    "d_layers",
    "factor",
    "moving_avg",
    "kernel_size",
    "activation",
    "fc_dropout",
    "lradj",
    "pct_start",
    "use_multi_gpu",
    "devices",
    "test_flop",
]
"""Keys of the published command that change no PatchTST with a flattened head."""
_SCALE = "sdp_attn.scale"
_RULES = [
    (r"^embed\.", "model.backbone.W_P."),
    (r"^position$", "model.backbone.W_pos"),
    (r"^head\.1\.", "model.head.linear."),
    (r"^revin\.", "model.revin_layer.affine_"),
    (r"^layers\.", "model.backbone.encoder.layers."),
    (r"\.attention\.query\.", ".self_attn.W_Q."),
    (r"\.attention\.key\.", ".self_attn.W_K."),
    (r"\.attention\.value\.", ".self_attn.W_V."),
    (r"\.attention\.out\.", ".self_attn.to_out.0."),
    (r"\.norm_attention\.norm\.", ".norm_attn.1."),
    (r"\.norm_inner\.norm\.", ".norm_ffn.1."),
    (r"\.expand\.", ".ff.0."),
    (r"\.contract\.", ".ff.3."),
]
"""Patterns that turn our names into the official ones."""


def patchtst_base(lookback: int, horizon: int, channels: int) -> PatchTST:
    """Build the paper's size for its larger sets."""
    return PatchTST(lookback, horizon, channels)


def patchtst_small(lookback: int, horizon: int, channels: int) -> PatchTST:
    """Build the paper's size for its small sets, ETTh1 and ETTh2."""
    return PatchTST(lookback, horizon, channels, width=16, heads=4, inner=128, dropout=0.3)
