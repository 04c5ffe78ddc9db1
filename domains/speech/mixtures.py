"""Batches of mixtures with the recordings they are made of."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Mixture(NamedTuple):
    """One mixture.

    Attributes:
        mixture: (L,) samples.
        sources: (C, L), what a network shall answer: one talker each.
        row: its number in the data set.
        name: its name in results.
    """

    mixture: Tensor
    sources: Tensor
    row: int
    name: str


class MixtureBatch(NamedTuple):
    """Mixtures, filled up with zeros to the longest.

    Attributes:
        mixture: (B, L) float32 samples.
        sources: (B, C, L) float32, the targets.
        lengths: (B,) int64, the samples before the zeros.
        rows: (B,) int64, their numbers in the data set.
        names: B names.
    """

    mixture: Tensor
    sources: Tensor
    lengths: Tensor
    rows: Tensor
    names: list[str]


def collate(items: Sequence[Mixture]) -> MixtureBatch:
    """Put mixtures of any lengths into one batch."""
    lengths = torch.tensor([len(item.mixture) for item in items])
    speakers, longest = len(items[0].sources), int(lengths.max())
    mixture = torch.zeros(len(items), longest)
    sources = torch.zeros(len(items), speakers, longest)
    for at, item in enumerate(items):
        mixture[at, : lengths[at]] = item.mixture
        sources[at, :, : lengths[at]] = item.sources
    rows = torch.tensor([item.row for item in items])
    return MixtureBatch(mixture, sources, lengths, rows, [item.name for item in items])
