"""Vectors of texts, in batches of texts of like length."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from domains.nlp.encoding import EncodedTexts
from domains.nlp.tokens import MULTIPLE, pad, width

BUDGETS = {"cpu": 1024}
"""Tokens of a batch, padding included; a processor is fastest while its cache holds the states."""
BUDGET = 2**16
"""The same on other devices."""


def embed(
    network: nn.Module,
    texts: EncodedTexts,
    pad_id: int,
    rows: Sequence[int] | None = None,
    budget: int | None = None,
) -> Tensor:
    """Give the vectors (N, D) of N texts, in their order, where the network lies.

    Args:
        network: maps ids, mask and types (B, L) to vectors (B, D).
        texts: encoded texts of one window each.
        pad_id: the token that fills up.
        rows: which N of the texts; None takes all.
        budget: tokens of a batch, padding included; None goes by the device. It never changes a
            result.
    """
    asked = np.arange(len(texts)) if rows is None else np.asarray(rows)
    device = next(network.parameters()).device
    budget = budget or BUDGETS.get(device.type, BUDGET)
    multiple = 1 if device.type == "cpu" else MULTIPLE  # a processor gains nothing from even widths
    places, found = [], []
    for some in batches(texts.tokens[asked] if len(asked) else asked, budget):
        rows_of = [texts.windows(row)[0] for row in asked[some].tolist()]
        tokens = pad(rows_of, pad_id, multiple)
        found.append(network(*(part.to(device) for part in tokens)).float())
        places.append(some)
    if not found:
        return torch.empty(0, 0, device=device)
    order = torch.from_numpy(np.argsort(np.concatenate(places))).to(device)
    return torch.cat(found)[order]


def batches(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Yield the places of texts, the longest first, that padded together are within the budget."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, budget // width(int(lengths[order[start]])))
        yield order[start : start + count]
        start += count
