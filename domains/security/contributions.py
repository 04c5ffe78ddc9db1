"""Which fields made a flow an alert: gradient times input.

Shrikumar et al., Not Just a Black Box, 2016. Sizes: B windows of W flows, N numeric and C
categorical fields.
"""

import torch
from torch import Tensor, nn

from domains.security.scores import attack_logit


def contributions(network: nn.Module, numeric: Tensor, codes: Tensor, usual: int) -> Tensor:
    """Share the logit of an attack out among the fields, summed over the window.

    A number counts from the least one of training. A level counts from the most frequent one, by
    the change that it makes to what the network's part ``encode`` gives; without such a part it
    counts nothing.

    Args:
        network: maps both to logits.
        numeric: (B, W, N).
        codes: (B, W, C).
        usual: the code of the most frequent level of each field.

    Returns:
        (B, N + C), positive where a field speaks for an attack.
    """
    parts = (part for name, part in network.named_modules() if name.split(".")[-1] == "encode")
    encode = next(parts, None)
    seen: list[Tensor] = []
    if encode is not None:
        hook = encode.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.enable_grad():
        numeric = numeric.clone().requires_grad_()  # also where it was made without gradients
        logits = attack_logit(network(numeric, codes))
        inputs = [numeric, *seen[:1]]
        slopes = torch.autograd.grad(logits.sum(), inputs, allow_unused=True)
    if encode is not None:
        hook.remove()
    own, rest = slopes[0], slopes[1] if seen else None
    shares = torch.zeros(len(codes), numeric.shape[2] + codes.shape[2], device=codes.device)
    if own is not None:
        shares[:, : numeric.shape[2]] = (own * numeric.detach()).sum(1)
    if encode is None or rest is None:
        return shares
    with torch.no_grad():
        for field in range(codes.shape[2]):
            without = codes.clone()
            without[:, :, field] = usual
            change = seen[0] - encode(numeric, without)
            shares[:, numeric.shape[2] + field] = (change * rest).sum((1, 2))
    return shares
