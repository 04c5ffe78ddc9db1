"""VoxelMorph: a small U-Net whose flow is the exponential of a velocity.

Balakrishnan et al., VoxelMorph: A Learning Framework for Deformable Medical Image Registration,
IEEE TMI 2019; integration as in Dalca et al., Medical Image Analysis 2019.
Sizes: B pairs of D x H x W voxels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import published
from domains.medical.networks.parts import (
    SIZES,
    RegistrationOutput,
    convolution,
    flow_layer,
    joined,
)
from domains.medical.warping import integrate, resize, warp


class VoxelMorph(nn.Module):
    """Register volumes whose sides are multiples of ``divisor``, 16 with four levels.

    Args:
        encoder: channels of its levels, each half as fine as the one before.
        decoder: channels of as many levels, and of further convolutions at full resolution.
        int_steps: steps of the integration; 0 takes the last layer for the flow itself.
        int_downsize: the velocity is integrated on a grid so many times as coarse.
        bidir: also warp fixed to moving, by exp(-v).
        half_res: leave the finest level out; the velocity is predicted on the coarse grid.
        strided: halve by the stride of a convolution before each level, where else a maximum is
            pooled after it; the volumes themselves are then the finest skip.

    Raises:
        ValueError: if there are fewer levels in the decoder than in the encoder, or ``half_res``
            without an integration on a grid half as fine.

    Example:
        >>> volumes = torch.zeros(1, 1, 16, 16, 32)
        >>> output = VoxelMorph()(volumes, volumes)
        >>> output.flow.shape, output.velocity.shape
        (torch.Size([1, 3, 16, 16, 32]), torch.Size([1, 3, 8, 8, 16]))
    """

    def __init__(
        self,
        encoder: Sequence[int] = (16, 32, 32, 32),
        decoder: Sequence[int] = (32, 32, 32, 32, 32, 16, 16),
        *,
        int_steps: int = 7,
        int_downsize: int = 2,
        bidir: bool = False,
        half_res: bool = False,
        strided: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= len(encoder) <= len(decoder):
            raise ValueError(f"decoder={decoder} must have the {len(encoder)} levels of encoder")
        if int_steps < 0 or int_downsize < 1:
            raise ValueError(
                f"int_steps={int_steps} must be at least 0, int_downsize={int_downsize} at least 1"
            )
        if half_res and (int_steps == 0 or int_downsize != 2):
            raise ValueError("half_res=True needs int_downsize=2 and at least one of int_steps")
        self.encoder = tuple(encoder)
        self.decoder = tuple(decoder)
        self.int_steps = int_steps
        self.int_downsize = int_downsize
        self.bidir = bidir
        self.half_res = half_res
        self.strided = strided
        levels = len(encoder)
        self.divisor = math.lcm(2**levels, int_downsize if int_steps else 1)
        down = list(zip((2, *encoder), encoder, strict=False))
        self.down = nn.ModuleList(convolution(*pair, stride=1 + strided) for pair in down)
        skips = [pair[0] if strided else pair[1] for pair in down]
        if half_res:
            skips[0] = 0
        width, up = encoder[-1], []
        for outputs, skip in zip(decoder[:levels], reversed(skips), strict=True):
            up.append(convolution(width, outputs))
            width = outputs + skip
        self.up = nn.ModuleList(up)
        final = []
        for outputs in decoder[levels:]:
            final.append(convolution(width, outputs))
            width = outputs
        self.final = nn.ModuleList(final)
        self.flow = flow_layer(width)

    def forward(self, moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        """Register ``moving`` to ``fixed``, both (B, 1, D, H, W) in [0, 1].

        ``velocity`` is on the grid that it is integrated on; None without an integration.
        """
        x = joined(moving, fixed, self.divisor)
        skips = []
        for conv in self.down:
            if self.strided:
                skips.append(x)
                x = conv(x)
            else:
                x = conv(x)
                skips.append(x)
                x = F.max_pool3d(x, 2)
        for conv in self.up:
            x = conv(x)
            if len(skips) > self.half_res:
                x = torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], 1)
        for conv in self.final:
            x = conv(x)
        field: Tensor = self.flow(x)
        if not self.int_steps:
            flow, velocity, inverse = field, None, -field if self.bidir else None
        else:
            velocity = field
            if self.int_downsize > 1 and not self.half_res:
                velocity = resize(field, [side // self.int_downsize for side in moving.shape[2:]])
            flow = self._exponential(velocity, moving.shape[2:])
            inverse = self._exponential(-velocity, moving.shape[2:]) if self.bidir else None
        back = None if inverse is None else warp(fixed, inverse)
        return RegistrationOutput(warp(moving, flow), flow, velocity, inverse, back)

    def _exponential(self, velocity: Tensor, size: Sequence[int]) -> Tensor:
        flow = integrate(velocity, self.int_steps)
        return resize(flow, size) if self.int_downsize > 1 else flow

    @property
    def stages(self) -> list[nn.Module]:
        """The levels of the encoder, those of the decoder, and the last convolutions."""
        return [*self.down, *self.up, *self.final]

    @property
    def head(self) -> list[nn.Module]:
        """The layer that gives the flow or the velocity."""
        return [self.flow]

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]
    ) -> "VoxelMorph":
        """Build from the official arguments and parameter names.

        Args:
            config: arguments of the official ``VxmDense``; the widths, ``nb_unet_features``, may be
                left out. The size of the volumes has no effect.
            state_dict: its entries, or those of the strided network of the NestedMorph study, which
                integrates nothing.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        strided = any(".downarm." in name for name in state_dict)
        names = {name: name for name in ("int_steps", "int_downsize", "bidir")}
        names |= {"unet_half_res": "half_res", "nb_unet_features": "features"}
        names |= {"enc": "encoder", "dec": "decoder", "encoder": "encoder", "decoder": "decoder"}
        given = published.arguments("VoxelMorph", config, {}, names, _UNUSED)
        if features := given.pop("features", None):
            given["encoder"], given["decoder"] = features
        network = cls(**{**(_STRIDED if strided else {}), **given})
        rules = _STRIDED_RULES if strided else _RULES
        published.load(network, state_dict, rules, r"(^|\.)grid$")
        return network


_UNUSED = (*SIZES, "src_feats", "trg_feats", "use_probs", "stride", "strided")
_STRIDED: dict[str, Any] = {
    "encoder": (8, 32, 32, 32),
    "decoder": (32, 32, 32, 32, 32, 8, 8),
    "int_steps": 0,
    "int_downsize": 1,
    "strided": True,
}
_RULES = (
    (r"^down\.(\d+)\.0\.", r"unet_model.encoder.\1.0.main."),
    (r"^up\.(\d+)\.0\.", r"unet_model.decoder.\1.0.main."),
    (r"^final\.(\d+)\.0\.", r"unet_model.remaining.\1.main."),
)
_STRIDED_RULES = (
    (r"^down\.(\d+)\.0\.", r"unet_model.downarm.\1.main."),
    (r"^up\.(\d+)\.0\.", r"unet_model.uparm.\1.main."),
    (r"^final\.(\d+)\.0\.", r"unet_model.extras.\1.main."),
)


def voxelmorph_1() -> VoxelMorph:
    """Build the first published size (CVPR 2018), without an integration."""
    return VoxelMorph(decoder=(32, 32, 32, 32, 8, 8), int_steps=0, int_downsize=1)


def voxelmorph_nm() -> VoxelMorph:
    """Build the strided size that the NestedMorph study compares with."""
    return VoxelMorph(**_STRIDED)
