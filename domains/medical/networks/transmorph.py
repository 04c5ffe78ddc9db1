"""TransMorph: a Swin transformer in three dimensions, and convolutions that decode its maps.

Chen et al., TransMorph: Transformer for unsupervised medical image registration, Medical Image
Analysis 2022, arXiv 2111.10480; windows as in Liu et al., Swin Transformer, ICCV 2021.
Sizes: B pairs of D x H x W voxels, C channels, d x h x w tokens of a map, n tokens of a window.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import published
from domains.medical.networks.parts import SIZES, RegistrationOutput, flow_layer, joined
from domains.medical.warping import warp

Triple = tuple[int, int, int]

PATCH = 4
FORBIDDEN = -100.0  # added to the score of tokens that a shift brought together
CORNERS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1))


class WindowAttention(nn.Module):
    """Attention among the n tokens of a window, with a bias by their relative position.

    Args:
        width: C.
        heads: of the attention.
        window: its sides.
        qkv_bias: with a bias of queries, keys and values.
    """

    index: Tensor

    def __init__(self, width: int, heads: int, window: Triple, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        spans = [2 * side - 1 for side in window]
        self.table = nn.Parameter(torch.empty(math.prod(spans), heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        places = torch.cartesian_prod(*(torch.arange(side) for side in window)).view(-1, 3)
        apart = places[:, None] - places + torch.tensor(window) - 1  # (n, n, 3), from 0 on
        steps = torch.tensor([spans[1] * spans[2], spans[2], 1])
        self.register_buffer("index", (apart * steps).sum(-1), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend in ``x`` (B windows, n, C); ``mask`` (windows, n, n) is added to the scores."""
        count, n, width = x.shape
        qkv = self.qkv(x).view(count, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].permute(2, 0, 1)[None]  # (1, heads, n, n)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        q, k, v = qkv.unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        attended: Tensor = self.proj(mixed.transpose(1, 2).reshape(count, n, width))
        return attended


class Block(nn.Module):
    """Attention in windows, which every second block shifts by half their sides.

    Args:
        width: C.
        heads: of the attention.
        window: its sides.
        shift: by how much windows are shifted.
        mlp_ratio: inner width of the feed-forward part over C.
        qkv_bias: with a bias of queries, keys and values.
        drop_path: chance that a sample skips a part, in training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        window: Triple,
        shift: Triple,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        inner = int(width * mlp_ratio)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, d, h, w, C)."""
        x = x + self._dropped(self._attended(self.norm1(x)))
        return x + self._dropped(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def _attended(self, x: Tensor) -> Tensor:
        sides = x.shape[1:4]
        over = [-side % part for side, part in zip(sides, self.window, strict=True)]
        x = F.pad(x, (0, 0, 0, over[2], 0, over[1], 0, over[0]))
        mask, back = None, [*self.shift]
        if any(back):
            x = x.roll([-step for step in back], (1, 2, 3))
            mask = shift_mask(x.shape[1:4], self.window, self.shift).to(x)
        windows = partition(x, self.window)  # (B windows, n, C)
        x = restored(self.attn(windows, mask), self.window, x.shape)
        if any(back):
            x = x.roll(back, (1, 2, 3))
        return x[:, : sides[0], : sides[1], : sides[2]]

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty((len(x), 1, 1, 1, 1)).bernoulli_(keep).div_(keep)


def partition(x: Tensor, window: Triple) -> Tensor:
    """Cut (B, d, h, w, C) into windows (B windows, n, C)."""
    b, d, h, w, c = x.shape
    i, j, k = window
    cut = x.view(b, d // i, i, h // j, j, w // k, k, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return cut.reshape(-1, i * j * k, c)


def restored(windows: Tensor, window: Triple, shape: Sequence[int]) -> Tensor:
    """Put windows together to (B, d, h, w, C) again."""
    b, d, h, w, c = shape
    i, j, k = window
    cut = windows.view(b, d // i, h // j, w // k, i, j, k, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return cut.reshape(b, d, h, w, c)


def shift_mask(sides: Sequence[int], window: Triple, shift: Triple) -> Tensor:
    """Give what is added to scores (windows, n, n): tokens of different regions are kept apart."""
    axes = []
    for side, part, step in zip(sides, window, shift, strict=True):
        place = torch.arange(side)
        axes.append((place >= side - part).int() + (place >= side - step).int())
    i, j, k = torch.meshgrid(*axes, indexing="ij")
    regions = partition((9 * i + 3 * j + k)[None, ..., None], window)  # (windows, n, 1)
    return torch.where(regions == regions.mT, 0.0, FORBIDDEN)


class Merge(nn.Module):
    """Join the eight tokens of each cube of 2 x 2 x 2 to one of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, d, h, w, C) to (B, d/2, h/2, w/2, 2 C)."""
        joint = torch.cat([x[:, i::2, j::2, k::2] for i, j, k in CORNERS], -1)
        merged: Tensor = self.reduction(self.norm(joint))
        return merged


class Up(nn.Module):
    """Double a map's places, join what was skipped, and convolve twice."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _convolution(inputs + skip, outputs)
        self.conv2 = _convolution(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Map (B, inputs, d, h, w) to (B, outputs, 2 d, 2 h, 2 w)."""
        x = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
        x = x if skip is None else torch.cat([x, skip], 1)
        mapped: Tensor = self.conv2(self.conv1(x))
        return mapped


class TransMorph(nn.Module):
    """Register volumes whose sides are multiples of 32.

    Args:
        width: C of the first of four stages, doubled by each.
        depths: blocks of each stage.
        heads: of the attention in each stage.
        window: sides of the windows, best 1/32 of those of the volumes; the published one is for
            160 x 192 x 224.
        mlp_ratio: inner width of feed-forward parts over C.
        qkv_bias: with a bias of queries, keys and values.
        drop_path: chance of the last block to be skipped in training; it rises linearly from 0.
        head_channels: of the map that the flow is taken from.
        conv_skip: with convolutions that bring the volumes to the two finest levels.
        trans_skip: with the maps of the stages brought to the decoder.

    Raises:
        ValueError: if there are not four stages, or ``heads`` do not divide the channels.

    Example:
        >>> volumes = torch.zeros(1, 1, 32, 32, 32)
        >>> transmorph_tiny()(volumes, volumes).flow.shape
        torch.Size([1, 3, 32, 32, 32])
    """

    divisor = 32

    def __init__(
        self,
        width: int = 96,
        depths: Sequence[int] = (2, 2, 4, 2),
        heads: Sequence[int] = (4, 4, 8, 8),
        *,
        window: int | Sequence[int] = (5, 6, 7),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop_path: float = 0.3,
        head_channels: int = 16,
        conv_skip: bool = True,
        trans_skip: bool = True,
    ) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(4)]
        if len(depths) != 4 or len(heads) != 4:
            raise ValueError(f"depths={depths} and heads={heads} must name four stages each")
        if any(each % count for each, count in zip(widths, heads, strict=True)):
            raise ValueError(f"heads={heads} must divide the channels {widths}")
        self.width = width
        self.depths = tuple(depths)
        self.heads = tuple(heads)
        self.window = window
        self.mlp_ratio = mlp_ratio
        self.qkv_bias = qkv_bias
        self.drop_path = drop_path
        self.head_channels = head_channels
        self.conv_skip = conv_skip
        self.trans_skip = trans_skip
        i, j, k = (window,) * 3 if isinstance(window, int) else window
        half = (i // 2, j // 2, k // 2) if min(i, j, k) > 1 else (0, 0, 0)
        last = max(sum(depths) - 1, 1)
        rates = (drop_path * number / last for number in range(sum(depths)))
        self.patch_embed = nn.Conv3d(2, width, PATCH, PATCH)
        self.patch_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                Block(
                    each,
                    count,
                    (i, j, k),
                    half if number % 2 else (0, 0, 0),
                    mlp_ratio,
                    qkv_bias,
                    next(rates),
                )
                for number in range(depth)
            )
            for each, count, depth in zip(widths, heads, depths, strict=True)
        )
        self.merges = nn.ModuleList(Merge(each) for each in widths[:3])
        self.norms = nn.ModuleList(nn.LayerNorm(each) for each in widths)
        outputs = (*widths[2::-1], width // 2, head_channels)
        skips = [each if trans_skip else 0 for each in widths[2::-1]]
        skips += [each if conv_skip else 0 for each in outputs[3:]]
        inputs = (widths[3], *outputs[:4])
        self.up = nn.ModuleList(Up(*sizes) for sizes in zip(inputs, skips, outputs, strict=True))
        self.half_skip = _convolution(2, width // 2) if conv_skip else None
        self.full_skip = _convolution(2, head_channels) if conv_skip else None
        self.flow = flow_layer(head_channels)

    def forward(self, moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        """Register ``moving`` to ``fixed``, both (B, 1, D, H, W) in [0, 1]."""
        pair = joined(moving, fixed, self.divisor)
        skips: list[Tensor | None] = [None, None]
        if self.full_skip and self.half_skip:
            skips = [self.full_skip(pair), self.half_skip(F.avg_pool3d(pair, 3, 2, 1))]
        x = self.patch_norm(self.patch_embed(pair).movedim(1, -1))  # (B, d, h, w, C)
        for stage, (blocks, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = self.merges[stage - 1](x) if stage else x
            for block in blocks.children():
                x = block(x)
            if self.trans_skip or stage == 3:
                skips.append(norm(x).movedim(-1, 1))
            else:
                skips.append(None)
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        flow = self.flow(x)
        return RegistrationOutput(warp(moving, flow), flow)

    @property
    def stages(self) -> list[nn.Module | list[nn.Module]]:
        """The patches, the blocks of the encoder in order, then the levels of the decoder."""
        blocks: list[nn.Module | list[nn.Module]] = []
        for stage, layer in enumerate(self.layers):
            first, *rest = layer.children()
            blocks += [[self.merges[stage - 1], first] if stage else first, *rest]
        return [[self.patch_embed, self.patch_norm], *blocks, *self.up]

    @property
    def head(self) -> list[nn.Module]:
        """What makes a flow of the finest map."""
        return [self.flow]

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "TransMorph":
        """Build from the official configuration and parameter names.

        Args:
            config: the official options; what is left out is as in the base size.
            state_dict: the official entries.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape, or
                if the configuration asks for positions or dropout, which this network has not.
        """
        given = published.arguments("TransMorph", config, {}, _NAMES, (*SIZES, *_FIXED, *_UNUSED))
        wrong = {
            name: config[name] for name in _FIXED if config.get(name) not in (None, *_FIXED[name])
        }
        if wrong:
            told = "; ".join(
                f"{name}={value!r} must be {_FIXED[name][0]!r}" for name, value in wrong.items()
            )
            raise ValueError(f"TransMorph config: {told}")
        network = cls(**given)
        ignored = r"(^|\.)grid$|\.relative_position_index$"
        if not network.conv_skip:  # the released network has the convolutions all the same
            ignored += r"|^c[12]\."
        published.load(network, state_dict, _RULES, ignored)
        return network


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.InstanceNorm3d(outputs), nn.LeakyReLU(0.01, inplace=True))


_NAMES = {
    "embed_dim": "width",
    "depths": "depths",
    "num_heads": "heads",
    "window_size": "window",
    "window": "window",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "drop_path_rate": "drop_path",
    "reg_head_chan": "head_channels",
    "if_convskip": "conv_skip",
    "if_transskip": "trans_skip",
}
_FIXED: dict[str, tuple[Any, ...]] = {
    "patch_size": (4,),
    "in_chans": (2,),
    "ape": (False,),
    "spe": (False,),
    "rpe": (True,),
    "patch_norm": (True,),
    "drop_rate": (0,),
    "pat_merg_rf": (4,),
}
_UNUSED = ("use_checkpoint", "out_indices")
_RULES = (
    (r"^patch_embed\.", "transformer.patch_embed.proj."),
    (r"^patch_norm\.", "transformer.patch_embed.norm."),
    (r"^layers\.(\d)\.(\d+)\.", r"transformer.layers.\1.blocks.\2."),
    (r"^merges\.(\d)\.", r"transformer.layers.\1.downsample."),
    (r"^norms\.(\d)\.", r"transformer.norm\1."),
    (r"\.attn\.table$", ".attn.relative_position_bias_table"),
    (r"\.(fc\d)\.", r".mlp.\1."),
    (r"^up\.(\d)\.", r"up\1."),
    (r"^half_skip\.", "c1."),
    (r"^full_skip\.", "c2."),
    (r"^flow\.", "reg_head.0."),
)


def transmorph() -> TransMorph:
    """Build the base size, with 46.8 million parameters."""
    return TransMorph()


def transmorph_tiny() -> TransMorph:
    """Build the tiny size, with 0.24 million parameters."""
    return TransMorph(6, heads=(2, 2, 4, 4))


def transmorph_small() -> TransMorph:
    """Build the small size, with 11.8 million parameters."""
    return TransMorph(48, heads=(4, 4, 4, 4))


def transmorph_large() -> TransMorph:
    """Build the large size, with 108 million parameters."""
    return TransMorph(128, (2, 2, 12, 2), (4, 4, 8, 16))
