"""The gate of a network with exits: what it sees, what it learns from, what it has become.

A network may state by a method ``gate_tokens(state, *inputs) -> Tensor`` (B, T, D) what of the
state (B, ..., D) before its first layer a gate shall see, ``inputs`` being the network's own; else
it sees the mean of all that is not padding.

Sizes: B samples, T tokens, D features, E exits.
"""

import math
from typing import Any

import torch
from torch import Tensor

from core.early_exit.criteria import by_item
from core.early_exit.derived import Derived
from core.early_exit.gate import Gate, GateFit, train_gate
from core.early_exit.heads import ExitHeads, width_of
from core.early_exit.plans import Recorded
from core.early_exit.stages import ExitController
from core.early_exit.training import Judge, wrong_in
from core.errors import UserError


class ExitGate(Gate):
    """A gate in front of a network's stages.

    Its linear map is fitted to a derived set, not by the optimizer: it is held as buffers. Until it
    is fitted every sample runs through all stages.

    Args:
        exits: the network's exits.
        heads: what answers there.
        first: the first exit.
        beta: the price of a layer, in units of quality.
        soft: learn shares of the exits, not the best one.
        width: D of the state; None asks the last stage.

    Attributes:
        beta: the price that a test fits it to; None leaves it as it is.
        fitted: how it does on the examples it was fitted to; None where it was not fitted here.

    Raises:
        UserError: if ``beta`` is no price.
    """

    def __init__(
        self,
        exits: ExitController,
        heads: ExitHeads,
        first: int,
        beta: float,
        soft: bool = False,
        width: int | None = None,
    ) -> None:
        size = width if width is not None else width_of(exits)
        super().__init__(size, range(first, len(exits.layers) + 1))
        for name, parameter in list(self.linear.named_parameters()):
            delattr(self.linear, name)
            self.linear.register_buffer(name, parameter.detach())
        self.exits = exits
        self._look = heads.seen  # the heads are no part of the gate
        self.soft = soft
        self.price(beta)
        self.open()

    def price(self, beta: float) -> None:
        """Set the price of a layer that the next fit follows."""
        if isinstance(beta, bool) or not isinstance(beta, int | float):
            raise UserError(f"EarlyExit: beta={beta!r} must be a number")
        if not 0 <= beta < math.inf:
            raise UserError(f"EarlyExit: beta={beta} must be finite, and at least 0")
        self.beta: float | None = float(beta)

    def open(self) -> None:
        """Let every sample run through all stages, until the gate is fitted."""
        self._send(self.depths[-1])

    def hold(self, depth: int) -> None:
        """Let every sample run through as many stages, in tests too."""
        self._send(depth)
        self.beta = None

    def _send(self, depth: int) -> None:
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.zero_()[self.depths.index(depth)] = 1
        self.fitted: GateFit | None = None

    def seen(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the tokens (B, T, D) of the state, and which of them count (B, T), during a pass."""
        args, kwargs = self.exits.given
        pick = getattr(self.exits.network, "gate_tokens", None)
        if pick is not None:
            tokens: Tensor = pick(state, *args, **kwargs)
            return tokens, None
        found = self._look(state, args, kwargs, None)
        tokens = found.state if found.state.ndim == 2 else found.state.flatten(1, -2)
        if tokens.shape[-1] != self.width and found.state.shape[1] == self.width:  # channels first
            tokens = found.state.flatten(2).mT
        if tokens.shape[-1] != self.width:
            raise UserError(
                f"EarlyExit: the state before the first layer has shape {list(found.state.shape)},"
                f" not (B, ..., {self.width}); give its width"
            )
        fits = found.mask is not None and found.mask.shape == tokens.shape[:2]
        return tokens, found.mask if fits else None

    def depths_of(self, state: Tensor) -> Tensor:
        """Choose the stages (B,) from the state before the first one, during a pass."""
        return self.choose(*self.seen(state))

    def fit(self, derived: Derived) -> GateFit:
        """Learn from a derived set at the gate's price; nothing but the linear map changes."""
        assert self.beta is not None
        with torch.inference_mode(False):
            found = train_gate(derived, self.beta, self.soft)
            with torch.no_grad():
                self.linear.weight.copy_(found.gate.linear.weight)
                self.linear.bias.copy_(found.gate.linear.bias)
        self.fitted = found
        return found

    @torch.no_grad()
    def examine(self, judge: Judge) -> tuple[Tensor, Tensor]:
        """Give the quality (B, E) of a batch at each exit, and its features (B, D).

        What lies before the stages is computed again for each exit, the stages once.

        Raises:
            UserError: if the batch's items are not the rows that the network is given.
        """
        with self.exits.using(_Looking(self)) as looking:
            last = quality_of(judge())
        quality = []
        for number in self.depths[:-1]:
            with self.exits.using(looking.at(number)):
                quality.append(quality_of(judge()))
        if len(looking.features) != 1 or len(looking.features[0]) != len(last):
            raise UserError(
                "EarlyExit: the items of this task are not the rows of its network, so no gate can"
                " be fitted to them; take a threshold in place of beta"
            )
        return torch.stack([*quality, last], 1).cpu(), looking.features[0].cpu()

    def report(self) -> dict[str, Any]:
        """Say what the gate is worth on the examples it was fitted to."""
        told: dict[str, Any] = {"gate_numbers": self.linear.weight.numel() + len(self.depths)}
        if self.fitted is not None:
            pairs = zip(self.depths, self.fitted.histogram.tolist(), strict=True)
            told["gate"] = {name: round(v, 6) for name, v in self.fitted.figures.items()}
            told["gate"]["exits"] = {str(depth): count for depth, count in pairs}
        return told


class _Looking(Recorded):
    """Nobody leaves; what the gate sees is kept as well."""

    def __init__(self, gate: ExitGate) -> None:
        super().__init__()
        self.gate = gate
        self.features: list[Tensor] = []

    def begin(self, state: Tensor) -> None:
        """Keep what the gate sees."""
        self.features.append(self.gate.mean(*self.gate.seen(state)))


def quality_of(judged: Any) -> Tensor:
    """Say how good the answers of a judged batch are (B,), best 1; NaN where it is not known."""
    own = getattr(judged, "quality", None)
    found: Tensor = 1 - by_item(wrong_in(judged)) if own is None else own()
    return found
