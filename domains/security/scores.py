"""What logits say of a flow: whether it is an attack, and of which class.

Logits are (B, 1), of an attack, or (B, K) with the benign class first.
"""

from torch import Tensor


def attack_logit(logits: Tensor) -> Tensor:
    """Give the logit (B,) of being no benign flow."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


def attack_score(logits: Tensor) -> Tensor:
    """Give the probability (B,) of being no benign flow, in float64: sure ones differ too."""
    return attack_logit(logits).double().sigmoid()


def likely_class(logits: Tensor, attack: Tensor) -> Tensor:
    """Give the class (B,): 0 where a flow is no ``attack`` (B,), else its likeliest one."""
    others = logits if logits.shape[1] == 1 else logits[:, 1:]
    return (others.argmax(1) + 1) * attack
