"""Change the rate of a stream, block by block, exactly as of the whole recording at once."""

import math

import torch
import torchaudio
from torch import Tensor

from core.errors import UserError

_LARGEST = 2**26
"""Numbers of a filter; two rates without a common divisor would need gigabytes."""


class StreamResampler:
    """Resample blocks (C, n) by the windowed sinc filter of torchaudio.

    The blocks that come out, joined, are what ``torchaudio.transforms.Resample`` makes of those
    that went in, joined; it holds back what the filter still needs.

    Args:
        source: samples a second of what comes in.
        target: samples a second of what goes out.

    Raises:
        UserError: if the two rates have so small a common divisor that the filter is too large.
    """

    def __init__(self, source: int, target: int) -> None:
        divisor = math.gcd(source, target)
        self.step, self.new = source // divisor, target // divisor
        if self.step * self.new > _LARGEST:
            raise UserError(
                f"{source:,} Hz cannot be resampled to {target:,} Hz, their greatest common divisor"
                f" is {divisor}; bring the recording to a usual rate first, such as 44,100 Hz"
            )
        self._resample = torchaudio.transforms.Resample(source, target)
        reach = 0 if source == target else self._resample.width + self.step
        self._reach = math.ceil(reach / self.step) * self.step
        self._before = 0  # samples held that are context alone, a multiple of the step
        self._held: Tensor | None = None

    def push(self, block: Tensor) -> Tensor:
        """Take a block (C, n) and give what is certain now, (C, m)."""
        if self.step == self.new:
            self._held = block[:, :0]
            return block
        held = block if self._held is None else torch.cat([self._held, block], 1)
        ready = held.shape[1] - self._before - self._reach
        ready = max(ready // self.step, 0) * self.step
        end = self._before + ready
        given = self._after(held[:, : end + self._reach], ready) if ready else held[:, :0]
        start = max(0, end - self._reach)
        self._held, self._before = held[:, start:], end - start
        return given

    def finish(self) -> Tensor:
        """Give the rest, (C, m), of a stream that had at least one block."""
        assert self._held is not None
        rest = self._held.shape[1] - self._before
        return self._after(self._held, rest) if rest else self._held

    def _after(self, held: Tensor, count: int) -> Tensor:
        """Resample, and give what becomes of ``count`` samples after the context."""
        start = self._before // self.step * self.new
        resampled: Tensor = self._resample(held)
        return resampled[:, start : start + math.ceil(count * self.new / self.step)]
