"""What a schedule has done so far: for the report, the logs and the checkpoint."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from core.freezing.units import Unit


class Record:
    """Count the steps, and in how many of them each unit trained.

    Args:
        units: what is frozen and thawed.
        trained: how many numbers the fit trains in all, those outside of units too.

    Attributes:
        counts: (T,) steps that each unit trained.
        share: of what the fit trains, frozen in the last step.
    """

    def __init__(self, units: Sequence[Unit], trained: int) -> None:
        self.names = [unit.name for unit in units]
        self.counts = torch.zeros(len(units), dtype=torch.int64)
        self.share = 0.0
        self._sizes = [unit.size for unit in units]
        self._all = sum(self._sizes)
        self._trained = trained
        self._steps, self._sum = 0, 0.0

    def add(self, active: Iterable[int]) -> None:
        """Count a step."""
        numbers = sorted(active)
        self.counts[numbers] += 1
        frozen = self._all - sum(self._sizes[number] for number in numbers)
        self.share = frozen / max(self._trained, 1)
        self._steps += 1
        self._sum += self.share

    def report(self) -> dict[str, Any]:
        """Give the mean share that was frozen, and how often the units trained."""
        counts = self.counts.tolist()
        if len(counts) <= 16:
            times = dict(zip(self.names, counts, strict=True))
        else:
            mean = round(sum(counts) / len(counts), 2)
            times = {"least": min(counts), "mean": mean, "most": max(counts)}
        share = round(self._sum / max(self._steps, 1), 6)
        told = {"units": len(counts), "steps": self._steps, "frozen_share": share}
        return {**told, "times_active": times}

    def logged(self, active: int, distances: Tensor) -> dict[str, float]:
        """Give what is logged of a step: ``distances`` (T,) may be NaN."""
        told = {
            "freezing/frozen_fraction": self.share,
            "freezing/active_units": float(active),
        }
        known = distances[(self.counts > 0) & distances.isfinite()]
        if len(known):
            for share in (0.1, 0.5, 0.9):
                told[f"freezing/distance_q{int(100 * share)}"] = float(known.quantile(share))
        return told

    def state_dict(self) -> dict[str, Any]:
        """Give all that is counted."""
        return {"counts": self.counts.clone(), "steps": self._steps, "sum": self._sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on."""
        self.counts = state["counts"].clone()
        self._steps, self._sum = state["steps"], state["sum"]
