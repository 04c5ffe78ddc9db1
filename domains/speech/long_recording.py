"""Separate recordings of any length, in memory that does not grow with it.

Samples are pushed in blocks, at any rate. They are resampled to the network's, cut into chunks of
one length that overlap, separated chunk by chunk, put into one order of talkers, cross-faded and
resampled back; what the estimates miss of the mixture is shared out among them. Nothing is padded:
the last chunk ends where the recording ends, and so overlaps more.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError
from domains.speech.resampling import StreamResampler
from domains.speech.tracker import FRAME, SpeakerTracker

LEVEL = 0.1
"""The root mean square at which the network hears every chunk."""
SILENT = 1e-7
"""A chunk below this root mean square is not given to the network: its estimates are silent."""


@dataclass(frozen=True)
class Chunking:
    """How a recording is separated.

    Attributes:
        window: seconds of a chunk.
        hop: seconds from one chunk to the next.
        scale: ``consistent``: the estimates sum to the mixture; ``none``: as the network gives
            them; ``peak``: as ``none``, then each at full scale, done where they are written.
        high_band: what becomes of the band above that of the network: ``share`` or ``drop``.
    """

    window: float = 4.0
    hop: float = 2.0
    scale: Literal["consistent", "none", "peak"] = "consistent"
    high_band: Literal["share", "drop"] = "share"


class OverlapAdd:
    """Separate a stream at the network's rate.

    Args:
        network: maps mixtures (B, L) to estimates (B, C, L).
        tracker: keeps the order of the talkers.
        window: W, samples of a chunk.
        hop: samples from one chunk to the next.
        fit: give each chunk's estimates the levels at which they sum to the mixture best; what the
            scale-invariant losses train has a level, and a sign, of its own.
    """

    def __init__(
        self, network: nn.Module, tracker: SpeakerTracker, window: int, hop: int, fit: bool
    ) -> None:
        self.network = network.eval()
        self.tracker = tracker
        self.window = window
        self.hop = hop
        self.fit = fit
        self._mixture = torch.zeros(0)  # from the start of the last chunk on
        self._start = 0  # of the last chunk
        self._next = 0  # start of the next chunk, in what is held
        self._sum = torch.zeros(tracker.speakers, 0)  # of faded estimates, over the last chunk
        self._weight = torch.zeros(0)

    def push(self, mixture: Tensor) -> Tensor:
        """Take samples (n,); give the estimates and the mixture, (C + 1, m), that are certain."""
        self._mixture = torch.cat([self._mixture, mixture])
        given = [self._joined(0)]
        while self._next + self.window <= len(self._mixture):
            given.append(self._chunk(self._next))
        return torch.cat(given, 1)

    def finish(self) -> Tensor:
        """Give the rest, (C + 1, m), down to the last sample."""
        given = [self._joined(0)]
        if self._sum.shape[1] < len(self._mixture):
            given.append(self._chunk(max(0, len(self._mixture) - self.window)))
        given.append(self._joined(len(self._mixture)))
        return torch.cat(given, 1)

    def _chunk(self, start: int) -> Tensor:
        """Add the chunk that begins at ``start`` of what is held; give what lies before it."""
        given = self._joined(start)
        self._mixture, self._start = self._mixture[start:], self._start + start
        self._sum, self._weight = self._sum[:, start:], self._weight[start:]
        mixture = self._mixture[: self.window]
        estimates = self._separate(mixture)
        order = self.tracker.order(self._sum / self._weight, estimates, self._start)
        count, overlap = len(mixture), len(self._weight)
        fade = torch.sin((torch.arange(count) + 0.5) * (math.pi / count)).square()
        self._sum = F.pad(self._sum, (0, count - overlap)) + estimates[order] * fade
        self._weight = F.pad(self._weight, (0, count - overlap)) + fade
        self._next = self.hop
        return given

    def _joined(self, count: int) -> Tensor:
        """Give the first samples of the last chunk, (C + 1, count)."""
        return torch.cat([self._sum[:, :count] / self._weight[:count], self._mixture[None, :count]])

    def _separate(self, mixture: Tensor) -> Tensor:
        """Estimate the talkers (C, L) of a chunk (L,) at its own level."""
        level = mixture.square().mean().sqrt()
        speakers = self.tracker.speakers
        if level < SILENT:
            return torch.zeros(speakers, len(mixture))
        device = next(iter(self.network.parameters()), mixture).device
        with torch.inference_mode():
            found = self.network((mixture * (LEVEL / level))[None].to(device))[0].float().cpu()
        if found.shape != (speakers, len(mixture)):
            raise UserError(
                f"the model gives {tuple(found.shape)} for a chunk of {len(mixture):,} samples;"
                f" its preprocessing states {speakers} talkers"
            )
        if not bool(found.isfinite().all()):
            raise UserError("the model's output is not finite; train it anew")
        estimates: Tensor = found * (level / LEVEL)
        if self.fit:
            estimates = estimates * best_gains(estimates, mixture)[:, None]
        return estimates


def best_gains(estimates: Tensor, mixture: Tensor) -> Tensor:
    """Give the gains (C,) by which estimates (C, L) sum to the mixture (L,) best.

    Least squares, drawn a little towards one gain for all, which decides where an estimate is
    silent or two are alike.
    """
    found, wanted = estimates.double(), mixture.double()
    together = found.sum(0)
    power = together.square().sum()
    if not power:
        return torch.ones(len(estimates))
    common = (together @ wanted) / power
    gram = found @ found.T
    ridge = 1e-2 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    own = torch.linalg.solve(gram + ridge, found @ (wanted - common * together))
    gains: Tensor = common + own
    return gains.float()


class Sharing:
    """Share out a rest among the estimates, by their shares of the power of each frame.

    Args:
        speakers: C.
        rate: samples a second.
    """

    def __init__(self, speakers: int, rate: int) -> None:
        self.frame = max(1, round(FRAME * rate))
        self._held = torch.zeros(speakers + 2, 0)
        self._last: Tensor | None = None  # the shares (C, 1) of the frame before what is held

    def push(self, rows: Tensor) -> Tensor:
        """Take estimates, rest and mixture, (C + 2, n).

        Returns:
            The estimates with their shares of the rest, and the mixture, (C + 1, m).
        """
        self._held = torch.cat([self._held, rows], 1)
        frames = self._held.shape[1] // self.frame
        if frames < 2:  # the shares of a frame depend on the next
            return rows[:-1, :0]
        shares = self._shares(self._held[:-2, : frames * self.frame])
        count = (frames - 1) * self.frame
        given = self._shared(shares, count)
        self._held, self._last = self._held[:, count:], shares[:, -2:-1]
        return given

    def finish(self) -> Tensor:
        """Give the rest, (C + 1, m)."""
        count = self._held.shape[1]
        if not count:
            return self._held[:-1]
        return self._shared(self._shares(F.pad(self._held[:-2], (0, -count % self.frame))), count)

    def _shares(self, estimates: Tensor) -> Tensor:
        """Give the share (C, T) of each estimate (C, L) in the power of each frame."""
        frames = estimates.reshape(len(estimates), -1, self.frame)
        power = frames.square().mean(-1)
        total = power.sum(0)
        return torch.where(total > SILENT**2, power / total.clamp(min=SILENT**2), 1 / len(power))

    def _shared(self, shares: Tensor, count: int) -> Tensor:
        """Add the shares, on a line from frame to frame, to the first samples held."""
        before = shares[:, :1] if self._last is None else self._last
        line = torch.cat([before, shares], 1)[None]  # (1, C, T + 1)
        curve = F.interpolate(line, scale_factor=float(self.frame), mode="linear")[0]
        curve = curve[:, self.frame : self.frame + count]
        *estimates, rest, mixture = self._held[:, :count]
        return torch.cat([torch.stack(estimates) + curve * rest, mixture[None]])


class LongSeparation:
    """Separate a stream at any rate.

    Args:
        network: maps mixtures (B, L) to estimates (B, C, L).
        speakers: C.
        network_rate: samples a second of what the network hears.
        rate: samples a second of the stream.
        chunking: how it is done.

    Raises:
        UserError: if the chunks are too short or do not overlap, or the rates cannot be joined.
    """

    def __init__(
        self, network: nn.Module, speakers: int, network_rate: int, rate: int, chunking: Chunking
    ) -> None:
        self.chunking = chunking
        window, hop = (round(s * network_rate) for s in (chunking.window, chunking.hop))
        if not 0 < hop < window:
            raise UserError(
                f"window={chunking.window:g} and hop={chunking.hop:g} seconds: the hop must be"
                " above 0 and below the window, so that chunks overlap"
            )
        self.tracker = SpeakerTracker(speakers, network_rate)
        self._there = StreamResampler(rate, network_rate)
        fit = chunking.scale == "consistent"
        self._chunks = OverlapAdd(network, self.tracker, window, hop, fit)
        self._back = StreamResampler(network_rate, rate)
        self._sharing = Sharing(speakers, rate)
        self._mixture = torch.zeros(0)  # what has no estimates yet

    def push(self, block: Tensor) -> Tensor:
        """Take samples (n,); give the estimates and the mixture, (C + 1, m), that are certain."""
        self._mixture = torch.cat([self._mixture, block])
        low = self._there.push(block[None])[0]
        return self._sharing.push(self._completed(self._back.push(self._chunks.push(low))))

    def finish(self) -> Tensor:
        """Give the rest, (C + 1, m); as many samples have come out then as went in."""
        low = torch.cat([self._chunks.push(self._there.finish()[0]), self._chunks.finish()], 1)
        back = torch.cat([self._back.push(low), self._back.finish()], 1)
        rows = self._completed(back[:, : len(self._mixture)])
        return torch.cat([self._sharing.push(rows), self._sharing.finish()], 1)

    def _completed(self, rows: Tensor) -> Tensor:
        """Put beside estimates and low band (C + 1, n) what they miss, and the mixture."""
        estimates, low, count = rows[:-1], rows[-1], rows.shape[1]
        mixture, self._mixture = self._mixture[:count], self._mixture[count:]
        rest = torch.zeros_like(low)
        if self.chunking.scale == "consistent":
            rest = rest + low - estimates.sum(0)
        if self.chunking.high_band == "share":
            rest = rest + mixture - low
        return torch.cat([estimates, rest[None], mixture[None]])


def separate(blocks: Iterable[Tensor], separation: LongSeparation) -> Iterator[Tensor]:
    """Separate blocks (n,) of one recording, from a file, an array or a pipe.

    Yields:
        Blocks (C + 1, m): the estimates, and the mixture that they belong to.
    """
    for block in blocks:
        given = separation.push(block)
        if given.shape[1]:
            yield given
    yield separation.finish()
