"""Which layers of a network take adapters, and which parameters are trained beside them."""

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from core.errors import UserError
from core.network_parts import head
from core.split_columns import listed

EXITS = "early_exits"
"""The part of a network's names below which its early exits lie: trained, as its head is."""
Patterns = str | list[str] | None


class Targets(NamedTuple):
    """What is adapted and what is trained whole.

    ``layers`` are the adapted layers by name. ``whole`` holds the names of the parameters that are
    trained as they are. ``notes`` say in a sentence each what was decided.
    """

    layers: dict[str, nn.Module]
    whole: list[str]
    notes: list[str]


def choose(
    network: nn.Module,
    target: Patterns,
    train_too: Patterns,
    kinds: Sequence[type[nn.Module]],
    fault: Callable[[nn.Module], str | None],
) -> Targets:
    """Choose the layers to adapt.

    Args:
        network: any network.
        target: patterns of layers' names; None takes every Linear outside the head.
        train_too: patterns of names of parameters that are trained whole, beside the head.
        kinds: the kinds of layers that the adapter knows.
        fault: says why the adapter does not fit a layer of these kinds; None where it does.

    Raises:
        UserError: if a pattern matches nothing, or no layer can be adapted.
    """
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    layers = [(name, module) for name, module in network.named_modules() if type(module) in kinds]
    linears = {name: module for name, module in layers if type(module) is nn.Linear}
    whole, notes = _whole(network, names, train_too, linears)
    trained = {id(network.get_parameter(name)) for name in whole}
    tied = _tied(network)

    def reason(module: nn.Module) -> str | None:
        if id(module._parameters.get("weight")) in trained:
            return "it is trained whole, as the head is"
        if module._parameters.get("weight") is None:
            return "its weight is computed from other parameters"
        if any(id(parameter) in tied for parameter in module.parameters(recurse=False)):
            return "its weight is shared with another layer"
        if getattr(module, "groups", 1) != 1:
            return "it is a convolution in groups"
        return fault(module)

    if target is not None:
        paths = _paths(network)
        every = [path for each in paths.values() for path in each]
        asked = matching(target, every, "target", [name for name, _ in layers])
        chosen = {
            name: module
            for name, module in layers
            if any(path in asked for path in paths[id(module)])
        }
        if not chosen:
            raise UserError(
                f"transforms: target={target!r} names no layer of a kind that can be adapted"
                f" ({', '.join(kind.__name__ for kind in kinds)});"
                f" there are {listed(name for name, _ in layers) or 'none'}"
            )
        for name, module in chosen.items():
            if told := reason(module):
                raise UserError(f"transforms: {name} cannot be adapted: {told}")
        return Targets(chosen, whole, notes)
    if not linears:
        raise UserError(
            f"transforms: {type(network).__name__} has no Linear layer to adapt; name layers of"
            f" another kind by target, of {', '.join(kind.__name__ for kind in kinds)}"
        )
    kept: dict[str, nn.Module] = {n: m for n, m in linears.items() if reason(m) is None}
    left = {name: told for name, module in linears.items() if (told := reason(module))}
    left = {name: told for name, told in left.items() if "trained whole" not in told}
    if not kept:
        told = "; ".join(f"{name}: {why}" for name, why in list(left.items())[:3])
        raise UserError(
            f"transforms: no Linear of {type(network).__name__} can be adapted"
            f" ({told or 'all are trained whole'})"
        )
    notes += [f"left out {name}: {told}" for name, told in left.items()]
    if any(isinstance(module, nn.MultiheadAttention) for module in network.modules()):
        notes.append("the packed projections of nn.MultiheadAttention are left out")
    return Targets(kept, whole, notes)


def matching(
    patterns: Patterns, names: Sequence[str], key: str, shown: Sequence[str] = ()
) -> list[str]:
    """Find the names that patterns such as ``query`` or ``layers.0.*`` match, whole or at the end.

    Raises:
        UserError: naming a pattern that matches nothing, and the nearest names.
    """
    wanted = [patterns] if isinstance(patterns, str) else patterns or []
    found: list[str] = []
    for pattern in wanted:
        hits = [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"*.{pattern}")]
        if not hits:
            known = shown or names
            ends = dict.fromkeys(name.rpartition(".")[2] for name in known)
            close = difflib.get_close_matches(pattern, [*known, *ends], 3, 0.5)
            there = f"nearest are {', '.join(close)}" if close else f"there are {listed(known)}"
            raise UserError(f"transforms: {key}={pattern!r} matches nothing; {there}")
        found += hits
    return found


def _whole(
    network: nn.Module, names: Sequence[str], train_too: Patterns, linears: Mapping[str, nn.Module]
) -> tuple[list[str], list[str]]:
    """Find the parameters that are trained whole; say which where nothing states them."""
    parts = head(network)
    stated = {id(parameter) for part in parts or () for parameter in part.parameters()}
    stated |= {id(network.get_parameter(name)) for name in names if EXITS in name.split(".")}
    extra = matching(train_too, names, "train_too")
    if parts is None and not extra and linears:
        last = list(linears)[-1]
        stated = {id(parameter) for parameter in linears[last].parameters()}
        note = f"{last}, the last Linear, is trained whole, for the network states no head"
        return [n for n in names if id(network.get_parameter(n)) in stated], [note]
    return [n for n in names if id(network.get_parameter(n)) in stated or n in extra], []


def _tied(network: nn.Module) -> set[int]:
    """Find the parameters that several layers share."""
    owners = Counter(
        id(parameter)
        for module in network.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return {each for each, count in owners.items() if count > 1}


def _paths(network: nn.Module) -> dict[int, list[str]]:
    """Give every name of each module; a repeated one has several."""
    found: dict[int, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if name:
            found.setdefault(id(module), []).append(name)
    return found
