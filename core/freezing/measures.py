"""What schedules measure: how far weights move in a step, and gradients summed over steps."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from core.freezing.units import Unit


@torch.no_grad()
def relative_mean(old: Tensor, new: Tensor, eps: float = 1e-8) -> Tensor:
    """Give the mean over the elements of ``|old - new| / |old|``, each ``|old|`` at least eps.

    Example:
        >>> round(float(relative_mean(torch.tensor([1.0, -2.0]), torch.tensor([1.1, -2.0]))), 6)
        0.05
    """
    old = old.float()
    mean: Tensor = (new.float() - old).abs_().div_(old.abs().clamp_min_(eps)).mean()
    return mean


@torch.no_grad()
def norm_ratio(old: Tensor, new: Tensor, eps: float = 1e-8) -> Tensor:
    """Give the norm of the change as a share of the norm before, which is at least eps."""
    old = old.float()
    ratio: Tensor = (new.float() - old).norm() / old.norm().clamp_min(eps)
    return ratio


DISTANCES = {"relative_mean": relative_mean, "norm_ratio": norm_ratio}


class Snapshot:
    """Copies of the weights of some units, to measure how far a step moves them."""

    def __init__(self) -> None:
        self._old: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def take(self, units: Sequence[Unit], numbers: Iterable[int]) -> None:
        """Copy the weights of the units of these numbers, where any of them has a gradient."""
        numbers = list(numbers)
        moved = any(p.grad is not None for n in numbers for p in units[n].parameters)
        self._old = (
            {n: [p.detach().clone() for p in units[n].parameters] for n in numbers} if moved else {}
        )

    def measure(self, units: Sequence[Unit], distance: str, eps: float) -> Mapping[int, float]:
        """Give how far each copied unit has moved since, a mean weighted by size; forget them."""
        function = DISTANCES[distance]
        changes = [
            (number, new.numel(), function(old, new, eps))
            for number, tensors in self._old.items()
            for old, new in zip(tensors, units[number].parameters, strict=True)
        ]
        self._old = {}
        if not changes:
            return {}
        device = changes[0][2].device
        values = torch.stack([value.to(device) for *_, value in changes]).tolist()  # waits once
        found: dict[int, float] = {}
        for (number, size, _), value in zip(changes, values, strict=True):
            found[number] = found.get(number, 0.0) + value * (size / units[number].size)
        return found


class GradientSums:
    """Gradients of units, summed over steps."""

    def __init__(self) -> None:
        self._sums: dict[int, list[Tensor | None]] = {}

    @torch.no_grad()
    def add(self, units: Sequence[Unit], numbers: Iterable[int]) -> None:
        """Add the gradients of the units of these numbers."""
        gradients = {n: [p.grad for p in units[n].parameters] for n in numbers}
        flat = [g for each in gradients.values() for g in each if g is not None]
        if not flat or not bool(torch.stack([g.sum() for g in flat]).isfinite().all()):
            return  # a step that is skipped for gradients that overflowed
        for number, found in gradients.items():
            sums = self._sums.setdefault(number, [None] * len(found))
            for place, gradient in enumerate(found):
                if gradient is not None:
                    now, new = sums[place], gradient.detach().float()
                    sums[place] = new.clone() if now is None else now.add_(new)

    def take(self, count: int) -> Tensor:
        """Give the L1 norm of each unit's sum (T,), zero where there is none, and begin anew."""
        found = torch.zeros(count, dtype=torch.float64)
        for number, sums in self._sums.items():
            found[number] = sum(float(s.abs().sum()) for s in sums if s is not None)
        self._sums = {}
        return found

    def state_dict(self) -> dict[int, list[Tensor | None]]:
        """Give the sums."""
        return self._sums

    def load_state_dict(
        self, state: Mapping[int, Sequence[Tensor | None]], units: Sequence[Unit]
    ) -> None:
        """Take sums, onto the devices of their parameters."""
        self._sums = {
            number: [_onto(s, p) for s, p in zip(sums, units[number].parameters, strict=True)]
            for number, sums in state.items()
        }


def _onto(value: Tensor | None, parameter: nn.Parameter) -> Tensor | None:
    return None if value is None else value.to(parameter.device, copy=True)
