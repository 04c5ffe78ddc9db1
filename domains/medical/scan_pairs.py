"""Which scans are paired, and the pairs read on one grid."""

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from torch.utils.data import Dataset

from domains.medical.pairs import Pair
from domains.medical.scans import Grid, Normalise, Scan, placed


class EveryPair(Sequence[tuple[int, int]]):
    """Every ordered pair of two different ones of ``scans``, without a list of them."""

    def __init__(self, scans: Sequence[int]) -> None:
        self.scans = scans

    def __len__(self) -> int:
        """Count n (n - 1)."""
        return len(self.scans) * (len(self.scans) - 1)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[int, int]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, int] | Sequence[tuple[int, int]]:
        """Give the pair of a number: moving, fixed."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        moving, step = divmod(index, len(self.scans) - 1)
        return self.scans[moving], self.scans[(moving + 1 + step) % len(self.scans)]


def in_a_ring(scans: Sequence[int]) -> list[tuple[int, int]]:
    """Pair each scan, as moving, with the next one, and the last with the first."""
    return [(own, scans[(at + 1) % len(scans)]) for at, own in enumerate(scans)]


class ScanPairs(Dataset[Pair]):
    """Pairs of scans on grids of one shape, such as that of their middles.

    Args:
        scans: all of them.
        pairs: numbers of moving and fixed.
        grids: of each scan.
        normalise: see :func:`domains.medical.scans.placed`.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        pairs: Sequence[tuple[int, int]],
        grids: Sequence[Grid],
        *,
        normalise: Normalise = "minmax",
    ) -> None:
        self.scans = scans
        self.pairs = pairs
        self.grids = grids
        self.normalise = normalise

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.pairs)

    def there(self, moving: int, fixed: int) -> Grid:
        """Give the grid that moving is brought to."""
        return self.grids[moving]

    def __getitem__(self, index: int) -> Pair:
        """Read a pair."""
        row = int(index)
        moving, fixed = self.pairs[row]
        grid = self.grids[fixed]
        still = placed(self.scans[fixed], grid, self.normalise)
        moved = placed(self.scans[moving], self.there(moving, fixed), self.normalise)
        return Pair(
            torch.from_numpy(moved["image"]),
            torch.from_numpy(still["image"]),
            torch.from_numpy(moved["labels"].astype(np.int64)),
            torch.from_numpy(still["labels"].astype(np.int64)),
            torch.from_numpy(still["mask"]),
            torch.from_numpy(grid.spacing).float(),
            row,
            f"{self.scans[moving].id} to {self.scans[fixed].id}",
        )
