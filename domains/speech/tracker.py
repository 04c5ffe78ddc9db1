"""Keep the order of the talkers from one chunk of a long recording to the next.

A separator gives the talkers of each chunk in an order of its own. Where two chunks overlap, both
have estimated the same samples: the order of the later is the one that agrees with the earlier
there. An overlap without speech tells nothing; then the order is the one in which the voices fit
what each talker has sounded like so far. Such joins are listed as doubtful.
"""

from itertools import permutations
from typing import NamedTuple

import torch
import torchaudio
from torch import Tensor

FRAME = 0.02
"""Seconds of the frames in which speech is told from silence."""
QUIET = 1e-3
"""A frame of less power than this share of the loud ones is silent: 30 dB below them."""
CLEAR = 0.05
"""The least correlation by which an overlap decides between two orders."""
LEAST = 0.04
"""The fewest seconds of speech by which an overlap decides."""
SURE = 0.3
"""The correlation, and the seconds of speech, from which on its decision is not doubtful."""
BANDS = 24
"""Mel bands of a voice's profile."""
STRANGER = 0.5
"""The distance, a band, at which a voice is taken for one not heard so far."""
MEMORY = 60.0
"""Seconds of speech after which a profile forgets."""


class Doubt(NamedTuple):
    """A join that may be wrong.

    Attributes:
        seconds: when the later chunk begins.
        speech: seconds of speech in the overlap that tell the talkers apart.
        correlation: of the chosen order with the earlier chunk, against the next best order.
        decided_by: ``overlap``, ``voice``, or ``order`` where nothing told and the order was kept.
    """

    seconds: float
    speech: float
    correlation: float
    decided_by: str


class SpeakerTracker:
    """Bring the estimates of chunk after chunk into one order.

    Args:
        speakers: C, the talkers of every chunk.
        rate: samples a second.
    """

    def __init__(self, speakers: int, rate: int) -> None:
        self.speakers = speakers
        self.rate = rate
        self.frame = max(1, round(FRAME * rate))
        self.doubts: list[Doubt] = []
        self._loud = 0.0
        self._voices = Voices(speakers, rate, self.frame)

    def order(self, kept: Tensor, found: Tensor, start: int) -> list[int]:
        """Say which estimate of a chunk belongs to which talker, and remember the voices.

        Args:
            kept: (C, O) what is known of the talkers in the overlap.
            found: (C, L) the estimates of the chunk, whose first O samples are the overlap; O is
                0 for the first chunk.
            start: the sample at which the chunk begins.

        Returns:
            C numbers of estimates, one a talker.
        """
        power = _frames(found, self.frame).square().mean(-1)  # (C, T)
        whole = power.sum(0)
        if not len(whole):
            return list(range(self.speakers))
        self._loud = max(0.98 * self._loud, float(whole.quantile(0.95)))
        floor = QUIET * self._loud
        chosen = list(range(self.speakers))
        heard = self._voices.heard(found, power, floor)
        if kept.shape[1] and bool((whole > floor).any()) and self._loud > 0:
            speaks = (power > floor).any(1).tolist()
            chosen = self._decide(kept, found[:, : kept.shape[1]], heard, speaks, floor, start)
        self._voices.learn([heard[number] for number in chosen])
        return chosen

    def _decide(
        self,
        kept: Tensor,
        found: Tensor,
        heard: list[Tensor],
        speaks: list[bool],
        floor: float,
        start: int,
    ) -> list[int]:
        """Choose by the overlap, and among the orders that it leaves open by the voices."""
        before, after = _frames(kept, self.frame), _frames(found, self.frame)  # (C, T, F)
        products = torch.einsum("ctf,jtf->cj", before, after)  # (C, C)
        orders = list(permutations(range(self.speakers)))
        scores = [sum(float(products[c, j]) for c, j in enumerate(order)) for order in orders]
        best = orders[max(range(len(orders)), key=lambda number: scores[number])]
        told = {
            other: _evidence(before, after, best, other, floor)
            for other in orders
            if any(speaks[j] for j, k in zip(best, other, strict=True) if j != k)
        }
        still = [o for o, e in told.items() if e.correlation < CLEAR or e.frames * FRAME < LEAST]
        chosen, by = best, "overlap"
        if still:
            costs = {order: self._voices.distance(order, heard) for order in [best, *still]}
            chosen = min(costs, key=lambda order: costs[order])
            by = "voice" if len(set(costs.values())) > 1 else "order"
        if told:
            speech = min(e.frames for e in told.values()) * FRAME
            least = min(e.correlation for e in told.values())
            if min(speech, least) < SURE:
                self.doubts.append(Doubt(start / self.rate, speech, least, by))
        return list(chosen)


class _Evidence(NamedTuple):
    """How an overlap tells two orders apart: a correlation, and in how many frames."""

    correlation: float
    frames: int


def _evidence(
    before: Tensor, after: Tensor, best: tuple[int, ...], other: tuple[int, ...], floor: float
) -> _Evidence:
    """Correlate what differs between two orders with what is known, over frames of speech."""
    changed = [c for c in range(len(best)) if best[c] != other[c]]
    known = before[changed] - before[changed].mean(0)  # (K, T, F)
    differing = after[[best[c] for c in changed]] - after[[other[c] for c in changed]]
    telling = known.square().mean(-1).sum(0) > floor / 2  # (T,) of one talker alone it is P / 2
    known, differing = known[:, telling], differing[:, telling]
    norms = float(known.norm() * differing.norm())
    correlation = float((known * differing).sum()) / norms if norms else 0.0
    return _Evidence(correlation, int(telling.sum()))


class Voices:
    """What each talker has sounded like: the mean of log mel spectra, whatever their level.

    Args:
        speakers: C, the talkers.
        rate: samples a second.
        frame: samples from one spectrum to the next.
    """

    def __init__(self, speakers: int, rate: int, frame: int) -> None:
        self.frame = frame
        self._most = MEMORY / FRAME
        self._mel = torchaudio.transforms.MelSpectrogram(
            rate, n_fft=2 * frame, hop_length=frame, n_mels=BANDS, f_min=80.0
        )
        self._sums = torch.zeros(speakers, BANDS, dtype=torch.float64)
        self._counts = torch.zeros(speakers, dtype=torch.float64)

    def heard(self, found: Tensor, power: Tensor, floor: float) -> list[Tensor]:
        """Give the log mel spectra (T, bands) of each estimate where it alone speaks."""
        spectra = (self._mel(found) + floor * 1e-3 + 1e-12).log()  # (C, bands, T)
        spectra = spectra - spectra.mean(1, keepdim=True)
        count = power.shape[1]
        alone = (power > floor) & (power > 2 * (power.sum(0) - power))
        return [s[:, :count][:, a].T.double() for s, a in zip(spectra, alone, strict=True)]

    def distance(self, order: tuple[int, ...], heard: list[Tensor]) -> float:
        """Say how far the voices are from the talkers whose estimates they would be."""
        return sum(self._between(c, heard[number]) for c, number in enumerate(order))

    def learn(self, heard: list[Tensor]) -> None:
        """Add what each talker said."""
        for c, spectra in enumerate(heard):
            self._sums[c] += spectra.sum(0)
            self._counts[c] += len(spectra)
            if (share := self._most / max(float(self._counts[c]), 1.0)) < 1:
                self._sums[c] *= share
                self._counts[c] *= share

    def _between(self, talker: int, spectra: Tensor) -> float:
        """Give the squared distance of a voice and a talker, weighted by how much was heard."""
        if not len(spectra):
            return 0.0
        if not self._counts[talker]:
            return STRANGER * len(spectra)
        known = self._sums[talker] / self._counts[talker]
        return float((spectra.mean(0) - known).square().mean()) * len(spectra)


def _frames(signal: Tensor, frame: int) -> Tensor:
    """Cut a signal (C, L) into whole frames (C, T, F)."""
    count = signal.shape[1] // frame
    return signal[:, : count * frame].reshape(len(signal), count, frame)
