"""One autograd operation for all: a result that is known already, and a rule for its gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.compression.codes import Code

Rule = Callable[[Tensor, list[Tensor], Sequence[bool]], Sequence[Tensor | None]]
"""From the result's gradient, what was kept, and which inputs need one, to the inputs' gradients.

What a rule returns may have another floating type than its input: autograd converts it.
"""


def operation(
    result: Tensor, rule: Rule, codes: Sequence[Code], inputs: Sequence[Tensor | None]
) -> Tensor:
    """Join a result that was computed without autograd to the inputs that it came from."""
    joined: Tensor = _Operation.apply([result], rule, codes, *inputs)  # type: ignore[no-untyped-call]
    return joined


@contextmanager
def plainly() -> Iterator[None]:
    """Compute without autograd.

    Autocast's cache is off, for it would keep copies of weights that have no gradient.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Operation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, result: list[Tensor], rule: Rule, codes: Sequence[Code], *inputs: Tensor | None
    ) -> Tensor:
        ctx.rule = rule
        ctx.reads = [(code.read, len(code.tensors)) for code in codes]
        ctx.save_for_backward(*(tensor for code in codes for tensor in code.tensors))
        out = result.pop()
        if any(out is x for x in inputs):
            ctx.mark_dirty(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        with torch.autocast(gradient.device.type, enabled=False):
            kept = [read(*(next(saved) for _ in range(count))) for read, count in ctx.reads]
            found = ctx.rule(gradient, kept, ctx.needs_input_grad[3:])
        return None, None, None, *found
