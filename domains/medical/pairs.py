"""Pairs of volumes: one moves, onto the grid of the other, which is fixed; in batches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PairBatch(NamedTuple):
    """B pairs on the grids of their fixed volumes, filled up with zeros at the ends of the axes.

    ``moving`` and ``fixed`` (B, 1, D, H, W) float32 in [0, 1]; ``moving_labels`` and
    ``fixed_labels`` (B, D, H, W) int64, all 0 where there are none; ``mask`` (B, 1, D, H, W) bool,
    where losses and metrics count, never in what was filled up; ``sizes`` (B, 3) the true sizes;
    ``spacing`` (B, 3) of the voxels, in mm; ``rows`` (B,) the places in the split; ``ids`` the
    names of the pairs.
    """

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor
    fixed_labels: Tensor
    mask: Tensor
    sizes: Tensor
    spacing: Tensor
    rows: Tensor
    ids: list[str]


class Pair(NamedTuple):
    """One pair (D, H, W), as ``PairBatch`` has it; ``spacing`` (3,) in mm."""

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor
    fixed_labels: Tensor
    mask: Tensor
    spacing: Tensor
    row: int
    id: str


class Collate:
    """Put pairs into a batch whose sides are multiples of ``divisor``, which a network needs."""

    def __init__(self, divisor: int = 1) -> None:
        self.divisor = divisor

    def __call__(self, pairs: Sequence[Pair]) -> PairBatch:
        """Fill up to the largest sides, and these to the next multiples."""
        sizes = torch.tensor([list(pair.fixed.shape) for pair in pairs])
        shape = padded(sizes.amax(0).tolist(), self.divisor)

        def filled(parts: Sequence[Tensor]) -> Tensor:
            batch = parts[0].new_zeros(len(parts), *shape)
            for at, part in enumerate(parts):
                d, h, w = part.shape
                batch[at, :d, :h, :w] = part
            return batch

        return PairBatch(
            filled([pair.moving for pair in pairs])[:, None],
            filled([pair.fixed for pair in pairs])[:, None],
            filled([pair.moving_labels for pair in pairs]),
            filled([pair.fixed_labels for pair in pairs]),
            filled([pair.mask for pair in pairs])[:, None],
            sizes,
            torch.stack([pair.spacing for pair in pairs]),
            torch.tensor([pair.row for pair in pairs]),
            [pair.id for pair in pairs],
        )


def padded(size: Sequence[int], divisor: int) -> list[int]:
    """Give the next multiples of ``divisor``."""
    return [-(-side // divisor) * divisor for side in size]
