"""Find what torch.compile has taken over: it looks no more at what is trained, kept or counted."""

import sys

from torch import nn


def compiled_part(module: nn.Module) -> str | None:
    """Name the first compiled part of a module, ``""`` for the module itself; None if none is."""
    if getattr(module, "_compiler_ctx", None) is not None:  # given to the trainer compiled
        return ""
    dynamo = sys.modules.get("torch._dynamo")  # whose import takes seconds, and compiles nothing
    for name, part in module.named_modules():
        if (
            (dynamo is not None and isinstance(part, dynamo.OptimizedModule))
            or getattr(part, "_compiled_call_impl", None) is not None
            or hasattr(vars(part).get("forward"), "_torchdynamo_orig_callable")
        ):
            return str(name)
    return None
