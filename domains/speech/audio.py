"""Read and write recordings: WAV, FLAC, OGG and MP3, of any bit depth and rate.

Repairs, each of them told: several channels are folded into their mean, samples that are no numbers
become zeros, another rate is resampled. Clipped and silent recordings are told of and kept. What is
empty, damaged or of another format is an error.
"""

import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

from core.errors import UserError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".w64", ".rf64")
NOT_NUMBERS = "samples that are no numbers became zeros"
CLIPPED = "clipped, with many samples at full scale"
FOLDED = "channels were folded into their mean"
SILENT = "silent throughout"
_FULL = 32767 / 32768
"""What a 16-bit recording holds at most; two such samples in a row are clipped."""
_SHARE = 1e-4
"""The share of clipped samples that is told of."""


class Info(NamedTuple):
    """What the head of a file says: samples a second, samples a channel, channels, ``PCM_16``."""

    rate: int
    frames: int
    channels: int
    subtype: str


class Audio(NamedTuple):
    """One channel (L,) of float32 samples, its rate, and what was repaired or is odd."""

    samples: Tensor
    rate: int
    notes: tuple[str, ...]


def open_audio(path: Path) -> soundfile.SoundFile:
    """Open a recording for reading; the caller closes it.

    Raises:
        UserError: if it is missing, empty, or no recording that can be read; of other formats the
            message gives the line that converts them.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if not path.stat().st_size:
        raise UserError(f"{path}: is empty (0 bytes); bring the whole file")
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: .raw states no rate
        known = path.suffix.lower() in SUFFIXES
        what = f"is no {path.suffix[1:].upper()} recording, or damaged" if known else "unknown form"
        wav = path.with_name(f"{path.stem}{'_converted' if known else ''}.wav")
        raise UserError(
            f"{path}: {what}; WAV, FLAC, OGG and MP3 are read, others after"
            f" ffmpeg -i {shlex.quote(str(path))} {shlex.quote(str(wav))}"
        ) from None
    if not file.frames:
        file.close()
        raise UserError(f"{path}: holds no sample; bring the whole file")
    return file


def info(path: Path) -> Info:
    """Read the head of a recording.

    Raises:
        UserError: as :func:`open_audio`.
    """
    with open_audio(path) as file:
        return Info(file.samplerate, file.frames, file.channels, file.subtype)


def read(path: Path, rate: int | None = None, start: int = 0, frames: int = -1) -> Audio:
    """Read a recording, or a part of it, as one channel.

    Args:
        path: the file.
        rate: samples a second to resample to; None keeps the file's.
        start: the first sample to read, at the file's rate.
        frames: how many samples to read at most; -1 for all.

    Raises:
        UserError: as :func:`open_audio`, or if it breaks off.
    """
    with open_audio(path) as file:
        try:
            file.seek(min(start, file.frames))
            values = file.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise UserError(f"{path}: is damaged ({error}); bring the whole file") from None
        own = file.samplerate
    samples, notes = one_channel(values)
    found = torch.from_numpy(samples)
    if rate is not None and rate != own:
        notes = (*notes, f"resampled from {own:,} to {rate:,} Hz")
        return Audio(resample(found, own, rate), rate, notes)
    return Audio(found, own, notes)


def one_channel(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Fold samples (L, channels) into one channel (L,) of finite ones, and tell what was done."""
    notes = []
    bad = ~np.isfinite(values)
    if bad.any():
        values = np.where(bad, np.float32(0), values)
        notes.append(NOT_NUMBERS)
    high = (np.abs(values) >= _FULL) & (np.abs(values) <= 1)  # what is beyond was not cut
    if len(high) > 1 and (high[1:] & high[:-1]).mean() > _SHARE:
        notes.append(CLIPPED)
    if values.shape[1] > 1:
        values = values.mean(1, keepdims=True, dtype=np.float32)
        notes.append(FOLDED)
    if not values.any():
        notes.append(SILENT)
    return np.ascontiguousarray(values[:, 0]), tuple(notes)


def resample(samples: Tensor, source: int, target: int) -> Tensor:
    """Change the rate of samples (..., L) by a windowed sinc filter; equal rates change nothing."""
    found: Tensor = torchaudio.functional.resample(samples, source, target)
    return found


def write(path: Path, samples: Tensor | NDArray[Any], rate: int, subtype: str = "PCM_16") -> None:
    """Write one channel (L,) as a WAV file; samples beyond full scale are clipped.

    Args:
        path: the file, ``.wav``.
        samples: (L,), full scale 1.
        rate: samples a second.
        subtype: ``PCM_16``, ``PCM_24``, ``FLOAT`` and so on.
    """
    values = samples.detach().cpu().float().numpy() if isinstance(samples, Tensor) else samples
    soundfile.write(path, values, rate, subtype, format="WAV")
