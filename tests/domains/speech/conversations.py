"""Conversations of real digits, and a separator that knows them but not their order."""

import functools
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn

RATE = 8000


@functools.cache
def digits(folder: Path, talker: str) -> list[torch.Tensor]:
    """All recordings of a talker."""
    files = sorted((folder / "speech/free-spoken-digit-dataset/recordings").glob(f"*_{talker}_*"))
    return [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in files]


def turns(voices, seconds, seed=0, pause=(0.2, 1.5), turn=(1, 12), both=0.3, longest_pause=0.0):
    """Let talkers speak in turns, at times at once: sources (C, L)."""
    rng = np.random.default_rng(seed)
    length = int(seconds * RATE)
    sources = torch.zeros(len(voices), length)
    at, speaker = 0, 0
    while at < length:
        speaker = int(rng.choice([v for v in range(len(voices)) if v != speaker]))
        begin = at
        for _ in range(rng.integers(*turn)):
            digit = voices[speaker][rng.integers(len(voices[speaker]))]
            part = sources[speaker, at : at + len(digit)]
            part += digit[: len(part)]
            at += len(digit) + int(rng.uniform(0, 0.15) * RATE)
        if rng.random() < both:  # the next one begins before this one has ended
            at = begin + (at - begin) // 2
        at += int(rng.uniform(*pause) * RATE)
        if longest_pause and rng.random() < 0.05:
            at += int(rng.uniform(2, longest_pause) * RATE)
    return sources


class Swapping(nn.Module):
    """Give the true sources of chunk after chunk, leaking and noisy, in an order drawn anew."""

    def __init__(self, sources, window, hop, seed=0, leak=0.1, noise=0.0):
        super().__init__()
        self.sources = sources
        length = sources.shape[1]
        last = max(length - window, 0)
        self.starts = [*range(0, max(last, 1), hop), *([last] if last else [])]
        self.window = window
        self.leak, self.noise = leak, noise
        self.random = torch.Generator().manual_seed(seed)
        self.orders = []

    def forward(self, mixture):
        start = self.starts[len(self.orders)]
        part = self.sources[:, start : start + self.window]
        order = torch.randperm(len(part), generator=self.random)
        self.orders.append(order.tolist())
        found = (1 - self.leak) * part + self.leak * (part.sum(0) - part)
        found = found[order] + self.noise * torch.randn(part.shape, generator=self.random)
        own = part.sum(0).square().mean().sqrt().clamp(min=1e-4)
        return (found * (mixture.square().mean().sqrt() / own))[None]
