"""Units of freezing: named sets of parameters that are trained or frozen together.

A parameter that the user has frozen belongs to no unit and stays frozen. One that several layers
share belongs to one unit, the first. What is in no unit is always trained.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from core.errors import UserError
from core.network_parts import head, stages

Patterns = str | list[str] | None


class Unit(NamedTuple):
    """Parameters that are frozen together.

    ``names`` are those of ``parameters`` in the module that is trained. ``modules`` lie wholly in
    the unit, or are norms that count statistics: they act as in evaluation while it is frozen.
    """

    name: str
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    modules: tuple[nn.Module, ...] = ()

    @property
    def size(self) -> int:
        """How many numbers the unit holds."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def embeds(self) -> bool:
        """Whether a table of embeddings is among its modules."""
        parts = (part for module in self.modules for part in module.modules())
        return any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in parts)


class Layout(NamedTuple):
    """The units of a module, in order from the input on, and what was decided to find them."""

    units: list[Unit]
    notes: list[str]


def tensor_units(
    module: nn.Module,
    include: Patterns = None,
    exclude: Patterns = None,
    always_train: Patterns = None,
) -> Layout:
    """Make a unit of each weight: of parameters of two or more dimensions and of norms' weights.

    Biases are in no unit. (SlimFit: Ardakani et al., NAACL 2024.)

    Args:
        module: what is trained.
        include: regular expressions; only weights whose names they find are units.
        exclude: those that are none.
        always_train: more that are none.

    Raises:
        UserError: if a pattern finds nothing, or no unit is left.
    """
    names = _trainable(module)
    kept = _found(include, names, "include") if include is not None else set(names)
    left = _found(exclude, names, "exclude") | _found(always_train, names, "always_train")
    norms = {
        id(part.weight): part
        for part in module.modules()
        if "Norm" in type(part).__name__ and isinstance(getattr(part, "weight", None), nn.Parameter)
    }
    units = []
    for name, parameter in names.items():
        norm = norms.get(id(parameter))
        if name in kept and name not in left and (parameter.dim() > 1 or norm is not None):
            held = (norm,) if norm is not None and _counts(norm) else ()
            units.append(Unit(name, (name,), (parameter,), held))
    if not units:
        raise UserError(f"{type(module).__name__}: no weight is left to freeze")
    return Layout(units, [])


def pattern_unit(module: nn.Module, patterns: Patterns, key: str, other: bool = False) -> Layout:
    """Make one unit of all parameters whose names the regular expressions find.

    Args:
        module: what is trained.
        patterns: regular expressions.
        key: the setting that they come from.
        other: take the parameters that they do not find.

    Raises:
        UserError: if a pattern finds nothing.
    """
    names = _trainable(module)
    found = _found(patterns, names, key)
    return Layout([_unit(module, key, set(names) - found if other else found)], [])


def stage_units(
    module: nn.Module,
    patterns: list[str] | None = None,
    always_train: Patterns = None,
    apart: bool = False,
) -> Layout:
    """Make a unit of each stage.

    The stages are those that the patterns name, or the ``stages`` that the network states, or the
    items of its longest list of layers. What is registered before the first stage belongs to it;
    the head, and what is registered later, is in no unit.

    Args:
        module: what is trained.
        patterns: a regular expression a stage; a parameter goes to the first that finds it.
        always_train: regular expressions of parameters in no unit; None takes the head.
        apart: make a unit of its own of what is registered before the first stage.

    Raises:
        UserError: if a pattern finds nothing, or there are no stages.
    """
    names = _trainable(module)
    notes: list[str] = []
    if patterns is not None:
        groups, top = _by_pattern(names, patterns), set[str]()
    else:
        groups, top, notes = _by_stage(module, names)
    staged = {name for _, group in groups for name in group}
    always = top - staged if always_train is None else _found(always_train, names, "always_train")
    before: list[str] = []
    for name in names:
        if name in staged:
            break
        if name not in always:
            before.append(name)
    if before and apart:
        groups.insert(0, ("before", set(before)))
    elif before and groups:
        groups[0] = (groups[0][0], groups[0][1] | set(before))
    units = [_unit(module, name, group - always) for name, group in groups if group - always]
    if not units:
        raise UserError(
            f"{type(module).__name__}: nothing to freeze was found;"
            " name the layers by stages, a regular expression each"
        )
    return Layout(units, notes)


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _found(patterns: Patterns, names: Iterable[str], key: str) -> set[str]:
    """Give the names that any of the regular expressions finds."""
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        try:
            hits = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            raise UserError(f"{key}={pattern!r} is no regular expression: {error}") from None
        if not hits:
            shown = ", ".join(list(names)[:4])
            raise UserError(f"{key}={pattern!r} finds no trained parameter; there are {shown}, ...")
        found |= hits
    return found


def _by_pattern(
    names: dict[str, nn.Parameter], patterns: Sequence[str]
) -> list[tuple[str, set[str]]]:
    groups: list[tuple[str, set[str]]] = []
    taken: set[str] = set()
    for pattern in patterns:
        group = _found(pattern, names, "stages") - taken
        taken |= group
        groups.append((pattern, group))
    return groups


def _by_stage(
    module: nn.Module, names: dict[str, nn.Parameter]
) -> tuple[list[tuple[str, set[str]]], set[str], list[str]]:
    """Find (name, names of parameters) of each stage, those of the head, and notes."""
    notes: list[str] = []
    top: list[nn.Module] = []
    found: list[list[nn.Module]] = []
    for part in module.modules():
        if found := _stated(part):
            top = head(part) or []
            break
    if not found:
        path, found = _longest(module)
        if not found:
            return [], set(), []
        notes.append(
            f"{type(module).__name__} states no stages: the {len(found)} items of {path or 'it'}"
            " are taken for them, what is registered later for the head"
        )
    paths = {id(part): path for path, part in module.named_modules()}
    by_id = {id(parameter): name for name, parameter in names.items()}
    groups: list[tuple[str, set[str]]] = []
    taken: set[str] = set()
    for number, stage in enumerate(found):
        group = {by_id[id(p)] for part in stage for p in part.parameters() if id(p) in by_id}
        name = paths.get(id(stage[0]), "") if stage else ""
        groups.append((name or f"stage {number}", group - taken))
        taken |= group
    return groups, {by_id[id(p)] for m in top for p in m.parameters() if id(p) in by_id}, notes


def _stated(part: nn.Module) -> list[list[nn.Module]]:
    try:
        return stages(part)
    except (UserError, AttributeError):  # a network that cannot state its stages
        return []


def _longest(module: nn.Module) -> tuple[str, list[list[nn.Module]]]:
    """Find the longest list of layers; parts without parameters belong to the layer before."""
    best: tuple[str, list[list[nn.Module]]] = ("", [])
    for path, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential):
            continue
        items: list[list[nn.Module]] = []
        for child in part:
            if any(p.requires_grad for p in child.parameters()):
                items.append([child])
            elif items:
                items[-1].append(child)
        if len(items) > max(len(best[1]), 1):
            best = (path, items)
    return best


def _unit(module: nn.Module, name: str, group: set[str]) -> Unit:
    """Make a unit, with the modules that lie wholly in it."""
    named = {n: p for n, p in module.named_parameters() if n in group}
    own = {id(p) for p in named.values()}
    others = {id(p) for p in module.parameters() if p.requires_grad} - own
    return Unit(name, tuple(named), tuple(named.values()), tuple(_whole(module, own, others)))


def _whole(module: nn.Module, own: set[int], others: set[int]) -> list[nn.Module]:
    """Find the largest callable modules with parameters of a unit and of no other."""
    inside = {id(p) for p in module.parameters()}
    if not inside & own:
        return []
    container = isinstance(module, nn.ModuleList | nn.ModuleDict)
    if not inside & others and not container:
        return [module]
    if _counts(module) and any(id(p) in own for p in module.parameters(recurse=False)):
        return [module]
    found: list[nn.Module] = []
    owned = False
    for child in module.children():
        if any(True for _ in child.parameters()):
            found += _whole(child, own, others)
            owned = not {id(p) for p in child.parameters()} - own
        elif owned and isinstance(module, nn.Sequential):
            found.append(child)  # a dropout behind a frozen layer
    return found


def _counts(module: nn.Module) -> bool:
    """Say whether a norm counts statistics of what it sees."""
    return getattr(module, "running_mean", None) is not None
