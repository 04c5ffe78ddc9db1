"""Activations in few bits: whole numbers with fixed steps or scaled rows, four bits, single bits.

Q(i, f) below is a whole number of 1 + i + f bits in steps of ``2 ** -f``. Every function gives a
:class:`Code`: the tensors to keep, and how to read them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 32
"""Rows shorter than this share one scale, which would else outweigh them."""
SAMPLED = 16
"""One forward pass in so many is counted for the clip rate."""


class Code(NamedTuple):
    """Kept ``tensors``, and the function that ``read``s the activation from them."""

    tensors: tuple[Tensor, ...]
    read: Callable[..., Tensor]


@dataclass
class Policy:
    """How activations are kept, and what was met in keeping them.

    ``exact`` keeps them whole, so that the gradients can be checked. The other settings are those
    of :class:`core.activation_compression.ActivationCompression`. ``kinds`` counts the operations
    of the last forward pass, ``clipped`` of ``counted`` values were out of the fixed range.
    """

    ln_mode: Literal["topk", "int8", "int4"] = "int8"
    range: Literal["fixed", "per_token"] = "per_token"
    gelu_bits: Literal[4, 8] = 4
    mask_bits: Literal[1, 8] = 1
    load_balancing: bool = True
    dropout_on_values: bool = False
    exact: bool = False
    passes: int = 0
    clipped: int = 0
    counted: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


def whole(x: Tensor) -> Code:
    """Keep a tensor as it is."""
    return Code((x,), _same)


def int8(x: Tensor, policy: Policy) -> Code:
    """Keep Q(3, 4), or 8 bits to the largest value of each row along the axis dense in memory."""
    if policy.exact:
        return whole(x)
    wide = _wide(x)
    if policy.range == "per_token":
        scale = _largest(wide.abs(), _dense_axis(x)).div_(127)
        return Code((wide.div(scale).round_().to(torch.int8), scale), partial(_scaled, x.dtype))
    steps = wide.mul(16).round_()
    if policy.passes % SAMPLED == 1:
        policy.clipped += int(((steps < -128) | (steps > 127)).sum())
        policy.counted += x.numel()
    return Code((steps.clamp_(-128, 127).to(torch.int8),), partial(_stepped, x.dtype, 1 / 16))


def shares(x: Tensor, policy: Policy, axis: int) -> Code:
    """Keep numbers between 0 and 1 in 8 bits, of 1 or of the largest along ``axis``."""
    if policy.exact:
        return whole(x)
    wide = _wide(x)
    if policy.range == "per_token":
        scale = _largest(wide, axis).div_(255)
        return Code((wide.div(scale).round_().to(torch.uint8), scale), partial(_scaled, x.dtype))
    return Code((wide.mul(255).round_().to(torch.uint8),), partial(_stepped, x.dtype, 1 / 255))


def normalised(x: Tensor, policy: Policy) -> Code:
    """Keep values of mean 0 and deviation 1, as ``policy.ln_mode`` says."""
    if policy.exact or policy.ln_mode == "int8":
        return int8(x, policy)
    if policy.ln_mode == "int4":
        codes = x.mul(2.4).round_().clamp_(-8, 7).add_(8).to(torch.uint8)
        return Code((pack_halves(codes),), partial(_quarters, x.shape, x.dtype))
    flat = x.flatten()
    found = flat.abs().topk(-(-len(flat) // 10), sorted=False).indices
    return Code((flat[found], found.int()), partial(_scattered, x.shape))


def mask(kept: Tensor, policy: Policy) -> Code:
    """Keep a boolean tensor, by default eight entries a byte."""
    if policy.mask_bits == 8:
        return whole(kept)
    return Code((pack_bits(kept),), partial(unpack_bits, kept.shape))


def pack_halves(codes: Tensor) -> Tensor:
    """Put pairs of numbers below 16 (uint8) into bytes, the first of them low."""
    flat = codes.flatten()
    flat = F.pad(flat, (0, len(flat) % 2))
    pairs = flat.view(torch.int16)
    return (pairs | (pairs >> 4)).to(torch.uint8)


def unpack_halves(packed: Tensor, shape: torch.Size) -> Tensor:
    """Undo :func:`pack_halves`."""
    pairs = packed.to(torch.int16)
    flat = ((pairs & 15) | ((pairs >> 4) << 8)).view(torch.uint8)
    return flat[: shape.numel()].view(shape)


def pack_bits(kept: Tensor) -> Tensor:
    """Put eight booleans into each byte."""
    flat = kept.flatten()
    flat = F.pad(flat, (0, -len(flat) % 8)).view(torch.int64)
    return (flat.mul(0x0102040810204080) >> 56).to(torch.uint8)  # the product's top byte


def unpack_bits(shape: torch.Size, packed: Tensor) -> Tensor:
    """Undo :func:`pack_bits`."""
    spread = packed.to(torch.int64).mul_(0x0101010101010101)  # each byte eight times
    spread &= -0x7FBFDFEFF7FBFDFF  # of which each copy keeps another bit
    return spread.view(torch.uint8).ne(0)[: shape.numel()].view(shape)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _dense_axis(x: Tensor) -> int:
    """Find the axis along which a token's features lie side by side, also in a transposed view."""
    return -2 if x.dim() > 1 and x.stride(-2) < x.stride(-1) else -1


def _largest(x: Tensor, axis: int) -> Tensor:
    """Give the largest value along an axis, or of all where the rows are short."""
    found = x.amax(axis, keepdim=True) if x.dim() and x.shape[axis] >= SHORT else x.amax()
    return found.clamp_min_(torch.finfo(x.dtype).tiny * 256)


def _same(x: Tensor) -> Tensor:
    return x


def _scaled(dtype: torch.dtype, codes: Tensor, scale: Tensor) -> Tensor:
    return codes.to(scale.dtype).mul_(scale).to(dtype)


def _stepped(dtype: torch.dtype, step: float, codes: Tensor) -> Tensor:
    return codes.to(dtype).mul_(step)


def _quarters(shape: torch.Size, dtype: torch.dtype, packed: Tensor) -> Tensor:
    return unpack_halves(packed, shape).to(dtype).sub_(8).div_(2.4)


def _scattered(shape: torch.Size, values: Tensor, found: Tensor) -> Tensor:
    flat = values.new_zeros(shape.numel())
    return flat.index_copy_(0, found.long(), values).view(shape)
