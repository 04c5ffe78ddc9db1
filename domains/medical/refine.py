"""Instance optimisation: a pair's own field, from the network's answer on."""

import torch
from torch import Tensor

from core.progress import bar
from domains.medical.deformation import folding_share
from domains.medical.losses import diffusion, local_ncc
from domains.medical.warping import integrate, resize, warp

RATE = 0.1
"""Voxels of a step of the optimiser, about."""


def refined(
    moving: Tensor,
    fixed: Tensor,
    start: Tensor,
    steps: int,
    *,
    squarings: int = 0,
    mask: Tensor | None = None,
    smoothness: float = 1.0,
) -> tuple[Tensor, str]:
    """Lower the local correlation's loss of one pair, with diffusion, by Adam; keep the best.

    Instance-specific optimisation: Balakrishnan et al., VoxelMorph, IEEE TMI 2019.

    Args:
        moving: (1, 1, D, H, W) in [0, 1].
        fixed: of that shape.
        start: displacements (1, 3, D, H, W), or a velocity (1, 3, d, h, w) on its own grid.
        steps: of the optimiser.
        squarings: steps of the velocity's integration; 0 for displacements.
        mask: where it counts, of the shape of ``fixed``.
        smoothness: weight of the diffusion.

    Returns:
        displacements or velocity as ``start``, and what became better, in words.
    """
    parameter = start.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([parameter], lr=RATE)
    size = fixed.shape[2:]
    best, least, first = start.detach(), float("inf"), float("nan")
    folded = 0.0
    with bar("refine", steps) as advance:
        for step in range(steps + 1):
            flow = flow_from(parameter, size, squarings)
            alike = local_ncc(warp(moving, flow), fixed, mask=mask)
            loss = alike + smoothness * diffusion(parameter)
            if step == 0:
                first = alike.item()
            if loss.item() < least:
                best, least, last = parameter.detach().clone(), loss.item(), alike.item()
                folded = folding_share(flow.detach()).item()
            if step == steps:
                break
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            advance(1)
    told = f"refined in {steps} steps: local correlation {-first:.3f} to {-last:.3f}"
    return best, told + f", {100 * folded:.2f} % folded"


def flow_from(field: Tensor, size: torch.Size, squarings: int) -> Tensor:
    """Give the displacements of a velocity on any grid, or the displacements themselves."""
    if not squarings:
        return field
    flow = integrate(field, squarings)
    return flow if flow.shape[2:] == size else resize(flow, size)
