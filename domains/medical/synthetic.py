"""Pairs whose true overlap is known: a volume and itself, warped smoothly at random.

A warp is the exponential of a velocity that is drawn at a few control points (Arsigny et al.,
MICCAI 2006), so it does not fold.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from domains.medical.pairs import Pair
from domains.medical.warping import integrate, warp

HELD_OUT = {"val": 124, "test": 123}
"""Seeds of the warps that training never sees."""
STEPS = 6
"""Squarings of the exponential."""


def random_velocity(
    size: Sequence[int], points: int, amplitude: float, generator: torch.Generator
) -> Tensor:
    """Draw a smooth velocity (1, 3, D, H, W), in voxels.

    Args:
        size: D, H and W.
        points: control points along an axis, from border to border; linear between them.
        amplitude: their standard deviation, in voxels.
        generator: what is drawn from.
    """
    control = amplitude * torch.randn(1, 3, *[points] * 3, generator=generator)
    return F.interpolate(control, list(size), mode="trilinear", align_corners=True)


def random_flow(
    size: Sequence[int], points: int, amplitude: float, generator: torch.Generator
) -> Tensor:
    """Draw the flow (1, 3, D, H, W) of a :func:`random_velocity` v; that of -v is its inverse."""
    return integrate(random_velocity(size, points, amplitude, generator), STEPS)


class WarpedPairs(Dataset[Pair]):
    """A volume as fixed, and as moving the same volume warped by exp of a random velocity.

    Args:
        fixed: (D, H, W) in [0, 1].
        labels: (D, H, W) int64.
        spacing: (3,) in mm.
        count: pairs.
        points: see :func:`random_velocity`.
        amplitude: see :func:`random_velocity`.
        seed: draws the warps once, one after the other; None draws each by its index's own seed.
    """

    def __init__(
        self,
        fixed: Tensor,
        labels: Tensor,
        spacing: Tensor,
        count: int,
        *,
        points: int,
        amplitude: float,
        seed: int | None,
    ) -> None:
        self.fixed = fixed
        self.labels = labels
        self.spacing = spacing
        self.count = count
        self.points = points
        self.amplitude = amplitude
        self.flows: list[Tensor] = []
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            self.flows = [self._draw(generator) for _ in range(count)]

    def __len__(self) -> int:
        """Count the pairs of an epoch."""
        return self.count

    def __getitem__(self, index: int) -> Pair:
        """Warp the volume."""
        row = int(index)
        if self.flows:
            flow = self.flows[row]
        else:
            flow = self._draw(torch.Generator().manual_seed(getattr(index, "seed", row)))
        moving = warp(self.fixed[None, None], flow)[0, 0]
        labels = warp(self.labels[None, None].float(), flow, "nearest")[0, 0].round().long()
        mask = torch.ones_like(self.fixed, dtype=torch.bool)
        return Pair(
            *(moving, self.fixed, labels, self.labels, mask, self.spacing, row, f"warp {row}")
        )

    def _draw(self, generator: torch.Generator) -> Tensor:
        return random_flow(self.fixed.shape, self.points, self.amplitude, generator)
