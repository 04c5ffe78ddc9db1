"""What stands beside a segmentation: the most frequent class, everywhere or at each place."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.vision.class_file import VOID

GRID = (45, 60)
"""Rows and columns of places."""


class MajorityClass:
    """Give every pixel the most frequent class of training.

    Args:
        pixels: of each class in training (K,).
    """

    def __init__(self, pixels: Tensor) -> None:
        self.label = int(pixels.argmax())

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Predict labels (B, H, W)."""
        return torch.full_like(batch.labels, self.label), batch.labels


class PlacePrior:
    """Give every pixel the most frequent class at its place in the photos of training.

    Args:
        masks: labels (H, W) of training, one after the other.
        classes: K.
    """

    def __init__(self, masks: Iterable[Tensor], classes: int) -> None:
        counts = torch.zeros(classes, *GRID)
        for labels in masks:
            small = F.interpolate(labels[None, None].float(), GRID)[0, 0].long()  # (45, 60)
            known = small != VOID
            rows, columns = known.nonzero(as_tuple=True)
            ones = torch.ones(len(rows))
            counts.index_put_((small[known], rows, columns), ones, accumulate=True)
        total = counts.sum((1, 2))
        empty = counts.sum(0) == 0
        self.labels = counts.argmax(0).masked_fill(empty, int(total.argmax()))

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Predict labels (B, H, W)."""
        prediction = torch.zeros_like(batch.labels)
        for at, (high, wide) in enumerate(batch.sizes.tolist()):
            own = F.interpolate(self.labels[None, None].float(), (high, wide))[0, 0]
            prediction[at, :high, :wide] = own.long()
        return prediction, batch.labels
