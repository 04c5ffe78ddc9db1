"""Data sets of mixtures: those on the disk, and those drawn from recordings of single talkers."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from core.batch_plan import mix_seed
from domains.speech import audio
from domains.speech.layouts import Prepared
from domains.speech.mixing import SPEEDS, Mixer, at_speed, stretch
from domains.speech.mixtures import Mixture

MORE = 1e-3
"""A mixture with more energy than this share beside its sources holds noise or a room."""


class DrawnMixtures:
    """Mixtures that are drawn: anew in each epoch, or always the same.

    Args:
        mixer: draws them.
        count: how many there are.
        part: its number keeps the mixtures of validation and test apart.
        segment: samples that training mixtures are cut to; None keeps them whole.
    """

    def __init__(self, mixer: Mixer, count: int, part: int, segment: int | None = None) -> None:
        self.mixer = mixer
        self.count = count
        self.part = part
        self.segment = segment

    def __len__(self) -> int:
        """Count the mixtures."""
        return self.count

    def __getitem__(self, index: int) -> Mixture:
        """Draw a mixture; training draws by the seed that comes with its index."""
        row = int(index)
        fixed = mix_seed(self.part, row)
        seed = fixed if self.part else getattr(index, "seed", fixed)
        mixture, sources, name = self.mixer(seed, self.segment)
        return Mixture(mixture, sources, row, name)


class PreparedMixtures:
    """Mixtures that lie on the disk with their sources.

    Args:
        items: the mixtures.
        rate: samples a second.
        segment: samples that training mixtures are cut to, at random; None keeps them whole.
        speed: play each source of training at 95, 100 or 105 % and mix them anew.
    """

    def __init__(
        self, items: Sequence[Prepared], rate: int, segment: int | None = None, speed: bool = False
    ) -> None:
        self.items = items
        self.rate = rate
        self.segment = segment
        self.speed = speed

    def __len__(self) -> int:
        """Count the mixtures."""
        return len(self.items)

    def __getitem__(self, index: int) -> Mixture:
        """Read a mixture; training changes it by the seed that comes with its index."""
        row = int(index)
        item = self.items[row]
        random = np.random.default_rng(getattr(index, "seed", mix_seed(0, row)))
        start, frames = 0, -1
        if self.segment is not None and not self.speed:
            start, frames = stretch(item.frames, self.segment * item.rate // self.rate, random)
        found = [
            audio.read(path, self.rate, start, frames).samples
            for path in (item.mixture, *item.sources)
        ]
        mixture, sources = found[0], torch.stack(found[1:])
        if self.speed:
            mixture, sources = at_speeds(mixture, sources, random)
            if self.segment is not None:
                start, frames = stretch(len(mixture), self.segment, random)
                mixture, sources = (x[..., start : start + frames] for x in (mixture, sources))
        return Mixture(mixture, sources, row, item.name)


def at_speeds(mixture: Tensor, sources: Tensor, random: Generator) -> tuple[Tensor, Tensor]:
    """Play sources (C, L) at 95, 100 or 105 %, each at its own, and mix them anew.

    Where the mixture (L,) holds more than its sources, noise or a room, all are played at one
    speed.
    """
    rest = (mixture - sources.sum(0)).square().sum()
    alone = bool(rest <= MORE * mixture.square().sum())
    speeds = random.choice(SPEEDS, len(sources) if alone else 1)
    if not alone:
        together = at_speed(torch.cat([mixture[None], sources]), float(speeds[0]))
        return together[0], together[1:]
    each = [at_speed(own, float(speed)) for own, speed in zip(sources, speeds, strict=True)]
    shortest = min(map(len, each))
    sources = torch.stack([own[:shortest] for own in each])
    return sources.sum(0), sources
