"""An optimizer whose state is loaded as it was saved."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class ExactState(Optimizer):
    """Keep the precision of the state on loading, where torch takes that of the parameter.

    A bfloat16 weight's moments in float32 would lose 16 bits at each resume.
    """

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Change every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.change()
        return loss

    @abstractmethod
    def change(self) -> None:
        """Change every weight that has a gradient; called without autograd."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state, to the last bit."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and value.ndim:
                    self.state[parameter][name] = value.to(parameter.device, copy=True)
