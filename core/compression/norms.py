"""Normalisations; a frozen one needs its input only after it is normalised.

A trained one needs its whole input, which torch keeps already.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.compression import rules
from core.compression.codes import Code, normalised, whole
from core.compression.forward_pass import Handlers, Pass, learns, real
from core.compression.operation import operation, plainly


def _layer_norm(
    state: Pass,
    func: Any,
    input: Tensor,
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *rest: Any,
    **named: Any,
) -> Tensor | None:
    if learns(weight) or not learns(input, bias) or not real(input):
        return None
    sizes = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)
    leading = range(input.dim() - len(sizes))
    axes = range(input.dim() - len(sizes), input.dim())
    with plainly():
        out: Tensor = func(input, sizes, weight, bias, eps, *rest, **named)
    return _normalise(state, out, (input, weight, bias), input.shape, axes, leading, eps)


def _rms_norm(
    state: Pass,
    func: Any,
    input: Tensor,
    normalized_shape: Iterable[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor | None:
    if not learns(input, weight) or not real(input):
        return None
    sizes = list(normalized_shape)
    leading = range(input.dim() - len(sizes))
    axes = list(range(input.dim() - len(sizes), input.dim()))
    with plainly():
        out: Tensor = func(input, sizes, weight, eps)
        x = input if input.dtype == torch.float64 else input.float()
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        rate = x.square().mean(axes, keepdim=True).add_(eps).rsqrt_()
        if learns(weight):
            code = Code((input, rate), torch.mul)
        else:
            code = normalised(x * rate, state.policy)
    codes = [code, whole(rate)] + ([whole(weight)] if weight is not None else [])
    rule = partial(rules.norm, input.shape, axes, leading, 0, False)
    return operation(out, rule, codes, [input, weight, None])


def _group_norm(
    state: Pass,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *rest: Any,
    **named: Any,
) -> Tensor | None:
    if learns(weight) or not learns(input, bias) or not real(input):
        return None
    with plainly():
        out: Tensor = func(input, num_groups, weight, bias, eps, *rest, **named)
    shape = torch.Size((input.shape[0], num_groups, input[0].numel() // num_groups))
    over = [0, *range(2, input.dim())]
    return _normalise(state, out, (input, weight, bias), shape, (2,), over, eps, input.dim() - 2)


def _instance_norm(
    state: Pass,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *rest: Any,
    **named: Any,
) -> Tensor | None:
    if learns(weight) or not learns(input, bias) or not real(input) or not use_input_stats:
        return None
    statistics = (running_mean, running_var)
    with plainly():
        out: Tensor = func(
            input, *statistics, weight, bias, use_input_stats, momentum, eps, *rest, **named
        )
    shape = torch.Size((*input.shape[:2], input[0, 0].numel()))
    over = [0, *range(2, input.dim())]
    return _normalise(state, out, (input, weight, bias), shape, (2,), over, eps, input.dim() - 2)


def _batch_norm(
    state: Pass,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *rest: Any,
    **named: Any,
) -> Tensor | None:
    if learns(weight) or not learns(input, bias) or not real(input):
        return None
    over = [0, *range(2, input.dim())]
    statistics = (running_mean, running_var)
    with plainly():
        settings = (training, momentum, eps, *rest)
        out: Tensor = func(input, *statistics, weight, bias, *settings, **named)
        if not training:
            assert running_var is not None
            rate = (running_var + eps).rsqrt_()
            rate = rate if weight is None else rate * weight
            code = whole(rate.view(-1, *[1] * (input.dim() - 2)))
    if not training:
        return operation(out, partial(rules.scaling, over), [code], [input, weight, bias])
    trailing = input.dim() - 2
    return _normalise(state, out, (input, weight, bias), input.shape, over, over, eps, trailing)


def _normalise(
    state: Pass,
    out: Tensor,
    inputs: tuple[Tensor, Tensor | None, Tensor | None],
    shape: torch.Size,
    axes: Iterable[int],
    leading: Iterable[int],
    eps: float,
    trailing: int = 0,
) -> Tensor:
    """Keep what a frozen normalisation needs: see :func:`core.compression.rules.norm`."""
    x, weight, _ = inputs
    axes, leading = list(axes), list(leading)
    codes = []
    if x.requires_grad:
        with plainly():
            wide = x if x.dtype == torch.float64 else x.float()
            wide = wide.reshape(shape)
            spread, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
            rate = spread.add_(eps).rsqrt_()
            codes = [normalised((wide - mean).mul_(rate), state.policy), whole(rate)]
        codes += [whole(weight)] if weight is not None else []
    rule = partial(rules.norm, shape, axes, leading, trailing, True)
    return operation(out, rule, codes, inputs)


HANDLERS: Handlers = [
    ("layer_norm", _layer_norm, [F.layer_norm, torch.layer_norm]),
    ("rms_norm", _rms_norm, [F.rms_norm, torch.rms_norm]),
    ("group_norm", _group_norm, [F.group_norm, torch.group_norm]),
    ("instance_norm", _instance_norm, [F.instance_norm]),
    ("batch_norm", _batch_norm, [F.batch_norm]),
]
