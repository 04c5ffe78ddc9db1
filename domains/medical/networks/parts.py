"""What networks of registration share: what they return, and their first and last layers."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

SIZES = ("inshape", "img_size", "shape", "size", "params")
"""What published configurations say of the volumes; no weight depends on it, but for ViT-V-Net."""


class RegistrationOutput(NamedTuple):
    """A registration of B moving volumes to fixed ones of D x H x W voxels.

    ``warped`` (B, 1, D, H, W) is moving at the places of fixed, ``flow`` (B, 3, D, H, W) its
    displacements in voxels. Where a flow is integrated, ``velocity`` is what it is integrated from,
    on the grid and in the voxels of the network. A network that works in both directions also gives
    ``inverse_flow`` and ``warped_fixed``, fixed at the places of moving.
    """

    warped: Tensor
    flow: Tensor
    velocity: Tensor | None = None
    inverse_flow: Tensor | None = None
    warped_fixed: Tensor | None = None


def joined(moving: Tensor, fixed: Tensor, divisor: int) -> Tensor:
    """Join two volumes (B, 1, D, H, W) to (B, 2, D, H, W).

    Raises:
        ValueError: if they differ in shape, or a side is no multiple of ``divisor``.
    """
    if moving.shape != fixed.shape or moving.dim() != 5 or moving.shape[1] != 1:
        shapes = f"{tuple(moving.shape)} and {tuple(fixed.shape)}"
        raise ValueError(f"moving and fixed must both be (B, 1, D, H, W), not {shapes}")
    if any(side % divisor for side in moving.shape[2:]):
        sides = " x ".join(map(str, moving.shape[2:]))
        raise ValueError(f"sides of {sides} voxels must be multiples of {divisor}: pad them")
    return torch.cat([moving, fixed], 1)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Build a convolution of 3 x 3 x 3 with a leaky ReLU of slope 0.2."""
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.2))


def flow_layer(inputs: int) -> nn.Conv3d:
    """Build the convolution that gives a flow, which is almost zero at first."""
    layer = nn.Conv3d(inputs, 3, 3, padding=1)
    nn.init.normal_(layer.weight, std=1e-5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
