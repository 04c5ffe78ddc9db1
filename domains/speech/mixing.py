"""Mix recordings of single talkers, each draw a pure function of a seed.

Dynamic mixing as in SpeechBrain's recipes (Zeghidour and Grangier, Wavesplit, IEEE TASLP 2021):
other talkers, levels and stretches in each epoch. Noise as in WHAM! (Wichern et al., Interspeech
2019), rooms as in WHAMR! (Maciejewski et al., ICASSP 2020).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torchaudio
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from domains.speech import audio
from domains.speech.talkers import Recording, by_talker

SPEEDS = (0.95, 1.0, 1.05)
FIRST_LEVEL = (-27.43, 2.57)
"""Mean and deviation, in dB, of the level of the first talker in dynamic mixing."""
LEVEL_STEP = (-2.51, 2.66)
"""The same of the level of the others above the first one's."""
LOWEST = -45.0
PEAK = 0.9
"""What the loudest sample of a mixture and its parts is scaled to."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """How recordings are mixed.

    Attributes:
        speakers: C, the talkers of a mixture.
        rate: samples a second.
        length: ``min`` cuts all talkers to the shortest, ``max`` fills up to the longest.
        overlap: bounds of the share of the shorter of two talkers that is overlapped by the next
            one; None lets all begin together.
        level: bounds in dB, such as (-5, 5), of the level of every other talker above the first;
            None draws it as dynamic mixing does.
        longest: seconds that longer recordings are cut to, at random.
        join: seconds to which a talker's recordings are joined; 0 takes one recording.
        snr: bounds in dB of the level of the loudest talker above the noise.
        reverberant: whether the targets keep the room, or are the direct sound alone.
        noises: files of noise.
        rooms: files of impulse responses, one list a room.
    """

    speakers: int = 2
    rate: int = 8000
    length: Literal["min", "max"] = "min"
    overlap: tuple[float, float] | None = None
    level: tuple[float, float] | None = None
    longest: float = 20.0
    join: float = 0.0
    snr: tuple[float, float] = (-3.0, 6.0)
    reverberant: bool = False
    noises: tuple[Path, ...] = ()
    rooms: tuple[tuple[Path, ...], ...] = ()


class Mixer:
    """Draw mixtures.

    Args:
        recordings: those of single talkers.
        recipe: how they are mixed.
        where: what the recordings are, for errors.
        speed: whether recordings are played at 95, 100 or 105 %.

    Raises:
        UserError: if there are fewer talkers than a mixture needs.
    """

    def __init__(
        self, recordings: Sequence[Recording], recipe: Recipe, where: str, speed: bool = False
    ) -> None:
        self.recordings = recordings
        self.recipe = recipe
        self.speed = speed
        numbers = by_talker(recordings, recipe.speakers, where)
        self.numbers = list(numbers.values())
        counts = np.array([len(own) for own in self.numbers], float)
        self.shares = counts / counts.sum()

    def __call__(self, seed: int, segment: int | None = None) -> tuple[Tensor, Tensor, str]:
        """Draw a mixture (L,), its sources (C, L), and its name.

        Args:
            seed: all that is drawn follows from it.
            segment: samples to cut the mixture to, at random; None keeps it whole.
        """
        random = np.random.default_rng(seed)
        recipe = self.recipe
        chosen = random.choice(len(self.numbers), recipe.speakers, replace=False, p=self.shares)
        told = [self._talk(self.numbers[talker], random) for talker in chosen]
        dry = self._placed(self._level([samples for samples, _ in told], random), random)
        if segment is not None:
            start, frames = stretch(dry.shape[1], segment, random)
            dry = dry[:, start : start + frames]
        wet, target = self._in_room(dry, random)
        mixture = wet.sum(0)
        if recipe.noises:
            mixture = mixture + self._noise(wet, random)
        peak = max(float(np.abs(mixture).max()), float(np.abs(target).max()), 1e-8)
        scale = np.float32(PEAK / peak)
        name = " + ".join(name for _, name in told)
        return torch.from_numpy(mixture * scale), torch.from_numpy(target * scale), name

    def _talk(self, numbers: Sequence[int], random: Generator) -> tuple[Array, str]:
        """Let a talker speak: one recording, or several joined; and the name of the first."""
        wanted = round(self.recipe.join * self.recipe.rate)
        parts: list[Array] = []
        order = random.permutation(len(numbers))
        names = []
        while not parts or sum(map(len, parts)) < wanted:
            recording = self.recordings[numbers[order[len(parts) % len(order)]]]
            speed = float(random.choice(SPEEDS)) if self.speed else 1.0
            longest = round(self.recipe.longest * recording.rate)
            start, frames = stretch(recording.frames, longest, random)
            samples = audio.read(recording.path, self.recipe.rate, start, frames or -1).samples
            parts.append(at_speed(samples, speed).numpy())
            names.append(recording.id)
        whole = np.concatenate(parts)
        return (whole[:wanted] if wanted else whole), names[0]

    def _level(self, talks: Sequence[Array], random: Generator) -> list[Array]:
        """Give each talker a level."""
        first = float(np.clip(random.normal(*FIRST_LEVEL), LOWEST, 0))
        found = []
        for number, samples in enumerate(talks):
            level = first
            if number and self.recipe.level is not None:
                level = first + random.uniform(*self.recipe.level)
            elif number:
                level = float(np.clip(first + random.normal(*LEVEL_STEP), LOWEST, 0))
            gain = 10 ** ((level - loudness(samples)) / 20)
            found.append((samples * gain).astype(np.float32))
        return found

    def _placed(self, talks: list[Array], random: Generator) -> Array:
        """Put talkers beside each other (C, L)."""
        overlap = self.recipe.overlap
        if overlap is None and self.recipe.length == "min":
            shortest = min(map(len, talks))
            cut = []
            for samples in talks:
                start, _ = stretch(len(samples), shortest, random)
                cut.append(samples[start : start + shortest])
            return np.stack(cut)
        begins = [0]
        for before, samples in itertools.pairwise(talks):
            share = 1.0 if overlap is None else random.uniform(*overlap)
            back = round(share * min(len(before), len(samples)))
            begins.append(begins[-1] + (0 if overlap is None else len(before) - back))
        longest = max(b + len(samples) for b, samples in zip(begins, talks, strict=True))
        placed = np.zeros((len(talks), longest), np.float32)
        for row, begin, samples in zip(placed, begins, talks, strict=True):
            row[begin : begin + len(samples)] = samples
        return placed

    def _in_room(self, dry: Array, random: Generator) -> tuple[Array, Array]:
        """Give what is heard of the talkers (C, L) in a room, and their targets (C, L)."""
        if not self.recipe.rooms:
            return dry, dry
        room = self.recipe.rooms[int(random.integers(len(self.recipe.rooms)))]
        places = random.choice(len(room), len(dry), replace=len(room) < len(dry))
        wet, direct = np.empty_like(dry), np.empty_like(dry)
        for at, place in enumerate(places):
            response = audio.read(room[place], self.recipe.rate).samples.numpy()
            wet[at], direct[at] = reverberated(dry[at], response)
        return wet, (wet if self.recipe.reverberant else direct)

    def _noise(self, wet: Array, random: Generator) -> Array:
        """Draw noise (L,) below, or above, the loudest talker."""
        path = self.recipe.noises[int(random.integers(len(self.recipe.noises)))]
        noise = audio.read(path, self.recipe.rate).samples.numpy()
        length = wet.shape[1]
        noise = np.tile(noise, -(-length // len(noise)))
        start, _ = stretch(len(noise), length, random)
        noise = noise[start : start + length]
        loudest = max(loudness(samples) for samples in wet)
        level = loudest - random.uniform(*self.recipe.snr)
        return (noise * 10 ** ((level - loudness(noise)) / 20)).astype(np.float32)


def stretch(length: int, wanted: int, random: Generator) -> tuple[int, int]:
    """Draw where a stretch of wanted samples begins, and how many there are."""
    start = int(random.integers(max(length - wanted, 0) + 1))
    return start, min(wanted, length)


def at_speed(samples: Tensor, speed: float) -> Tensor:
    """Play samples (..., L) faster or slower, pitch included."""
    return audio.resample(samples, round(100 * speed), 100)


def loudness(samples: Array) -> float:
    """Give the level in dB of the samples that are not zero."""
    sounding = samples[samples != 0]
    power = float(np.square(sounding, dtype=np.float64).mean()) if len(sounding) else 0.0
    return 10 * float(np.log10(power + 1e-12))


def reverberated(dry: Array, response: Array) -> tuple[Array, Array]:
    """Convolve samples (L,) with an impulse response; give the whole sound and the direct one.

    Both begin with the direct sound: the time that it travels is taken away.
    """
    peak = int(np.abs(response).argmax())
    signal, room = torch.from_numpy(dry), torch.from_numpy(response[peak:].copy())
    wet = torchaudio.functional.fftconvolve(signal, room)[: len(dry)].numpy()
    return wet, dry * response[peak]
