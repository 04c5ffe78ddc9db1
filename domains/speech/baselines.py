"""What stands beside a separation: the mixture itself, and an oracle as an upper bound."""

import torch
from torch import Tensor

from domains.speech.mixtures import MixtureBatch
from domains.speech.si_sdr import inside

WINDOW = 256
"""Samples of a window of the oracle's spectrograms: 32 ms at 8 kHz."""


def unprocessed(batch: MixtureBatch) -> tuple[Tensor, Tensor]:
    """Answer with the mixture for every talker (B, C, L)."""
    return batch.mixture[:, None].expand_as(batch.sources), batch.sources


def ideal_ratio_mask(batch: MixtureBatch) -> tuple[Tensor, Tensor]:
    """Filter the mixture by the shares of the sources in each bin: what no mask could know.

    The mask is the magnitude of a source over the sum of all, and of what else is heard (Wang et
    al., IEEE/ACM TASLP 2014).
    """
    mixture, sources = batch.mixture, batch.sources
    rest = mixture - sources.sum(1)
    parts = torch.cat([sources, rest[:, None]], 1)  # (B, C + 1, L)
    window = torch.hann_window(WINDOW, device=mixture.device)

    def spectrum(signals: Tensor) -> Tensor:  # (..., L) -> (..., F, T)
        found: Tensor = torch.stft(
            signals.reshape(-1, signals.shape[-1]),
            *(WINDOW, WINDOW // 4),
            window=window,
            pad_mode="constant",
            return_complex=True,
        )
        return found.reshape(*signals.shape[:-1], *found.shape[1:])

    magnitude = spectrum(parts).abs()  # (B, C + 1, F, T)
    mask = magnitude[:, :-1] / (magnitude.sum(1, keepdim=True) + 1e-8)
    masked = mask * spectrum(mixture)[:, None]
    length = mixture.shape[-1]
    found = torch.istft(
        masked.flatten(0, 1), WINDOW, WINDOW // 4, window=window, length=length
    ).reshape(sources.shape)
    return found * inside(batch.lengths, length)[:, None], sources
