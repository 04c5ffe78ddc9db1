"""A gate that chooses how many layers to run before any of them has run.

It sees what the layers are given, averaged over tokens, and is trained on a derived set alone: the
parent is not touched, and another price needs no pass of it. Yao et al., Efficient Transformer
Encoders for Mask2Former-style Models, 2024; their released code takes soft targets over the batch
and one choice for all of it, which is not done here.

Sizes: B samples, T tokens, D features, E exits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.early_exit.derived import Derived

DECAYS = (0.1, 0.03, 0.01, 0.003, 0.001, 1e-4, 1e-5)
MOST_TRIED = 5000
"""Examples that a decay is chosen with at most."""


class Gate(nn.Module):
    """A linear map of the mean token to the exits.

    Args:
        width: D.
        depths: layers that each of the E exits runs, rising.

    Raises:
        ValueError: if ``width`` is below 1 or ``depths`` do not rise.

    Example:
        >>> gate = Gate(256, depths=(2, 3, 4, 5, 6))
        >>> sum(parameter.numel() for parameter in gate.parameters())
        1285
        >>> gate.choose(torch.zeros(3, 512, 256))
        tensor([2, 2, 2])
    """

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        if width < 1 or not depths or list(depths) != sorted({*depths}) or depths[0] < 1:
            raise ValueError(f"width={width} must be at least 1, depths={list(depths)} must rise")
        self.width = width
        self.depths = tuple(depths)
        self.linear = nn.Linear(width, len(self.depths))
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Give logits (B, E), in single precision at least; each sample's depend on it alone.

        Args:
            tokens: (B, T, D), or their means (B, D).
            kept: (B, T) True where a token is none of padding; None takes all.
        """
        mean = self.mean(tokens, kept)
        # a matrix product would round by the size of the batch
        return (mean[:, None] * self.linear.weight).sum(-1) + self.linear.bias

    def mean(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Give the mean token (B, D), in single precision at least; arguments as of ``forward``."""
        precise = torch.promote_types(self.linear.weight.dtype, torch.float32)
        if tokens.dim() == 2:
            return tokens.to(precise)
        if kept is None:
            return tokens.mean(1, dtype=precise)
        own = tokens.to(precise).masked_fill(~kept[..., None], 0.0)
        return own.sum(1) / kept.sum(1, keepdim=True).clamp(min=1)

    @torch.no_grad()
    def choose(self, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
        """Give the layers (B,) that each sample shall run; arguments as of ``forward``."""
        exits = self(tokens, kept).argmax(1)
        return torch.tensor(self.depths, device=exits.device)[exits]


class GateFit(NamedTuple):
    """A trained gate, and how it does.

    ``figures``: ``accuracy``, the share of examples sent to their target; ``majority``, that of
    sending all to the most frequent target of training; ``mean_depth`` in layers; ``quality`` at
    the chosen exits, ``quality_last`` and ``quality_target`` at the last and the target ones;
    ``utility`` is quality less cost, ``utility_fixed`` that of the best exit for all.
    ``histogram`` (E,) counts the examples sent to each exit.
    """

    gate: Gate
    figures: dict[str, float]
    histogram: Tensor


def train_gate(
    derived: Derived,
    beta: float,
    soft: bool = False,
    *,
    tau: float = 0.02,
    decay: float | None = None,
    steps: int = 300,
    held_out: Derived | None = None,
) -> GateFit:
    """Fit a gate to the targets of a price, the same each time.

    Features are standardised for the fit, and this is folded into the linear map. All examples are
    used at once (L-BFGS): hard targets by cross-entropy, which has one minimum; soft ones by the
    squared error of shares, as in the released code.

    Args:
        derived: the derived set of training.
        beta: the price of a layer, in units of quality.
        soft: learn shares of the exits, not the best one.
        tau: temperature of soft targets.
        decay: weight of the squared weights; None takes the one of ``DECAYS`` whose gate, fitted to
            four fifths of the examples, has the highest utility on the others.
        steps: steps of L-BFGS at most.
        held_out: what the figures are of; None takes ``derived``.

    Raises:
        ValueError: if an argument is out of its range, or ``held_out`` has other exits or features.
    """
    judged = derived if held_out is None else held_out
    if judged.depths != derived.depths or judged.features.shape[1] != derived.features.shape[1]:
        raise ValueError("held_out has other exits or features than the derived set of training")
    if not (decay is None or decay >= 0) or steps < 1:
        raise ValueError(f"decay={decay} must be at least 0 and steps={steps} at least 1")
    targets = derived.soft_targets(beta, tau) if soft else derived.targets(beta)
    features = derived.features.double()
    mean = features.mean(0)
    scale = features.std(0, correction=0)
    scale = torch.where(scale > 1e-6 * mean.abs(), scale, 1.0)  # a constant says nothing
    features = (features - mean) / scale
    utility = derived.utility(beta)
    if decay is None:
        decay = _chosen_decay(features, targets, utility, steps)
    weight, bias = _fit(features, targets, utility.shape[1], decay, steps)
    gate = Gate(features.shape[1], derived.depths)
    with torch.no_grad():
        gate.linear.weight.copy_(weight / scale)
        gate.linear.bias.copy_(bias - (weight / scale) @ mean)
        chosen = gate(judged.features).argmax(1)
    usual = int(derived.histogram(beta).argmax())
    return GateFit(gate, _figures(judged, beta, chosen, usual), _counts(chosen, derived))


def _chosen_decay(features: Tensor, targets: Tensor, utility: Tensor, steps: int) -> float:
    """Try each decay on examples that its fit has not seen; of equal ones take the largest."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MOST_TRIED]
    seen, unseen = order[len(order) // 5 :], order[: len(order) // 5]
    if not len(unseen):
        return DECAYS[0]

    def found(decay: float) -> float:
        fitted = _fit(features[seen], targets[seen], utility.shape[1], decay, steps)
        exits = F.linear(features[unseen], *fitted).argmax(1, keepdim=True)
        return float(utility[unseen].gather(1, exits).mean())

    return max(DECAYS, key=found)


def _fit(
    features: Tensor, targets: Tensor, exits: int, decay: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Minimise the loss over weight (E, D) and bias (E,), from 0."""
    weight = torch.zeros(exits, features.shape[1], dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(exits, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = gate_loss(F.linear(features, weight, bias), targets)
        loss = loss + decay * weight.square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def gate_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Judge logits (B, E) by exits (B,) or by shares of the exits (B, E).

    Cross-entropy, or the squared error of the shares summed over exits, as a mean over examples. It
    weighs every exit alike.
    """
    if targets.dim() == 1:
        return F.cross_entropy(logits, targets)
    return (logits.softmax(1) - targets).square().sum(1).mean()


def _figures(derived: Derived, beta: float, chosen: Tensor, usual: int) -> dict[str, float]:
    targets, utility = derived.targets(beta), derived.utility(beta)

    def quality(exits: Tensor) -> float:
        return float(derived.quality.gather(1, exits[:, None]).mean())

    return {
        "accuracy": float((chosen == targets).double().mean()),
        "majority": float((targets == usual).double().mean()),
        "mean_depth": float(torch.tensor(derived.depths, dtype=torch.float64)[chosen].mean()),
        "quality": quality(chosen),
        "quality_last": float(derived.quality[:, -1].mean()),
        "quality_target": quality(targets),
        "utility": float(utility.gather(1, chosen[:, None]).mean()),
        "utility_fixed": float(utility.mean(0).max()),
    }


def _counts(chosen: Tensor, derived: Derived) -> Tensor:
    return torch.bincount(chosen, minlength=len(derived.depths))
