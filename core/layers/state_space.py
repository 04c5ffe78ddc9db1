"""Selective state spaces: a scan in plain PyTorch, fast and frugal, and the Mamba block on it.

Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, COLM 2024. Arguments
and weights are named as in the official package ``mamba_ssm``.
Sizes: B sequences, L tokens, D channels, N states a channel, T tokens in a block of the scan; in
the Mamba block W width, E = expand W channels, K convolution width, R rank of the step size.
"""

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LOG2_E = math.log2(math.e)  # exp(x) is exp2(x log2 e), which takes 0.4 of the time on a CPU
_WORK = 1 << 19  # numbers in a work space: on a CPU about what its caches hold
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
    backward pass keeps the arguments and the state before each block, and finds the other states
    anew. The state is float32, or float64 where ``u`` is. There are no second derivatives.

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
    sequences = [None if s is None else s.mT for s in (u, delta, B, C, z)]  # channels last
    scan: Callable[..., tuple[Tensor, Tensor]] = _Scan.apply
    if torch.compiler.is_dynamo_compiling():  # it would unroll all tokens and lose gradients
        scan = torch.compiler.disable(scan)  # type: ignore[no-untyped-call]
    if rows >= batch:
        y, last_state = scan(*sequences, *weights, softplus, length)
        return y.mT, last_state
    pieces = [[None] * batch if s is None else s.chunk(math.ceil(batch / rows)) for s in sequences]
    parts = [scan(*piece, *weights, softplus, length) for piece in zip(*pieces, strict=False)]
    return torch.cat([y for y, _ in parts]).mT, torch.cat([state for _, state in parts])


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
    """The T tokens of a block, time first, channels last, in the precision of the state."""

    u: Tensor  # (T, B, D)
    delta: Tensor  # (T, B, D), with its bias
    step: Tensor  # (T, B, D)
    drive: Tensor  # (T, B, D), step size times input
    b: Tensor  # (T, B, N)
    c: Tensor  # (T, B, N)


def _cut(sequence: Tensor, part: slice, dtype: torch.dtype) -> Tensor:
    """Cut the tokens ``part`` of a sequence (B, L, D) out as (T, B, D): not always a copy."""
    return sequence[:, part].transpose(0, 1).to(dtype).contiguous()


def _read(
    part: slice, u: Tensor, delta: Tensor, b: Tensor, c: Tensor, bias: Tensor, softplus: bool
) -> _Tokens:
    """Cut the tokens ``part`` out and find their step sizes."""
    u, delta, b, c = (_cut(sequence, part, bias.dtype) for sequence in (u, delta, b, c))
    delta = delta + bias
    step = F.softplus(delta) if softplus else delta
    return _Tokens(u, delta, step, step * u, b, c)


class _Space(NamedTuple):
    """Work space of a block, and a view of each of its tokens, made once for all blocks."""

    block: Tensor  # (T, B, N, D)
    tokens: tuple[Tensor, ...]  # T times (B, N, D)


def _space(state: Tensor, length: int) -> _Space:
    """Work space for ``length`` states like ``state`` (B, N, D)."""
    block = state.new_empty(length, *state.shape)
    return _Space(block, block.unbind())


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
    """:func:`selective_scan` in blocks of ``length`` tokens; sequences have channels last."""

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
    ) -> tuple[Tensor, Tensor]:
        batch, tokens, channels = u.shape
        rates = (a.mT * _LOG2_E).contiguous()  # (N, D)
        state = a.new_zeros(batch, *rates.shape)  # (B, N, D)
        decay, states = _space(state, length), _space(state, length)
        y = a.new_empty(tokens, batch, channels)
        starts = []
        for first in range(0, tokens, length):
            part = slice(first, min(first + length, tokens))
            block = _read(part, u, delta, b, c, bias, softplus)
            starts.append(state)
            state = _advance(block, rates, state, decay, states).clone()
            out = _weigh(block.c, states.block[: len(block.c)], y[part]).addcmul_(block.u, d)
            if z is not None:
                out *= F.silu(_cut(z, part, a.dtype))
        ctx.save_for_backward(u, delta, b, c, z, a, d, bias, *starts[1:])
        ctx.softplus, ctx.length = softplus, length
        return y.transpose(0, 1).to(u.dtype), state.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, b, c, z, a, d, bias, *starts = ctx.saved_tensors
        batch, tokens, channels = u.shape
        a = a.mT.contiguous()  # (N, D)
        rates = a * _LOG2_E
        starts = [a.new_zeros(batch, *a.shape), *starts]
        decay, states, grads = (_space(starts[0], ctx.length) for _ in range(3))
        grad_u, grad_delta, grad_z = (a.new_empty(tokens, batch, channels) for _ in range(3))
        grad_b, grad_c = (a.new_empty(tokens, batch, len(a)) for _ in range(2))
        grad_a, grad_d, grad_bias = (torch.zeros_like(weight) for weight in (a, d, bias))
        carry = grad_last.mT  # (B, N, D): what reaches a block's last state from all after it
        for number in reversed(range(len(starts))):
            part = slice(number * ctx.length, min((number + 1) * ctx.length, tokens))
            block = _read(part, u, delta, b, c, bias, ctx.softplus)
            _advance(block, rates, starts[number], decay, states)
            count = len(block.u)
            kept, state, grad = (space.block[:count] for space in (decay, states, grads))
            out = _cut(grad_y, part, a.dtype)
            if z is not None:
                gate = _cut(z, part, a.dtype)
                sigmoid = gate.sigmoid()
                silu = gate * sigmoid
                gated = _weigh(block.c, state, grad_z[part]).addcmul_(block.u, d)
                gated.mul_(out).mul_(sigmoid.addcmul_(silu, 1 - sigmoid))  # now its gradient
                out = out * silu
            # From here ``out`` is the gradient of what the gate takes, and ``grad`` of each state.
            _weigh(out, state.mT, grad_c[part])
            torch.mul(out.unsqueeze(2), block.c.unsqueeze(3), out=grad)
            grad[-1].add_(carry)
            steps = zip(decay.tokens[1:count], grads.tokens[1:count], grads.tokens, strict=False)
            for kept_later, later, earlier in reversed(list(steps)):
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
                grad_step *= block.delta.sigmoid()
            grad_bias += grad_step.sum((0, 1))
            grad_drive.mul_(block.step).addcmul_(out, d)  # now the gradient of u
            grad_d += (out * block.u).sum((0, 1))
        sequences = [g.transpose(0, 1) for g in (grad_u, grad_delta, grad_b, grad_c, grad_z)]
        if z is None:
            sequences[4] = None
        return *sequences, grad_a.mT, grad_d, grad_bias, None, None


class MambaState(NamedTuple):
    """What a :class:`Mamba` block remembers between two tokens."""

    conv: Tensor  # (B, E, K): the convolution's last inputs
    ssm: Tensor  # (B, E, N)


class DepthwiseConv(nn.Conv1d):
    """A convolution of each channel by itself: nn.Conv1d, two to four times faster on a CPU.

    As an image of one row, a sequence whose channels are adjacent in memory needs no reordering.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, E, L) to (B, E, L - K + 1)."""
        rows = F.conv2d(input.unsqueeze(2), self.weight.unsqueeze(2), self.bias, groups=self.groups)
        return rows.squeeze(2)


class Mamba(nn.Module):
    """The Mamba block: gate, causal convolution, selective scan.

    On a GPU the compiled scan of ``mamba_ssm`` is used where that package is installed. Train
    ``A_log``, ``D`` and ``dt_bias`` without weight decay.

    Args:
        width: W, of input and output.
        state: N, states a channel.
        conv: K, tokens that the convolution sees.
        expand: E / W.
        rank: R, inner width of the step size's projection; None for W / 16, rounded up.
        conv_bias: whether the convolution has a bias.
        bias: whether the projections of input and output have one.

    Raises:
        ValueError: if a size is below 1.

    Example:
        >>> Mamba(32)(torch.zeros(2, 10, 32)).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        width: int,
        *,
        state: int = 16,
        conv: int = 4,
        expand: int = 2,
        rank: int | None = None,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        rank = math.ceil(width / 16) if rank is None else rank
        sizes = {"width": width, "state": state, "conv": conv, "expand": expand, "rank": rank}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        self.width = width
        self.state = state
        self.conv = conv
        self.expand = expand
        self.rank = rank
        self.conv_bias = conv_bias
        self.bias = bias
        inner = expand * width
        self.in_proj = nn.Linear(width, 2 * inner, bias=bias)
        self.conv1d = DepthwiseConv(inner, inner, conv, groups=inner, bias=conv_bias)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner, bias=False)
        # Apart from its projection, so that it is added in the precision of the state.
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, width, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the step sizes' part and the rates as published; the rest has torch's own start."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            self.A_log.copy_(torch.arange(1, self.state + 1).log().expand_as(self.A_log))
            self.D.fill_(1)
            step = self.dt_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp_()
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x`` (B, L, W), each with those before it."""
        if x.ndim != 3 or x.shape[2] != self.width or not x.shape[1]:
            raise ValueError(f"x is {tuple(x.shape)}, needed (B, L, {self.width}), L at least 1")
        mixed, gate = self.in_proj(x).chunk(2, -1)  # (B, L, E)
        padded = F.pad(mixed, (0, 0, self.conv - 1, 0))  # (B, K - 1 + L, E)
        mixed = F.silu(self.conv1d(padded.mT).mT)  # (B, L, E)
        delta, b, c = self._select(mixed)
        scan = selective_scan
        if x.is_cuda and self._precision == torch.float32:
            scan = _fastest_scan()
        d, bias = self.D.to(self._precision), self.dt_bias.to(self._precision)
        y, _ = scan(mixed.mT, delta.mT, self._rates(), b.mT, c.mT, d, gate.mT, bias)
        out: Tensor = self.out_proj(y.mT)
        return out

    def initial_state(self, batch: int) -> MambaState:
        """Remember nothing, for ``batch`` sequences."""
        return MambaState(
            self.D.new_zeros(batch, len(self.D), self.conv),
            self.D.new_zeros(batch, *self.A_log.shape, dtype=self._precision),
        )

    def step(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Map one token, as ``forward`` maps it after those before it.

        Args:
            x: (B, W), or (B, 1, W).
            state: as returned for the token before; None for the first token.

        Returns:
            The output, in the shape of ``x``, and the state after it.
        """
        if x.shape[1:] not in ((self.width,), (1, self.width)):
            raise ValueError(f"x is {tuple(x.shape)}, needed (B, {self.width}), one token")
        before = self.initial_state(len(x)) if state is None else state
        mixed, gate = self.in_proj(x.reshape(-1, self.width)).chunk(2, -1)  # (B, E)
        window = torch.cat([before.conv[..., 1:], mixed.unsqueeze(2)], 2)  # (B, E, K)
        mixed = F.silu(self.conv1d(window).squeeze(2))
        delta, b, c = self._select(mixed)
        u, delta, b, c = (t.to(self._precision) for t in (mixed, delta, b, c))
        size = F.softplus(delta + self.dt_bias)  # (B, E)
        drive = (size * u).unsqueeze(2) * b.unsqueeze(1)  # (B, E, N)
        ssm = torch.exp(size.unsqueeze(2) * self._rates()) * before.ssm + drive
        y = ((ssm * c.unsqueeze(1)).sum(2) + self.D * u) * F.silu(gate)
        out: Tensor = self.out_proj(y.to(mixed.dtype))
        return out.view_as(x), MambaState(window, ssm)

    def _select(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose from ``mixed`` (..., E) each token's step size before its bias, B and C."""
        sizes = [self.rank, self.state, self.state]
        delta, b, c = self.x_proj(mixed).split(sizes, -1)  # (..., R), (..., N), (..., N)
        return self.dt_proj(delta), b, c

    def _rates(self) -> Tensor:
        return -self.A_log.to(self._precision).exp()  # (E, N)

    @property
    def _precision(self) -> torch.dtype:
        """The precision of the state."""
        return torch.promote_types(self.A_log.dtype, torch.float32)

    @classmethod
    def from_published(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> "Mamba":
        """Build from the official block's arguments and parameter names.

        Args:
            config: ``d_model``; ``d_state``, ``d_conv``, ``expand``, ``dt_rank``, ``conv_bias`` and
                ``bias`` where they are not the official defaults. What only draws or places the
                weights, and B, L, lengths and salt of a test, are left out.
            state_dict: the official entries.

        Raises:
            ValueError: listing keys and entries that are unknown, missing or of another shape.
        """
        faults = [] if "d_model" in config else ["missing d_model"]
        faults += [f"unknown {name}" for name in config if name not in {*_ARGUMENTS, *_UNUSED}]
        if faults:
            raise ValueError(
                f"Mamba config: {'; '.join(faults)}; known are {', '.join(_ARGUMENTS)}"
            )
        arguments = {ours: config[name] for name, ours in _ARGUMENTS.items() if name in config}
        if arguments.get("rank") == "auto":
            del arguments["rank"]
        network = cls(**arguments)
        own = network.state_dict()
        names = {"dt_proj.bias" if name == "dt_bias" else name: name for name in own}
        faults = [f"missing {name}" for name in names if name not in state_dict]
        faults += [f"unknown {name}" for name in state_dict if name not in names]
        faults += [
            f"{name} is {tuple(tensor.shape)}, needed {tuple(own[names[name]].shape)}"
            for name, tensor in state_dict.items()
            if name in names and tensor.shape != own[names[name]].shape
        ]
        if faults:
            raise ValueError(f"Mamba weights do not fit: {'; '.join(faults)}")
        network.load_state_dict({names[name]: tensor for name, tensor in state_dict.items()})
        return network


_ARGUMENTS = {
    "d_model": "width",
    "d_state": "state",
    "d_conv": "conv",
    "expand": "expand",
    "dt_rank": "rank",
    "conv_bias": "conv_bias",
    "bias": "bias",
}
_UNUSED = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path"}
_UNUSED |= {"layer_idx", "device", "dtype", "B", "L", "lengths", "salt"}


@functools.cache
def _fastest_scan() -> Callable[..., tuple[Tensor, Tensor]]:
    """Find the CUDA scan of ``mamba_ssm``, which newer releases may lack; or else give ours."""
    try:
        importlib.import_module("selective_scan_cuda")
        interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError:
        return selective_scan
    return functools.partial(
        interface.selective_scan_fn, delta_softplus=True, return_last_state=True
    )
