"""Batches with as many flows of each class, drawn anew (Manocchio et al., 2024)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.batch_plan import Plan, mix_seed


class BalancedPlan(Plan):
    """Batches of equal shares of every class; half and half of two.

    A batch holds no item twice, unless its class has fewer items than its share. What cannot be
    divided goes to one class after the other.

    Args:
        groups: the items of each of K classes.
        batch_size: items in a global batch.
        steps: batches in an epoch.

    Raises:
        ValueError: if a class has no item, a batch not one of each class, or an epoch no batch.
    """

    def __init__(self, groups: Sequence[NDArray[np.int64]], batch_size: int, steps: int) -> None:
        if batch_size < len(groups):
            raise ValueError(
                f"batch_size={batch_size} must be at least the number of classes, {len(groups)}"
            )
        if steps < 1:
            raise ValueError(f"steps_per_epoch={steps} must be at least 1")
        if not all(len(group) for group in groups):
            raise ValueError("every class needs an item")
        self.groups = tuple(groups)
        self.batch_size = batch_size
        self.steps = steps

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        return self.steps

    def settings(self) -> dict[str, Any]:
        """Give the size of a batch, the steps, and the items of each class."""
        counts = [len(group) for group in self.groups]
        return {
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps,
            "items_per_class": counts,
        }

    def check(self, world_size: int) -> None:
        """Make sure that a batch can be shared evenly."""
        if self.batch_size % world_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible among {world_size} processes"
            )

    def global_batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the batches of all processes together, from batch ``start`` on."""
        share, rest = divmod(self.batch_size, len(self.groups))
        for number in range(start, self.steps):
            generator = np.random.default_rng(mix_seed(seed, epoch, number))
            drawn = []
            for place, group in enumerate(self.groups):
                extra = (place - number * rest) % len(self.groups) < rest
                count = share + extra
                chosen = generator.choice(len(group), count, replace=len(group) < count)
                drawn.append(group[chosen])
            yield generator.permutation(np.concatenate(drawn)).tolist()
