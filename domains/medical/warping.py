"""Displacements and velocities on a grid of voxels: warp, integrate, resize, and upsample them.

A flow (B, 3, D, H, W) holds displacements in voxels, in the order of the axes i, j, k: the warped
volume at x is the volume at x + flow(x).
Sizes: B volumes of D x H x W voxels, C channels.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["bilinear", "nearest"]


def warp(volume: Tensor, flow: Tensor, mode: Mode = "bilinear", *, corners: bool = True) -> Tensor:
    """Sample a volume at displaced places: w(x) = v(x + u(x)), zero outside of the volume.

    Place x on an axis of S voxels is sampled at 2 (x + u) / (S - 1) - 1 (spatial transformer:
    Jaderberg et al., NeurIPS 2015). Places are computed in float32 or better, whatever the
    precision of the flow.

    Args:
        volume: (B, C, D, H, W).
        flow: (B, 3, D, H, W), in voxels.
        mode: ``bilinear`` is linear along the three axes; ``nearest`` is for labels.
        corners: as above; False samples at 2 x / (S - 1) - 1 + 2 u / S on a grid whose ends are
            outer faces of voxels, as MIDIR was released, where a flow of zero is no identity.

    Returns:
        (B, C, D, H, W), in float32 or better.

    Raises:
        ValueError: if the two have different sizes.
    """
    if volume.shape[2:] != flow.shape[2:]:
        sizes = f"{tuple(volume.shape[2:])} and {tuple(flow.shape[2:])}"
        raise ValueError(f"a volume and its flow must have one size, not {sizes} voxels")
    kind = torch.promote_types(torch.promote_types(volume.dtype, flow.dtype), torch.float32)
    volume, flow = volume.to(kind), flow.to(kind)
    places = []
    for axis in (2, 1, 0):  # grid_sample counts axes from the last
        size = flow.shape[2 + axis]
        start = torch.linspace(-1, 1, size, dtype=kind, device=flow.device)
        start = start.view(-1, *[1] * (2 - axis))
        places.append(start + flow[:, axis] * (2 / (max(size - 1, 1) if corners else size)))
    grid = torch.stack(places, -1)  # (B, D, H, W, 3)
    warped: Tensor = F.grid_sample(volume, grid, mode, "zeros", align_corners=corners)
    return warped


def integrate(velocity: Tensor, steps: int, *, corners: bool = True) -> Tensor:
    """Give the flow exp(v) of a stationary velocity by scaling and squaring.

    u_0 = v / 2^n, then n times u = u + u(x + u) (Arsigny et al., MICCAI 2006). exp(-v) is its
    inverse, and 0 steps give the velocity itself.

    Args:
        velocity: (B, 3, D, H, W), in voxels.
        steps: n.
        corners: see :func:`warp`.
    """
    flow: Tensor = velocity / 2**steps
    for _ in range(steps):
        flow = flow + warp(flow, flow, corners=corners)
    return flow


def resize(flow: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a flow or velocity to another grid, corner onto corner, in voxels of that grid.

    Args:
        flow: (B, 3, D, H, W).
        size: the new D, H and W.
    """
    ratios = [new / old for new, old in zip(size, flow.shape[2:], strict=True)]
    scaled = flow * flow.new_tensor(ratios).view(3, 1, 1, 1)
    return F.interpolate(scaled, list(size), mode="trilinear", align_corners=True)


def spline_points(size: Sequence[int], spacing: Sequence[int]) -> list[int]:
    """Count the control points of a grid: ceil((S - 1) / spacing) + 3 on an axis of S voxels."""
    return [-(-(side - 1) // step) + 3 for side, step in zip(size, spacing, strict=True)]


def spline_kernel(spacing: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Sample the cubic B-spline at 4 s - 1 voxels around a control point, s voxels to the next.

    B(t) = 2/3 + (t/2 - 1) t^2 for t < 1, and (2 - t)^3 / 6 for t < 2.
    """
    ends = 2 - 1 / spacing
    t = torch.linspace(-ends, ends, 4 * spacing - 1, dtype=torch.float64).abs()
    kernel = torch.where(t < 1, 2 / 3 + (t / 2 - 1) * t.square(), (2 - t).pow(3) / 6)
    return kernel.to(device, dtype)


def spline_upsample(points: Tensor, spacing: Sequence[int], size: Sequence[int]) -> Tensor:
    """Evaluate a cubic B-spline at every voxel: a transposed convolution along each axis.

    Rueckert et al., Nonrigid registration using free-form deformations, IEEE TMI 1999; as
    convolutions in Qiu et al., MIDL 2021.

    Args:
        points: values at control points (B, C, ...), as many as :func:`spline_points` says.
        spacing: voxels from one point to the next, on each axis.
        size: D, H and W.

    Returns:
        (B, C, D, H, W).
    """
    dense = points.flatten(0, 1)[:, None]  # (B C, 1, ...): every channel by the same kernel
    for axis, (step, side) in enumerate(zip(spacing, size, strict=True)):
        stride, padding, shape = [1, 1, 1], [0, 0, 0], [1, 1, 1, 1, 1]
        stride[axis], padding[axis], shape[2 + axis] = step, 2 * step - 1, -1
        kernel = spline_kernel(step, points.dtype, points.device).view(shape)
        dense = F.conv_transpose3d(dense, kernel, stride=stride, padding=padding)
        dense = dense.narrow(2 + axis, step, side)
    return dense.view(*points.shape[:2], *size)
