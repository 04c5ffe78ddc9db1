"""From the masks of Q queries to classes of pixels and to segments (Mask2Former, CVPR 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.vision.metrics import Segments


def class_scores(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Give scores of pixels (B, K, H, W): the classes of the queries, by their masks.

    Args:
        class_logits: (B, Q, K + 1), the last for no object.
        mask_logits: (B, Q, h, w).
        size: H and W.
    """
    classes = class_logits.float().softmax(-1)[..., :-1]
    masks = _at(mask_logits, size).sigmoid()
    return torch.einsum("bqk,bqhw->bkhw", classes, masks)


def find_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    things: Tensor,
    *,
    score: float = 0.8,
    overlap: float = 0.8,
) -> Segments:
    """Find the segments of one photo.

    A pixel is of the query whose score times mask is highest, where that mask is above one half. A
    query that loses too much of its mask to others is left out; stuff of one class is one segment.

    Args:
        class_logits: (Q, K + 1).
        mask_logits: (Q, h, w).
        size: H and W of the photo.
        things: (K,) whether a class has instances.
        score: least probability of a query's class.
        overlap: least share of a mask that is left.
    """
    best, labels = class_logits.float().softmax(-1).max(-1)
    kept = (labels < class_logits.shape[-1] - 1) & (best > score)
    best, labels = best[kept], labels[kept]
    numbers = torch.zeros(size, dtype=torch.int64, device=mask_logits.device)
    classes: list[int] = []
    if len(labels):
        masks = _at(mask_logits[kept][None], size)[0].sigmoid()  # (n, H, W)
        owner = (best[:, None, None] * masks).argmax(0)
        stuff: dict[int, int] = {}
        for query, label in enumerate(labels.tolist()):
            own, whole = owner == query, masks[query] >= 0.5
            region = own & whole
            if not bool(region.any()) or float(own.sum() / whole.sum()) < overlap:
                continue
            number = stuff.get(label, 0)
            if not number:
                classes.append(label)
                number = len(classes)
                if not bool(things[label]):
                    stuff[label] = number
            numbers[region] = number
    return Segments(numbers, torch.tensor(classes, dtype=torch.int64))


def _at(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(mask_logits.float(), size=size, mode="bilinear", align_corners=False)
