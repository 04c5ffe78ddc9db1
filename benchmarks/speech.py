"""Separators of speech: a forward pass, a training step, and memory from 1 s to 60 s of sound.

``python benchmarks/speech.py [forward] [train] [length] [--output FOLDER]``. MossFormer stands
beside SepFormer, and beside a plain transcription of its equations that has the same weights: time
adjacent in memory for the convolutions, chunks filled up with zeros, values and gates attended to
one after the other. Outputs and gradients of the two are held to be equal first. The networks of
one part take turns, there and back, in one process, on one thread; seconds are process time and
medians of the rounds. All have random weights, two speakers and sound of 8 kHz, one mixture at a
time; a training step has no optimizer. A ratio is the other network's time over ours, but in
``length``, where both sides are ours and the ratio is that of the seconds that a second of sound
takes. Memory is what the work adds to a forked process at its peak.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import measure
import torch
import torch.nn.functional as F
from measure import Row
from torch import Tensor, nn

from domains.speech.networks.conv_tasnet import ConvTasNet
from domains.speech.networks.mossformer import (
    ConvModule,
    MossFormer,
    MossFormerBlock,
    mossformer_m,
    mossformer_s,
)
from domains.speech.networks.sepformer import SepFormer

RATE = 8000
LENGTHS = (1, 4, 15, 60)


class Transcription(nn.Module):
    """MossFormer as its equations stand, on the weights of ours."""

    def __init__(self, network: MossFormer) -> None:
        super().__init__()
        self.network = network

    def forward(self, mixture: Tensor) -> Tensor:
        """Separate ``mixture`` (B, L)."""
        n = self.network
        encoded = F.relu(n.encoder(mixture.unsqueeze(1)))  # (B, N, S)
        x = pointwise(n.project_in, n.norm(encoded))
        frames = torch.arange(x.shape[2], dtype=x.dtype)
        angles = frames[:, None] * (1 / 10000 ** (torch.arange(0, n.width, 2) / n.width))
        x = x + n.position_scale * torch.cat([angles.sin(), angles.cos()], 1).T
        y = x.transpose(1, 2)  # (B, S, N)
        for layer in n.layers:
            y = y + attended(layer, y)
        y = n.stack_norm(n.layer_norm(y).transpose(1, 2)) + x  # (B, N, S)
        y = pointwise(n.by_voice, n.act(y)).view(-1, n.width, x.shape[2])  # (B C, N, S)
        y = torch.tanh(pointwise(n.signal, y)) * torch.sigmoid(pointwise(n.gate, y))
        masks = F.relu(pointwise(n.project_out, y)).view(-1, n.speakers, *x.shape[1:])
        voices = n.decoder((masks * encoded.unsqueeze(1)).flatten(0, 1))
        voices = voices.view(len(mixture), n.speakers, -1)
        return F.pad(voices, (0, mixture.shape[1] - voices.shape[2]))


def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """Convolve ``x`` (B, N, S) with width one."""
    return F.conv1d(x, linear.weight.unsqueeze(2), linear.bias)


def brick(module: ConvModule, x: Tensor) -> Tensor:
    """Norm, linear map, SiLU, and what the convolution along time adds."""
    length = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    h = F.silu(module.linear(x / length.clamp(min=1e-5) * module.gain))
    weight = module.conv.weight
    near = F.conv1d(h.transpose(1, 2), weight, padding=8, groups=len(weight))
    return module.drop(h + near.transpose(1, 2))


def turned(x: Tensor) -> Tensor:
    """Rotate the first 32 features of ``x`` (B, S, D) by each frame's angles."""
    pairs = min(32, x.shape[2]) // 2
    frames = torch.arange(x.shape[1], dtype=x.dtype)
    angles = frames[:, None] * (1 / 10000 ** (torch.arange(pairs) / pairs))
    cosine, sine = angles.cos().repeat_interleave(2, 1), angles.sin().repeat_interleave(2, 1)
    first = x[..., : 2 * pairs]
    across = torch.stack([-first[..., 1::2], first[..., ::2]], -1).flatten(2)
    return torch.cat([first * cosine + across * sine, x[..., 2 * pairs :]], 2)


def attended(block: MossFormerBlock, x: Tensor) -> Tensor:
    """Give what a block adds to ``x`` (B, S, N)."""
    frames, half, p = x.shape[1], x.shape[2] // 2, block.chunk
    shifted = torch.cat([F.pad(x[..., :half], (0, 0, 1, -1)), x[..., half:]], 2)
    v, u = brick(block.to_hidden, shifted).chunk(2, 2)
    z = brick(block.to_qk, shifted)
    copies = [turned(z * g + b) for g, b in zip(block.gamma, block.beta, strict=True)]

    def chunks(part: Tensor) -> Tensor:
        return F.pad(part, (0, 0, 0, -frames % p)).unflatten(1, (-1, p))

    local_q, global_q, local_k, global_k = (chunks(copy) for copy in copies)
    weights = block.drop(F.relu(local_q @ local_k.transpose(2, 3) / p) ** 2)  # (B, n, P, P)

    def joint(part: Tensor) -> Tensor:
        local = weights @ chunks(part)
        summary = torch.einsum("bnpd,bnpe->bde", global_k, chunks(part)) / frames
        everywhere = torch.einsum("bnpd,bde->bnpe", global_q, summary)
        return (local + everywhere).flatten(1, 2)[:, :frames]

    return brick(block.to_out, joint(u) * v * torch.sigmoid(joint(v) * u))


def check() -> str:
    """Hold outputs and gradients of both to be equal, in double precision; say how equal."""
    network = MossFormer(width=64, depth=4).double().eval()
    mixture = torch.randn(2, 3001, dtype=torch.float64)
    outputs = [side(mixture) for side in (network, Transcription(network))]
    grads = [torch.autograd.grad(o.square().sum(), list(network.parameters())) for o in outputs]
    mine, theirs = (torch.cat([part.flatten() for part in grad]) for grad in grads)
    gap = float((outputs[0] - outputs[1]).abs().max() / outputs[1].abs().max())
    slope = float((mine - theirs).abs().max() / theirs.abs().max())
    told = f"outputs differ by {gap:.0e}, gradients by {slope:.0e} of the largest"
    assert max(gap, slope) <= 1e-9, told
    return told


def look(network: nn.Module, mixture: Tensor) -> None:
    """Take a forward pass."""
    with torch.no_grad():
        network(mixture)


def step(network: nn.Module, mixture: Tensor) -> None:
    """Take a forward and a backward pass."""
    network(mixture).square().mean().backward()
    network.zero_grad()


def compared(
    networks: Mapping[str, nn.Module],
    pairs: Mapping[tuple[str, str], float | None],
    seconds: int,
    training: bool,
) -> list[Row]:
    """Time all networks in turn, and compare those of each pair."""
    mixture = torch.randn(1, seconds * RATE)
    works: dict[str, Callable[[], None]] = {
        name: partial(step if training else look, network.train(training), mixture)
        for name, network in networks.items()
    }
    for work in works.values():  # what is done once is not counted
        work()
    memory = {name: measure.peak(work) - measure.peak(lambda: None) for name, work in works.items()}
    times = measure.alternate(works, 3)
    what = "training step" if training else "forward"
    rows = []
    for (ours, other), required in pairs.items():
        factor = "" if training else f"{times[ours] / seconds:.2f} s a second of sound; "
        note = f"{factor}{memory[ours]:.0f} and {memory[other]:.0f} MB"
        name = f"{ours}, {what}, {seconds} s"
        rows.append(Row(name, other, (times[ours], times[other]), required, note))
    return rows


def forward() -> list[Row]:
    """Compare forward passes of 4 s."""
    network = MossFormer()
    networks = {
        "MossFormer L": network,
        "transcription": Transcription(network),
        "SepFormer": SepFormer(),
        "MossFormer M": mossformer_m(),
        "MossFormer S": mossformer_s(),
        "Conv-TasNet": ConvTasNet(),
    }
    print(check())
    pairs: dict[tuple[str, str], float | None] = {
        ("MossFormer L", "transcription"): 1.5,
        ("MossFormer L", "SepFormer"): 1.0,
        ("MossFormer M", "SepFormer"): None,
        ("MossFormer S", "SepFormer"): None,
        ("MossFormer S", "Conv-TasNet"): None,
    }
    return compared(networks, pairs, 4, training=False)


def train() -> list[Row]:
    """Compare training steps of 1 s."""
    network = MossFormer()
    networks = {
        "MossFormer L": network,
        "transcription": Transcription(network),
        "SepFormer": SepFormer(),
        "MossFormer L, checkpointing": MossFormer(gradient_checkpointing=True),
    }
    pairs: dict[tuple[str, str], float | None] = {
        ("MossFormer L", "transcription"): 1.0,
        ("MossFormer L", "SepFormer"): None,
        ("MossFormer L, checkpointing", "MossFormer L"): None,
    }
    return compared(networks, pairs, 1, training=True)


def length() -> list[Row]:
    """Compare a second of sound in recordings of any length with one of a second alone."""
    network = mossformer_s().eval()
    rows, base, times, memory = [], measure.peak(lambda: None), {}, {}
    for seconds in LENGTHS:
        work = partial(look, network, torch.randn(1, seconds * RATE))
        work()
        memory[seconds] = measure.peak(work) - base
        times[seconds] = measure.alternate({"ours": work}, 1)["ours"] / seconds
        note = f"{memory[seconds]:.0f} MB, {memory[seconds] / seconds:.1f} MB a second"
        name = f"MossFormer S, forward, a second of {seconds} s"
        rows.append(Row(name, "of 1 s", (times[seconds], times[LENGTHS[0]]), None, note))
    growth = [
        (memory[longer] - memory[shorter]) / (longer - shorter)
        for shorter, longer in pairwise(LENGTHS)
    ]
    print("memory grows by", ", ".join(f"{each:.1f}" for each in growth), "MB a second")
    return rows


if __name__ == "__main__":
    measure.main({"forward": forward, "train": train, "length": length}, "speech.png")
