"""Losses of registration: what makes volumes alike, and what keeps a flow smooth.

Sizes: B volumes of D x H x W voxels. The mean squared error is torch's.
"""

from itertools import combinations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def local_correlation(x: Tensor, y: Tensor, window: int = 9) -> Tensor:
    """Give the squared local correlation of two volumes around every voxel.

    With sums over a cube of n = window^3 voxels, which are zero outside of the volume:
    c = sum xy - sum x sum y / n, v = sum x^2 - (sum x)^2 / n, and c^2 / (v_x v_y + 1e-5)
    (Avants et al., Medical Image Analysis 2008; Balakrishnan et al., IEEE TMI 2019). Where a volume
    is constant it is 0. MONAI's loss of that name raises each v to 1e-5 instead.

    Differences of large sums lose digits. So sums are taken in float32 or better, by additions
    alone (no product that a GPU may round to TF32), of intensities less their mean; that changes
    nothing inside, and is undone where the cube leaves the volume. A v below zero is rounding and
    counts as zero.

    Args:
        x: (B, 1, D, H, W).
        y: of the same shape.
        window: odd side of the cube.

    Returns:
        (B, 1, D, H, W), from 0 to 1.

    Raises:
        ValueError: if the window is even or the shapes differ.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window={window} must be odd")
    if x.shape != y.shape:
        raise ValueError(f"volumes of {tuple(x.shape)} and {tuple(y.shape)} have no correlation")
    kind = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    n = window**3
    with torch.no_grad():
        inside = box_sum(torch.ones_like(x[:1, :1], dtype=kind), window)
        outside = 1 - inside / n
        a, b = (part.to(kind).mean((1, 2, 3, 4), keepdim=True) for part in (x, y))
    x, y = x.to(kind) - a, y.to(kind) - b
    sx, sy, sxy, sxx, syy = box_sum(torch.stack([x, y, x * y, x * x, y * y]), window).unbind()
    c = sxy - sx * sy / n + outside * (a * sy + b * sx + a * b * inside)
    vx = sxx - sx * sx / n + outside * (2 * a * sx + a * a * inside)
    vy = syy - sy * sy / n + outside * (2 * b * sy + b * b * inside)
    return c * c / (vx.clamp_min(0) * vy.clamp_min(0) + 1e-5)


def local_ncc(x: Tensor, y: Tensor, window: int = 9, mask: Tensor | None = None) -> Tensor:
    """Give the loss -mean(:func:`local_correlation`), from -1 to 0.

    Args:
        x: (B, 1, D, H, W).
        y: of the same shape.
        window: odd side of the cube.
        mask: weights of that shape; None counts every voxel.
    """
    correlation = local_correlation(x, y, window)
    if mask is None:
        return -correlation.mean()
    return -(correlation * mask).sum() / mask.sum().clamp_min(1)


class _BoxSum(torch.autograd.Function):
    """The filter is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: int) -> Tensor:
        ctx.window = window
        for axis in (-3, -2, -1):
            x = _run_sum(x, axis, window)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return box_sum(grad, ctx.window), None


def box_sum(x: Tensor, window: int) -> Tensor:
    """Sum over the cube of an odd side around every voxel of ``x`` (..., D, H, W); zero outside.

    Equal to a convolution with window^3 ones, axis by axis, in about 2 log2(window) additions each.
    """
    total: Tensor = _BoxSum.apply(x, window)  # type: ignore[no-untyped-call]
    return total


def _run_sum(x: Tensor, axis: int, window: int) -> Tensor:
    """Sum runs of a length along one axis; runs of 1, 2, 4, ... make up its binary digits."""
    size, padding = x.shape[axis], [0] * 6
    padding[-2 * axis - 2] = padding[-2 * axis - 1] = window // 2
    run = F.pad(x, padding)
    total, start, length = None, 0, 1
    while True:
        if window & length:
            part = run.narrow(axis, start, size)
            total = part if total is None else total + part
            start += length
        if 2 * length > window:
            assert total is not None
            return total
        rest = run.shape[axis] - length
        run = run.narrow(axis, 0, rest) + run.narrow(axis, length, rest)
        length *= 2


def diffusion(flow: Tensor, penalty: Literal["l1", "l2"] = "l2") -> Tensor:
    """Penalise forward differences: their mean square (or size) on each axis, over three.

    Mean over axes a of mean |u(x + e_a) - u(x)|^p with p = 2 (or 1), in voxels, without a factor
    1/2 and without the border (Balakrishnan et al., IEEE TMI 2019). MONAI's DiffusionLoss takes
    central differences.

    Args:
        flow: displacements or velocities (B, 3, D, H, W).
        penalty: ``l2`` or ``l1``.
    """
    steps = [torch.diff(flow, dim=axis) for axis in (2, 3, 4)]
    each = [step.square() if penalty == "l2" else step.abs() for step in steps]
    return torch.stack([part.mean() for part in each]).mean()


def bending_energy(flow: Tensor) -> Tensor:
    """Penalise second differences: the mean of sum_a u_aa^2 + 2 sum_(a < b) u_ab^2.

    Rueckert et al., IEEE TMI 1999; u_aa = u(x + e_a) - 2 u(x) + u(x - e_a), u_ab central over 2 x 2
    voxels, inner voxels alone. Equal to MONAI's BendingEnergyLoss.

    Args:
        flow: displacements or velocities (B, 3, D, H, W), sides of at least 3.
    """
    energy = flow.new_zeros(())
    for axis in (2, 3, 4):
        others = [other for other in (2, 3, 4) if other != axis]
        energy = energy + _inner(torch.diff(flow, 2, dim=axis), others).square()
    for axis, other in combinations((2, 3, 4), 2):
        (rest,) = {2, 3, 4} - {axis, other}
        mixed = _inner(_central(_central(flow, axis), other), [rest])
        energy = energy + 2 * mixed.square()
    return energy.mean()


def _central(x: Tensor, axis: int) -> Tensor:
    size = x.shape[axis] - 2
    return (x.narrow(axis, 2, size) - x.narrow(axis, 0, size)) / 2


def _inner(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = x.narrow(axis, 1, x.shape[axis] - 2)
    return x
