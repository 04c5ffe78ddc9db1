"""What is known within one forward pass: its policy, and what is kept already."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from core.compression.codes import Code, Policy, int8

Handler = Callable[..., Any]
"""Takes the pass, torch's function and its arguments; gives its result, or None to leave it be."""
Handlers = Sequence[tuple[str, Handler, Sequence[Any]]]
"""A kind, a handler, and the functions of torch that it answers for; no kind is not counted."""


class Pass:
    """One forward pass.

    Args:
        policy: how activations are kept; it also counts what was met.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._known: dict[tuple[int, str], tuple[Any, int, Any]] = {}

    def note(self, x: Tensor, key: str, value: Any) -> None:
        """Remember something of a tensor until the pass ends or the tensor changes."""
        self._known[id(x), key] = (ref(x), x._version, value)

    def told(self, x: Tensor, key: str) -> Any:
        """Give what was noted of a tensor; None where nothing was."""
        found = self._known.get((id(x), key))
        if found is None:
            return None
        of, version, value = found
        return value if of() is x and x._version == version else None

    def int8(self, x: Tensor) -> Code:
        """Give the code of an operand, made once for all that use it."""
        code: Code | None = self.told(x, "shares") or self.told(x, "int8")
        if code is None:
            with torch.no_grad():
                code = int8(x, self.policy)
            self.note(x, "int8", code)
        return code


def plain(*arguments: Any) -> bool:
    """Say whether all tensors among the arguments are of torch's own dense kind."""
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    return all(
        type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided and not x.is_nested
        for x in tensors
    )


def real(*tensors: Tensor) -> bool:
    """Say whether all tensors hold real numbers, and hold some."""
    return all(x.is_floating_point() and x.numel() > 0 for x in tensors)


def learns(*tensors: Tensor | None) -> bool:
    """Say whether any tensor needs a gradient."""
    return any(x is not None and x.requires_grad for x in tensors)
