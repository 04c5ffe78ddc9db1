"""A module whose ``forward`` another object does, without a change of its class or its names."""

from collections.abc import Callable
from inspect import Signature, signature
from types import MethodType
from typing import Any, TypeVar

from torch import nn


class WrappedForward:
    """What stands in place of a module's ``forward``; a subclass gives ``__call__``.

    It is an attribute of the module and holds the module, so that both are copied and pickled
    together. Several may lie over one another.

    Args:
        module: the module; changed in place.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        own = vars(module)
        self.before = {"forward": own["forward"]} if "forward" in own else {}
        own["forward"] = self

    @property
    def __signature__(self) -> Signature:
        """The signature of what the module computes."""
        return signature(self.plain())

    def plain(self) -> Callable[..., Any]:
        """Give what the module computes without this."""
        found: Callable[..., Any] | None = self.before.get("forward")
        return found if found is not None else MethodType(type(self.module).forward, self.module)


Kind = TypeVar("Kind", bound=WrappedForward)


def wrapped_by(module: nn.Module, kind: type[Kind]) -> Kind | None:
    """Find what of a kind stands in place of a module's ``forward``, under others too."""
    found = vars(module).get("forward")
    while found is not None and not isinstance(found, kind):
        found = getattr(found, "before", {}).get("forward")
    return found


def unwrap(module: nn.Module, kind: type[WrappedForward]) -> None:
    """Take off whatever of a kind stands in place of a module's ``forward``; others stay."""
    holder = vars(module)
    while (found := holder.get("forward")) is not None:
        if isinstance(found, kind):
            del holder["forward"]
            holder.update(found.before)
        else:
            holder = getattr(found, "before", {})
