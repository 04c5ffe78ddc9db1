"""NestedMorph: a transformer encoder whose maps a nested gate joins, level by level, to a flow.

Kumar, Mendola and Shmuel, NestedMorph: Enhancing Deformable Medical Image Registration with Nested
Attention Mechanisms, WACV 2025, arXiv 2410.02550.
Sizes: B pairs of D x H x W voxels, C channels, d x h x w places of a map, N = d h w of them. Maps
with channels last are tokens.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core import published
from domains.medical.networks.parts import SIZES, RegistrationOutput, flow_layer, joined
from domains.medical.warping import warp

Layout = Literal["fixed", "official"]

WIDTHS = (48, 96, 192, 384)
HEADS = 2


class EfficientAttention(nn.Module):
    """Attention whose cost is linear in N: keys gather values over places, queries spread them.

    Shen et al., WACV 2021: softmax(Q) (softmax(K)^T V), over the channels of a head for queries and
    over places for keys, without a scale.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.keys = nn.Linear(width, width)
        self.queries = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.reprojection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend in tokens (B, d, h, w, C)."""
        split = (x.shape[0], -1, HEADS, x.shape[-1] // HEADS)
        k = self.keys(x).view(split).transpose(1, 2).softmax(2)  # (B, heads, N, C / heads)
        q = self.queries(x).view(split).transpose(1, 2).softmax(3)
        v = self.values(x).view(split).transpose(1, 2)
        mixed = q @ (k.mT @ v)
        attended: Tensor = self.reprojection(mixed.transpose(1, 2).reshape(x.shape))
        return attended


class ChannelGate(nn.Module):
    """Weigh channels by what they are on average (squeeze and excite: Hu et al., CVPR 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, width // 16, bias=False),
            nn.ReLU(),
            nn.Linear(width // 16, width, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of tokens (B, d, h, w, C)."""
        weighed: Tensor = x * self.fc(x.mean((1, 2, 3), keepdim=True))
        return weighed


class FeedForward(nn.Module):
    """Widen each place four times, look at its neighbours, and narrow it again.

    Args:
        width: C.
        skip: with a sum around the convolution, and a norm after it.
        released: with two norms that are never used.
    """

    def __init__(self, width: int, skip: bool, released: bool) -> None:
        super().__init__()
        inner = 4 * width
        self.fc1 = nn.Linear(width, inner)
        self.dwconv = nn.Conv3d(inner, inner, 3, padding=1, groups=inner)
        self.norm1 = nn.LayerNorm(inner) if skip else None
        if skip and released:
            self.norm2, self.norm3 = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, d, h, w, C)."""
        x = self.fc1(x)
        near = _convolved(self.dwconv, x)
        mapped: Tensor = self.fc2(self.act(self.norm1(near + x) if self.norm1 else near))
        return mapped


class DualBlock(nn.Module):
    """Attention among places, then among channels, each with a feed-forward part behind it."""

    def __init__(self, width: int, skip: bool, released: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = EfficientAttention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp1 = FeedForward(width, skip, released)
        self.norm3 = nn.LayerNorm(width)
        self.channel_attn = ChannelGate(width)
        self.norm4 = nn.LayerNorm(width)
        self.mlp2 = FeedForward(width, skip, released)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, d, h, w, C)."""
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp1(self.norm2(x))
        x = x + self.channel_attn(self.norm3(x))
        mapped: Tensor = x + self.mlp2(self.norm4(x))
        return mapped


class Stage(nn.Module):
    """Embed overlapping patches, and let them attend to one another."""

    def __init__(self, inputs: int, width: int, patch: int, stride: int, released: bool) -> None:
        super().__init__()
        self.proj = nn.Conv3d(inputs, width, patch, stride, patch // 2)
        self.embed_norm = nn.LayerNorm(width)
        self.block = DualBlock(width, True, released)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, ., ., .) to tokens (B, d, h, w, C)."""
        mapped: Tensor = self.norm(self.block(self.embed_norm(self.proj(x).movedim(1, -1))))
        return mapped


class Gate(nn.Module):
    """Choose by place and channel what of a skipped map x passes, by itself and a decoded map g."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1, groups=width),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.Conv3d(width, width, 3, padding=2, dilation=2),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.Conv3d(width, width, 1),
            nn.BatchNorm3d(width),
        )
        self.whole = nn.Sequential(nn.Conv3d(2, 1, 1), nn.BatchNorm3d(1))
        self.fused_norm = nn.BatchNorm3d(width)
        self.selection = nn.Conv3d(width, 2, 1)
        self.proj = nn.Conv3d(width, width, 1)
        self.proj_norm = nn.BatchNorm3d(width)
        self.out = nn.Conv3d(width, width, 1)
        self.out_norm = nn.BatchNorm3d(width)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """Gate ``x`` (B, C, d, h, w) by ``g`` of that shape."""
        extremes = torch.cat([g.mean(1, keepdim=True), g.amax(1, keepdim=True)], 1)
        fused = self.fused_norm(self.local(x) + self.whole(extremes))
        share_x, share_g = self.selection(fused).softmax(1).split(1, 1)  # (B, 1, d, h, w)
        x1 = x + share_x * x
        g1 = g + share_g * g
        together = (torch.sigmoid(g1) * x1) * (torch.sigmoid(x1) * g1)
        passing = torch.sigmoid(self.proj_norm(self.proj(together)))
        gated: Tensor = self.out_norm(self.out(passing * x))
        return gated


class LargeKernel(nn.Module):
    """Attention by a convolution that reaches over 23 places (Guo et al., CVMJ 2023).

    The maps of single places are linear and see channels last.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.proj_1 = nn.Linear(width, width)
        self.near = nn.Conv3d(width, width, 5, padding=2, groups=width)
        self.far = nn.Conv3d(width, width, 7, padding=9, groups=width, dilation=3)
        self.weigh = nn.Linear(width, width)
        self.proj_2 = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.dwconv = nn.Conv3d(4 * width, 4 * width, 3, padding=1, groups=4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), 1e-2))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, d, h, w, C)."""
        v = self.norm1(x)
        t = self.act(self.proj_1(v))
        t = t * self.weigh(_convolved(self.far, _convolved(self.near, t)))
        x = x + self.layer_scale_1 * (v + self.proj_2(t))
        inner = _convolved(self.dwconv, self.fc1(self.norm2(x)))
        mapped: Tensor = x + self.layer_scale_2 * self.fc2(self.act(inner))
        return mapped


class Expand(nn.Module):
    """Make ``factor`` places of each on every axis.

    Args:
        width: C.
        outputs: channels after.
        factor: 2 or 4.
    """

    def __init__(self, width: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(width, outputs * factor**3, bias=False)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, d, h, w, C) to (B, d, h, w, factor^3, outputs)."""
        expanded: Tensor = self.norm(self.expand(x).unflatten(-1, (self.factor**3, -1)))
        return expanded

    def spread(self, x: Tensor) -> Tensor:
        """Bring (B, d, h, w, factor^3, C) to its places: (B, factor d, ..., C)."""
        f = self.factor
        b, d, h, w, _, c = x.shape
        places = x.view(b, d, h, w, f, f, f, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return places.reshape(b, f * d, f * h, f * w, c)


class Level(nn.Module):
    """Join a skipped map to the decoded one, and expand it.

    Args:
        width: C.
        outputs: channels after.
        factor: of the expansion.
        large: of two blocks of :class:`LargeKernel`, else of :class:`DualBlock`.
        layout: see :class:`NestedMorph`.
    """

    def __init__(
        self, width: int, outputs: int, factor: int, large: bool, layout: Layout = "fixed"
    ) -> None:
        super().__init__()
        self.layout = layout
        self.linear = nn.Linear(width, width)
        self.gate = Gate(width)
        self.norm = nn.LayerNorm(width)
        blocks = [LargeKernel(width) if large else DualBlock(width, False, False) for _ in range(2)]
        self.blocks = nn.ModuleList(blocks)
        self.up = Expand(width, outputs, factor)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map decoded ``x`` and ``skip``, tokens (B, d, h, w, C), to (B, d, h, w, f^3, outputs)."""
        skip, x = skip.movedim(-1, 1), self.linear(x)
        x = x.view(skip.shape) if self.layout == "official" else x.movedim(-1, 1)
        x = self.norm((x + self.gate(skip, x)).movedim(1, -1))  # (B, d, h, w, C)
        for block in self.blocks:
            x = block(x)
        if self.layout == "official":
            x = x.movedim(-1, 1).reshape(x.shape)
        expanded: Tensor = self.up(x)
        return expanded


class NestedMorph(nn.Module):
    """Register volumes whose sides are multiples of 32.

    Args:
        layout: ``fixed`` keeps the place of every token. ``official`` reads, at the two finest
            levels, tokens as a map and back without a transpose, as the released network does: it
            mixes places with channels, for weights that were trained so, and learns worse.
        feature_channels: channels of the map that the flow is taken from. The released network has
            1, so that all three components come from one map; 16 learn better.
        released: with the 10,737,031 parameters of the released network that no output depends on,
            for its weights to fit name by name.

    Raises:
        ValueError: if there is no such layout, or ``feature_channels`` is below 1.

    Example:
        >>> volumes = torch.zeros(1, 1, 32, 32, 64)
        >>> NestedMorph()(volumes, volumes).flow.shape
        torch.Size([1, 3, 32, 32, 64])
    """

    divisor = 32

    def __init__(
        self, layout: Layout = "fixed", *, feature_channels: int = 1, released: bool = False
    ) -> None:
        super().__init__()
        if layout not in ("fixed", "official") or feature_channels < 1:
            raise ValueError(
                f"layout={layout!r} must be fixed or official,"
                f" and feature_channels={feature_channels} at least 1"
            )
        self.layout = layout
        self.feature_channels = feature_channels
        self.released = released
        inputs, patches = (2, *WIDTHS[:3]), ((7, 4), (3, 2), (3, 2), (3, 2))
        self.encoder = nn.ModuleList(
            Stage(each, width, patch, stride, released)
            for each, width, (patch, stride) in zip(inputs, WIDTHS, patches, strict=True)
        )
        c0, c1, c2, c3 = WIDTHS
        self.level3 = Expand(c3, c2, 2)
        self.level2 = Level(c2, c1, 2, False)
        self.level1 = Level(c1, c0, 2, True, layout)
        self.level0 = Level(c0, c0, 4, True, layout)
        self.features = nn.Linear(c0, feature_channels)
        self.unused = _unused(c3) if released else None
        self.flow = flow_layer(feature_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of the decoder as published; those of the encoder are torch's."""
        decoder = [self.level3, self.level2, self.level1, self.level0, self.features, self.unused]
        for module in (m for part in decoder if part for m in part.modules()):
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        """Register ``moving`` to ``fixed``, both (B, 1, D, H, W) in [0, 1]."""
        x = joined(moving, fixed, self.divisor)
        skips = []
        for stage in self.encoder:
            tokens = stage(x)
            skips.append(tokens)
            x = tokens.movedim(-1, 1)
        x = self.level3.spread(self.level3(skips[3]))
        x = self.level2.up.spread(self.level2(x, skips[2]))
        x = self.level1.up.spread(self.level1(x, skips[1]))
        x = self.features(self.level0(x, skips[0]))  # (B, d, h, w, 64, features)
        flow = self.flow(self.level0.up.spread(x).movedim(-1, 1))
        return RegistrationOutput(warp(moving, flow), flow)

    @property
    def stages(self) -> list[nn.Module]:
        """The stages of the encoder, then the levels of the decoder, from the coarsest on."""
        return [*self.encoder, self.level3, self.level2, self.level1, self.level0]

    @property
    def head(self) -> list[nn.Module]:
        """What makes a flow of the finest map."""
        return [self.features, self.flow]

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "NestedMorph":
        """Build from the official parameter names.

        Args:
            config: ``layout``, which is ``official`` if left out, and ``feature_channels`` where
                they are not those of the released network, whose size of volumes has no effect.
            state_dict: the official entries; those that no output depends on may be missing.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        optional = {name: name for name in ("layout", "feature_channels")}
        given = published.arguments("NestedMorph", config, {}, optional, (*SIZES, "use_gpu"))
        network = cls(**{"layout": "official", **given}, released=True)
        published.load(network, state_dict, _RULES, _IGNORED, _POINTWISE, axes=3)
        return network


def _convolved(conv: nn.Module, tokens: Tensor) -> Tensor:
    """Convolve a map (B, d, h, w, C) with channels last."""
    mapped: Tensor = conv(tokens.movedim(-1, 1))
    return mapped.movedim(1, -1)


def _unused(width: int) -> nn.Module:
    """Build what the released network has at its coarsest level, and does not call."""
    return nn.ModuleDict(
        {
            "linear": nn.Linear(width, width),
            "gate": Gate(width),
            "norm": nn.LayerNorm(width),
            "blocks": nn.ModuleList(DualBlock(width, False, False) for _ in range(2)),
        }
    )


_IGNORED = r"num_batches_tracked$|^unet\.decoder_3\.(?!layer_up)|\.mlp\d\.norm[23]\."
_POINTWISE = (
    r"\.(keys|queries|values|reprojection|proj_[12]|spatial_gating_unit\.conv1|last_layer)\.weight$"
    r"|\.layer_lka_\d\.mlp\.fc[12]\.weight$"
)
_RULES = (
    *(
        (rf"^encoder\.{number - 1}\.{ours}\.", f"unet.backbone.{name}.")
        for number in range(1, 5)
        for ours, name in (
            ("proj", f"patch_embed{number}.proj"),
            ("embed_norm", f"patch_embed{number}.norm"),
            ("block", f"block{number}.0"),
            ("norm", f"norm{number}"),
        )
    ),
    (r"^features\.", "unet.decoder_0.last_layer."),
    (r"^level3\.", "unet.decoder_3.layer_up."),
    (r"^unused\.", "level3."),
    (r"^level(\d)\.linear\.", r"unet.decoder_\1.x1_linear."),
    (r"^level(\d)\.norm\.", r"unet.decoder_\1.ag_attn_norm."),
    (r"^level(\d)\.up\.", r"unet.decoder_\1.layer_up."),
    (r"^level(\d)\.gate\.", r"unet.decoder_\1.ag_attn."),
    (r"\.ag_attn\.local\.([0-5])\.", r".ag_attn.multi.local.dconv.\1."),
    (r"\.ag_attn\.local\.6\.", ".ag_attn.multi.local.proj.0."),
    (r"\.ag_attn\.local\.7\.", ".ag_attn.multi.local.proj.1."),
    (r"\.ag_attn\.whole\.", ".ag_attn.multi.global_.proj."),
    (r"\.ag_attn\.fused_norm\.", ".ag_attn.multi.bn."),
    (r"\.ag_attn\.proj_norm\.", ".ag_attn.bn."),
    (r"\.ag_attn\.out\.", ".ag_attn.conv_block.0."),
    (r"\.ag_attn\.out_norm\.", ".ag_attn.bn_2."),
    (r"^level([01])\.blocks\.0\.", r"unet.decoder_\1.layer_lka_1."),
    (r"^level([01])\.blocks\.1\.", r"unet.decoder_\1.layer_lka_2."),
    (r"^level([23])\.blocks\.0\.", r"unet.decoder_\1.tran_layer1."),
    (r"^level([23])\.blocks\.1\.", r"unet.decoder_\1.tran_layer2."),
    (r"(layer_lka_\d)\.(fc\d|dwconv)\.", r"\1.mlp.\2."),
    (r"(layer_lka_\d)\.(proj_\d)\.", r"\1.attn.\2."),
    (r"(layer_lka_\d)\.near\.", r"\1.attn.spatial_gating_unit.conv0."),
    (r"(layer_lka_\d)\.far\.", r"\1.attn.spatial_gating_unit.conv_spatial."),
    (r"(layer_lka_\d)\.weigh\.", r"\1.attn.spatial_gating_unit.conv1."),
    (r"\.dwconv\.", ".dwconv.dwconv."),
)
