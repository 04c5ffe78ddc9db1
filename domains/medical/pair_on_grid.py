"""A pair of volumes on the grid of a network, and the network's answer as fields in the world."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from domains.medical.fields import (
    Field,
    Matrix,
    composed,
    field_of,
    flow_of,
    inverse_residual,
    inverted,
    resample,
)
from domains.medical.pairs import PairBatch, padded
from domains.medical.refine import flow_from, refined
from domains.medical.scans import Grid, Normalise, cubic, grid_of, normalised, smoothed
from domains.medical.volumes import Volume


class Answer(NamedTuple):
    """What a network found.

    ``forward`` and ``backward`` are fields on its grid, without the linear stage; ``notes`` say how
    they were found.
    """

    forward: Field
    backward: Field
    notes: list[str]


class PairOnGrid:
    """A pair on the grid of the network, moving after the linear stage.

    Args:
        moving: the volume to be moved.
        fixed: the volume that stays.
        mask: on the grid of fixed; where it is above 0, losses and scores count.
        matrix: (4, 4), the linear stage.
        spacing: side of the cubic voxels in mm; None takes cubes of the size of fixed's.
        divisor: of the sides, which are filled up with zeros at their ends.
        normalise: of the intensities, to [0, 1].
    """

    def __init__(
        self,
        moving: Volume,
        fixed: Volume,
        mask: Volume | None,
        matrix: Matrix,
        *,
        spacing: float | None = None,
        divisor: int = 1,
        normalise: Normalise = "minmax",
    ) -> None:
        self.grid = cubic(grid_on(fixed), spacing)
        self.shape = padded(self.grid.shape, divisor)
        self.normalise: Normalise = normalise
        self.moving = self._brought(moving, np.linalg.inv(matrix))
        self.fixed = self._brought(fixed, np.eye(4))
        inside = np.ones(fixed.data.shape, bool) if mask is None else mask.data > 0
        values = torch.from_numpy(inside.astype(np.float32))[None]
        there = resample(values, fixed.affine, self.grid, mode="nearest")
        self.mask = self._filled(there) > 0

    def told(self, fixed: Volume) -> list[str]:
        """Say where the grid differs from that of fixed."""
        if self.grid.shape == fixed.data.shape:
            return []
        sides = " x ".join(map(str, self.grid.shape))
        return [f"registered at {self.grid.spacing[0]:.3g} mm, {sides} voxels"]

    def batch(self) -> PairBatch:
        """Give the pair as a batch without labels."""
        none = torch.zeros(1, *self.shape, dtype=torch.int64)
        sizes = torch.tensor([list(self.grid.shape)])
        spacing = torch.from_numpy(self.grid.spacing).float()[None]
        rows = torch.zeros(1, dtype=torch.int64)
        return PairBatch(
            *(self.moving, self.fixed, none, none, self.mask, sizes, spacing, rows), ["pair"]
        )

    def answer(self, network: nn.Module, steps: int = 0) -> Answer:
        """Register the pair, and refine the field in so many steps."""
        device = next((each.device for each in network.parameters()), torch.device("cpu"))
        moving, fixed = self.moving.to(device), self.fixed.to(device)
        with torch.inference_mode():
            found = network(moving, fixed)
        official = getattr(network, "sampling", "corners") == "official"
        integrated = found.velocity is not None and not official
        squarings = int(getattr(network, "int_steps", 0)) if integrated else 0
        start = found.velocity if squarings else _true(found.flow, official)
        start = start.float().clone()
        notes = []
        if steps:
            mask = self.mask.to(device)
            start, told = refined(moving, fixed, start, steps, squarings=squarings, mask=mask)
            notes.append(told)
        with torch.inference_mode():
            forward = self._field(flow_from(start, fixed.shape[2:], squarings))
            if squarings:
                backward = self._field(flow_from(-start, fixed.shape[2:], squarings))
                residual, how = inverse_residual(forward, backward), "exp(-v)"
            else:
                (backward, residual), how = inverted(forward), "fixed point"
        notes.append(f"inverse by {how}, off by at most {residual:.3f} voxels")
        return Answer(forward, backward, notes)

    def padded_flow(self, field: Field) -> Tensor:
        """Give a field on the grid as displacements (1, 3, D, H, W), as batches have them."""
        return self._filled(flow_of(field))

    def _brought(self, volume: Volume, into: Matrix) -> Tensor:
        grid = grid_of(into @ volume.affine, volume.data.shape)
        small = smoothed(normalised(volume.data, self.normalise), grid, self.grid)
        values = torch.from_numpy(np.ascontiguousarray(small, np.float32))[None]
        return self._filled(resample(values, grid.matrix, self.grid).clamp(0, 1))

    def _filled(self, values: Tensor) -> Tensor:
        i, j, k = self.grid.shape
        filled = values.new_zeros(1, len(values), *self.shape)
        filled[0, :, :i, :j, :k] = values
        return filled

    def _field(self, flow: Tensor) -> Field:
        i, j, k = self.grid.shape
        return field_of(flow[0, :, :i, :j, :k].float().cpu(), self.grid)


def grid_on(volume: Volume) -> Grid:
    """Give the grid of a volume."""
    return grid_of(volume.affine, volume.data.shape)


def both_ways(answer: Answer, moving: Volume, fixed: Volume, matrix: Matrix) -> tuple[Field, Field]:
    """Join an answer and the linear stage: on the grid of fixed, and back on that of moving."""
    back = np.linalg.inv(matrix)
    return (
        composed(answer.forward, grid_on(fixed), after=matrix),
        composed(answer.backward, grid_on(moving), before=back),
    )


def _true(flow: Tensor, official: bool) -> Tensor:
    """Give the displacements that a network's sampling really does, see ``MIDIR.sampling``."""
    if not official:
        return flow
    axes = [torch.arange(side, device=flow.device) / (side - 1) - 0.5 for side in flow.shape[2:]]
    return flow + torch.stack(torch.meshgrid(*axes, indexing="ij"))
