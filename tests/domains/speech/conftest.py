"""Small recordings of talkers, and the smallest separator."""

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

RATE = 8000


class Masks(nn.Module):
    """Share out the mixture by a convolution a talker; a normalisation makes padding matter."""

    def __init__(self, speakers: int = 2) -> None:
        super().__init__()
        self.speakers = speakers
        self.norm = nn.GroupNorm(1, 1)
        self.masks = nn.Conv1d(1, speakers, 9, padding=4)

    def forward(self, mixture):
        return self.masks(self.norm(mixture[:, None])).sigmoid() * mixture[:, None]


@pytest.fixture
def separator():
    torch.manual_seed(0)
    return Masks


def voice(talker, seed, seconds):
    """A tone of the talker's, in bursts."""
    rng = np.random.default_rng([talker, seed])
    time = np.arange(round(seconds * RATE)) / RATE
    bursts = np.sin(2 * np.pi * (2 + seed % 3) * time) > -0.5
    tone = np.sin(2 * np.pi * (200 + 150 * talker) * time + rng.uniform(0, 6))
    return (0.3 * bursts * tone + 0.003 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture
def talkers(tmp_path):
    """A folder of six recordings each of eight talkers, 0.3 to 0.55 s long."""
    folder = tmp_path / "talkers"
    for talker in range(8):
        (folder / f"talker {talker}").mkdir(parents=True)
        for number in range(6):
            path = folder / f"talker {talker}" / f"{number}.wav"
            soundfile.write(path, voice(talker, number, 0.3 + 0.05 * number), RATE)
    return folder


@pytest.fixture
def prepared(tmp_path):
    """Write mixtures with their sources into the folders of a part."""

    def write(root, speakers=2, count=4, mixture="mix", source="s{}", noise=0.0):
        rng = np.random.default_rng(0)
        for number in range(count):
            seconds = 0.2 + 0.05 * number
            sources = [0.5 * voice(n, number, seconds) for n in range(speakers)]
            hiss = noise * rng.standard_normal(len(sources[0])).astype(np.float32)
            parts = {mixture: sum(sources) + hiss}
            parts |= {source.format(n + 1): own for n, own in enumerate(sources)}
            for name, samples in parts.items():
                (root / name).mkdir(parents=True, exist_ok=True)
                soundfile.write(root / name / f"m{number}.wav", samples, RATE, "FLOAT")
        return root

    return write
