"""Losses of pixels: cross-entropy, of hard pixels only, dice and focal; void counts nowhere.

Logits (B, K, H, W), labels (B, H, W) with 255 for void. Where every pixel is void a loss is 0.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.vision.class_file import VOID

Loss = Literal["ce", "ohem", "dice", "focal"]


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average over valid pixels, by the weights (K,) of their classes."""
    if not bool((labels != VOID).any()):
        return nothing(logits)
    return F.cross_entropy(logits.float(), labels, weights, ignore_index=VOID)


def ohem(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    threshold: float = 0.9,
    least: int = 131_072,
) -> Tensor:
    """Average the cross-entropy over hard pixels: those whose own class is less probable.

    The border is ``threshold``, or the probability at place ``least`` of the sorted valid pixels
    where that is higher; see the training code of HRNet, which P2AT's follows.
    """
    valid = labels != VOID
    if not bool(valid.any()):
        return nothing(logits)
    scores = logits.float()
    with torch.no_grad():
        target = labels.where(valid, 0)[:, None]
        own = scores.softmax(1).gather(1, target)[:, 0][valid]  # (n,)
        ordered = own.sort().values
        border = ordered[min(least, len(ordered) - 1)].clamp(min=threshold)
        hard = own < border
    if not bool(hard.any()):
        return nothing(logits)
    losses = F.cross_entropy(scores, labels, weights, ignore_index=VOID, reduction="none")
    return losses[valid][hard].mean()


def dice(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Take 1 - dice of each class that the batch has, averaged by the weights (K,)."""
    valid = labels != VOID
    if not bool(valid.any()):
        return nothing(logits)
    classes = logits.shape[1]
    found = (logits.float().softmax(1) * valid[:, None]).movedim(1, -1)  # (B, H, W, K)
    truth = F.one_hot(labels.where(valid, 0), classes) * valid[..., None]
    inter = (found * truth).sum((0, 1, 2))
    total = found.sum((0, 1, 2)) + truth.sum((0, 1, 2))
    present = truth.sum((0, 1, 2)) > 0
    counted = present.float() if weights is None else present * weights
    losses = 1 - (2 * inter + 1) / (total + 1)
    return (losses * counted).sum() / counted.sum()


def focal(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, gamma: float = 2.0
) -> Tensor:
    """Weigh the cross-entropy of a pixel by (1 - p)^gamma (Lin et al., ICCV 2017)."""
    valid = labels != VOID
    if not bool(valid.any()):
        return nothing(logits)
    scores = logits.float()
    losses = F.cross_entropy(scores, labels, weights, ignore_index=VOID, reduction="none")
    plain = losses
    if weights is not None:
        plain = F.cross_entropy(scores, labels, ignore_index=VOID, reduction="none")
    return (((1 - torch.exp(-plain)) ** gamma) * losses)[valid].mean()


def nothing(logits: Tensor) -> Tensor:
    """Give a loss of 0 with gradients of 0."""
    return (logits * 0).sum()
