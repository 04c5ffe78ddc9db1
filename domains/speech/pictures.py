"""Figures and sound of separations: scores, spectrograms, and WAV files to listen to."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from domains.speech import audio
from domains.speech.estimates import unpacked

SHOWN = 3
RANGE = 70
"""Decibels from the darkest to the brightest of a spectrogram."""
AFTER = "#0072B2"  # Okabe and Ito


def draw(predictions: Path, folder: Path, mixtures: Any, rate: int) -> list[Path]:
    """Draw from ``predictions.parquet``: ``improvement``, ``spectrograms`` and WAV files.

    Args:
        predictions: rows ``id``, ``si_sdr``, ``si_sdr_i`` and ``estimates``.
        folder: where the pictures go.
        mixtures: the test set, by number.
        rate: samples a second.
    """
    if not predictions.is_file():
        return []
    table = pq.read_table(predictions, columns=["id", "si_sdr", "si_sdr_i", "seconds"])
    gain, score = (table[name].to_numpy() for name in ("si_sdr_i", "si_sdr"))
    known = np.isfinite(gain)
    if not known.any():
        return []
    paths = [folder / "improvement.png", folder / "spectrograms.png"]
    _improvement(gain[known], (score - gain)[known]).savefig(paths[0], dpi=110)
    kept = pq.read_table(predictions, columns=["estimates"])["estimates"]
    held = [n for n in np.flatnonzero(known).tolist() if kept[n].as_py()]
    order = sorted(held, key=lambda n: -gain[n])
    chosen = [order[n] for n in np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)]
    examples = [(int(table["id"][n].as_py()), unpacked(kept[n].as_py()), gain[n]) for n in chosen]
    _spectrograms(examples, mixtures, rate).savefig(paths[1], dpi=80)
    for number, estimates, _ in examples:
        paths += _sound(folder, number, mixtures[number], estimates, rate)
    return paths


def spectrogram(axis: Axes, samples: NDArray[np.float32], rate: int, loudest: float) -> None:
    """Draw the levels of samples (L,) by time and frequency, down from the loudest in dB."""
    axis.imshow(
        levels(samples, rate),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=loudest - RANGE,
        vmax=loudest,
        extent=(0, len(samples) / rate, 0, rate / 2000),
    )


def levels(samples: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """Give the levels in dB (F, T) of samples (L,) in windows of 32 ms."""
    window = rate * 32 // 1000
    hop = window // 4
    padded = np.pad(samples.astype(np.float64), (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    found = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)).T
    decibels: NDArray[np.float64] = 20 * np.log10(found + 1e-6)
    return decibels


def _improvement(gain: NDArray[np.float64], before: NDArray[np.float64]) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(gain, bins=min(30, max(5, len(gain) // 4)), color=AFTER)
    left.axvline(gain.mean(), color="#000000", linewidth=1, linestyle="--")
    left.set_title(f"mean {gain.mean():.2f}, median {np.median(gain):.2f} dB", fontsize=10)
    left.set_xlabel("improvement of SI-SDR (dB)")
    left.set_ylabel("mixtures")
    right.scatter(before, before + gain, s=9, color=AFTER, linewidths=0)
    low, high = min(before.min(), (before + gain).min()), (before + gain).max()
    right.plot([low, high], [low, high], color="#555555", linewidth=0.8)
    right.set_xlabel("SI-SDR of the mixture (dB)")
    right.set_ylabel("SI-SDR of the estimates (dB)")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure


def _spectrograms(examples: Any, mixtures: Any, rate: int) -> Figure:
    """Show the best, a middle and the worst mixture: a row each talker, source beside estimate."""
    speakers = len(examples[0][1])
    figure = Figure(figsize=(11, (1.7 * speakers + 0.4) * len(examples)), layout="constrained")
    blocks: Any = figure.subfigures(len(examples), 1, squeeze=False)[:, 0]
    for block, (number, estimates, gain) in zip(blocks, examples, strict=True):
        item = mixtures[number]
        axes = block.subplot_mosaic(
            [["mixture", f"source {n}", f"estimate {n}"] for n in range(1, speakers + 1)],
            sharex=True,
            sharey=True,
        )
        shown = {"mixture": item.mixture.numpy()}
        for n in range(speakers):
            shown[f"source {n + 1}"] = item.sources[n].numpy()
            shown[f"estimate {n + 1}"] = estimates[n]
        for name, samples in shown.items():
            loudest = float(levels(samples, rate).max())
            spectrogram(axes[name], samples, rate, loudest)
            axes[name].set_title(name, fontsize=9, loc="left")
        block.suptitle(f"{item.name}: {gain:+.1f} dB", fontsize=9)
        axes["mixture"].set_ylabel("kHz")
        axes["mixture"].set_xlabel("s")
    return figure


def _sound(folder: Path, number: int, item: Any, estimates: Any, rate: int) -> list[Path]:
    named = {"mixture": item.mixture.numpy()}
    for n, (source, estimate) in enumerate(zip(item.sources.numpy(), estimates, strict=True), 1):
        named[f"source{n}"], named[f"estimate{n}"] = source, estimate
    paths = []
    for name, samples in named.items():
        path = folder / f"test{number}_{name}.wav"
        audio.write(path, samples, rate)
        paths.append(path)
    return paths
