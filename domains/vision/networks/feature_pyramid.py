"""A feature pyramid on any backbone of timm that gives maps of several strides.

Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019, arXiv 1901.02446: the branch that
segments. Sizes: B images of H x W pixels, K classes, h x w places of a map.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.published import renamed
from domains.vision.networks.outputs import SegmentationOutput

FINEST = 4
"""Stride of the finest map that is used."""
GROUPS = 32  # of the normalisation


class Pyramid(nn.Module):
    """Bring maps to one width, each joined with what the coarser ones say.

    Args:
        channels: of each map, from the finest on.
        width: channels of all maps after it.
    """

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map (B, channels, h, w) each to (B, width, h, w)."""
        joined = [lateral(each) for lateral, each in zip(self.lateral, maps, strict=True)]
        for level in reversed(range(len(joined) - 1)):
            coarse = F.interpolate(joined[level + 1], joined[level].shape[2:], mode="nearest")
            joined[level] = joined[level] + coarse
        return [smooth(each) for smooth, each in zip(self.smooth, joined, strict=True)]


class Rise(nn.Module):
    """Double the size of a map step by step, with a convolution before each.

    Args:
        inputs: channels before.
        outputs: channels after.
        steps: how often; 0 takes one convolution and keeps the size.
    """

    def __init__(self, inputs: int, outputs: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(outputs if step else inputs, outputs, 3, padding=1, bias=False),
                nn.GroupNorm(GROUPS, outputs),
                nn.ReLU(),
            )
            for step in range(max(steps, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, inputs, h, w)."""
        for block in self.blocks:
            x = block(x)
            if self.steps:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return x


class FeaturePyramid(nn.Module):
    """Segment images of any height and width.

    Args:
        classes: K.
        backbone: a name of timm, such as ``resnet18``, ``convnext_tiny`` or
            ``swin_tiny_patch4_window7_224``.
        width: channels of the pyramid.
        branch: channels of the branches that are summed, a multiple of 32.

    Raises:
        ValueError: if a size is out of its range, timm knows no such backbone, or its maps do not
            halve from stride to stride.

    Example:
        >>> FeaturePyramid(11, width=32, branch=32)(torch.zeros(2, 3, 45, 70)).logits.shape
        torch.Size([2, 11, 45, 70])
    """

    def __init__(
        self, classes: int, backbone: str = "resnet18", width: int = 256, branch: int = 128
    ) -> None:
        super().__init__()
        if min(classes, width, branch) < 1 or branch % GROUPS:
            raise ValueError(
                f"classes={classes} and width={width} must be at least 1, and branch={branch} a"
                f" multiple of {GROUPS}"
            )
        self.classes = classes
        self.backbone = backbone
        self.width = width
        self.branch = branch
        encoder, self.first = _encoder(backbone)
        self.encoder = encoder
        strides = encoder.feature_info.reduction()[self.first :]
        self.coarsest = strides[-1]
        self.pyramid = Pyramid(encoder.feature_info.channels()[self.first :], width)
        self.rises = nn.ModuleList(
            Rise(width, branch, (stride // strides[0]).bit_length() - 1) for stride in strides
        )
        self.classify = nn.Conv2d(branch, classes, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Score the classes of every pixel of ``images`` (B, 3, H, W), normalised.

        Images whose sides are no multiples of the coarsest stride are filled up with their mean
        colour at the lower and right edge.
        """
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % self.coarsest, 0, -height % self.coarsest))
        maps = self.encoder(padded.contiguous(memory_format=torch.channels_last))[self.first :]
        if str(getattr(self.encoder, "output_fmt", "NCHW")).endswith("NHWC"):
            maps = [each.movedim(3, 1) for each in maps]
        risen = [
            rise(each) for rise, each in zip(self.rises, self.pyramid(list(maps)), strict=True)
        ]
        scores = self.classify(torch.stack(risen).sum(0)).contiguous()
        logits = F.interpolate(scores, padded.shape[2:], mode="bilinear", align_corners=False)
        return SegmentationOutput(logits[..., :height, :width])

    def translated(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give tensors of timm the names that its feature extractors have; ours keep theirs."""
        parts = [name.rpartition("_") for name, _ in self.encoder.named_children()]
        numbered = [(stem, number) for stem, _, number in parts if number.isdigit()]
        rules = [(rf"(^|\.){a}\.{b}\.", rf"\g<1>{a}_{b}.") for a, b in numbered]
        return {renamed(name, rules): tensor for name, tensor in state_dict.items()}

    @property
    def stages(self) -> list[nn.Module]:
        """The parts of the backbone in order."""
        return [part for part in self.encoder.children() if any(True for _ in part.parameters())]

    @property
    def head(self) -> list[nn.Module]:
        """What scores the classes."""
        return [self.classify]


def _encoder(name: str) -> tuple[Any, int]:
    """Build a backbone with random weights; say which of its maps is the first to be used."""
    try:
        try:
            encoder = timm.create_model(name, features_only=True, strict_img_size=False)
        except TypeError:  # a backbone that takes any size anyway
            encoder = timm.create_model(name, features_only=True)
        strides = encoder.feature_info.reduction()
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"backbone={name!r}: {' '.join(str(error).split())[:200]}") from None
    first = next((at for at, stride in enumerate(strides) if stride >= FINEST), len(strides))
    used = strides[first:]
    if len(used) < 2 or any(b != 2 * a for a, b in pairwise(used)):
        raise ValueError(
            f"backbone={name!r}: has maps of the strides {strides}; needed are some that double"
            f" from {FINEST} on, such as resnet18 and swin_tiny_patch4_window7_224 have"
        )
    return encoder, first
