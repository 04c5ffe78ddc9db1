"""The Mamba block: gate, causal convolution and selective scan.

Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, COLM 2024. Arguments
and weights are named as in the official package ``mamba_ssm``.
Sizes: B sequences, L tokens, W width, E = expand W channels, N states a channel, K convolution
width, R rank of the step size.
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

from core.layers.selective_scan import selective_scan

__all__ = ["Mamba", "MambaState", "selective_scan"]


class MambaState(NamedTuple):
    """What a :class:`Mamba` block remembers between two tokens."""

    conv: Tensor  # (B, E, K): the convolution's last inputs
    ssm: Tensor  # (B, E, N)


class DepthwiseConv(nn.Conv1d):
    """A causal convolution of each channel by itself, over the first axis.

    As sums of shifted sequences it takes half as long on a CPU as ``nn.Conv1d``, or less.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (L, B, E) to (L, B, E); before the first token there are zeros."""
        if torch.compiler.is_dynamo_compiling():  # it would lose the gradients of a Function
            padded = F.pad(input.permute(1, 2, 0), (self.weight.shape[2] - 1, 0))
            return super().forward(padded).permute(2, 0, 1)
        dtype = torch.promote_types(input.dtype, torch.float32)
        taps = self.weight.squeeze(1).mT.to(dtype).contiguous()  # (K, E)
        bias = None if self.bias is None else self.bias.to(dtype)
        y: Tensor = _ShiftedSum.apply(input.to(dtype), taps, bias)  # type: ignore[no-untyped-call]
        return y.to(input.dtype)


class _ShiftedSum(torch.autograd.Function):
    """Add up a sequence (L, B, E) and those that lag behind it, weighted by ``taps`` (K, E)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.biased = bias is not None
        y = x * taps[-1] if bias is None else torch.addcmul(bias, x, taps[-1])
        for lag in range(1, len(taps)):
            y[lag:].addcmul_(x[:-lag], taps[-1 - lag])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, taps = ctx.saved_tensors
        grad_x, grad_taps = grad * taps[-1], torch.empty_like(taps)
        torch.sum(grad * x, (0, 1), out=grad_taps[-1])
        for lag in range(1, len(taps)):
            grad_x[:-lag].addcmul_(grad[lag:], taps[-1 - lag])
            torch.sum(grad[lag:] * x[:-lag], (0, 1), out=grad_taps[-1 - lag])
        return grad_x, grad_taps, grad.sum((0, 1)) if ctx.biased else None


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
        by_token = x.transpose(0, 1).contiguous()  # (L, B, W): tokens are cut without copies
        mixed, gate = self.in_proj(by_token).chunk(2, -1)  # (L, B, E)
        mixed = F.silu(self.conv1d(mixed))  # (L, B, E)
        delta, b, c = self._select(mixed)
        scan = selective_scan
        if x.is_cuda and self._precision == torch.float32:
            scan = _fastest_scan()
        d, bias = self.D.to(self._precision), self.dt_bias.to(self._precision)
        u, delta, b, c, z = (part.permute(1, 2, 0) for part in (mixed, delta, b, c, gate))
        y, _ = scan(u, delta, self._rates(), b, c, d, z, bias)
        out: Tensor = self.out_proj(y.permute(2, 0, 1))
        return out.transpose(0, 1)

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
        mixed = F.silu(self.conv1d(window.permute(2, 0, 1))[-1])
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
