"""How a flow deforms the space: the determinant of its Jacobian, and what is told of it.

Sizes: B flows (B, 3, D, H, W) of displacements in voxels.
"""

from typing import Literal

import torch
from torch import Tensor


def jacobian_determinant(flow: Tensor) -> Tensor:
    """Give det(I + du/dx) at every voxel (B, D, H, W), in float32 or better.

    Differences are central, and one-sided at the border, as numpy's ``gradient`` has them: 1 where
    nothing changes its volume, 0 or less where space folds.
    """
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    gradients = torch.stack(torch.gradient(flow, dim=(2, 3, 4)), 2)  # (B, 3, 3, D, H, W)
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(1) for row in gradients.unbind(1))
    a, e, i = a + 1, e + 1, i + 1
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def folding_share(flow: Tensor) -> Tensor:
    """Give the share (B,) of voxels where space folds: det <= 0."""
    return (jacobian_determinant(flow) <= 0).flatten(1).double().mean(1)


def sd_log_jacobian(
    flow: Tensor, definition: Literal["learn2reg", "plain"] = "learn2reg"
) -> Tensor:
    """Give the standard deviation (B,) of the logarithm of the determinant.

    The two definitions differ about fourfold: a figure must name its own. Two voxels on each side
    are left out in both, and the deviation is that of a population.

    Args:
        flow: (B, 3, D, H, W), sides of at least 5.
        definition: ``learn2reg`` takes log(clip(det + 3, 1e-9, 1e9)), as the challenge (Hering et
            al., IEEE TMI 2022) and the papers that follow it do, so that folds stay finite;
            ``plain`` takes log(max(det, 1e-9)).
    """
    determinant = jacobian_determinant(flow)[:, 2:-2, 2:-2, 2:-2].double()
    if definition == "learn2reg":
        determinant = (determinant + 3).clamp_max(1e9)
    return determinant.clamp_min(1e-9).log().flatten(1).std(1, correction=0)
