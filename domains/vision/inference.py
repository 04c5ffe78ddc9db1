"""Judge photos of any size: windows for large ones, several scales, mirrored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError

LARGEST = 4.0
"""The highest factor of the size."""
OVERLAP = 0.25
"""Share of a window that it has in common with the next one."""


class Band(NamedTuple):
    """Rows of a photo from ``top`` on, with the probabilities of their classes (K, h, W)."""

    top: int
    probabilities: Tensor


@dataclass(frozen=True)
class Inference:
    """How a photo is judged.

    Attributes:
        window: side of the windows of larger photos; 0 judges them whole.
        scales: factors of the size; the probabilities of all are averaged.
        flip: judge the mirrored photo too.
    """

    window: int = 0
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        fit = [0 < scale <= LARGEST for scale in self.scales]  # NaN is not
        if self.window < 0 or not fit or not all(fit):
            raise UserError(
                f"window={self.window} must be at least 0, and scales={list(self.scales)} above 0"
                f" up to {LARGEST:g}"
            )

    def probabilities(self, network: nn.Module, images: Tensor) -> Tensor:
        """Give the probabilities (B, K, H, W) of whole images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        total: Tensor | None = None
        for scale in self.scales:
            size = max(1, round(height * scale)), max(1, round(width * scale))
            own = images if scale == 1 else _resize(images, size)
            for mirrored in (False, True) if self.flip else (False,):
                logits = network(own.flip(-1) if mirrored else own).logits.float()
                logits = logits.flip(-1) if mirrored else logits
                if size != (height, width):
                    logits = _resize(logits, (height, width))
                found = logits.softmax(1)
                total = found if total is None else total + found
        assert total is not None
        return total / (len(self.scales) * (1 + self.flip))

    def bands(self, network: nn.Module, image: Tensor) -> Iterator[Band]:
        """Yield the rows of an image (3, H, W), from the top, each once.

        Memory holds the probabilities of one row of windows at a time. Windows overlap by a
        quarter, and count the less the nearer they end.
        """
        height, width = image.shape[-2:]
        side = self.window
        if not side or max(height, width) <= side:
            yield Band(0, self.probabilities(network, image[None])[0])
            return
        tops, lefts = starts(height, side), starts(width, side)
        high, wide = min(side, height), min(side, width)
        weight = _hat(high, image.device)[:, None] * _hat(wide, image.device)  # (h, w)
        kept: Tensor | None = None  # sums of rows that the next windows reach
        weights: Tensor | None = None
        for number, top in enumerate(tops):
            sums = None
            for left in lefts:
                part = image[None, :, top : top + high, left : left + wide]
                found = self.probabilities(network, part)[0] * weight  # (K, h, w)
                if sums is None:
                    sums = found.new_zeros(len(found), high, width)
                    shares = found.new_zeros(high, width)
                sums[:, :, left : left + wide] += found
                shares[:, left : left + wide] += weight
            assert sums is not None
            if kept is not None and weights is not None:
                sums[:, : kept.shape[1]] += kept
                shares[: weights.shape[0]] += weights
            done = tops[number + 1] - top if number + 1 < len(tops) else high
            yield Band(top, sums[:, :done] / shares[:done])
            kept, weights = sums[:, done:], shares[done:]


def starts(length: int, side: int, overlap: float = OVERLAP) -> list[int]:
    """Place windows of ``side`` along ``length``, evenly, overlapping by at least ``overlap``.

    Example:
        >>> starts(100, 40), starts(30, 40)
        ([0, 30, 60], [0])
    """
    if length <= side:
        return [0]
    count = -(-(length - side) // max(1, round(side * (1 - overlap)))) + 1
    return [round(n * (length - side) / (count - 1)) for n in range(count)]


def rows_resized(values: Tensor, size: tuple[int, int], top: int, stop: int) -> Tensor:
    """Resize maps (K, h, w) bilinearly to ``size`` and give the rows from ``top`` to ``stop``."""
    height, width = size
    places = (torch.arange(top, stop, device=values.device) + 0.5) * values.shape[1] / height - 0.5
    places = places.clamp(0, values.shape[1] - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=values.shape[1] - 1)
    share = (places - low)[:, None]
    rows = values[:, low] * (1 - share) + values[:, high] * share  # (K, n, w)
    found: Tensor = F.interpolate(
        rows[None], size=(stop - top, width), mode="bilinear", align_corners=False
    )[0]
    return found


def _resize(values: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(values, size=list(size), mode="bilinear", align_corners=False)


def _hat(length: int, device: torch.device) -> Tensor:
    """Rise from the ends to the middle; never 0."""
    places = torch.arange(length, device=device) + 0.5
    return torch.minimum(places, length - places)
