"""What lies in batches, outputs and states, however they are built."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def every_tensor(values: Any) -> Iterator[Tensor]:
    """Give the tensors in tuples, lists, sets and mappings, however deep."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from every_tensor(value)
    elif isinstance(values, list | tuple | set):
        for value in values:
            yield from every_tensor(value)


def rows_of(batch: Any) -> Any:
    """Give the places of a batch's items in their split, where it states them as ``rows``."""
    return batch.get("rows") if isinstance(batch, dict) else getattr(batch, "rows", None)
