"""Draw items with rare classes more often: repeat-factor sampling (Gupta et al., LVIS, 2019)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.batch_plan import BatchPlan, mix_seed


def repeats(counts: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """Say how often each item is drawn, as (N,) of mean 1, from its pixels of each class (N, K).

    A class that f of the items have draws them by sqrt(share / f), where that is more than once;
    an item follows its rarest class.

    Example:
        >>> repeats(np.array([[9, 0], [9, 0], [9, 0], [9, 1]]), 1.0)
        array([0.8, 0.8, 0.8, 1.6])
    """
    present = counts > 0  # (N, K)
    found = present.mean(0)
    of_class = np.sqrt(np.maximum(1, share / np.maximum(found, 1e-12)))
    own = np.where(present, of_class, 1.0).max(1)
    weights: NDArray[np.float64] = own / own.mean()
    return weights


class RarePlan(BatchPlan):
    """Batches of one size, whose items are drawn by weight; as many draws as there are items.

    An item drawn for the second time in an epoch has an index beyond the last, so that it is
    changed in another way.

    Args:
        weights: how often each of the N items is drawn, on average.
        batch_size: items in a global batch.
    """

    def __init__(self, weights: NDArray[np.float64], batch_size: int) -> None:
        super().__init__(len(weights), batch_size)
        self.weights = weights

    def settings(self) -> dict[str, Any]:
        """Give what the batches depend on."""
        return {**super().settings(), "weights": float(np.dot(self.weights, self.weights))}

    def global_batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the batches of all processes together, from batch ``start`` on."""
        generator = np.random.default_rng(mix_seed(seed, epoch))
        places = (np.arange(self.length) + generator.random()) / self.length  # evenly spread
        ends = np.cumsum(self.weights) / self.weights.sum()
        drawn = np.searchsorted(ends, places, side="right").clip(max=self.length - 1)
        first = np.searchsorted(drawn, drawn)  # of its equals, as they are in order
        again = np.arange(self.length) - first
        order = torch.from_numpy(generator.permutation(drawn + self.length * again))
        for number in range(start, len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size].tolist()
