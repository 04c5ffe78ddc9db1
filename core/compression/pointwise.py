"""Functions of each entry by itself, and dropout."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.compression import rules
from core.compression.codes import Code, mask
from core.compression.forward_pass import Handlers, Pass, real
from core.compression.operation import operation, plainly
from core.compression.slopes import Function, gelu_slope, silu_slope, slopes


def _gelu(state: Pass, func: Any, input: Tensor, *, approximate: str = "none") -> Tensor | None:
    derivative = _GELU[approximate]
    apply = partial(func, approximate=approximate)
    return _smooth(state, apply, input, derivative, state.policy.gelu_bits)


def _silu(state: Pass, func: Any, input: Tensor, inplace: bool = False) -> Tensor | None:
    return None if inplace else _smooth(state, F.silu, input, silu_slope, 8)


def _smooth(
    state: Pass, apply: Function, x: Tensor, derivative: Function, bits: int
) -> Tensor | None:
    if not x.requires_grad or not real(x):
        return None
    with plainly():
        out = apply(x)
        code = slopes(x, derivative, bits, state.policy)
    return operation(out, rules.product, [code], [x])


def _relu(state: Pass, func: Any, input: Tensor, inplace: bool = False) -> Tensor | None:
    return _rectify(state, F.relu_ if inplace else F.relu, input, 0.0, inplace)


def _relu_(state: Pass, func: Any, input: Tensor) -> Tensor | None:
    return _rectify(state, F.relu_, input, 0.0, True)


def _leaky_relu(
    state: Pass, func: Any, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor | None:
    if inplace:
        return None
    apply = partial(F.leaky_relu, negative_slope=negative_slope)
    return _rectify(state, apply, input, negative_slope, False)


def _prelu(state: Pass, func: Any, input: Tensor, weight: Tensor) -> Tensor | None:
    if weight.requires_grad or weight.numel() != 1:
        return None
    return _rectify(state, partial(func, weight=weight), input, float(weight), False)


def _rectify(
    state: Pass, apply: Callable[..., Tensor], x: Tensor, slope: float, inplace: bool
) -> Tensor | None:
    if not x.requires_grad or not real(x) or (inplace and (x.is_leaf or x._is_view())):
        return None
    with plainly():
        positive = x > 0
        out = apply(x)
        code = mask(positive, state.policy)
    return operation(out, partial(rules.rectifier, slope), [code], [x])


def dropout(
    state: Pass,
    func: Any,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor | None:
    """Drop entries; of probabilities, mark that the values are to be dropped, if that is asked."""
    if not training or p <= 0 or p >= 1 or inplace:
        return None
    if not input.requires_grad or not real(input):
        return None
    probabilities = state.told(input, "shares")
    if probabilities is not None and state.policy.dropout_on_values:
        state.note(input, "rate", p)
        return input
    with plainly():
        out, kept = torch.native_dropout(input, p, True)
        code = mask(kept, state.policy)
    found = operation(out, partial(rules.dropout, 1 / (1 - p)), [code], [input])
    if probabilities is not None:
        state.note(found, "shares", _dropped(probabilities, code, 1 / (1 - p)))
    return found


def _dropped(code: Code, survived: Code, scale: float) -> Code:
    """Read probabilities some of which were dropped from both codes, which are kept already."""
    count = len(code.tensors)

    def read(*tensors: Tensor) -> Tensor:
        return code.read(*tensors[:count]) * survived.read(*tensors[count:]) * scale

    return Code((*code.tensors, *survived.tensors), read)


_GELU = {name: partial(gelu_slope, name) for name in ("none", "tanh")}
HANDLERS: Handlers = [
    ("gelu", _gelu, [F.gelu]),
    ("silu", _silu, [F.silu]),
    ("relu", _relu, [F.relu, torch.relu, Tensor.relu]),
    ("relu", _relu_, [F.relu_, Tensor.relu_]),
    ("leaky_relu", _leaky_relu, [F.leaky_relu]),
    ("prelu", _prelu, [F.prelu]),
    ("dropout", dropout, [F.dropout]),
]
