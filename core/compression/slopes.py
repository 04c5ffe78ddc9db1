"""Derivatives of smooth activations, looked up by what their inputs were rounded to.

GELU's input is kept in Q(2, 1), two a byte; with 8 bits, and for other functions, in Q(3, 4). Past
these ranges the derivatives are flat, so values that are clipped cost nothing.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from core.compression.codes import Code, Policy, pack_halves, whole

Function = Callable[[Tensor], Tensor]


def slopes(x: Tensor, function: Function, bits: int, policy: Policy) -> Code:
    """Keep the derivative of ``function`` at ``x``.

    Args:
        x: the function's input.
        function: maps each entry by itself; hashable, for its derivatives are remembered.
        bits: 4 or 8 an entry.
        policy: says whether the input is kept whole instead.
    """
    if policy.exact:
        return Code(whole(x).tensors, partial(_slope, function))
    steps, middle = (2, 8) if bits == 4 else (16, 128)
    codes = x.mul(steps).round_().add_(middle).clamp_(0, 2 * middle - 1).to(torch.uint8)
    packed = pack_halves(codes) if bits == 4 else codes.flatten()
    return Code((packed,), partial(_looked_up, function, bits, x.shape, x.dtype))


def _slope(function: Function, x: Tensor) -> Tensor:
    point = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(function(point).sum(), point)[0]


def _looked_up(
    function: Function, bits: int, shape: torch.Size, dtype: torch.dtype, packed: Tensor
) -> Tensor:
    table = _table(function, bits, dtype, packed.device)
    return F.embedding(packed.int(), table).flatten()[: shape.numel()].view(shape)


@lru_cache
def _table(function: Function, bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Give the derivatives for each byte: (256, 8 / bits)."""
    byte = torch.arange(256)
    if bits == 4:
        points = (torch.stack((byte & 15, byte >> 4), 1) - 8) / 2
    else:
        points = (byte.unsqueeze(1) - 128) / 16
    return _slope(function, points).to(device, dtype)
