"""Fused attention: queries, keys and values in few bits; the probabilities are computed again."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from core.compression.codes import Code, whole
from core.compression.operation import operation


class Attention(NamedTuple):
    """What ``scaled_dot_product_attention`` is asked for, beside its tensors.

    ``rate`` of the probabilities is dropped; query heads are ``groups`` times as many as keys'.
    """

    causal: bool
    scale: float
    groups: int
    rate: float


def attend(
    asked: Attention,
    result: tuple[Tensor, Code | None],
    operands: tuple[Tensor, Tensor, Tensor],
    codes: Sequence[Code],
    bias: Tensor | None,
) -> Tensor:
    """Join the result of attention to its operands.

    Args:
        asked: how it was computed.
        result: (..., L, D), and which probabilities were kept, if some were dropped.
        operands: queries (..., H, L, D), keys (..., H / groups, S, D) and values.
        codes: how these three are kept.
        bias: mask or addend of the scores, broadcast to (..., H, L, S).
    """
    out, dropped = result
    shared = [whole(bias)] if bias is not None else []
    further = [dropped] if dropped is not None else []
    rule = partial(_rule, asked, bias is not None)
    return operation(out, rule, [*codes, *shared, *further], [*operands, bias])


def probabilities(q: Tensor, k: Tensor, bias: Tensor | None, asked: Attention) -> Tensor:
    """Compute the probabilities (..., H, L, S); a row that is masked whole gets zeros."""
    scores = (q @ grouped(k, asked.groups).mT).mul_(asked.scale)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if asked.causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill_(~allowed, -math.inf)
    if bias is not None:
        if bias.dtype == torch.bool:
            scores = scores.masked_fill_(~bias, -math.inf)
        else:
            scores = scores + bias
    empty = scores.amax(-1, keepdim=True) == -math.inf
    return scores.softmax(-1).masked_fill_(empty, 0)


def grouped(x: Tensor, groups: int) -> Tensor:
    """Repeat each head of keys or values for the queries that share it."""
    return x.repeat_interleave(groups, -3) if groups > 1 else x


def _rule(
    asked: Attention, biased: bool, g: Tensor, kept: list[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    q, k, v = (x.to(g.dtype) for x in kept[:3])
    bias = kept[3] if biased else None
    p = probabilities(q, k, bias, asked)
    by_p = (g @ grouped(v, asked.groups).mT).to(p.dtype)
    if asked.rate:
        survived = kept[-1] / (1 - asked.rate)
        by_v = (p * survived).to(g.dtype).mT @ g
        by_p = by_p * survived
    else:
        by_v = p.to(g.dtype).mT @ g
    by_scores = p * (by_p - (p * by_p).sum(-1, keepdim=True))
    by_bias = by_scores.sum_to_size(bias.shape) if bias is not None and needs[3] else None
    by_scores = by_scores.mul(asked.scale).to(g.dtype)
    by_q = by_scores @ grouped(k, asked.groups)
    by_k = by_scores.mT @ q
    return (
        by_q.sum_to_size(q.shape),
        _gathered(by_k, asked.groups).sum_to_size(k.shape),
        _gathered(by_v, asked.groups).sum_to_size(v.shape),
        by_bias,
    )


def _gathered(x: Tensor, groups: int) -> Tensor:
    return x.view(*x.shape[:-3], -1, groups, *x.shape[-2:]).sum(-3) if groups > 1 else x
