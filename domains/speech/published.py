"""Read the configurations and weights of published separators; all faults in one error."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_UNUSED = ("B", "L", "lengths", "salt")  # tell of inputs that are stored beside weights


def arguments(
    network: str,
    config: Mapping[str, Any],
    names: Mapping[str, str],
    fixed: Mapping[str, Any],
    needed: tuple[str, ...],
) -> dict[str, Any]:
    """Give a published configuration our names.

    Args:
        network: the network's name, for the error.
        config: the published configuration.
        names: published names, and ours.
        fixed: published names of what has one value in the released networks, and that value.
        needed: our names that must be there.

    Raises:
        ValueError: listing all that is missing, unknown, contradictory or not as released.
    """
    faults: list[str] = []
    given: dict[str, Any] = {}
    for name, value in config.items():
        if name in names:
            if given.setdefault(names[name], value) != value:
                faults.append(f"{name}={value} is not {given[names[name]]}, as another key has it")
        elif name in fixed:
            if value != fixed[name]:
                faults.append(f"{name}={value!r} must be {fixed[name]!r}")
        elif name not in _UNUSED:
            faults.append(f"unknown {name}")
    faults += [
        f"missing {next(theirs for theirs, name in names.items() if name == ours)}"
        for ours in needed
        if ours not in given
    ]
    if faults:
        raise ValueError(f"{network} config: {'; '.join(faults)}")
    return given


def joined(state_dict: Mapping[str, Any], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Join parts of a state that come apart, each by its name, to one state.

    Args:
        state_dict: tensors, or parts that hold tensors.
        prefixes: what a part is called in the state, where that is not the part's name.
    """
    whole: dict[str, Tensor] = {}
    for name, entry in state_dict.items():
        if isinstance(entry, Mapping):
            prefix = prefixes.get(name, name)
            whole.update({f"{prefix}.{inner}": tensor for inner, tensor in entry.items()})
        else:
            whole[name] = entry
    return whole
