"""The loss of masks that queries find: each true mask is matched with one query.

Cheng et al., Mask2Former, CVPR 2022. Masks are compared at sampled points, not at every pixel.
Sizes: B images, Q queries, K classes, n true masks of an image, N matched pairs of a batch,
P points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from core.errors import UserError
from domains.vision.networks.outputs import MaskOutput


class Matched(NamedTuple):
    """Pairs of an image: ``queries`` (m,) and ``targets`` (m,), m the smaller number of both."""

    queries: Tensor
    targets: Tensor


class MaskCriterion(nn.Module):
    """Class, mask and dice losses of matched pairs, summed over all layers that told masks.

    Of an image without masks all queries learn to say no object. Void pixels, where they are
    known, count nowhere.

    Args:
        class_weight: of the cross-entropy of classes, and of their part in the matching.
        mask_weight: of the binary cross-entropy of masks, and of its part.
        dice_weight: of the dice of masks, and of its part.
        no_object: what a query without a mask counts in the cross-entropy.
        points: P, of each mask; 0 takes the middle of every pixel.
        oversample: how many times P points are drawn, of which the least sure are kept.
        importance: share of the points that are chosen so; the others are drawn anew.

    Raises:
        UserError: if a number is out of range.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object: float = 0.1,
        points: int = 12_544,
        oversample: float = 3.0,
        importance: float = 0.75,
    ) -> None:
        super().__init__()
        if min(class_weight, mask_weight, dice_weight, no_object, points) < 0:
            raise UserError("model.criterion: weights, no_object and points must be at least 0")
        if oversample < 1 or not 0 <= importance <= 1:
            raise UserError(
                f"model.criterion: oversample={oversample} must be at least 1, and"
                f" importance={importance} lie from 0 to 1"
            )
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object = no_object
        self.points = points
        self.oversample = oversample
        self.importance = importance

    def forward(
        self,
        output: MaskOutput,
        masks: Sequence[Tensor],
        classes: Sequence[Tensor],
        valid: Tensor | None = None,
    ) -> Tensor:
        """Give the loss of a batch.

        Args:
            output: what the network told.
            masks: (n, H, W) of each image.
            classes: (n,) of each image.
            valid: (B, H, W) False on void; None where all pixels count.
        """
        told = ((output.class_logits, output.mask_logits), *output.auxiliary)
        masks = [each.float() for each in masks]
        device = output.class_logits.device.type
        with torch.autocast(device, enabled=False):
            losses = [self.layer(c.float(), m.float(), masks, classes, valid) for c, m in told]
        return torch.stack([self.total(each) for each in losses]).sum()

    def total(self, losses: Tensor) -> Tensor:
        """Weigh the class, mask and dice losses (3,) of a layer."""
        return (
            self.class_weight * losses[0]
            + self.mask_weight * losses[1]
            + self.dice_weight * losses[2]
        )

    def layer(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        masks: Sequence[Tensor],
        classes: Sequence[Tensor],
        valid: Tensor | None = None,
    ) -> Tensor:
        """Give the class, mask and dice losses (3,) of one layer; see :meth:`forward`."""
        pairs = self.match(class_logits, mask_logits, masks, classes, valid)
        told = self._class_loss(class_logits, classes, pairs)
        count = self._mask_count(classes, told)
        return torch.stack([told, *self._mask_losses(mask_logits, masks, valid, pairs, count)])

    @torch.no_grad()
    def match(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        masks: Sequence[Tensor],
        classes: Sequence[Tensor],
        valid: Tensor | None = None,
    ) -> list[Matched]:
        """Match queries and masks of each image at the least cost, by the same points for all."""
        found = []
        for at, (kinds, own) in enumerate(zip(classes, masks, strict=True)):
            points = self._points(1, own, mask_logits.device)
            logits = sampled(mask_logits[at][None], points)[0]  # (Q, P)
            truth = sampled(own[None].to(logits.dtype), points)[0]  # (n, P)
            counted = self._counted(valid, torch.tensor([at]), points, logits)[0]
            cost = -self.class_weight * class_logits[at].softmax(-1)[:, kinds]
            cost = cost + self.mask_weight * _entropy_of_pairs(logits, truth, counted)
            cost = cost + self.dice_weight * _dice_of_pairs(logits.sigmoid(), truth, counted)
            most = torch.finfo(cost.dtype).max
            cost = cost.nan_to_num(most, most, most)
            queries, targets = linear_sum_assignment(cost.cpu().numpy())
            device = mask_logits.device
            found.append(Matched(*(torch.as_tensor(e, device=device) for e in (queries, targets))))
        return found

    def _class_loss(
        self, logits: Tensor, classes: Sequence[Tensor], pairs: Sequence[Matched]
    ) -> Tensor:
        none = logits.shape[-1] - 1
        target = torch.full(logits.shape[:2], none, device=logits.device)
        for at, (pair, kinds) in enumerate(zip(pairs, classes, strict=True)):
            target[at, pair.queries] = kinds[pair.targets].to(target.device)
        weights = torch.ones(none + 1, device=logits.device)
        weights[-1] = self.no_object
        return F.cross_entropy(logits.transpose(1, 2), target, weights)

    def _mask_count(self, classes: Sequence[Tensor], like: Tensor) -> Tensor:
        """Count the masks of a process's batch, in training the mean over all; at least 1."""
        count = like.new_tensor(float(sum(map(len, classes))))
        parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.training and parallel:
            torch.distributed.all_reduce(count)
            count = count / torch.distributed.get_world_size()
        return count.clamp(min=1)

    def _mask_losses(
        self,
        logits: Tensor,
        masks: Sequence[Tensor],
        valid: Tensor | None,
        pairs: Sequence[Matched],
        count: Tensor,
    ) -> tuple[Tensor, Tensor]:
        images = torch.cat([torch.full_like(p.queries, at) for at, p in enumerate(pairs)])
        if not len(images):
            nothing = logits.sum() * 0
            return nothing, nothing
        found = logits[images, torch.cat([pair.queries for pair in pairs])][:, None]  # (N, 1, h, w)
        wanted = [own[pair.targets] for own, pair in zip(masks, pairs, strict=True)]
        truth = torch.cat(wanted)[:, None].to(found.dtype)  # (N, 1, H, W)
        with torch.no_grad():
            points = self._unsure_points(found, truth, valid, images)  # (N, P, 2)
            target = sampled(truth, points)[:, 0]
            counted = self._counted(valid, images, points, target)
        chosen = sampled(found, points)[:, 0]  # (N, P)
        entropy = F.binary_cross_entropy_with_logits(chosen, target, reduction="none")
        least = counted.sum(-1).clamp(min=1)
        entropy = (entropy * counted).sum(-1) / least
        shares, target = chosen.sigmoid() * counted, target * counted
        overlap = 2 * (shares * target).sum(-1) + 1
        dice = 1 - overlap / (shares.sum(-1) + target.sum(-1) + 1)
        return entropy.sum() / count, dice.sum() / count

    def _points(self, count: int, masks: Tensor, device: torch.device) -> Tensor:
        """Draw points (count, P, 2) of x and y from 0 to 1, or take every pixel of the masks."""
        if self.points:
            return torch.rand(count, self.points, 2, device=device)
        height, width = masks.shape[-2:]
        down = (torch.arange(height, device=device) + 0.5) / height
        right = (torch.arange(width, device=device) + 0.5) / width
        grid = torch.meshgrid(down, right, indexing="ij")
        return torch.stack(grid[::-1], -1).flatten(0, 1).expand(count, -1, -1)

    def _unsure_points(
        self, logits: Tensor, masks: Tensor, valid: Tensor | None, images: Tensor
    ) -> Tensor:
        """Draw points (N, P, 2), most of them where the logits (N, 1, h, w) are least sure."""
        count = len(logits)
        if not self.points:
            return self._points(count, masks, logits.device)
        drawn = torch.rand(count, int(self.points * self.oversample), 2, device=logits.device)
        kept = int(self.importance * self.points)
        unsure = -sampled(logits, drawn)[:, 0].abs()
        unsure = unsure.masked_fill(self._counted(valid, images, drawn, unsure) == 0, -torch.inf)
        best = unsure.topk(kept, 1).indices[..., None].expand(-1, -1, 2)
        rest = torch.rand(count, self.points - kept, 2, device=logits.device)
        return torch.cat([drawn.gather(1, best), rest], 1)

    def _counted(
        self, valid: Tensor | None, images: Tensor, points: Tensor, like: Tensor
    ) -> Tensor:
        """Say which points (N, P) of the images (N,) lie on valid pixels."""
        if valid is None:
            return like.new_ones(points.shape[:2])
        height, width = valid.shape[-2:]
        size = points.new_tensor([width, height])
        column, row = (points * size).long().minimum(size.long() - 1).unbind(-1)
        return valid[images.to(valid.device)[:, None], row, column].to(like.dtype)


def sampled(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (N, C, h, w) at points (N, P, 2) of x and y from 0 to 1: (N, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def _entropy_of_pairs(logits: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Give the mean binary cross-entropy (Q, n) of masks (Q, P) and (n, P) at points that count."""
    own = (F.softplus(logits) * counted).sum(-1)[:, None]
    return (own - (logits * counted) @ truth.mT) / counted.sum().clamp(min=1)


def _dice_of_pairs(shares: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """Give 1 - dice (Q, n) of masks (Q, P) and (n, P) at points that count."""
    shares, truth = shares * counted, truth * counted
    whole = shares.sum(-1)[:, None] + truth.sum(-1)
    return 1 - (2 * (shares @ truth.mT) + 1) / (whole + 1)
