"""The layers that early exits lie between."""

from collections.abc import Sequence

from torch import nn

from core.errors import UserError
from core.network_parts import stages as stated_stages


def find_stages(
    network: nn.Module, stages: Sequence[nn.Module] | str | None = None
) -> list[nn.Module]:
    """Find the layers of a stack; see :class:`ExitController`.

    Of stages that a network states the last ones that are of one kind and size are taken: what it
    states before its layers is none.

    Raises:
        UserError: if there is no such list, fewer than two layers in it, or one of them twice.
    """
    found: list[nn.Module]
    if isinstance(stages, str):
        try:
            found = list(network.get_submodule(stages).children())
        except AttributeError:
            raise UserError(
                f"EarlyExit: stages={stages!r} is no part of {type(network).__name__}"
            ) from None
    elif stages is not None:
        found = list(stages)
    else:
        found = [parts[0] for parts in stated_stages(network) if len(parts) == 1]
        while len(found) > 1 and _form(found[0]) != _form(found[-1]):
            found = found[1:]
        found = found if len(found) > 1 else _longest(network)
    if len(found) < 2 or len({id(layer) for layer in found}) < len(found):
        raise UserError(
            f"EarlyExit: {type(network).__name__} has no list of two layers or more to leave"
            " between; name one as stages"
        )
    return found


def _longest(network: nn.Module) -> list[nn.Module]:
    lists = [
        list(module.children())
        for module in network.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
    ]
    alike = [layers for layers in lists if len({_form(layer) for layer in layers}) == 1]
    return max(alike, key=len, default=[])


def _form(layer: nn.Module) -> tuple[object, ...]:
    """Tell the kind of a layer and the size of its last weight, which is that of its state."""
    last = [parameter.shape for parameter in layer.parameters()][-1:]
    return type(layer), *last
