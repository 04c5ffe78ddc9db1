"""Forecasters of this suite beside other formulations of the same sums, and beside a library.

``python benchmarks/time_series.py [autoformer|s_mamba|peers ...] [--output FOLDER]`` alternates the
sides in one process, on one thread of the CPU, and takes medians of process time. Memory is what
one training step adds to a forked process at its peak (Linux).

- ``autoformer``: delays scored, and values added up, by Fourier transform and rolling of features.
- ``s_mamba``: a scan that makes all exponentials and products first, and two that loop over tokens.
- ``peers``: iTransformer here and in ``neuralforecast``, an epoch on the windows of ETTh1.

Sizes: B windows, L steps, T tokens, D width, N states a channel.
"""

import argparse
import importlib
import importlib.util
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from core.layers import state_space
from domains.time_series.data import ForecastingData
from domains.time_series.networks.autoformer import AutoCorrelation, Autoformer, delays
from domains.time_series.networks.s_mamba import SMamba
from pleiad import run
from pleiad.experiments import resolve

SAME = 5e-6  # largest difference of outputs, and of gradients as a share of the largest gradient
Side = Callable[[], AbstractContextManager[object]]  # entered to put another part in place of ours


class Case(NamedTuple):
    """A network to train a step, the other sides with the ratios they must reach, and how often."""

    name: str
    network: nn.Module
    inputs: tuple[Tensor, ...]
    others: Mapping[str, tuple[Side, float | None]]
    rounds: int
    checked: int | None = None  # windows in the test of equality; None for all


class Row(NamedTuple):
    """One comparison: ours and the other side's seconds and bytes."""

    work: str
    other: str
    seconds: tuple[float, float]
    required: float | None = None
    memory: tuple[float, float] | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times as long the other side takes."""
        return self.seconds[1] / self.seconds[0]


def fourier(block: AutoCorrelation, x: Tensor, memory: Tensor) -> Tensor:
    """Auto-correlation (B, L, D) by a transform of each feature and a sum of rolled values."""
    steps, memory = x.shape[1], memory[:, : x.shape[1]]
    parts = (block.query(x), block.key(memory), block.value(memory))
    query, key, value = (F.pad(p.mT, (0, steps - p.shape[1])).contiguous() for p in parts)
    spectrum = torch.fft.rfft(query) * torch.fft.rfft(key).conj()
    scores = torch.fft.irfft(spectrum, n=steps).mean(1)  # (B, L)
    ranked = scores.mean(0, keepdim=True) if block.training else scores
    best = ranked.topk(delays(steps, block.factor), -1).indices.expand(len(x), -1)
    mixed = torch.zeros_like(value)  # (B, D, L)
    for delay, weight in zip(best.unbind(1), scores.gather(1, best).softmax(-1).mT, strict=True):
        if block.training:
            rolled = value.roll(-int(delay[0]), 2)
        else:
            source = (torch.arange(steps) + delay[:, None]) % steps  # (B, L)
            rolled = value.gather(2, source[:, None].expand_as(value))
        mixed = mixed + weight[:, None, None] * rolled
    out: Tensor = block.out(mixed.mT)
    return out


def products_first(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    """Scan in the published reference's order: two (B, D, T, N), then token by token."""
    u, delta, a, b, c, d, z, bias = (part.contiguous() for part in arguments)
    step = F.softplus(delta + bias[:, None])  # (B, D, T)
    decay = torch.einsum("bdt,dn->bdtn", step, a).exp()
    drive = torch.einsum("bdt,bdt,bnt->bdtn", step, u, b)
    state = torch.zeros_like(drive[:, :, 0])
    outputs = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + drive[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, c[:, :, t]))
    return (torch.stack(outputs, 2) + u * d[:, None]) * F.silu(z), state


def loop(*arguments: Tensor, unbind: bool) -> tuple[Tensor, Tensor]:
    """Scan token by token with one state (B, D, N).

    ``unbind`` cuts all tokens out at once, which spares the backward pass a padded gradient each.
    """
    u, delta, a, b, c, d, z, bias = arguments
    step = F.softplus(delta + bias[:, None])  # (B, D, T)
    tokens = [
        p.unbind(2) if unbind else [p[:, :, t] for t in range(p.shape[2])]
        for p in (step, step * u, b, c)
    ]
    state = u.new_zeros(len(u), *a.shape)
    outputs = []
    for size, drive, weight, readout in zip(*tokens, strict=True):
        state = torch.exp(size.unsqueeze(2) * a) * state + drive.unsqueeze(2) * weight.unsqueeze(1)
        outputs.append(torch.einsum("bdn,bn->bd", state, readout))
    return (torch.stack(outputs, 2) + u * d[:, None]) * F.silu(z), state


class Scan(nn.Module):
    """The scan alone, for given projections (B, D, T) and (B, N, T)."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.rates = nn.Parameter(-torch.rand(width, states) - 0.5)
        self.skip, self.bias = nn.Parameter(torch.ones(2, width)).unbind()

    def forward(self, u: Tensor, delta: Tensor, b: Tensor, c: Tensor, z: Tensor) -> Tensor:
        """Scan by whatever is in the place of ours."""
        parts = (u.mT, delta.mT, self.rates, b.mT, c.mT, self.skip, z.mT, self.bias)
        return state_space.selective_scan(*parts)[0]


def leaves(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Random inputs that gradients flow to, as they do inside a network."""
    return tuple(torch.randn(shape, requires_grad=True) for shape in shapes)


def windows() -> tuple[Tensor, ...]:
    """Thirty-two windows with marks in the shape of ETTh1."""
    return torch.randn(32, 96, 7), torch.randn(32, 96, 4), torch.randn(32, 96, 4)


def autoformer() -> list[Case]:
    """Auto-correlation between its projections, and the network at its published size."""
    block = AutoCorrelation(512, 3)
    block.query = block.key = block.value = block.out = nn.Identity()
    side: Side = partial(mock.patch.object, AutoCorrelation, "forward", fourier)
    name, pair = "FFT of each feature", leaves((32, 96, 512), (32, 96, 512))
    return [
        Case("auto-correlation B32 L96 D512", block, pair, {name: (side, 3)}, 9),
        Case("Autoformer B32 ETTh1", Autoformer(96, 96, 7), windows(), {name: (side, None)}, 2, 4),
    ]


def s_mamba() -> list[Case]:
    """The scan and the network at the size for ETTh1; the block at 325 variates."""
    scans = [products_first, partial(loop, unbind=False), partial(loop, unbind=True)]
    sides = [partial(mock.patch.object, state_space, "selective_scan", scan) for scan in scans]
    names = ("all products first", "loop over tokens", "loop over tokens, unbound")

    def others(*required: float | None) -> dict[str, tuple[Side, float | None]]:
        return dict(zip(names, zip(sides, required, strict=True), strict=True))

    block = state_space.Mamba(512, state=16, conv=2, expand=1)
    wide, thin = (32, 11, 256), (32, 11, 2)
    parts = leaves(wide, wide, thin, thin, wide)
    return [
        Case("scan B32 T11 D256 N2", Scan(256, 2), parts, others(None, None, None), 15),
        Case("S-Mamba B32 ETTh1", SMamba(96, 96, 7), windows(), others(1.7, 1.4, None), 15),
        Case(
            "Mamba block B4 T325 D512 N16", block, leaves((4, 325, 512)), others(50, 2, None), 3, 1
        ),
    ]


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run the sides in turn, and give each side's median process time in seconds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.process_time()
            side()
            times[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def peak(work: Callable[[], object]) -> int:
    """Give the largest resident memory, in bytes, of a forked process that does the work."""
    if not (child := os.fork()):
        try:
            work()
        finally:
            os._exit(0)
    return os.wait4(child, 0)[2].ru_maxrss * 1024


def outcome(case: Case, side: Side) -> tuple[Tensor, Tensor]:
    """Outputs in evaluation and training, and the gradient as a share of its largest number."""
    inputs = [part[: case.checked] for part in case.inputs]
    outputs = []
    for training in (False, True):
        case.network.train(training)
        torch.manual_seed(0)  # the same dropout on all sides
        with side():
            outputs.append(case.network(*inputs).flatten())
    sources = [*case.network.parameters(), *(p for p in case.inputs if p.requires_grad)]
    gradients = torch.autograd.grad(outputs[1].square().sum(), sources)
    gradient = torch.cat([part.flatten() for part in gradients])
    return torch.cat(outputs).detach(), gradient / gradient.abs().max()


def train(case: Case, side: Side, optimizer: torch.optim.Optimizer | None) -> None:
    """Take one training step."""
    with side():
        case.network(*case.inputs).square().mean().backward()
    if optimizer:
        optimizer.step()
        optimizer.zero_grad()


def compare(case: Case) -> list[Row]:
    """Hold the sides to be equal, then measure them."""
    sides = {"ours": nullcontext} | {name: side for name, (side, _) in case.others.items()}
    ours, *found = (outcome(case, side) for side in sides.values())
    gaps = [[float((a - b).abs().max()) for a, b in zip(ours, o, strict=True)] for o in found]
    assert max(map(max, gaps)) <= SAME, f"{case.name}: {gaps}"
    own = list(case.network.parameters())
    optimizer = torch.optim.Adam(own, lr=1e-4) if own else None
    steps = {name: partial(train, case, side, optimizer) for name, side in sides.items()}
    idle = peak(lambda: None)
    memory = {name: peak(step) - idle for name, step in steps.items()}
    seconds = alternate(steps, case.rounds)
    return [
        Row(
            case.name,
            name,
            (seconds["ours"], seconds[name]),
            required,
            (memory["ours"], memory[name]),
            f"outputs differ by {gap[0]:.0e}",
        )
        for (name, (_, required)), gap in zip(case.others.items(), gaps, strict=True)
    ]
