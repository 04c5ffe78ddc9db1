"""Load configurations and weights by their published names; all faults in one error."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def arguments(
    network: str,
    config: Mapping[str, Any],
    needed: Mapping[str, str],
    optional: Mapping[str, str],
    unused: Collection[str] = (),
) -> dict[str, Any]:
    """Give a published configuration our names.

    Args:
        network: the network's name, for the error.
        config: the published configuration.
        needed: published names that must be there, and ours.
        optional: published names that may be there, and ours.
        unused: further names that have no effect on this network.

    Raises:
        ValueError: listing all that is missing or unknown.
    """
    names = {**needed, **optional}
    faults = [f"missing {name}" for name in needed if name not in config]
    faults += [f"unknown {name}" for name in config if name not in names and name not in unused]
    if faults:
        raise ValueError(f"{network} config: {'; '.join(faults)}")
    return {ours: config[name] for name, ours in names.items() if name in config}


def load(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    rules: Sequence[tuple[str, str]],
    ignored: str | None = None,
    pointwise: str | None = None,
    axes: int = 1,
) -> None:
    """Load published weights.

    Args:
        network: the network to fill.
        state_dict: weights by published names.
        rules: patterns and replacements that, in order, turn our names into the published ones.
        ignored: a pattern of published entries that no output depends on; they may be missing, and
            those that the network has not may be there.
        pointwise: a pattern of linear maps that are published as convolutions of width one, (out,
            in, 1).
        axes: axes of those convolutions; in three the weights are (out, in, 1, 1, 1).

    Raises:
        ValueError: listing all entries that are missing, unexpected or of another shape.
    """
    own = network.state_dict()
    names = {name: renamed(name, rules) for name in own}
    shapes = {
        names[name]: (*tensor.shape, *[1] * (axes if _fits(pointwise, names[name]) else 0))
        for name, tensor in own.items()
    }
    faults = [
        f"missing {name}" for name in shapes if name not in state_dict and not _fits(ignored, name)
    ]
    for name, tensor in state_dict.items():
        if name in shapes:
            if tensor.shape != shapes[name]:
                faults.append(f"{name} is {tuple(tensor.shape)}, needed {shapes[name]}")
        elif not _fits(ignored, name):
            faults.append(f"unexpected {name}")
    if faults:
        raise ValueError(f"{type(network).__name__} weights do not fit: {'; '.join(faults)}")
    network.load_state_dict(
        {
            name: state_dict[names[name]].reshape(tensor.shape)
            if names[name] in state_dict
            else tensor
            for name, tensor in own.items()
        }
    )


def renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply patterns and their replacements to a name, one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _fits(pattern: str | None, name: str) -> bool:
    return pattern is not None and re.search(pattern, name) is not None
