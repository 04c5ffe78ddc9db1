"""The operations of a forward pass, taken over as they are called.

``Compression`` is entered around the forward pass. What a network calls inside, through modules,
functions or methods, arrives here, and is answered by the same function of torch without autograd;
only what the backward pass is given differs. What needs no help goes to torch as it is: a frozen
Linear keeps nothing anyway, and a trained LayerNorm or convolution needs its whole input.
"""

from contextvars import ContextVar
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from core.compression import attention, dense, norms, pointwise
from core.compression.codes import Policy
from core.compression.forward_pass import Pass, plain

ACTIVE: ContextVar["Compression | None"] = ContextVar("ACTIVE", default=None)
"""The pass that is compressed now; None outside one, and within an excluded part."""
HANDLERS = {
    function: (kind, handler)
    for handlers in (attention.HANDLERS, dense.HANDLERS, norms.HANDLERS, pointwise.HANDLERS)
    for kind, handler, functions in handlers
    for function in functions
}


class Compression(TorchFunctionMode):
    """Keep activations as a policy says while it is entered.

    Args:
        policy: how; it also counts what was met.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.state = Pass(policy)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer one call."""
        kwargs = kwargs or {}
        if ACTIVE.get() is not self or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)
        if func is _WHOLE:
            with self:
                return _BY_PARTS(*args, **kwargs)
        kind, handler = HANDLERS.get(func, ("", None))
        found = None
        if handler is not None and "out" not in kwargs and plain(*args, *kwargs.values()):
            found = handler(self.state, func, *args, **kwargs)
        if found is None:
            return func(*args, **kwargs)
        if kind:
            kinds = self.state.policy.kinds
            kinds[kind] = kinds.get(kind, 0) + 1
        return found


def _never(*args: Any) -> bool:
    return False


_WHOLE = F.multi_head_attention_forward
_BY_PARTS = FunctionType(  # torch's own lines, but each operation in them arrives here
    _WHOLE.__code__,
    {**vars(F), "has_torch_function": _never},  # which asks whether another takes the whole call
    _WHOLE.__name__,
    _WHOLE.__defaults__,
)
_BY_PARTS.__kwdefaults__ = _WHOLE.__kwdefaults__
