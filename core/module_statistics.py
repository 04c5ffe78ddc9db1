"""What flows through the modules of a network: how large, how small, and whether finite."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from core.nested import every_tensor

LARGEST = 65504.0
"""The largest number of float16."""
LOST = 2.0**-25
"""What is smaller becomes 0 in float16."""
UNDERFLOWS = 0.1
"""A gradient underflows where this share of it, zeros apart, would become 0."""


class Statistics(NamedTuple):
    """Counts over one or many tensors.

    Attributes:
        largest: max |x|; not finite where a value is not.
        values: how many were seen.
        zeros: how many were 0.
        lost: how many others float16 would make 0.
        large: how many lay above half of float16's largest.
        nonfinite: how many were NaN or infinite.
    """

    largest: float = 0.0
    values: float = 0.0
    zeros: float = 0.0
    lost: float = 0.0
    large: float = 0.0
    nonfinite: float = 0.0

    def merged(self, other: "Statistics") -> "Statistics":
        """Give the statistics of both."""
        sums = (a + b for a, b in zip(self[1:], other[1:], strict=True))
        largest = max(self.largest, other.largest)
        return Statistics(other.largest if other.largest != other.largest else largest, *sums)

    @property
    def overflows(self) -> bool:
        """Whether float16 would hold infinity in place of a value."""
        return not self.largest <= LARGEST

    @property
    def underflows(self) -> bool:
        """Whether float16 would lose a good part of the values."""
        return self.lost > UNDERFLOWS * max(self.values - self.zeros, 1)


def measure(x: Tensor) -> Tensor:
    """Count over one tensor, without waiting for its device: the six :class:`Statistics`."""
    size = x.detach().abs()
    zeros = (size == 0).sum()
    return torch.stack(
        [
            size.amax().double(),
            zeros.new_tensor(size.numel()).double(),
            zeros.double(),
            ((size < LOST).sum() - zeros).double(),
            (size > LARGEST / 2).sum().double(),
            (size.numel() - torch.isfinite(size).sum()).double(),
        ]
    )


def tensors(values: Any) -> Iterator[Tensor]:
    """Give the floating-point tensors among values that are not empty."""
    return (x for x in every_tensor(values) if x.is_floating_point() and x.numel())


def watched(root: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """Find the modules below ``root`` whose whole name matches, but metrics."""
    metrics = [
        name
        for name, module in root.named_modules()
        if isinstance(module, Metric | MetricCollection)
    ]
    return {
        name: module
        for name, module in root.named_modules()
        if name
        and re.fullmatch(pattern, name)
        and not any(name == metric or name.startswith(f"{metric}.") for metric in metrics)
    }


class Watch:
    """Measure what modules give, and the gradients that come back to it, while it is open.

    Args:
        modules: by name.

    Attributes:
        activations: (name, six numbers) of each tensor given, in the order of the forward pass; a
            module comes after those inside it.
        gradients: the same of the gradients.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.activations: list[tuple[str, Tensor]] = []
        self.gradients: list[tuple[str, Tensor]] = []
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
        self._handles = [
            module.register_forward_hook(self._forward(name)) for name, module in modules.items()
        ]

    def close(self) -> None:
        """Take the hooks away; gradients of tensors given before still arrive."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._seen = {}

    def _forward(self, name: str) -> Any:
        def keep(gradient: Tensor) -> None:
            self.gradients.append((name, measure(gradient)))

        def hook(module: nn.Module, args: Any, outputs: Any) -> None:
            for tensor in tensors(outputs):
                known = self._seen.get(id(tensor))  # handed on by the module around it
                if known is None:
                    known = self._seen[id(tensor)] = (tensor, measure(tensor))
                self.activations.append((name, known[1]))
                if tensor.requires_grad:
                    tensor.register_hook(keep)  # type: ignore[no-untyped-call]

        return hook


class Found(Exception):  # noqa: N818 - not an error: it ends a search
    """The first module that gave a value which is not finite.

    Attributes:
        name: of the module.
        inputs: its arguments' tensors.
    """

    def __init__(self, name: str, inputs: list[Tensor]) -> None:
        super().__init__(name)
        self.name = name
        self.inputs = inputs


class Search:
    """Raise :class:`Found` in the forward pass at the first value that is not finite."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._handles = [
            module.register_forward_hook(self._forward(name), with_kwargs=True)
            for name, module in modules.items()
        ]

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _forward(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors(outputs)):
                raise Found(name, [t.detach().cpu() for t in tensors((args, kwargs))])

        return hook
