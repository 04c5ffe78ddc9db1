"""Rows of a batch in whatever a layer takes and gives: tensors, tuples, NamedTuples, mappings."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

SHARED = frozenset(
    {"src_mask", "attn_mask", "tgt_mask", "cache_position"}
    | {"spatial_shapes", "spatial_shapes_list", "level_start_index"}
)
"""Arguments that belong to no sample, though a size of theirs may be that of the batch."""


def take(value: Any, index: Tensor, rows: int, dim: int = 0, shared: bool = False) -> Any:
    """Take rows of every tensor that has them.

    Args:
        value: a tensor, or tuples, lists and mappings of such; all else stays as it is.
        index: (n,) the rows taken.
        rows: the number of rows of the batch, by which a tensor is known to have them.
        dim: the axis of the rows; a tensor that has them on its first instead is a mask beside a
            state with its batch second.
        shared: the value has no rows, unless it is a mask for each row and head.
    """

    def of(tensor: Tensor) -> Tensor:
        if shared:
            return _heads(tensor, index, rows)
        if tensor.ndim > dim and tensor.shape[dim] == rows:
            return tensor.index_select(dim, index)
        if dim and tensor.ndim and tensor.shape[0] == rows:
            return tensor.index_select(0, index)
        return tensor

    return _each(of, value)


def put(whole: Any, part: Any, index: Tensor, rows: int, dim: int = 0) -> Any:
    """Put rows into a copy of what has them all; the counterpart of :func:`take`.

    Args:
        whole: all rows.
        part: the same structure with the rows of ``index``.
        index: (n,) the places of the rows.
        rows: the number of all rows.
        dim: the axis of the rows.

    Raises:
        ValueError: if the two differ in structure or shape.
    """
    if isinstance(whole, Tensor) and isinstance(part, Tensor):
        if whole.ndim <= dim or whole.shape[dim] != rows:
            return part
        wanted = list(whole.shape)
        wanted[dim] = len(index)
        if list(part.shape) != wanted:
            raise ValueError(f"shape {tuple(part.shape)} where {tuple(wanted)} came before")
        return whole.index_copy(dim, index, part.to(whole.dtype))
    if isinstance(whole, Mapping) and isinstance(part, Mapping):
        return {key: put(whole[key], part[key], index, rows, dim) for key in part}
    if isinstance(whole, list | tuple) and isinstance(part, list | tuple):
        if len(whole) != len(part):
            raise ValueError(f"{len(part)} values where {len(whole)} came before")
        return _alike(
            part, [put(*pair, index, rows, dim) for pair in zip(whole, part, strict=True)]
        )
    if isinstance(whole, Tensor) or isinstance(part, Tensor):
        raise ValueError("a tensor in place of another kind of value")
    return part


def first_tensor(value: Any) -> Tensor | None:
    """Give the first tensor of at least one dimension."""
    if isinstance(value, Tensor):
        return value if value.ndim else None
    inner = value.values() if isinstance(value, Mapping) else value
    if isinstance(inner, list | tuple) or isinstance(value, Mapping):
        for each in inner:
            if (found := first_tensor(each)) is not None:
                return found
    return None


def spread(samples: Tensor, group: int) -> Tensor:
    """Give the rows of samples that have ``group`` rows each, next to one another.

    Example:
        >>> spread(torch.tensor([0, 2]), 2).tolist()
        [0, 1, 4, 5]
    """
    if group == 1:
        return samples
    return (samples[:, None] * group + torch.arange(group, device=samples.device)).flatten()


def _heads(mask: Tensor, index: Tensor, rows: int) -> Tensor:
    """Take rows of a mask (rows x heads, N, N), as torch's attention takes it."""
    if mask.ndim < 3 or mask.shape[0] % rows:
        return mask
    return mask.index_select(0, spread(index, mask.shape[0] // rows))


def _each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(change, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return _alike(value, [_each(change, inner) for inner in value])
    return value


def _alike(pattern: list[Any] | tuple[Any, ...], values: list[Any]) -> Any:
    """Make a list, tuple or NamedTuple of the pattern's kind."""
    if hasattr(pattern, "_fields"):
        return type(pattern)(*values)
    return type(pattern)(values)
