"""Frozen modules act as in evaluation: no dropout, and norms by the statistics they have."""

from typing import Any, NamedTuple

from torch import nn
from torch.utils.hooks import RemovableHandle


class Holding:
    """Hold modules in evaluation, whatever calls ``train()`` on what they are part of.

    Recurrent layers stay in training, for on GPUs they have no gradient in evaluation.
    """

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}

    def hold(self, module: nn.Module) -> None:
        """Put a module in evaluation until :meth:`release`."""
        if id(module) not in self._held:
            modes = [(part, part.training) for part in module.modules()]
            hook = module.register_forward_pre_hook(_hold_again)
            self._held[id(module)] = _Held(module, modes, hook)
        _evaluate(module)

    def release(self, module: nn.Module) -> None:
        """Put a module back in the mode that it had."""
        if (held := self._held.pop(id(module), None)) is not None:
            held.hook.remove()
            for part, training in held.modes:
                part.training = training

    def end(self) -> None:
        """Release all."""
        for held in list(self._held.values()):
            self.release(held.module)


class _Held(NamedTuple):
    module: nn.Module
    modes: list[tuple[nn.Module, bool]]
    hook: RemovableHandle


def _hold_again(module: nn.Module, inputs: Any) -> None:
    if module.training:
        _evaluate(module)


def _evaluate(module: nn.Module) -> None:
    for part in module.modules():
        if not isinstance(part, nn.RNNBase):
            part.training = False
