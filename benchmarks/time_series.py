"""Forecasters of this suite beside other formulations of the same sums.

``python benchmarks/time_series.py [autoformer|s_mamba ...] [--output FOLDER]``

- ``autoformer``: delays scored, and values added up, by Fourier transform and rolling of features.
- ``s_mamba``: the Mamba block in the published order of operations; its scan makes all exponentials
  and products first, in two further rows token by token. The other sides step ``torch.optim.Adam``
  as it is by default, ours the fused one, as the experiments have it.

Sizes: B windows, L steps, T tokens, D width, N states a channel.
"""

from collections.abc import Callable, Iterable
from functools import partial
from unittest import mock

import measure
import torch
import torch.nn.functional as F
from measure import Case, Row, Side
from torch import Tensor, nn

from core.layers.state_space import Mamba
from domains.time_series.networks.autoformer import AutoCorrelation, Autoformer, delays
from domains.time_series.networks.s_mamba import SMamba

Scanned = tuple[Tensor, Tensor]  # outputs (B, D, T), last state (B, D, N)


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


def scan(cut: Callable[[Tensor], Iterable[Tensor]], first: bool, *arguments: Tensor) -> Scanned:
    """Scan token by token with one state (B, D, N), autograd keeping what it likes.

    ``first`` is the published reference's order: exponentials and products of all tokens, (B, D, T,
    N) each, before the first; otherwise each token's when it comes.
    """
    u, delta, a, b, c, d, z, bias = (part.contiguous() for part in arguments)
    step = F.softplus(delta + bias[:, None])  # (B, D, T)
    state = u.new_zeros(len(u), *a.shape)
    outputs = []
    if first:
        decays = cut(torch.einsum("bdt,dn->bdtn", step, a).exp())
        drives = cut(torch.einsum("bdt,bdt,bnt->bdtn", step, u, b))
    else:
        decays = (torch.exp(size.unsqueeze(2) * a) for size in cut(step))
        inputs = zip(cut(step * u), cut(b), strict=True)
        drives = (size.unsqueeze(2) * weight.unsqueeze(1) for size, weight in inputs)
    for decay, drive, readout in zip(decays, drives, cut(c), strict=True):
        state = decay * state + drive
        outputs.append(torch.einsum("bdn,bn->bd", state, readout))
    return (torch.stack(outputs, 2) + u * d[:, None]) * F.silu(z), state


def index(sequence: Tensor) -> list[Tensor]:
    """Cut the tokens out one by one; each then has a gradient as long as the sequence."""
    return [sequence[:, :, token] for token in range(sequence.shape[2])]


def published(scan: Callable[..., Scanned]) -> Callable[[Mamba, Tensor], Tensor]:
    """Give a forward pass of Mamba in the published order of operations, with this scan."""

    def forward(block: Mamba, x: Tensor) -> Tensor:
        mixed, gate = block.in_proj(x).mT.chunk(2, 1)  # (B, D, T)
        weight, bias, margin = block.conv1d.weight, block.conv1d.bias, block.conv - 1
        mixed = F.conv1d(mixed, weight, bias, padding=margin, groups=len(weight))
        mixed = F.silu(mixed[..., : x.shape[1]])
        delta, b, c = block.x_proj(mixed.mT).split([block.rank, block.state, block.state], 2)
        delta, rates = block.dt_proj(delta).mT, -block.A_log.exp()
        y, _ = scan(mixed, delta, rates, b.mT, c.mT, block.D, gate, block.dt_bias)
        out: Tensor = block.out_proj(y.mT)
        return out

    return forward


def autoformer() -> list[Row]:
    """Auto-correlation between its projections, and the network at its published size."""
    block = AutoCorrelation(512, 3)
    block.query = block.key = block.value = block.out = nn.Identity()
    side = partial(mock.patch.object, AutoCorrelation, "forward", fourier)
    pair = torch.randn(2, 32, 96, 512, requires_grad=True).unbind()
    past, marks, name = torch.randn(32, 96, 7), torch.randn(32, 96, 4), "FFT of each feature"
    network, inputs = Autoformer(96, 96, 7), (past, marks, marks)
    return [
        *measure.compare(Case("auto-correlation B32 L96 D512", block, pair, {name: (side, 3)}, 9)),
        *measure.compare(Case("Autoformer ETTh1 B32", network, inputs, {name: (side, None)}, 2, 4)),
    ]


def s_mamba() -> list[Row]:
    """The network at its size for ETTh1, and a block at 325 variates."""
    scans = {
        "all products first": partial(scan, index, True),
        "loop": partial(scan, index, False),
        "loop, unbound": partial(scan, partial(torch.unbind, dim=2), False),
    }

    def others(*required: float | None) -> dict[str, tuple[Side, float | None]]:
        put = partial(mock.patch.object, Mamba, "forward")
        sides = [partial(put, published(each)) for each in scans.values()]
        return dict(zip(scans, zip(sides, required, strict=True), strict=True))

    block, tokens = Mamba(512, conv=2, expand=1), torch.randn(4, 325, 512, requires_grad=True)
    past, marks = torch.randn(32, 96, 7), torch.randn(32, 96, 4)
    network, inputs = SMamba(96, 96, 7), (past, marks, marks)
    small = Case("S-Mamba ETTh1 B32", network, inputs, others(1.7, 1.4, None), 40, fused=True)
    large = Case("Mamba B4 T325 D512 N16", block, (tokens,), others(50, 2, None), 5, 1, fused=True)
    return [*measure.compare(small), *measure.compare(large)]


if __name__ == "__main__":
    measure.main({"autoformer": autoformer, "s_mamba": s_mamba}, "time_series.png")
