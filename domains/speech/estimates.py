"""Estimates as they lie in ``predictions.parquet``: FLAC, a channel a talker."""

import io

import numpy as np
import soundfile
from numpy.typing import NDArray
from torch import Tensor


def packed(estimates: Tensor, rate: int) -> bytes:
    """Pack estimates (C, L) with 16 bits; louder ones are scaled to full scale together."""
    values = estimates.detach().cpu().float().numpy()
    values = values / max(1.0, float(np.abs(values).max(initial=0)))
    file = io.BytesIO()
    soundfile.write(file, values.T, rate, "PCM_16", format="FLAC")
    return file.getvalue()


def unpacked(content: bytes) -> NDArray[np.float32]:
    """Give estimates (C, L)."""
    values, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    return np.ascontiguousarray(values.T)
