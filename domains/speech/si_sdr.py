"""Scale-invariant signal-to-distortion ratios (SI-SDR) of all pairs of estimates and references.

Le Roux et al., SDR - half-baked or well done?, ICASSP 2019; permutation-invariant training: Yu et
al., ICASSP 2017. torchmetrics has both, without lengths and without an answer for a silent
reference. Here the estimate of a silent reference is judged by how far it lies below the mixture,
down to 30 dB, as in Wisdom et al., What's all the FUSS about free universal sound separation data?,
ICASSP 2021.

Sizes: B mixtures, C talkers, L samples.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-8
SILENT = 1e-8
"""A reference is silent where its energy is at most this share of the mixture's."""
FLOOR = 1e-3
"""An estimate that lies 30 dB below the mixture is as good as silent."""


class Pairs(NamedTuple):
    """Scores in dB (B, C references, C estimates), and which references (B, C) are silent."""

    scores: Tensor
    silent: Tensor


def inside(lengths: Tensor, longest: int) -> Tensor:
    """Say which samples (B, L) lie before the zeros that fill up a batch."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def centred(signals: Tensor, valid: Tensor) -> Tensor:
    """Take the mean over valid samples (B, 1, L) off signals (B, C, L); the others become zeros."""
    signals = signals * valid
    return (signals - signals.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)) * valid


def pairs(estimates: Tensor, references: Tensor, mixture: Tensor, lengths: Tensor) -> Pairs:
    """Judge every estimate against every reference, in float32 at least.

    Args:
        estimates: (B, C, L).
        references: (B, C, L).
        mixture: (B, L).
        lengths: (B,), the samples that count.

    Returns:
        SI-SDR in dB, of signals without their mean; of a silent reference the level of the mixture
        above that of the estimate.
    """
    dtype = torch.promote_types(estimates.dtype, torch.float32)
    valid = inside(lengths, mixture.shape[-1])[:, None]
    estimate, reference, whole = (
        centred(part.to(dtype), valid) for part in (estimates, references, mixture[:, None])
    )
    power = reference.square().sum(-1, keepdim=True)  # (B, C, 1)
    total = whole.square().sum(-1, keepdim=True)  # (B, 1, 1)
    own, other = reference[:, :, None], estimate[:, None]
    scale = ((own * other).sum(-1) + EPS) / (power + EPS)  # (B, C, C)
    target = scale[..., None] * own  # (B, C, C, L)
    found = decibel(target.square().sum(-1) + EPS, (other - target).square().sum(-1) + EPS)
    level = estimate.square().sum(-1)[:, None] / (total + EPS)  # (B, 1, C)
    silent = power <= SILENT * total
    return Pairs(torch.where(silent, -10 * torch.log10(level + FLOOR), found), silent[..., 0])


def decibel(power: Tensor, reference: Tensor) -> Tensor:
    """Give a ratio of powers in dB."""
    return 10 * torch.log10(power / reference)


def best_order(scores: Tensor) -> Tensor:
    """Say which estimate (B, C) answers to each reference: the best mean of scores (B, C, C)."""
    speakers = scores.shape[1]
    orders = torch.tensor(list(itertools.permutations(range(speakers))), device=scores.device)
    rows = torch.arange(speakers, device=scores.device)
    means = scores.detach()[:, rows, orders].mean(-1)  # (B, C!)
    return orders[means.argmax(1)]


def ordered(scores: Tensor, order: Tensor) -> Tensor:
    """Give the score (B, C) of each reference, of all pairs (B, C, C) in an order (B, C)."""
    return scores.gather(2, order[..., None])[..., 0]


def separation_loss(scores: Tensor, threshold: float | None = None) -> Tensor:
    """Negate the mean of scores (B, C) over mixtures.

    Args:
        scores: in dB.
        threshold: mixtures whose loss lies below it in dB, -30 say, are separated well enough and
            are left out; where all are, the loss is 0.
    """
    losses = -scores.mean(1)
    if threshold is None:
        return losses.mean()
    kept = losses.detach() > threshold
    return losses.where(kept, 0).sum() / kept.sum().clamp(min=1)
