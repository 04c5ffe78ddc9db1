"""MIDIR: a U-Net that gives a velocity at the control points of a cubic B-spline.

Qiu et al., Learning Diffeomorphic and Modality-invariant Registration using B-splines, MIDL 2021.
Sizes: B pairs of D x H x W voxels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import published
from domains.medical.networks.parts import SIZES, RegistrationOutput, convolution, joined
from domains.medical.warping import integrate, spline_points, spline_upsample, warp

ENCODER = (16, 32, 32, 32, 32)
DECODER = (32, 32, 32, 32)

Sampling = Literal["corners", "official"]


class MIDIR(nn.Module):
    """Register volumes whose sides are multiples of 16.

    Args:
        spacing: voxels from one control point to the next, 2 to 8; one number or one an axis.
        resize_channels: of the convolutions at the control points; (32, 16) in the paper's code,
            (32, 32) in the NestedMorph study.
        int_steps: steps of the integration.
        sampling: ``corners`` samples voxels at their places. ``official`` does it as released, half
            a voxel off at the border, where a flow of zero shrinks the volume a little.

    Raises:
        ValueError: if a spacing lies outside of 2 to 8, or there is no such sampling.

    Example:
        >>> volumes = torch.zeros(1, 1, 32, 16, 32)
        >>> output = MIDIR()(volumes, volumes)
        >>> output.flow.shape, output.velocity.shape
        (torch.Size([1, 3, 32, 16, 32]), torch.Size([1, 3, 32, 16, 32]))
    """

    divisor = 16

    def __init__(
        self,
        spacing: int | Sequence[int] = 4,
        resize_channels: Sequence[int] = (32, 16),
        *,
        int_steps: int = 7,
        sampling: Sampling = "corners",
    ) -> None:
        super().__init__()
        i, j, k = (spacing,) * 3 if isinstance(spacing, int) else spacing
        if min(i, j, k) < 2 or max(i, j, k) > 8:
            raise ValueError(f"spacing={spacing} must lie from 2 to 8 voxels")
        if sampling not in ("corners", "official"):
            raise ValueError(f"sampling={sampling!r} must be corners or official")
        self.spacing = spacing
        self.resize_channels = tuple(resize_channels)
        self.int_steps = int_steps
        self.sampling = sampling
        self._steps = (i, j, k)
        pairs = zip((2, *ENCODER), ENCODER, strict=False)
        self.enc = nn.ModuleList(
            convolution(*pair, stride=2 if level else 1) for level, pair in enumerate(pairs)
        )
        levels = 4 - math.ceil(math.log2(min(i, j, k)))
        width, up = ENCODER[-1], []
        for outputs, skip in zip(DECODER[:levels], ENCODER[-2::-1], strict=False):
            up.append(convolution(width, outputs))
            width = outputs + skip
        self.dec = nn.ModuleList(up)
        resizing = []
        for outputs in resize_channels:
            resizing.append(convolution(width, outputs))
            width = outputs
        self.resize_conv = nn.ModuleList(resizing)
        self.out_layer = nn.Conv3d(width, 3, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights of convolutions as published, uniformly by He's rule."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_uniform_(module.weight, a=0 if module is self.out_layer else 0.2)

    def forward(self, moving: Tensor, fixed: Tensor) -> RegistrationOutput:
        """Register ``moving`` to ``fixed``, both (B, 1, D, H, W) in [0, 1]."""
        x = joined(moving, fixed, self.divisor)
        size, corners = moving.shape[2:], self.sampling == "corners"
        skips = []
        for conv in self.enc:
            x = conv(x)
            skips.append(x)
        skips.pop()
        for conv in self.dec:
            x = F.interpolate(conv(x), scale_factor=2.0)
            x = torch.cat([x, skips.pop()], 1)
        points = spline_points(size, self._steps)
        x = F.interpolate(x, points, mode="trilinear", align_corners=False)
        for conv in self.resize_conv:
            x = conv(x)
        velocity = spline_upsample(self.out_layer(x), self._steps, size)
        flow = integrate(velocity, self.int_steps, corners=corners)
        return RegistrationOutput(warp(moving, flow, corners=corners), flow, velocity)

    @property
    def stages(self) -> list[nn.Module]:
        """The levels of the encoder, those of the decoder, and what follows at control points."""
        return [*self.enc, *self.dec, *self.resize_conv]

    @property
    def head(self) -> list[nn.Module]:
        """The layer that gives the velocity."""
        return [self.out_layer]

    @classmethod
    def from_published(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> "MIDIR":
        """Build from the official arguments and parameter names.

        Args:
            config: ``cps``, 3 if left out, as in the NestedMorph study; ``resize_channels``,
                ``svf_steps`` and ``sampling``, ``official`` if left out.
            state_dict: the official entries.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        given = published.arguments("MIDIR", config, {}, _NAMES, (*SIZES, "ndim"))
        defaults: dict[str, Any] = {"spacing": 3, "resize_channels": (32, 32)}
        network = cls(**{**defaults, "sampling": "official", **given})
        published.load(network, state_dict, ())
        return network


_NAMES = {
    "cps": "spacing",
    "spacing": "spacing",
    "resize_channels": "resize_channels",
    "svf_steps": "int_steps",
    "int_steps": "int_steps",
    "sampling": "sampling",
}
