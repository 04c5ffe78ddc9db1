"""Random changes of a photo and its labels, each drawn from the item's own seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from core.errors import UserError
from domains.vision.class_file import VOID

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, red, green, blue, on a scale of 0 to 1."""
_FILL = {tv_tensors.Image: tuple(round(255 * m) for m in MEAN), tv_tensors.Mask: VOID}


@dataclass(frozen=True)
class Augmentation:
    """What training does to its photos.

    Attributes:
        scale: bounds of a random scale, in steps of a tenth; None keeps the size.
        crop: height and width of a random crop, filled up with void; None takes the whole photo.
        flip: mirror every second photo.
        jitter: most relative change of brightness, contrast and saturation.
    """

    scale: tuple[float, float] | None = None
    crop: tuple[int, int] | None = None
    flip: bool = True
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"data.scale={list(self.scale)} must be two shares above 0, in order")
        if self.crop is not None and min(self.crop) < 1:
            raise UserError(f"data.crop={list(self.crop)} must be a height and a width")
        if not 0 <= self.jitter < 1:
            raise UserError(f"data.jitter={self.jitter} must lie from 0 to below 1")

    def __call__(self, image: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Change an image (3, H, W) of 8 bits and its labels (H, W) as ``seed`` says."""
        steps: list[v2.Transform] = []
        if self.scale is not None:
            steps.append(RandomScale(*self.scale))
        if self.crop is not None:
            steps.append(v2.RandomCrop(self.crop, pad_if_needed=True, fill=_FILL))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.jitter:
            steps.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        if not steps:
            return image, labels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed, mask = v2.Compose(steps)(tv_tensors.Image(image), tv_tensors.Mask(labels))
        return changed.as_subclass(Tensor), mask.as_subclass(Tensor)


class RandomScale(v2.Transform):  # type: ignore[misc]
    """Resize by a factor drawn from ``low``, ``low`` + 0.1, ... up to ``high``."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low = low
        self.steps = round((high - low) * 10)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor."""
        drawn = int(torch.randint(self.steps + 1, ()))
        height, width = flat_inputs[0].shape[-2:]
        factor = self.low + drawn / 10
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: Mapping[str, Any]) -> Any:
        """Resize photos bilinearly and labels by the nearest."""
        return F.resize(inpt, params["size"], antialias=True)


def resized(image: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Bring an image (3, H, W) and its labels (H, W) to ``size``: bilinear, and nearest."""
    if tuple(image.shape[-2:]) == size:
        return image, labels
    target = list(size)
    return (
        F.resize(tv_tensors.Image(image), target, antialias=True).as_subclass(Tensor),
        F.resize(tv_tensors.Mask(labels), target).as_subclass(Tensor),
    )


def normalised(image: Tensor) -> Tensor:
    """Turn 8-bit images (..., 3, H, W) into floats of mean 0 and deviation 1 over ImageNet."""
    mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (MEAN, STD))
    return (image.float() / 255 - mean) / std
