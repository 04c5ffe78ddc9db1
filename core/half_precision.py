"""Training in bfloat16 or float16 alone, where the network is, and nowhere else.

Lightning's ``bf16-true`` converts all of a module and of a batch: counters stop at 256, targets are
rounded before they are compared, measured temperatures lose their digits, and losses that weigh
classes fail. Here the network alone is converted; what goes in is rounded, what comes out is
float32 again, and so are losses, metrics and whatever else a task keeps.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor, nn

LOW = (torch.bfloat16, torch.float16)


class NetworkInHalf(HalfPrecision):
    """A precision plugin for tasks that keep what is trained as ``network``.

    Other modules are converted whole, as by Lightning.

    Args:
        precision: ``bf16-true`` or ``16-true``.
    """

    def __init__(self, precision: Literal["bf16-true", "16-true"] = "bf16-true") -> None:
        super().__init__(precision)
        self._alone = False

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Convert the module's network, and round what enters it."""
        network = getattr(module, "network", None)
        self._alone = isinstance(network, nn.Module)
        if not isinstance(network, nn.Module):
            return super().convert_module(module)
        network.to(dtype=self._desired_input_dtype)
        if not any(isinstance(hook, _Enter) for hook in network._forward_pre_hooks.values()):
            enter = _Enter(self._desired_input_dtype)
            network.register_forward_pre_hook(enter, with_kwargs=True)
            network.register_forward_hook(_Leave(enter), always_call=True)
        return module

    def convert_input(self, data: Any) -> Any:
        """Leave a batch as it is: its targets are for the task."""
        return data if self._alone else super().convert_input(data)

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """New tensors of a task are float32; those of a network are not."""
        if self._alone:
            yield
            return
        with super().forward_context():
            yield


class _Enter:
    """Before the network: round its inputs, and let it make new tensors of its own type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.outside: list[torch.dtype] = []

    def __call__(self, network: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self.outside.append(torch.get_default_dtype())
        torch.set_default_dtype(self.dtype)
        return cast(args, self.dtype), cast(kwargs, self.dtype)


class _Leave:
    """After the network: give float32, and new tensors their type again."""

    def __init__(self, enter: _Enter) -> None:
        self.enter = enter

    def __call__(self, network: nn.Module, args: Any, outputs: Any) -> Any:
        if self.enter.outside:
            torch.set_default_dtype(self.enter.outside.pop())
        return cast(outputs, torch.float32, LOW)


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Have the weights of a module in float32 for a while; its gradients must be None."""
    held = (*module.parameters(), *module.buffers())
    low = [(tensor, tensor.dtype) for tensor in held if tensor.dtype in LOW]
    hooks = [hook for inner in module.modules() for hook in inner._forward_pre_hooks.values()]
    entries = [(hook, hook.dtype) for hook in hooks if isinstance(hook, _Enter)]
    for tensor, _ in low:
        tensor.data = tensor.data.float()
    for hook, _ in entries:
        hook.dtype = torch.float32
    try:
        yield
    finally:
        for tensor, dtype in low:
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)
        for hook, dtype in entries:
            hook.dtype = dtype


def cast(values: Any, dtype: torch.dtype, only: tuple[torch.dtype, ...] = ()) -> Any:
    """Convert the floating-point tensors in tuples, lists and mappings.

    Args:
        values: anything; what is no tensor stays as it is.
        dtype: the type to convert to.
        only: convert tensors of these types alone; empty for all.
    """
    if isinstance(values, Tensor):
        chosen = values.dtype in only if only else values.is_floating_point()
        return values.to(dtype) if chosen else values
    if isinstance(values, tuple | list):
        parts = [cast(value, dtype, only) for value in values]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    if isinstance(values, Mapping):
        changed = {key: cast(value, dtype, only) for key, value in values.items()}
        if type(values) is dict:
            return changed
        for key, value in changed.items():  # such as the outputs of transformers
            values[key] = value  # type: ignore[index]
    return values
