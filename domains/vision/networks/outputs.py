"""What the networks of segmentation return: B images, H x W pixels, K classes, Q queries."""

from typing import NamedTuple

from torch import Tensor


class SegmentationOutput(NamedTuple):
    """Scores of every pixel: ``logits`` (B, K, H, W) at the size of the images.

    ``auxiliary`` holds further logits of that shape, for deep supervision; it may be empty.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...] = ()


class MaskOutput(NamedTuple):
    """Scores of Q masks and their classes.

    ``class_logits`` (B, Q, K + 1), the last for no object; ``mask_logits`` (B, Q, H/4, W/4);
    ``auxiliary`` holds such pairs of earlier layers.
    """

    class_logits: Tensor
    mask_logits: Tensor
    auxiliary: tuple[tuple[Tensor, Tensor], ...] = ()
