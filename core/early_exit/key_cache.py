"""The cache of keys and values of a decoder: layers that were skipped have put nothing into it."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from core.errors import UserError


def check_cache(number: int, rows: int, state: Tensor | None, arguments: Iterable[Any]) -> None:
    """Refuse to go on from a cache that lacks what a layer skipped for earlier tokens.

    Args:
        number: of the layer, from 1 on.
        rows: B of the whole batch, those who have left included.
        state: (B, T, D), what the layer is given.
        arguments: the layer's; those without ``layers`` and ``get_seq_length`` are no cache.

    Raises:
        UserError: where the layer's part of the cache has fewer tokens than it should, or not
            those of all rows.
    """
    for cache in arguments:
        layers = getattr(cache, "layers", None)
        if state is None or state.dim() < 3 or not hasattr(cache, "get_seq_length") or not layers:
            continue
        own, first = layers[min(number, len(layers)) - 1], layers[0]
        past = own.get_seq_length()
        lacking = number > 1 and past + state.shape[1] != first.get_seq_length()
        if lacking or (past and not own.keys.shape[0] == state.shape[0] == rows):
            raise UserError(
                f"EarlyExit: layer {number} was skipped for earlier tokens, so the cache has no"
                " keys and values of them there; generate with use_cache=False"
            )
