"""The selective scan in plain PyTorch, fast and frugal.

Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, COLM 2024.
Sizes: B sequences, L tokens, D channels, N states a channel, T tokens in a block of the scan.
"""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LOG2_E = math.log2(math.e)  # exp(x) is exp2(x log2 e), which takes 0.4 of the time on a CPU
_WORK = 1 << 19  # numbers in a work space: on a CPU about what its caches hold
_MOST_KEPT = 8 * _WORK  # numbers in all work spaces that wait for their next use
_SHORTEST_BLOCK = 16  # tokens; the state before each block is kept, so short blocks cost memory


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run the selective recurrence over the last axis.

    With the step size s = softplus(delta + delta_bias), for each channel and each of its states::

        h[t] = exp(s[t] A) h[t-1] + s[t] u[t] B[t],    h[-1] = 0
        y[t] = (sum over states of C[t] h[t] + D u[t]) silu(z[t])

    The sequence is worked off in blocks: exponentials and products of a whole block in a work
    space that every block uses again, then the recurrence token by token, in place. So the order
    of operations is the sequential one, and nothing of the size (B, D, L, N) ever exists. The
    backward pass keeps the arguments, the step sizes and the state before each block, and finds the
    other states anew, but for sequences so short that one work space holds all. The state is
    float32, or float64 where ``u`` is. There are no second derivatives.

    Args:
        u: input (B, D, L); fastest where the channels are adjacent in memory.
        delta: step size before bias and softplus (B, D, L).
        A: rates (D, N), negative where the state shall forget.
        B: each token's input weights (B, N, L).
        C: each token's output weights (B, N, L).
        D: weight of the input in the output (D,), or None.
        z: gate before its SiLU (B, D, L), or None for no gate.
        delta_bias: added to ``delta`` (D,), or None.
        softplus: whether the step size passes a softplus.

    Returns:
        y (B, D, L) in the precision of ``u``, and the state after the last token (B, D, N).

    Raises:
        ValueError: if an argument is empty, not real, or does not fit the others' sizes.
    """
    batch, channels, tokens, states = _scan_sizes(
        u, A, {"delta": delta, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    )
    work = _WORK if u.device.type == "cpu" else 32 * _WORK
    length = max(_SHORTEST_BLOCK, states, work // (batch * channels * states))
    length = math.ceil(tokens / math.ceil(tokens / length))  # blocks of about one size
    rows = max(1, work // (length * channels * states))  # sequences at a time
    dtype = torch.promote_types(u.dtype, torch.float32)
    weights = [
        u.new_zeros(channels, dtype=dtype) if weight is None else weight.to(dtype)
        for weight in (A, D, delta_bias)
    ]
    sequences = [None if s is None else s.permute(2, 0, 1) for s in (u, delta, B, C, z)]
    scan: Callable[..., tuple[Tensor, Tensor]] = _Scan.apply
    if torch.compiler.is_dynamo_compiling():  # it would unroll all tokens and lose gradients
        scan = torch.compiler.disable(scan)  # type: ignore[no-untyped-call]
    if rows >= batch:
        keep = torch.is_grad_enabled() and batch * channels * states * tokens <= _WORK
        y, last_state = scan(*sequences, *weights, softplus, length, keep)
        return y.permute(1, 2, 0), last_state
    count = math.ceil(batch / rows)
    pieces = [[None] * batch if s is None else s.chunk(count, 1) for s in sequences]
    parts = [scan(*p, *weights, softplus, length, False) for p in zip(*pieces, strict=False)]
    y, last_state = torch.cat([y for y, _ in parts], 1), torch.cat([state for _, state in parts])
    return y.permute(1, 2, 0), last_state


def _scan_sizes(
    u: Tensor, a: Tensor, others: Mapping[str, Tensor | None]
) -> tuple[int, int, int, int]:
    """Hold the arguments of a scan against each other, and return B, D, L and N."""
    if u.ndim != 3 or not u.numel():
        raise ValueError(f"u is {tuple(u.shape)}, needed (batch, channels, tokens), none of them 0")
    batch, channels, tokens = u.shape
    if a.ndim != 2 or not a.numel() or len(a) != channels:
        raise ValueError(f"A is {tuple(a.shape)}, needed ({channels}, states) to fit u")
    states = a.shape[1]
    needed: dict[str, tuple[int, ...]] = {"D": (channels,), "delta_bias": (channels,)}
    needed |= {"B": (batch, states, tokens), "C": (batch, states, tokens)}
    for name, tensor in {"u": u, "A": a, **others}.items():
        if tensor is None:
            continue
        if name != "A" and tensor.shape != (shape := needed.get(name, tuple(u.shape))):
            raise ValueError(f"{name} is {tuple(tensor.shape)}, needed {shape} to fit u and A")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}, needed real floating-point numbers")
    return batch, channels, tokens, states


class _Tokens(NamedTuple):
    """The T tokens of a block, in the precision of the state."""

    u: Tensor  # (T, B, D)
    step: Tensor  # (T, B, D)
    drive: Tensor  # (T, B, D), step size times input
    b: Tensor  # (T, B, N)
    c: Tensor  # (T, B, N)


def _cut(sequence: Tensor, part: slice, dtype: torch.dtype) -> Tensor:
    """Cut the tokens ``part`` out: a copy only where a feature's neighbour is not the next one."""
    block = sequence[part].to(dtype)
    return block if block.stride(-1) == 1 else block.contiguous()


class _Space(NamedTuple):
    """Work space of a block, and a view of each of its tokens, made once for all blocks."""

    block: Tensor  # (T, B, N, D)
    tokens: tuple[Tensor, ...]  # T times (B, N, D)


class _Kept(threading.local):
    """Work spaces that a thread's scans have done with, all of the size ``fit`` tells."""

    fit: object = None
    spaces: tuple[_Space, ...] = ()


_kept = _Kept()


def _take(state: Tensor, length: int, count: int) -> tuple[_Space, ...]:
    """Take ``count`` work spaces for ``length`` states like ``state`` (B, N, D)."""
    shape = (length, *state.shape)
    fit = (type(state), state.device, state.dtype, shape)
    if _kept.fit != fit:
        _kept.fit, _kept.spaces = fit, ()
    taken, _kept.spaces = _kept.spaces[:count], _kept.spaces[count:]
    with torch.inference_mode(False):  # so that training can take them on
        fresh = [state.new_empty(shape) for _ in range(count - len(taken))]
    return *taken, *(_Space(block, block.unbind()) for block in fresh)


def _give(state: Tensor, spaces: tuple[_Space, ...]) -> None:
    """Keep a CPU's work spaces for later scans: fresh memory costs more time than its sums."""
    block = spaces[0].block
    if _kept.fit == (Tensor, torch.device("cpu"), state.dtype, block.shape):
        _kept.spaces = (*_kept.spaces, *spaces)[: _MOST_KEPT // block.numel()]


def _advance(block: _Tokens, rates: Tensor, state: Tensor, decay: _Space, states: _Space) -> Tensor:
    """Run one block from ``state`` (B, N, D), and return the last state.

    Fills ``decay`` with exp(s A), where ``rates`` is A log2 e (N, D), and ``states`` with the
    state after each token.
    """
    count = len(block.step)
    torch.mul(block.step.unsqueeze(2), rates, out=decay.block[:count]).exp2_()
    torch.mul(block.drive.unsqueeze(2), block.b.unsqueeze(3), out=states.block[:count])
    for kept, new in zip(decay.tokens[:count], states.tokens[:count], strict=True):
        state = new.addcmul_(kept, state)
    return state


def _weigh(weights: Tensor, matrices: Tensor, out: Tensor) -> Tensor:
    """Multiply each token's weights (T, B, I) by its matrix (T, B, I, J) into ``out`` (T, B, J)."""
    rows, results = weights.flatten(0, 1).unsqueeze(1), out.flatten(0, 1).unsqueeze(1)
    torch.bmm(rows, matrices.flatten(0, 1), out=results)
    return out


class _Scan(torch.autograd.Function):
    """:func:`selective_scan` in blocks of ``length`` tokens; sequences are (L, B, features)."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        b: Tensor,
        c: Tensor,
        z: Tensor | None,
        a: Tensor,
        d: Tensor,
        bias: Tensor,
        softplus: bool,
        length: int,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        rates = (a.mT * _LOG2_E).contiguous()  # (N, D)
        state = a.new_zeros(u.shape[1], *rates.shape)  # (B, N, D)
        decay, states = spaces = _take(state, length, 2)
        y = a.new_empty(u.shape)
        starts, steps = [], []
        for first in range(0, len(u), length):
            part = slice(first, first + length)
            step = _cut(delta, part, a.dtype) + bias
            step = F.softplus(step) if softplus else step
            block = _read(part, u, step, b, c)
            starts.append(state)
            steps.append(step)
            state = _advance(block, rates, state, decay, states).clone()
            out = _weigh(block.c, states.block[: len(step)], y[part]).addcmul_(block.u, d)
            if z is not None:
                out *= F.silu(_cut(z, part, a.dtype))
        ctx.save_for_backward(u, delta, b, c, z, a, d, bias, *steps, *starts[1:])
        ctx.softplus, ctx.length, ctx.spaces = softplus, length, None
        if keep:  # what the only block has filled them with
            ctx.spaces = spaces
        else:
            _give(state, spaces)
        return y.to(u.dtype), state.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, b, c, z, a, d, bias, *kept_blocks = ctx.saved_tensors
        a = a.mT.contiguous()  # (N, D)
        rates = a * _LOG2_E
        count = len(kept_blocks) // 2 + 1
        steps = kept_blocks[:count]
        starts = [a.new_zeros(u.shape[1], *a.shape), *kept_blocks[count:]]
        filled, ctx.spaces = ctx.spaces, None  # a second backward pass has to fill them anew
        decay, states = filled or _take(starts[0], ctx.length, 2)
        (grads,) = _take(starts[0], ctx.length, 1)
        grad_u, grad_delta, grad_z = (a.new_empty(u.shape) for _ in range(3))
        grad_b, grad_c = (a.new_empty(b.shape) for _ in range(2))
        grad_a, grad_d, grad_bias = (torch.zeros_like(weight) for weight in (a, d, d))
        carry = grad_last.mT  # (B, N, D): what reaches a block's last state from all after it
        for number in reversed(range(count)):
            part = slice(number * ctx.length, (number + 1) * ctx.length)
            block = _read(part, u, steps[number], b, c)
            if not filled:
                _advance(block, rates, starts[number], decay, states)
            tokens = len(block.step)
            kept, state, grad = (space.block[:tokens] for space in (decay, states, grads))
            out = _cut(grad_y, part, a.dtype)
            if z is not None:
                gate = _cut(z, part, a.dtype)
                gated = _weigh(block.c, state, grad_z[part]).addcmul_(block.u, d).mul_(out)
                torch.ops.aten.silu_backward.grad_input(gated, gate, grad_input=gated)
                out = F.silu(gate).mul_(out)
            # From here ``out`` is the gradient of what the gate takes, and ``grad`` of each state.
            _weigh(out, state.mT, grad_c[part])
            torch.mul(out.unsqueeze(2), block.c.unsqueeze(3), out=grad)
            grad[-1].add_(carry)
            pairs = zip(decay.tokens[1:tokens], grads.tokens[1:tokens], grads.tokens, strict=False)
            for kept_later, later, earlier in reversed(list(pairs)):
                earlier.addcmul_(kept_later, later)
            carry = decay.tokens[0] * grads.tokens[0]
            _weigh(block.drive, grad.mT, grad_b[part])
            grad_drive = _weigh(block.b, grad, grad_u[part])
            through = kept.mul_(grad)
            through[1:].mul_(state[:-1])
            through[0].mul_(starts[number])  # now the gradient of step size times A
            grad_step = torch.sum(torch.mul(through, a, out=state), 2, out=grad_delta[part])
            grad_step.addcmul_(block.u, grad_drive)
            grad_a += through.mul_(block.step.unsqueeze(2)).sum((0, 1))
            if ctx.softplus:
                grad_step *= (_cut(delta, part, a.dtype) + bias).sigmoid_()
            grad_bias += grad_step.sum((0, 1))
            grad_drive.mul_(block.step).addcmul_(out, d)  # now the gradient of u
            grad_d += (out * block.u).sum((0, 1))
        _give(starts[0], (decay, states, grads))
        gradients = grad_u, grad_delta, grad_b, grad_c, None if z is None else grad_z
        return *gradients, grad_a.mT, grad_d, grad_bias, None, None, None


def _read(part: slice, u: Tensor, step: Tensor, b: Tensor, c: Tensor) -> _Tokens:
    """Cut the tokens ``part``, whose step sizes are ``step``, out of the other sequences."""
    u, b, c = (_cut(sequence, part, step.dtype) for sequence in (u, b, c))
    return _Tokens(u, step, step * u, b, c)
