"""Groups of parameters for the optimizer: smaller rates for early layers, no decay where none fits.

A group may hold ``rate``, its share of the optimizer's learning rate; :func:`scale_rates` applies
it once the optimizer is made.
"""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from core.errors import UserError
from core.network_parts import head, stages


def parameter_groups(
    network: nn.Module, layer_decay: float | None = None, decay_all: bool = True
) -> list[dict[str, Any]]:
    """Group the parameters that are trained.

    With a layer decay d the head, and whatever is in no stage but registered behind the first,
    learns at the full rate, the last of the network's ``stages`` at d times that, the one before at
    d², and so on (Bao et al., BEiT, ICLR 2022). What is registered before the first stage counts
    with it.

    Args:
        network: any module; with a layer decay one that states its ``stages``.
        layer_decay: above 0, at most 1; None gives all the same rate.
        decay_all: False frees biases, norms and all else of one dimension from weight decay.

    Returns:
        Groups with ``params``, and ``rate`` and ``weight_decay`` where they are not the
        optimizer's own; none is empty and each parameter is in one.

    Raises:
        UserError: if nothing is trained, the decay is out of range or no stages are stated.
    """
    rates = _rates(network, layer_decay) if layer_decay is not None else {}
    undecayed = set() if decay_all else _undecayed(network)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter in network.parameters():
        if not parameter.requires_grad:
            continue
        rate, free = rates.get(id(parameter), 1.0), id(parameter) in undecayed
        group = groups.setdefault((rate, free), {"params": []})
        group["params"].append(parameter)
        if layer_decay is not None:
            group["rate"] = rate
        if free:
            group["weight_decay"] = 0.0
    if not groups:
        raise UserError(f"{type(network).__name__}: no parameter is trained; all are frozen")
    return list(groups.values())


def scale_rates(optimizer: Optimizer) -> None:
    """Give each group with a ``rate`` that share of its learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group.get("rate", 1.0)


def check_schedule(optimizer: Optimizer, scheduler: Any) -> None:
    """Refuse a schedule that sets the same rate for all groups where theirs differ.

    Raises:
        UserError: naming the schedule.
    """
    if isinstance(scheduler, OneCycleLR | CyclicLR) and any(
        group.get("rate", 1.0) != 1.0 for group in optimizer.param_groups
    ):
        raise UserError(
            f"{type(scheduler).__name__} sets one rate for all layers, which undoes layer_decay;"
            " take --model.scheduler=WarmupLinear or another that scales the optimizer's rate"
        )


def check_layers(network: nn.Module, layer_decay: float | None) -> None:
    """Check that a network can have a layer decay.

    Raises:
        UserError: if it states no stages, or the decay is out of range.
    """
    if layer_decay is None:
        return
    if not 0 < layer_decay <= 1:
        raise UserError(f"layer_decay={layer_decay} must be above 0 and at most 1")
    if not stages(network):
        raise UserError(
            f"layer_decay={layer_decay}: {type(network).__name__} does not state `stages`, its"
            " layers in order; leave layer_decay out, or give the network a property `stages`"
        )


def _rates(network: nn.Module, layer_decay: float) -> dict[int, float]:
    """Give each parameter's share of the rate; one that is shared has the lowest."""
    check_layers(network, layer_decay)
    found = stages(network)
    rates: dict[int, float] = {}
    for number, stage in enumerate(found):
        for part in stage:
            for parameter in part.parameters():
                rates.setdefault(id(parameter), layer_decay ** (len(found) - number))
    first = layer_decay ** len(found)
    top = {id(parameter) for part in head(network) or () for parameter in part.parameters()}
    for parameter in network.parameters():
        if id(parameter) in rates:
            break
        if id(parameter) not in top:
            rates[id(parameter)] = first
    return rates


def _undecayed(network: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in network.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.ndim < 2 or "Norm" in type(module).__name__
    }
