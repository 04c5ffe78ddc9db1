"""Gradients of the operations whose inputs are kept in few bits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def linear(g: Tensor, kept: list[Tensor], needs: Sequence[bool]) -> Gradients:
    """Give gradients of x, weight and bias; kept are those of weight and x that are needed."""
    left = iter(kept)
    flat = g.flatten(0, -2)
    return (
        g @ next(left).to(g.dtype) if needs[0] else None,
        flat.mT @ next(left).flatten(0, -2).to(g.dtype) if needs[1] else None,
        flat.sum(0) if needs[2] else None,
    )


def convolution(
    shape: torch.Size, settings: tuple[Any, ...], g: Tensor, kept: list[Tensor], needs: Any
) -> Gradients:
    """Give gradients of x and bias; kept is the weight, where x needs one."""
    by_x = None
    if needs[0]:
        nothing = g.new_empty(1).expand(shape)  # only its shape is looked at
        by_x = torch.ops.aten.convolution_backward(
            g, nothing, kept[0].to(g.dtype), None, *settings, [True, False, False]
        )[0]
    return by_x, None, g.sum([0, *range(2, g.dim())]) if needs[2] else None


def matmul(g: Tensor, kept: list[Tensor], needs: Sequence[bool]) -> Gradients:
    """Give gradients of both factors, which are kept; leading axes may have been broadcast."""
    a, b = (x.to(g.dtype) for x in kept)
    return (g @ b.mT).sum_to_size(a.shape), (a.mT @ g).sum_to_size(b.shape)


def replayed(
    compute: Callable[..., Tensor], g: Tensor, kept: list[Tensor], needs: Sequence[bool]
) -> Gradients:
    """Give gradients of any function by computing it again on what was kept of its inputs."""
    inputs = [x.detach().requires_grad_() for x in kept]
    with torch.enable_grad():
        return torch.autograd.grad(compute(*inputs), inputs, g)


def softmax(axis: int, g: Tensor, kept: list[Tensor], needs: Sequence[bool]) -> Gradients:
    """Give the gradient of the logits; kept are the probabilities."""
    weighed = g * kept[0]
    return (weighed.addcmul_(kept[0], weighed.sum(axis, keepdim=True), value=-1),)


def dropout(scale: float, g: Tensor, kept: list[Tensor], needs: Sequence[bool]) -> Gradients:
    """Give the gradient of what was partly dropped; kept is where it was not."""
    return ((g * kept[0]).mul_(scale),)


def rectifier(slope: float, g: Tensor, kept: list[Tensor], needs: Sequence[bool]) -> Gradients:
    """Give the gradient below ReLU or LeakyReLU; kept is where the input was positive."""
    return (torch.where(kept[0], g, g * slope) if slope else g * kept[0],)


def product(g: Tensor, kept: list[Tensor], needs: Sequence[bool]) -> Gradients:
    """Give the gradient of what was multiplied by what is kept."""
    return (g * kept[0],)


def scaling(axes: list[int], g: Tensor, kept: list[Tensor], needs: Sequence[bool]) -> Gradients:
    """Give gradients of x and bias where each channel was scaled by what is kept."""
    return g * kept[0] if needs[0] else None, None, g.sum(axes) if needs[2] else None


def norm(
    shape: Sequence[int],
    axes: list[int],
    leading: Sequence[int],
    trailing: int,
    centred: bool,
    g: Tensor,
    kept: list[Tensor],
    needs: Sequence[bool],
) -> Gradients:
    """Give gradients of x, weight and bias of any normalisation.

    Args:
        shape: in which x is normalised over ``axes``.
        axes: see ``shape``.
        leading: axes of x along which weight and bias are repeated.
        trailing: how many of these stand after those of the weight.
        centred: whether the mean was taken off.
        g: gradient of the result, in the shape of x.
        kept: x normalised and 1 / deviation, both in ``shape``, and the weight, if there is one.
        needs: which gradients are wanted.
    """
    wide = g if g.dtype == torch.float64 else g.float()
    by_x = by_weight = None
    if kept:
        normal, rate = kept[0].to(wide.dtype), kept[1]
        scaled = wide
        if len(kept) > 2:
            scaled = wide * kept[2].to(wide.dtype).view(*kept[2].shape, *[1] * trailing)
        scaled = scaled.reshape(shape)
        by_x = scaled - normal * (scaled * normal).mean(axes, keepdim=True)
        if centred:
            by_x -= scaled.mean(axes, keepdim=True)
        by_x = by_x.mul_(rate).view(g.shape)
        if needs[1]:
            by_weight = _summed(wide * normal.view(g.shape), leading)
    return by_x, by_weight, _summed(wide, leading) if needs[2] else None


def _summed(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.sum(list(axes)) if axes else x
