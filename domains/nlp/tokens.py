"""Tokens on their way into a network."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MULTIPLE = 8
"""Batches are padded to lengths that this divides."""


class Encoded(NamedTuple):
    """One text, or one window of it: ``ids`` (n,) and the ``types`` (n,) of its tokens."""

    ids: NDArray[np.int32]
    types: NDArray[np.int8]


class Tokens(NamedTuple):
    """A batch: ``ids``, ``mask`` (1 on tokens, 0 on padding) and ``types``, each (B, L) int64."""

    ids: Tensor
    mask: Tensor
    types: Tensor


def width(length: int, multiple: int = MULTIPLE) -> int:
    """Give the length that a text of ``length`` tokens is padded to, alone in its batch."""
    return -(-length // multiple) * multiple


def pad(rows: Sequence[Encoded], pad_id: int, multiple: int = MULTIPLE) -> Tokens:
    """Put texts together, padded on the right to the longest one, up to a ``multiple``."""
    longest = width(max(len(row.ids) for row in rows), multiple)
    ids = np.full((len(rows), longest), pad_id, np.int64)
    mask = np.zeros_like(ids)
    types = np.zeros_like(ids)
    for number, row in enumerate(rows):
        count = len(row.ids)
        ids[number, :count] = row.ids
        mask[number, :count] = 1
        types[number, :count] = row.types
    return Tokens(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(types))
