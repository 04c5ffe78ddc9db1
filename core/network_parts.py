"""What a network may state of itself: ``head`` and ``stages``, looked for through wrappers.

``stages`` is a list of its layers in order, from the input on, each a module or a list of modules.
``head`` is the module, or a list of the modules, that are new with each task; an empty list says
that it has none. A network with an argument of that name states them as ``head_parts``.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn


def head(network: nn.Module) -> list[nn.Module] | None:
    """Give the head's modules; None where the network states no head, not even that it has none."""
    found = _stated(network, "head", "head_parts")
    if isinstance(found, nn.Module) and not any(True for _ in found.parameters()):
        return None
    return None if found is None else list(_modules(found))


def stages(network: nn.Module) -> list[list[nn.Module]]:
    """Give the modules of each stage in order; none where the network states no stages."""
    found = _stated(network, "stages")
    if isinstance(found, nn.Module) and not isinstance(found, nn.ModuleList | nn.Sequential):
        return []
    return [list(_modules(stage)) for stage in found or ()]


def _stated(network: nn.Module, *names: str) -> Any:
    """Look for modules by an attribute's name, in the network and then in what it wraps."""
    inner: Any = network
    while isinstance(inner, nn.Module):
        for name in names:
            found = getattr(inner, name, None)
            if isinstance(found, nn.Module) or (
                isinstance(found, list | tuple) and all(map(_is_part, found))
            ):
                return found
        inner = getattr(inner, "network", None)
    return None


def _is_part(found: Any) -> bool:
    return isinstance(found, nn.Module) or (
        isinstance(found, list | tuple) and all(isinstance(part, nn.Module) for part in found)
    )


def _modules(part: Any) -> Iterator[nn.Module]:
    if isinstance(part, nn.Module):
        yield part
    else:
        for inner in part or ():
            yield from _modules(inner)
