"""A picture of a separation: the spectrograms of a mixture and of its estimates."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

COLUMNS = 1200
"""Columns of a picture, however long the recording."""
FFT = 512
RANGE = 80.0
"""Decibels from the brightest to the darkest."""


class Spectrograms:
    """Gather the power of rows of samples in the columns of a picture, block by block.

    Args:
        rows: C + 1: the estimates, and last the mixture.
        rate: samples a second.
        frames: the samples that will come; what comes beyond is not drawn.
    """

    def __init__(self, rows: int, rate: int, frames: int) -> None:
        self.rate = rate
        self.frames = frames
        self.column = max(FFT // 2, -(-frames // COLUMNS))
        columns = -(-frames // self.column)
        self._power = torch.zeros(rows, FFT // 2 + 1, columns)
        self._counts = torch.zeros(columns)
        self._held = torch.zeros(rows, 0)
        self._seen = 0
        self._window = torch.hann_window(FFT)

    def add(self, block: Tensor) -> None:
        """Take samples (C + 1, n)."""
        held = torch.cat([self._held, block], 1)
        count = (held.shape[1] - FFT) // (FFT // 2) + 1
        if count < 1:
            self._held = held
            return
        spectra = torch.stft(
            held, FFT, FFT // 2, window=self._window, center=False, return_complex=True
        )
        columns = (self._seen + torch.arange(count) * (FFT // 2)) // self.column
        kept = columns < len(self._counts)
        self._power.index_add_(2, columns[kept], spectra.abs().square()[:, :, kept])
        self._counts.index_add_(0, columns[kept], torch.ones(int(kept.sum())))
        self._seen += count * (FFT // 2)
        self._held = held[:, count * (FFT // 2) :]

    def draw(self, path: Path) -> None:
        """Draw them below each other, the mixture first."""
        power = self._power / self._counts.clamp(min=1)
        decibels = 10 * (power + 1e-12).log10()
        top = float(decibels.max())
        names = ["mixture", *(f"s{number}" for number in range(1, len(power)))]
        figure = Figure(figsize=(9, 1 + 1.7 * len(power)), layout="constrained")
        axes = figure.subplots(len(power), sharex=True)
        for axis, name, image in zip(axes, names, [decibels[-1], *decibels[:-1]], strict=True):
            shown = axis.imshow(
                image.numpy(),
                origin="lower",
                aspect="auto",
                extent=(0, self.frames / self.rate, 0, self.rate / 2000),
                vmin=top - RANGE,
                vmax=top,
                cmap="magma",
            )
            axis.set_ylabel(f"{name}\nkHz")
        axes[-1].set_xlabel("s")
        figure.colorbar(shown, ax=axes, label="dB")
        figure.savefig(path, dpi=110, format="png")
