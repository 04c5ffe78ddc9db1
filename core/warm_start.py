"""Begin from given weights: what fits is loaded, and all of it is told."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.errors import UserError
from core.networks.hugging_face import HuggingFace, label_names

COMMON = 0.3
"""The share of a network's tensors that a prefix must bear to be tried."""

OLD = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}
"""How the first published checkpoints of BERT name what is named otherwise since."""
POSITIONS = re.compile(r"position|(^|\.)wpe$")
"""How tables of positions are called, and below those whose rows are distances: never resized."""
RELATIVE = re.compile(r"relative|rel_embeddings")


class WarmStart(NamedTuple):
    """What given weights had for a network: names of tensors, by what became of them.

    ``matched`` were loaded. ``missing`` keep their first values, and so do ``reshaped``, each told
    with both shapes. ``unexpected`` are of no use to the network. ``resized`` are tables of tokens
    or positions that were loaded in another length. ``notes`` are sentences about labels.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    resized: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self, most: int = 8) -> list[str]:
        """Tell it, with at most so many names of a kind."""
        told = [f"{len(self.matched) + len(self.resized)} tensors loaded"]
        for kind in ("resized", "missing", "unexpected", "reshaped"):
            found = getattr(self, kind)
            more = f" and {len(found) - most} more" if len(found) > most else ""
            told += [f"{len(found)} {kind}: {', '.join(found[:most])}{more}"] if found else []
        return [*told, *self.notes]


def warm_start(
    network: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    names: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
) -> WarmStart:
    """Load what fits of ``state`` by name and shape; leave the rest of the network as it is.

    A prefix that many names of one side bear is found by itself. Tables of tokens and positions of
    another length are cut, or made longer: new tokens begin as the mean of the known ones, new
    positions repeat the table, without the rows that stand for padding. A network that has
    ``translated(state)`` gives published tensors its own names first.

    Args:
        network: the network.
        state: tensors by name.
        source: what to call them in errors.
        names: regular expressions and what replaces them, applied to each name in this order.
        labels: the labels of the outputs that the weights were made for, where they are known. Rows
            of the last layer are put in the network's order, whatever the case of the labels; with
            other labels it begins anew.

    Raises:
        UserError: if nothing fits, or what fits is not finite.
    """
    own = network.state_dict()
    state = getattr(network, "translated", dict)(state)
    old = {} if any(re.search(name, each) for name in OLD for each in own) else OLD
    given = _aligned(own, _mapped(state, {**(names or {}), **old}, source))
    notes, given = _by_labels(network, given, labels)
    matched = {name: t for name, t in given.items() if name in own and t.shape == own[name].shape}
    resized = dict(_resized(network, given, own))
    if not matched:
        raise UserError(
            f"{source}: none of its {len(state)} tensors fits {type(network).__name__};"
            f" it has {_listed(state)}; needed {_listed(own)}"
        )
    loaded = {**matched, **{name: tensor for name, (tensor, _) in resized.items()}}
    check_finite(loaded, source)
    network.load_state_dict(loaded, strict=False)
    return WarmStart(
        tuple(matched),
        tuple(name for name in own if name not in given),
        tuple(name for name in given if name not in own and not _is_buffer(name)),
        tuple(
            f"{name} is {tuple(given[name].shape)}, needed {tuple(own[name].shape)}"
            for name in own
            if name in given and name not in loaded
        ),
        tuple(
            f"{name} from {was} to {len(tensor)} rows" for name, (tensor, was) in resized.items()
        ),
        tuple(notes),
    )


def check_fit(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Check names and shapes of ``state`` against a network.

    Raises:
        UserError: listing what does not fit.
    """
    own = network.state_dict()
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in own]
    faults += [
        f"{name} is {tuple(state[name].shape)}, needed {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(
            f"{source}: does not fit {type(network).__name__}: {'; '.join(faults[:5])}{more}"
        )


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Check that no tensor holds infinities or not-a-numbers.

    Raises:
        UserError: naming the first that does.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{source}: the tensor {name} holds values that are not finite")


def _mapped(
    state: Mapping[str, Tensor], rules: Mapping[str, str], source: str
) -> dict[str, Tensor]:
    """Rename tensors by rules, one after the other."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules.items():
            try:
                new = re.sub(pattern, replacement, new)
            except re.error as error:
                raise UserError(f"checkpoint_names: {pattern!r}: {error}") from None
        if new in found:
            raise UserError(f"{source}: checkpoint_names: two tensors become {new!r}")
        found[new] = tensor
    return found


def _aligned(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Exchange the prefix that the given names have for the one that ours have."""

    def renamed(theirs: str, ours: str) -> dict[str, Tensor]:
        return {
            ours + name.removeprefix(theirs) if name.startswith(theirs) else name: tensor
            for name, tensor in given.items()
        }

    def fits(candidate: Mapping[str, Tensor]) -> int:
        return sum(name in own and own[name].shape == t.shape for name, t in candidate.items())

    best = dict(given)
    most = fits(best)
    for theirs in _prefixes(given):
        for ours in _prefixes(own):
            candidate = renamed(theirs, ours)
            if (count := fits(candidate)) > most:
                best, most = candidate, count
    return best


def _prefixes(names: Mapping[str, Tensor]) -> Iterator[str]:
    """List the beginnings, up to a dot, that a good part of the names share, from none on."""
    counts: dict[str, int] = {"": len(names)}
    for name in names:
        parts = name.split(".")
        for depth in range(1, min(len(parts), 5)):
            prefix = ".".join(parts[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return (prefix for prefix, count in counts.items() if count >= COMMON * len(names))


def _by_labels(
    network: nn.Module, given: dict[str, Tensor], labels: Sequence[str] | None
) -> tuple[list[str], dict[str, Tensor]]:
    """Put the rows of the last layer in the order of the network's labels, or leave them out."""
    if not isinstance(network, HuggingFace) or not network.heads or labels is None:
        return [], given
    ours = label_names(network.heads)
    linear = [m for outer in network.head for m in outer.modules() if isinstance(m, nn.Linear)]
    inside = {id(parameter) for parameter in linear[-1].parameters()}
    last = [
        name
        for name, parameter in network.named_parameters()
        if id(parameter) in inside and name in given and len(given[name]) == len(labels)
    ]
    if list(labels) == ours or not last:
        return [], given
    for fold in (str, str.casefold):
        known, wanted = [fold(each) for each in labels], [fold(each) for each in ours]
        if sorted(known) == sorted(wanted) and len(set(known)) == len(known):
            rows = [known.index(name) for name in wanted]
            return [], {**given, **{name: given[name][rows] for name in last}}
    new = [name for name in ours if name not in labels]
    told = f"the last layer begins anew: the weights know {_few(labels)}, wanted are {_few(ours)}"
    told += f"; new is {_few(new)}" if new else ""
    return [told], {name: tensor for name, tensor in given.items() if name not in last}


def _resized(
    network: nn.Module, given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> Iterator[tuple[str, tuple[Tensor, int]]]:
    """Bring tables of another length to ours; give the table and its length before."""
    for module_name, module in network.named_modules():
        name = f"{module_name}.weight"
        if not isinstance(module, nn.Embedding) or name not in given:
            continue
        table, wanted = given[name], own[name]
        if table.ndim != 2 or table.shape[1] != wanted.shape[1] or len(table) == len(wanted):
            continue
        if RELATIVE.search(module_name):
            continue
        if len(wanted) < len(table):
            new = table[: len(wanted)]
        elif POSITIONS.search(module_name):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            again = table[first:].repeat(-(-len(wanted) // len(table[first:])), 1)
            new = torch.cat([table[:first], again])[: len(wanted)]
        else:
            mean = table.float().mean(0, keepdim=True).to(table.dtype)
            new = torch.cat([table, mean.expand(len(wanted) - len(table), -1)])
        yield name, (new, len(table))


def _is_buffer(name: str) -> bool:
    """Say whether old checkpoints kept here what is no weight."""
    return bool(re.search(r"position_ids$|\.attn\.(masked_)?bias$", name))


def _few(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _listed(state: Mapping[str, Tensor], most: int = 3) -> str:
    told = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(state.items())[:most]]
    return ", ".join(told) + (", ..." if len(state) > most else "")
