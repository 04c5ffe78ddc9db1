"""Judge displacements of pairs by images, labels, and by themselves."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from domains.medical.deformation import folding_share, sd_log_jacobian
from domains.medical.losses import local_correlation
from domains.medical.metrics import hausdorff_95, label_dice, slice_ssim
from domains.medical.pairs import PairBatch
from domains.medical.warping import warp

IMAGE_SCORES = ("ncc", "ncc_before", "ssim", "folding", "sdlogj", "sdlogj_plain")
LABEL_SCORES = ("dice", "dice_before", "hd95", "hd95_surfel", "hd95_before")
VALIDATED = ("dice", "dice_before", "ncc", "ncc_before", "folding", "sdlogj")
"""What costs little enough to be looked at in each validation."""
_LEAST = 5
"""Voxels that a side needs for ``sdlogj``."""


def judge(
    batch: PairBatch,
    flow: Tensor,
    labels: Tensor,
    words: Sequence[str],
    *,
    names: Collection[str],
    window: int = 9,
) -> dict[str, Tensor]:
    """Give scores (B,) by name, each pair at its true size; NaN where a score does not exist.

    Args:
        batch: the pairs.
        flow: displacements (B, 3, D, H, W), in voxels.
        labels: (K,) the values to judge; none without labels.
        words: K names for ``dice/NAME``.
        names: the scores wanted.
        window: side of the cubes of the local correlation.
    """
    warped = warp(batch.moving, flow)
    moved = warp(batch.moving_labels[:, None].float(), flow, "nearest")[:, 0].round().long()
    each = []
    for at, (d, h, w) in enumerate(batch.sizes.tolist()):
        inside = (..., slice(d), slice(h), slice(w))
        own = {
            **_images(batch, warped, at, inside, names, window),
            **_displacements(flow[at : at + 1][inside], names),
        }
        if len(labels):
            found = [moved[at][inside], batch.moving_labels[at][inside]]
            truth = batch.fixed_labels[at][inside]
            own |= judge_labels(found, truth, labels, words, names, batch.spacing[at])
        each.append(own)
    return {name: torch.stack([own[name].double().cpu() for own in each]) for name in each[0]}


def _images(
    batch: PairBatch,
    warped: Tensor,
    at: int,
    inside: tuple[Any, ...],
    names: Collection[str],
    window: int,
) -> dict[str, Tensor]:
    mask = batch.mask[at : at + 1][inside]
    fixed = batch.fixed[at : at + 1][inside]
    after, before = warped[at : at + 1][inside], batch.moving[at : at + 1][inside]
    scores = {}
    for name, volume in (("ncc", after), ("ncc_before", before)):
        if name in names:
            scores[name] = local_correlation(volume, fixed, window)[mask].mean()
    if "ssim" in names:
        scores["ssim"] = slice_ssim(after[0, 0], fixed[0, 0], mask[0, 0])
    return scores


def _displacements(flow: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    scores = {}
    if "folding" in names:
        scores["folding"] = folding_share(flow)[0]
    for name, definition in (("sdlogj", "learn2reg"), ("sdlogj_plain", "plain")):
        if name in names:
            small = min(flow.shape[2:]) < _LEAST
            known = flow.new_tensor(torch.nan) if small else sd_log_jacobian(flow, definition)[0]  # type: ignore[arg-type]
            scores[name] = known
    return scores


def judge_labels(
    found: Sequence[Tensor],
    truth: Tensor,
    labels: Tensor,
    words: Sequence[str],
    names: Collection[str],
    spacing: Tensor,
) -> dict[str, Tensor]:
    """Judge labels (D, H, W) after and before, as :func:`judge` does."""
    scores = {}
    for volume, ending in zip(found, ("", "_before"), strict=True):
        overlap = label_dice(volume, truth, labels)
        scores[f"dice{ending}"] = overlap.nanmean()
        if not ending:
            scores |= {f"dice/{word}": own for word, own in zip(words, overlap, strict=True)}
        if f"hd95{ending}" in names:
            plain, surfel = hausdorff_95(volume, truth, labels, spacing).nanmean(1)
            scores[f"hd95{ending}"] = plain
            if not ending:
                scores["hd95_surfel"] = surfel
    return scores
