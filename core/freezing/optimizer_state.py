"""What the optimizers remember of a parameter, kept or forgotten when it is frozen and thawed."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = ("exp_avg", "momentum_buffer")
"""Names that optimizers give to the running mean of the gradients."""


def forget(optimizers: Sequence[Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Free all that is remembered; the optimizer begins anew when they are trained again."""
    for parameter in parameters:
        for optimizer in optimizers:
            optimizer.state.pop(parameter, None)


def halt(optimizers: Sequence[Optimizer], parameters: Iterable[nn.Parameter]) -> None:
    """Set the running means of gradients to zero; second moments and counts stay."""
    for parameter in parameters:
        for optimizer in optimizers:
            for name in MOMENTUM:
                remembered = optimizer.state.get(parameter, {}).get(name)
                if isinstance(remembered, Tensor):
                    remembered.zero_()


def stepped(optimizer: Optimizer) -> bool:
    """Say, behind a step, whether it was made, and not skipped for gradients that overflowed."""
    found = getattr(optimizer, "found_inf", None)
    return found is None or not bool(found.any())


def split_groups(optimizer: Optimizer, parts: Sequence[Sequence[nn.Parameter]], key: str) -> None:
    """Split each group of an optimizer so that all of a group is in one part.

    Args:
        optimizer: its groups are replaced, with the same settings and parameters.
        parts: what is to be apart; what is in none is the last part.
        key: set in each group to the number of its part.
    """
    number = {id(p): place for place, part in enumerate(parts) for p in part}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        sorted_: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            sorted_.setdefault(number.get(id(parameter), len(parts)), []).append(parameter)
        rest = {name: value for name, value in group.items() if name != "params"}
        groups += [{"params": own, **rest, key: place} for place, own in sorted(sorted_.items())]
    optimizer.param_groups[:] = groups


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """Give the norm of all gradients that there are; None where there are none."""
    norms = [p.grad.float().norm() for p in parameters if p.grad is not None]
    return torch.stack([n.to(norms[0].device) for n in norms]).norm() if norms else None
