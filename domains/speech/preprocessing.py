"""The preprocessing of a separator: it reads a recording and writes one WAV a talker."""

import csv
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import UserError
from core.progress import bar
from domains.speech.audio import SILENT, SUFFIXES, one_channel, open_audio
from domains.speech.long_recording import Chunking, LongSeparation, separate
from domains.speech.spectrograms import Spectrograms
from domains.speech.tracker import Doubt

BLOCK = 1.0
"""Seconds that are read at a time."""
RIFF = 2**32 - 2**16
"""Bytes above which a WAV needs the 64-bit form."""


@dataclass(frozen=True)
class SeparationFiles:
    """What a separator needs besides its network; it travels in ``model/``.

    Attributes:
        rate: samples a second of what the network hears.
        speakers: C, the talkers it separates.
        chunking: how a long recording is cut and joined, unless options say otherwise.
    """

    rate: int
    speakers: int
    chunking: Chunking = field(default_factory=Chunking)
    spent: dict[str, float] = field(
        default_factory=lambda: {"seconds": 0.0, "audio": 0.0}, compare=False, repr=False
    )

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    result: ClassVar[str] = "/"
    options: ClassVar[Mapping[str, str]] = {
        "window": "seconds of a chunk",
        "hop": "seconds from one chunk to the next, below the window",
        "scale": "consistent: the estimates sum to the mixture; none: as the network gives them;"
        " peak: each at full scale",
        "high_band": "what lies above the model's band: share it by the estimates' ratios, or drop",
    }

    def to_json(self) -> dict[str, Any]:
        """Give plain values, from which :meth:`from_json` rebuilds it."""
        return {"rate": self.rate, "speakers": self.speakers, "chunking": asdict(self.chunking)}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "SeparationFiles":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: if it is of another form.
        """
        try:
            counts = int(mapping["rate"]), int(mapping["speakers"])
            chunking = _chunking(Chunking(), {k: str(v) for k, v in mapping["chunking"].items()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"preprocessing.json: not that of a separator ({error!r})") from None
        if min(counts) < 1:
            raise UserError(f"preprocessing.json: rate and speakers are {counts}, below 1")
        return cls(*counts, chunking)

    def separate(self, network: nn.Module, samples: Tensor, rate: int) -> Tensor:
        """Separate a recording (L,) at any rate into its talkers (C, L)."""
        separation = self.separation(network, rate)
        blocks = torch.split(samples.float().cpu(), max(1, round(BLOCK * rate)))
        return torch.cat(list(separate(blocks, separation)), 1)[:-1]

    def separation(self, network: nn.Module, rate: int, **options: str) -> LongSeparation:
        """Begin to separate a stream at a rate; ``options`` as :meth:`predict_file` takes them."""
        chunking = _chunking(self.chunking, options)
        return LongSeparation(network, self.speakers, self.rate, rate, chunking)

    def predict_file(
        self,
        network: nn.Module,
        input: Path,
        output: Path,
        plot: Path | None = None,
        **options: str,
    ) -> str:
        """Separate a recording.

        Args:
            network: maps mixtures (B, L) to estimates (B, C, L).
            input: the recording; its channels are folded into one.
            output: a folder: ``s1.wav`` and so on, one channel, at the rate, length and bit depth
                of the recording, and ``doubtful_joins.csv``.
            plot: a PNG of the spectrograms; ``spectrograms.png`` in the folder if None.
            options: of :attr:`options`.

        Returns:
            One line about what was done.

        Raises:
            UserError: if the recording cannot be read, or an option is wrong.
        """
        with open_audio(input) as file:
            rate, frames, subtype = file.samplerate, file.frames, file.subtype
            separation = self.separation(network, rate, **options)
            reader = _Reader(file, input)
            output.mkdir(exist_ok=True)
            paths = [output / f"s{number}.wav" for number in range(1, self.speakers + 1)]
            peak = separation.chunking.scale == "peak"
            writer = _Writer(paths, rate, frames, "FLOAT" if peak else _depth(subtype))
            picture = Spectrograms(self.speakers + 1, rate, frames)
            began = time.perf_counter()
            with writer, bar(input.name, round(frames / rate)) as advance:
                for block in separate(reader, separation):
                    writer.add(block[:-1])
                    picture.add(block)
                    advance(block.shape[1] / rate)
            if peak:
                writer.at_full_scale(_depth(subtype))
        seconds = time.perf_counter() - began
        _write_doubts(separation.tracker.doubts, output / "doubtful_joins.csv")
        picture.draw(plot or output / "spectrograms.png")
        self.spent["seconds"] += seconds
        self.spent["audio"] += reader.count / rate
        told = [
            f"{output}: {', '.join(path.name for path in paths)},"
            f" {reader.count / rate:,.1f} s at {rate:,} Hz",
            *reader.notes(),
            *self._band(rate, separation.chunking),
            *writer.notes(),
        ]
        if doubts := len(separation.tracker.doubts):
            told.append(f"{doubts:,} doubtful joins in doubtful_joins.csv")
        told.append(f"real-time factor {seconds * rate / reader.count:.3f}")
        return "; ".join(told)

    def totals(self) -> str:
        """Say how fast all files were separated."""
        audio = self.spent["audio"]
        return f"real-time factor {self.spent['seconds'] / audio:.3f}" if audio else ""

    def _band(self, rate: int, chunking: Chunking) -> list[str]:
        """Say what became of the band above the network's."""
        if rate <= self.rate:
            return []
        if chunking.high_band == "drop":
            return [f"dropped what lies above {self.rate // 2:,} Hz, the model's band"]
        return [f"above {self.rate // 2:,} Hz, the model's band, shared by the estimates' ratios"]


class _Reader:
    """The blocks (n,) of a file, and what is odd about all of them."""

    def __init__(self, file: soundfile.SoundFile, path: Path) -> None:
        self.file = file
        self.path = path
        self.count = 0
        self._blocks = 0
        self._notes: dict[str, int] = {}

    def __iter__(self) -> Iterator[Tensor]:
        size = max(1, round(BLOCK * self.file.samplerate))
        while len(values := self._read(size)):
            samples, notes = one_channel(values)
            for note in notes:
                self._notes[note] = self._notes.get(note, 0) + 1
            self.count += len(samples)
            self._blocks += 1
            yield torch.from_numpy(samples)

    def _read(self, size: int) -> NDArray[np.float32]:
        try:
            values: NDArray[np.float32] = self.file.read(size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise UserError(f"{self.path}: is damaged ({error}); bring the whole file") from None
        return values

    def notes(self) -> list[str]:
        """Say what was repaired; silence only where there is nothing else."""
        silent = self._notes.get(SILENT) == self._blocks
        told = [note for note in self._notes if note != SILENT]
        return [*told, f"{SILENT}, and so are the estimates"] if silent else told


class _Writer:
    """The files of the talkers, written block by block."""

    def __init__(self, paths: list[Path], rate: int, frames: int, subtype: str) -> None:
        self.paths = paths
        self.rate = rate
        self.form = "RF64" if frames * 4 > RIFF else "WAV"
        self.clipped = 0
        self.peaks = torch.zeros(len(paths))
        self._subtype = subtype
        self._files = [self._open(path, subtype) for path in paths]

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def _open(self, path: Path, subtype: str) -> soundfile.SoundFile:
        return soundfile.SoundFile(path, "w", self.rate, 1, subtype, format=self.form)

    def add(self, estimates: Tensor) -> None:
        """Write estimates (C, n)."""
        if not estimates.shape[1]:
            return
        self.peaks = torch.maximum(self.peaks, estimates.abs().amax(1))
        if self._subtype not in ("FLOAT", "DOUBLE"):
            self.clipped += int((estimates.abs() > 1).sum())
        for file, samples in zip(self._files, estimates, strict=True):
            file.write(samples.numpy())

    def at_full_scale(self, subtype: str) -> None:
        """Write the files anew, each with its largest sample at 1; silent ones stay silent."""
        for path, peak in zip(self.paths, self.peaks.tolist(), strict=True):
            part = path.with_suffix(".part")
            with soundfile.SoundFile(path) as old, self._open(part, subtype) as new:
                for block in old.blocks(self.rate, dtype="float32"):
                    new.write(block / peak if peak else block)
            part.replace(path)

    def notes(self) -> list[str]:
        """Say how many samples did not fit the files."""
        if not self.clipped:
            return []
        return [f"{self.clipped:,} samples beyond full scale were clipped (--scale=peak avoids it)"]


def _depth(subtype: str) -> str:
    """Give the bit depth of the results: that of the recording where WAV has it."""
    return subtype if subtype in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE") else "PCM_16"


def _write_doubts(doubts: list[Doubt], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Doubt._fields)
        for doubt in doubts:
            numbers = f"{doubt.seconds:.3f}", f"{doubt.speech:.2f}", f"{doubt.correlation:.3f}"
            table.writerow([*numbers, doubt.decided_by])


def _chunking(chunking: Chunking, options: Mapping[str, str]) -> Chunking:
    """Change what the options say."""
    choices = {"scale": ("consistent", "none", "peak"), "high_band": ("share", "drop")}
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in choices:
            if value not in choices[name]:
                raise UserError(f"--{name}={value}: give {' or '.join(choices[name])}")
            found[name] = value
        else:
            try:
                found[name] = float(value)
            except ValueError:
                raise UserError(f"--{name}={value}: give seconds, such as 4") from None
    return replace(chunking, **found)
