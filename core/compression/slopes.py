"""Derivatives of smooth activations, in 4 or 8 bits.

The derivative itself is rounded, so that its error is even; 0 and 1, where most of them lie, are
exact. As published (fixed ranges) GELU's input is rounded instead, to Q(2, 1), or with 8 bits to
Q(3, 4); with 4 bits the derivatives are then off by up to 0.2 instead of 0.05.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from core.compression.codes import Code, Policy, pack_halves, unpack_halves, whole

Function = Callable[[Tensor], Tensor]


def gelu_slope(approximate: str, x: Tensor) -> Tensor:
    """Give GELU's derivative."""
    slope: Tensor = torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate=approximate)
    return slope


def silu_slope(x: Tensor) -> Tensor:
    """Give SiLU's derivative."""
    slope: Tensor = torch.ops.aten.silu_backward(torch.ones_like(x), x)
    return slope


def slopes(x: Tensor, derivative: Function, bits: int, policy: Policy) -> Code:
    """Keep a derivative at ``x``.

    Args:
        x: the function's input.
        derivative: maps each entry by itself; hashable, for what it gives is remembered.
        bits: 4 or 8 an entry.
        policy: says whether the input is kept whole instead.
    """
    if policy.exact:
        return Code(whole(x).tensors, derivative)
    if policy.range == "per_token":
        steps, first = _EVEN[bits]
        codes = derivative(x).mul_(steps).round_().sub_(first).clamp_(0, 2**bits - 1)
        packed = codes.to(torch.uint8)
        packed = pack_halves(packed) if bits == 4 else packed
        return Code((packed,), partial(_even, bits, x.shape, x.dtype))
    steps, middle = (2, 8) if bits == 4 else (16, 128)
    codes = x.mul(steps).round_().add_(middle).clamp_(0, 2 * middle - 1).to(torch.uint8)
    packed = pack_halves(codes) if bits == 4 else codes.flatten()
    return Code((packed,), partial(_looked_up, derivative, bits, x.shape, x.dtype))


_EVEN = {4: (11, -2), 8: (200, -28)}
"""Steps from 0 to 1, and the first of them; derivatives of GELU and SiLU lie in -0.13 ... 1.13."""


def _even(bits: int, shape: torch.Size, dtype: torch.dtype, packed: Tensor) -> Tensor:
    steps, first = _EVEN[bits]
    codes = unpack_halves(packed, shape) if bits == 4 else packed
    return codes.to(dtype).add_(first).div_(steps)


def _looked_up(
    derivative: Function, bits: int, shape: torch.Size, dtype: torch.dtype, packed: Tensor
) -> Tensor:
    table = _table(derivative, bits, dtype, packed.device)
    return F.embedding(packed.int(), table).flatten()[: shape.numel()].view(shape)


@lru_cache
def _table(derivative: Function, bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Give the derivatives for each byte: (256, 8 / bits)."""
    byte = torch.arange(256)
    if bits == 4:
        points = (torch.stack((byte & 15, byte >> 4), 1) - 8) / 2
    else:
        points = (byte.unsqueeze(1) - 128) / 16
    return derivative(points).to(device, dtype)
