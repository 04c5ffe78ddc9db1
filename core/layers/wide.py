"""Sums and exponentials in float32 inside a network that computes in bfloat16 or float16."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Give ``x`` in float32 where it has fewer digits; float32 and float64 stay as they are.

    Neither a CPU's autocast nor a network in bfloat16 raises softmax, cumulative sums and means by
    itself: a layer does so here, and casts its result back where another layer takes it.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
