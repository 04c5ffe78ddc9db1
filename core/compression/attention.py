"""Softmax and products of activations, apart or fused."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.compression import rules
from core.compression.codes import Code, mask, shares
from core.compression.forward_pass import Handlers, Pass, learns, real
from core.compression.fused_attention import Attention, attend, grouped, probabilities
from core.compression.operation import operation, plainly
from core.compression.pointwise import dropout


def _softmax(
    state: Pass, func: Any, input: Tensor, dim: int | None = None, *rest: Any, **named: Any
) -> Tensor | None:
    if dim is None or not input.requires_grad or not real(input):
        return None
    with plainly():
        out: Tensor = func(input, dim, *rest, **named)
        code = shares(out, state.policy, dim)
    found = operation(out, partial(rules.softmax, dim), [code], [input])
    state.note(found, "shares", code)
    return found


def _matmul(state: Pass, func: Any, input: Tensor, other: Tensor) -> Tensor | None:
    return _multiply(state, func, input, other)


def _baddbmm(
    state: Pass, func: Any, input: Tensor, batch1: Tensor, batch2: Tensor, **named: Any
) -> Tensor | None:
    if named or input.requires_grad:
        return None
    return _multiply(state, partial(func, input), batch1, batch2)


def _multiply(state: Pass, apply: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor | None:
    if not _both_activations(a, b) or min(a.dim(), b.dim()) < 2:
        return None
    if rate := state.told(a, "rate"):
        b = _partly(state, b, rate)
    with plainly():
        out = apply(a, b)
    return operation(out, rules.matmul, [state.int8(a), state.int8(b)], [a, b])


def _partly(state: Pass, values: Tensor, rate: float) -> Tensor:
    found = dropout(state, F.dropout, values, rate)
    return F.dropout(values, rate) if found is None else found


def _einsum(state: Pass, func: Any, equation: Any, *operands: Any) -> Tensor | None:
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    a, b = operands
    if not _both_activations(a, b):
        return None
    with plainly():
        out: Tensor = func(equation, a, b)
    rule = partial(rules.replayed, partial(func, equation))
    return operation(out, rule, [state.int8(a), state.int8(b)], [a, b])


def _both_activations(a: Any, b: Any) -> bool:
    """Say whether two factors both need gradients and neither is a parameter."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or not real(a, b):
        return False
    if isinstance(a, nn.Parameter) or isinstance(b, nn.Parameter):
        return False
    return a.requires_grad and b.requires_grad


def _attention(
    state: Pass,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    operands = (query, key, value)
    if not learns(*operands) or not real(*operands) or dropout_p >= 1:
        return None
    if dropout_p > 0 and state.policy.dropout_on_values:
        value, dropout_p = _partly(state, value, dropout_p), 0.0
        operands = (query, key, value)
    groups = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    asked = Attention(is_causal, factor, groups, dropout_p)
    dropped = None
    with plainly():
        if dropout_p > 0:
            p = probabilities(query, key, attn_mask, asked).to(value.dtype)
            p, kept = torch.native_dropout(p, dropout_p, True)
            out = p @ grouped(value, groups)
            dropped = mask(kept, state.policy)
        else:
            given = {"scale": scale, "enable_gqa": enable_gqa}
            out = func(*operands, attn_mask, 0.0, is_causal, **given)
    codes = [state.int8(x) for x in operands]
    return attend(asked, (out, dropped), operands, codes, attn_mask)


def _reshaped(state: Pass, func: Any, input: Tensor, *args: Any, **named: Any) -> Any:
    """Carry what is known of probabilities over to the same numbers in another shape or type."""
    out = func(input, *args, **named)
    code = state.told(input, "shares") if isinstance(out, Tensor) else None
    if code is not None and out is not input:
        state.note(out, "shares", Code(code.tensors, partial(_shaped, code.read, out.shape)))
        if rate := state.told(input, "rate"):
            state.note(out, "rate", rate)
    return out


def _shaped(read: Callable[..., Tensor], shape: torch.Size, *tensors: Tensor) -> Tensor:
    return read(*tensors).reshape(shape)


HANDLERS: Handlers = [
    ("softmax", _softmax, [F.softmax, torch.softmax, Tensor.softmax]),
    ("matmul", _matmul, [torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm]),
    ("matmul", _baddbmm, [torch.baddbmm]),
    ("matmul", _einsum, [torch.einsum]),
    ("attention", _attention, [F.scaled_dot_product_attention]),
    (
        "",
        _reshaped,
        [
            *(Tensor.to, Tensor.type_as, Tensor.float, Tensor.half, Tensor.bfloat16),
            *(Tensor.view, Tensor.reshape, Tensor.flatten, Tensor.contiguous),
        ],
    ),
]
