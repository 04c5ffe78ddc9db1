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
import ctypes
import importlib.util
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from core.layers import state_space
from domains.time_series.data import ForecastingData, Window
from domains.time_series.networks.autoformer import AutoCorrelation, Autoformer, delays
from domains.time_series.networks.s_mamba import SMamba
from pleiad import run
from pleiad.experiments import resolve

SAME = 5e-6  # largest difference of outputs, and of gradients as a share of the largest gradient
Side = Callable[[], AbstractContextManager[object]]  # entered to put another part in place of ours
Scanned = tuple[Tensor, Tensor]  # outputs (B, D, T), last state (B, D, N)


class Case(NamedTuple):
    """A network to train a step, the other sides with the ratios they must reach, and how often."""

    name: str
    network: nn.Module
    inputs: tuple[Tensor, ...]
    others: Mapping[str, tuple[Side, float | None]]
    rounds: int
    checked: int | None = None  # windows in the test of equality; None for all


class Row(NamedTuple):
    """One comparison: the other side's seconds over ours, and what else there is to tell."""

    name: str
    other: str
    seconds: tuple[float, float]
    required: float | None
    note: str

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


def autoformer() -> list[Case]:
    """Auto-correlation between its projections, and the network at its published size."""
    block = AutoCorrelation(512, 3)
    block.query = block.key = block.value = block.out = nn.Identity()
    side = partial(mock.patch.object, AutoCorrelation, "forward", fourier)
    pair = torch.randn(2, 32, 96, 512, requires_grad=True).unbind()
    past, marks, name = torch.randn(32, 96, 7), torch.randn(32, 96, 4), "FFT of each feature"
    network, inputs = Autoformer(96, 96, 7), (past, marks, marks)
    return [
        Case("auto-correlation B32 L96 D512", block, pair, {name: (side, 3)}, 9),
        Case("Autoformer ETTh1 B32", network, inputs, {name: (side, None)}, 2, 4),
    ]


def s_mamba() -> list[Case]:
    """The network at its size for ETTh1, and a block at 325 variates."""
    scans = {
        "all products first": partial(scan, index, True),
        "loop": partial(scan, index, False),
        "loop, unbound": partial(scan, partial(torch.unbind, dim=2), False),
    }

    def others(*required: float | None) -> dict[str, tuple[Side, float | None]]:
        put = partial(mock.patch.object, state_space, "selective_scan")
        return {n: (partial(put, scans[n]), r) for n, r in zip(scans, required, strict=True)}

    block, tokens = state_space.Mamba(512, conv=2, expand=1), torch.randn(4, 325, 512)
    past, marks = torch.randn(32, 96, 7), torch.randn(32, 96, 4)
    network, inputs = SMamba(96, 96, 7), (past, marks, marks)
    return [
        Case("S-Mamba ETTh1 B32", network, inputs, others(1.7, 1.4, None), 15),
        Case(
            "Mamba B4 T325 D512 N16", block, (tokens.requires_grad_(),), others(50, 2, None), 3, 1
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


def peak(work: Callable[[], object]) -> float:
    """Give the largest resident memory, in MB, of a forked process that does the work."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the child found again would not count
    if not (child := os.fork()):
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status, usage = os.wait4(child, 0)
    assert not status, f"the forked process ended with status {status}"
    return usage.ru_maxrss / 1024


def outcome(case: Case, side: Side) -> Tensor:
    """Outputs in evaluation and training, and the gradient as a share of its largest, flat."""
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
    return torch.cat([*outputs, gradient / gradient.abs().max()]).detach()


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
    ours = outcome(case, nullcontext)
    gaps = {name: float((outcome(case, s) - ours).abs().max()) for name, s in sides.items()}
    assert max(gaps.values()) <= SAME, f"{case.name}: {gaps}"
    own = list(case.network.parameters())
    optimizer = torch.optim.Adam(own, lr=1e-4) if own else None
    steps = {name: partial(train, case, side, optimizer) for name, side in sides.items()}
    memory = {name: peak(step) - peak(lambda: None) for name, step in steps.items()}
    seconds = alternate(steps, case.rounds)
    rows = []
    for name, (_, required) in case.others.items():
        note = f"{memory['ours']:.0f} and {memory[name]:.0f} MB; differ by {gaps[name]:.0e}"
        rows.append(Row(case.name, name, (seconds["ours"], seconds[name]), required, note))
    return rows


def ours(seed: int) -> tuple[Callable[[Window], Tensor], Iterable[Window]]:
    """Train iTransformer an epoch as ``pleiad fit`` does; give it and the test windows."""
    keys = [f"--seed_everything={seed}", "--trainer.max_epochs=1", "--trainer.callbacks=[]"]
    keys += ["--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    built = run.build(resolve("time_series/itransformer_etth1", keys))
    with tempfile.TemporaryDirectory() as folder:
        run.make_trainer(built, Path(folder), []).fit(built.task, built.data)
    return built.task.eval(), built.data.test_dataloader()


def theirs(seed: int) -> tuple[Callable[[Window], Tensor], Iterable[Window]]:
    """Train neuralforecast's iTransformer in the same size, at the same rate, as many steps."""
    from neuralforecast import NeuralForecast, models
    from neuralforecast.losses.pytorch import MSE

    data = ForecastingData("etth1")
    data.setup()
    frame = pd.DataFrame(data.scaled[: data.ends[0]]).rename_axis("ds").reset_index()
    frame = frame.melt("ds", var_name="unique_id", value_name="y")
    steps = len(data.train_set) // 32
    options = {"hidden_size": 256, "d_ff": 256, "windows_batch_size": 32, "max_steps": steps}
    options |= {"learning_rate": 1e-4, "loss": MSE(), "val_check_steps": steps, "logger": False}
    options |= {"random_seed": seed, "accelerator": "cpu", "enable_progress_bar": False}
    options |= {"enable_model_summary": False}
    suite = NeuralForecast(
        [models.iTransformer(96, 96, frame.unique_id.nunique(), **options)], freq=1
    )
    suite.fit(frame)
    network = suite.models[0].eval()
    return lambda window: network({"insample_y": window.past}), data.test_dataloader()


@torch.no_grad()
def score(forecast: Callable[[Window], Tensor], windows: Iterable[Window]) -> float:
    """Give the MSE over every window, in standardised units."""
    return float(torch.cat([(forecast(w) - w.future).square() for w in windows]).mean())


def peers() -> list[Row]:
    """Train both with two seeds, and judge both on every test window."""
    if importlib.util.find_spec("neuralforecast") is None:
        print("peers skipped: pip install -e '.[peers]', in an environment of its own")
        return []
    fitted = {fit: [] for fit in (ours, theirs)}
    sides = {fit.__name__: lambda f=fit: fitted[f].append(f(len(fitted[f]))) for fit in fitted}
    seconds = alternate(sides, 2)
    errors = [statistics.fmean(score(*fit) for fit in fits) for fits in fitted.values()]
    note = f"test MSE {errors[0]:.3f} and {errors[1]:.3f}"
    name = "iTransformer ETTh1, an epoch"
    return [Row(name, "neuralforecast", (seconds["ours"], seconds["theirs"]), None, note)]


def show(rows: list[Row], folder: Path) -> None:
    """Print the table, and draw the ratios."""
    table = Table("training step", "other side", "ours s", "other s", "ratio", "required", "note")
    for row in rows:
        times = [f"{seconds:.3f}" for seconds in row.seconds]
        required = f"{row.required}" if row.required else ""
        style = "red" if row.ratio < (row.required or 0) else None
        table.add_row(
            row.name, row.other, *times, f"{row.ratio:.2f}", required, row.note, style=style
        )
    Console(width=140).print(table)
    figure = Figure(figsize=(9, 1 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([f"{r.name}: {r.other}" for r in rows], [r.ratio for r in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="process time over ours (log scale)")
    axes.margins(x=0.1)
    axes.invert_yaxis()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "time_series.png", dpi=150)


def main() -> None:
    """Measure the parts that are asked for."""
    parts = {"autoformer": autoformer, "s_mamba": s_mamba, "peers": peers}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=parts, default=list(parts))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = [item for part in arguments.parts for item in parts[part]()]
    rows = [row for x in found for row in (compare(x) if isinstance(x, Case) else [x])]
    if rows:
        show(rows, arguments.output)


if __name__ == "__main__":
    main()
