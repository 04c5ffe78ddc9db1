"""Changes of a network's structure that are made before training, from the configuration alone."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from core.errors import UserError


class Transform:
    """A change of any network, made in place by the constructor, whose first argument it is.

    A subclass that leaves ``merges`` False travels in ``model/`` by its name and arguments, and is
    made again there. One that sets it says by :meth:`merge` how the network becomes plain again.

    Attributes:
        network: the changed network; the given one, unless the subclass says otherwise.
    """

    merges = False

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def report(self) -> dict[str, Any]:
        """Say in a few plain values what was done; asked again after a fit."""
        return {}

    @classmethod
    def merge(cls, network: nn.Module) -> nn.Module:
        """Give a plain copy of a trained network, equal in all that it answers."""
        return network


class Changed(NamedTuple):
    """A changed network, what stands in ``results.json`` before a fit, and what tells it anew."""

    network: nn.Module
    told: dict[str, Any]
    report: Callable[[], dict[str, Any]]


def change(network: nn.Module, cls: type, init_args: Mapping[str, Any]) -> Changed:
    """Change a network by a :class:`Transform`, or by a module that wraps it.

    A module that wraps it is called as ``cls(network, **init_args)`` and keeps it as ``network``.

    Raises:
        UserError: if the class is neither.
    """
    if not (isinstance(cls, type) and issubclass(cls, Transform | nn.Module)):
        raise UserError(
            f"transforms: {cls.__name__} is neither a core.transform.Transform nor a torch module"
        )
    made = cls(network, **init_args)
    changed = made.network if isinstance(made, Transform) else made
    report = made.report if isinstance(made, Transform) else dict
    told = {"name": cls.__name__, **init_args, **report(), **trainable(changed)}
    return Changed(changed, told, report)


def trainable(network: nn.Module) -> dict[str, Any]:
    """Count the parameters that are trained, and give their share of all."""
    total = sum(p.numel() for p in network.parameters())
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return {"trainable": count, "share": round(count / total, 6) if total else 0.0}
