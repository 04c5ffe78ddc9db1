"""Linear maps and convolutions."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.compression import rules
from core.compression.codes import Code, whole
from core.compression.forward_pass import Handlers, Pass, learns, real
from core.compression.operation import operation, plainly


def _linear(
    state: Pass, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    trained = weight.requires_grad
    balanced = state.policy.load_balancing and trained and weight.dim() == 2
    balanced = balanced and weight.shape[1] >= 2 * weight.shape[0]
    lowered = torch.is_autocast_enabled(input.device.type)
    if not (balanced or lowered) or not learns(input, weight, bias) or not real(input, weight):
        return None
    if weight.dim() != 2 or input.dim() < 2:
        return None
    with plainly():
        out: Tensor = func(input, weight, bias)
    codes = [whole(weight)] if input.requires_grad else []
    if trained:
        codes.append(state.int8(input) if balanced else _cast(state, input, out.dtype))
    return operation(out, rules.linear, codes, [input, weight, bias])


def _cast(state: Pass, x: Tensor, dtype: torch.dtype) -> Code:
    """Keep a tensor in the type that it was computed in, once for all that use it."""
    code: Code | None = state.told(x, str(dtype))
    if code is None:
        code = whole(x.detach().to(dtype))
        state.note(x, str(dtype), code)
    return code


def _convolution(
    transposed: bool,
    state: Pass,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    *rest: Any,
    **named: Any,
) -> Tensor | None:
    if weight.requires_grad or not learns(input, bias) or not real(input, weight):
        return None
    if isinstance(padding, str) or input.dim() != weight.dim():
        return None
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    given = {"dilation": 1, "groups": 1, "output_padding": 0}
    given |= dict(zip(names, rest, strict=False)) | named
    sizes = input.dim() - 2
    each = [_each(x, sizes) for x in (stride, padding, given["dilation"])]
    settings = (*each, transposed, _each(given["output_padding"], sizes), given["groups"])
    with plainly():
        out: Tensor = func(input, weight, bias, stride, padding, *rest, **named)
    codes = [whole(weight)] if input.requires_grad else []
    rule = partial(rules.convolution, input.shape, settings)
    return operation(out, rule, codes, [input, weight, bias])


def _each(value: Any, sizes: int) -> list[int]:
    found = [value] if isinstance(value, int) else list(value)
    return found * sizes if len(found) == 1 else found


HANDLERS: Handlers = [
    ("linear", _linear, [F.linear]),
    ("convolution", partial(_convolution, False), [F.conv1d, F.conv2d, F.conv3d]),
    (
        "convolution",
        partial(_convolution, True),
        [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d],
    ),
]
