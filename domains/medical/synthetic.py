"""Pairs whose true deformation is known: smooth random warps that do not fold by construction.

The exponential of a velocity that is drawn at a few control points (Arsigny et al., MICCAI 2006).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.medical.warping import integrate

STEPS = 6


def random_velocity(
    size: Sequence[int], points: int, amplitude: float, generator: torch.Generator
) -> Tensor:
    """Draw a smooth velocity (1, 3, D, H, W).

    Args:
        size: D, H and W.
        points: normal numbers on each axis, corner onto corner; between them it is trilinear.
        amplitude: their standard deviation in voxels.
        generator: what they are drawn from; the same state gives the same field.
    """
    drawn = torch.randn(1, 3, points, points, points, generator=generator) * amplitude
    return F.interpolate(drawn, list(size), mode="trilinear", align_corners=True)


def random_flow(
    size: Sequence[int], points: int, amplitude: float, generator: torch.Generator
) -> Tensor:
    """Draw the flow (1, 3, D, H, W) of a :func:`random_velocity` v; that of -v is its inverse."""
    return integrate(random_velocity(size, points, amplitude, generator), STEPS)
