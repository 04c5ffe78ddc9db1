"""An optimizer whose state is loaded as it was saved."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class ExactState(Optimizer):
    """Keep the precision of the state on loading, where torch takes that of the parameter.

    A bfloat16 weight's moments in float32 would lose 16 bits at each resume.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state, to the last bit."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and value.ndim:
                    self.state[parameter][name] = value.to(parameter.device, copy=True)
