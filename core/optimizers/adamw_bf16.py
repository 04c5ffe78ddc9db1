"""AdamW for weights in bfloat16: the step in float32, rounded once, in a way that loses nothing.

Rounding to the nearest drops every change below 2^-9 of a weight, which is most of a fine-tuning.
Three ways out: round up or down at random, with the right mean (Gupta et al., Deep Learning with
Limited Numerical Precision, ICML 2015); keep what was rounded off, and add it next time (Kahan,
1965; Zamirai et al., Revisiting BFloat16 Training, 2020); keep a float32 copy of the weights.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from core.batch_plan import mix_seed
from core.errors import UserError
from core.optimizers.exact_state import ExactState

Rounding = Literal["nearest", "stochastic", "kahan", "master"]
_TOGETHER = 1 << 24  # numbers whose float32 copies exist at a time


class _Entry(NamedTuple):
    """A parameter with a gradient, and its place among all of the optimizer."""

    parameter: Tensor
    number: int


class AdamWBF16(ExactState):
    """AdamW (Loshchilov and Hutter, ICLR 2019) that also trains bfloat16 weights.

    Moments are float32; gradient, moments, decay and update meet in float32 too, and the new weight
    is rounded once. Bytes a weight beside weight and gradient: 8, with ``kahan`` 10, with
    ``master`` 12. Weights in float32 are trained as by ``torch.optim.AdamW``, whatever the
    rounding.

    The numbers of ``stochastic`` follow from ``seed``, the step and the parameter's place alone: a
    resumed run draws what an uninterrupted one does, and all processes draw the same, without
    which replicated weights would drift apart.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: of the two moments.
        eps: added to the root of the second.
        weight_decay: share of each weight, times ``lr``, that a step takes off.
        rounding: of weights below float32: ``stochastic`` (bfloat16 only), ``kahan``, ``master``,
            or ``nearest``, which is for comparisons.
        seed: of the random rounding.

    Raises:
        UserError: if an argument is out of its range, or a weight is of no fitting type.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        rounding: Rounding = "stochastic",
        seed: int = 0,
    ) -> None:
        if rounding not in get_args(Rounding):
            raise UserError(f"rounding={rounding!r} must be one of {', '.join(get_args(Rounding))}")
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise UserError(f"betas={betas} must lie from 0 to below 1")
        if min(lr, eps, weight_decay) < 0:
            raise UserError(
                f"lr={lr}, eps={eps} and weight_decay={weight_decay} must not be below 0"
            )
        defaults = {
            **{"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay},
            **{"rounding": rounding, "seed": seed},
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                _check(parameter, group["rounding"])

    def change(self) -> None:
        """Change every weight that has a gradient."""
        number = 0
        for group in self.param_groups:
            entries = [
                _Entry(parameter, number + place)
                for place, parameter in enumerate(group["params"])
                if parameter.grad is not None
            ]
            number += len(group["params"])
            for part in _parts(entries):
                self._step(group, part)

    def _step(self, group: dict[str, Any], entries: list[_Entry]) -> None:
        weights, gradients, states = [], [], []
        for parameter, _ in entries:
            state = self.state[parameter]
            if not state:
                _begin(state, parameter, group["rounding"])
            states.append(state)
            weights.append(_full(parameter, state))
            gradients.append(parameter.grad.to(weights[-1].dtype))  # type: ignore[union-attr]
        adamw(
            weights,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=weights[0].device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for (parameter, number), weight, state in zip(entries, weights, states, strict=True):
            if weight is parameter:
                continue
            if group["rounding"] == "stochastic":
                state["draws"] += 1
                weight = stochastic_round(weight, mix_seed(group["seed"], state["draws"], number))
            parameter.copy_(weight)
            if "compensation" in state:
                state["compensation"].copy_(weight - parameter)


def stochastic_round(values: Tensor, seed: int) -> Tensor:
    """Round float32 values to bfloat16, up or down at random, so that the mean is kept.

    A value goes to either of its two neighbours, the nearer the likelier. Infinities and NaN stay.

    Args:
        values: float32, of any shape; its memory is used up.
        seed: of the draws.

    Returns:
        The rounded values, in the shape of ``values``.
    """
    generator = torch.Generator(values.device).manual_seed(seed)
    count = values.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=values.device)
    words.random_(-(2**63), None, generator=generator)  # 64 bits each, for four values
    noise = words.view(torch.int16)[:count].view(values.shape)
    bits = values.contiguous().view(torch.int32)
    bits.add_(noise).add_(1 << 15).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).bfloat16()


def _check(parameter: Tensor, rounding: Rounding) -> None:
    if rounding == "stochastic" and parameter.dtype == torch.float16:
        raise UserError(
            "rounding=stochastic is for bfloat16 and the weights are float16; take kahan or master"
        )
    if not parameter.is_floating_point():
        raise UserError(f"AdamWBF16 trains real numbers, and a weight is {parameter.dtype}")


def _begin(state: dict[str, Any], parameter: Tensor, rounding: Rounding) -> None:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
    state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype)
    state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype)
    if parameter.dtype != dtype and rounding == "stochastic":
        state["draws"] = 0  # a plain number, which needs no waiting for a GPU
    if parameter.dtype != dtype and rounding == "kahan":
        state["compensation"] = torch.zeros_like(parameter)
    if parameter.dtype != dtype and rounding == "master":
        state["master"] = parameter.to(dtype)


def _full(parameter: Tensor, state: dict[str, Any]) -> Tensor:
    """Give a weight with all that is known of it; the parameter itself where that is all."""
    if "master" in state:
        master: Tensor = state["master"]
        same = master.to(parameter.dtype) == parameter  # others were changed from outside
        return master.copy_(torch.where(same, master, parameter.to(master.dtype)))
    weight = parameter.to(state["exp_avg"].dtype)
    return weight.add_(state["compensation"]) if "compensation" in state else weight


def _parts(entries: list[_Entry]) -> Iterator[list[_Entry]]:
    """Divide a group so that the copies stay small, and each part has one device and type."""
    part: list[_Entry] = []
    for entry in entries:
        size = sum(each.parameter.numel() for each in part) + entry.parameter.numel()
        kind = (entry.parameter.device, entry.parameter.dtype)
        if part and (
            size > _TOGETHER or kind != (part[0].parameter.device, part[0].parameter.dtype)
        ):
            yield part
            part = []
        part.append(entry)
    if part:
        yield part
