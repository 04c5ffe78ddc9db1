"""GaLore: the optimizer sees each matrix's gradient in a few directions only.

Zhao et al., GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, ICML 2024.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from core.errors import UserError
from core.optimizers.exact_state import ExactState

_SMALL = 8
"""Matrices with a smaller side below this, and below the rank, are trained as they are."""


class GaLore(ExactState):
    """Train all weights, with the states of the optimizer in a space of low rank.

    The gradient G (m, n) of a matrix is projected on its first ``rank`` singular vectors P of the
    smaller side, the base optimizer steps there, and its direction is projected back::

        W -= lr scale P base(P' G),    P from the gradient, anew every ``update_every`` steps

    The moments stay as they are when P changes, as published. Vectors, and all that is no matrix,
    are trained by the base optimizer itself, without ``scale``. The states are float32: two of
    (rank, n) for Adam, and P of (m, rank). With ``sgd`` at full rank and ``scale`` 1 this is SGD.

    Args:
        params: parameters or groups; a group may set its own ``rank``.
        lr: learning rate.
        rank: directions kept; never more than a matrix has.
        update_every: steps between two choices of the directions.
        scale: of the change of matrices.
        base: ``adam`` or ``sgd``.
        betas: of Adam's moments.
        eps: added to the root of the second.
        momentum: of SGD.
        weight_decay: share of each weight, times ``lr``, that a step takes off.

    Raises:
        UserError: if an argument is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        rank: int = 128,
        update_every: int = 200,
        scale: float = 0.25,
        base: Literal["adam", "sgd"] = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        if min(rank, update_every) < 1:
            raise UserError(f"rank={rank} and update_every={update_every} must be at least 1")
        if base not in ("adam", "sgd"):
            raise UserError(f"base={base!r} must be adam or sgd")
        shares = (*betas, momentum)
        if min(lr, scale, eps, weight_decay, *shares) < 0 or max(shares) >= 1:
            raise UserError(
                f"lr={lr}, scale={scale}, eps={eps}, weight_decay={weight_decay} must not be below"
                f" 0, betas={betas} and momentum={momentum} lie from 0 to below 1"
            )
        defaults = {
            **{"lr": lr, "rank": rank, "update_every": update_every, "scale": scale, "base": base},
            **{"betas": tuple(betas), "eps": eps, "momentum": momentum},
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def change(self) -> None:
        """Change every weight that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(group, parameter, parameter.grad)

    def _step(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        rate = group["lr"]
        projected = _is_projected(parameter, group["rank"])
        if projected:
            if state.get("count", 0) % group["update_every"] == 0:
                state["projection"] = directions(gradient, group["rank"])
            gradient = _down(gradient, state["projection"])
            rate *= group["scale"]
        change = _direction(state, gradient, group)
        if projected:
            change = _up(change, state["projection"], parameter.shape)
        weight = parameter.to(change.dtype)
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-rate)
        if weight is not parameter:
            parameter.copy_(weight)


def directions(gradient: Tensor, rank: int) -> Tensor:
    """Find the first singular vectors of a matrix, on its smaller side.

    They are the eigenvectors of the product of the matrix with itself, which is as small as that
    side: of a table of words this takes a fraction of the time of its decomposition.

    Args:
        gradient: (m, n).
        rank: r, how many are wanted.

    Returns:
        Orthonormal columns (s, r), where s is the smaller of m and n, in the type of ``gradient``.
    """
    rows, columns = gradient.shape
    product = gradient.mT @ gradient if rows >= columns else gradient @ gradient.mT
    _, vectors = torch.linalg.eigh(product.double())  # in ascending order
    first: Tensor = vectors[:, -rank:].flip(1).to(gradient.dtype)
    return first.contiguous()


def _is_projected(parameter: Tensor, rank: int) -> bool:
    return parameter.ndim == 2 and min(parameter.shape) >= min(rank, _SMALL)


def _down(matrix: Tensor, projection: Tensor) -> Tensor:
    """Project (m, n) to (m, r) or (r, n)."""
    tall = matrix.shape[0] >= matrix.shape[1]
    return matrix @ projection if tall else projection.mT @ matrix


def _up(low: Tensor, projection: Tensor, shape: torch.Size) -> Tensor:
    """Project (m, r) or (r, n) back to (m, n)."""
    return low @ projection.mT if shape[0] >= shape[1] else projection @ low


def _direction(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Give what the base optimizer would take off at a rate of 1, and keep its state."""
    state["count"] = state.get("count", 0) + 1
    if group["base"] == "sgd":
        if not group["momentum"]:
            return gradient
        known = state.get("momentum_buffer")
        state["momentum_buffer"] = (
            gradient.clone() if known is None else known.mul_(group["momentum"]).add_(gradient)
        )
        moved: Tensor = state["momentum_buffer"]
        return moved
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=gradient.device)
        state["exp_avg"] = torch.zeros_like(gradient)
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    change = torch.zeros_like(gradient)
    adamw(
        [change],
        [gradient],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [],
        [state["step"]],
        fused=gradient.device.type in ("cpu", "cuda"),
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=1.0,
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )
    return change.neg_()
