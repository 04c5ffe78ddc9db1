"""Schedules that train a few blocks at a time, wherever they are."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from core.errors import UserError
from core.freezing.engine import Freezing, Moment
from core.freezing.units import Layout, Patterns, Unit, stage_units


class LISA(Freezing):
    """Train the embeddings, the head and a few stages that are drawn anew from time to time.

    Pan et al., LISA: Layerwise Importance Sampling, NeurIPS 2024.

    Args:
        gamma: how many stages train at a time.
        every: steps until they are drawn anew.
        seed: of the draws.
        stages: a regular expression for each stage, from the input on; None takes the network's.
        always_train: regular expressions of parameters that are never frozen; None takes the head.
            The embeddings, and what is registered before the first stage, are not frozen either.
        momentum: of a stage that is drawn again: ``keep``, ``reset`` (its memory is freed
            meanwhile) or ``reset_m``.

    Raises:
        UserError: if a setting is out of range.
    """

    def __init__(
        self,
        gamma: int = 2,
        every: int = 20,
        seed: int = 0,
        stages: list[str] | None = None,
        always_train: Patterns = None,
        momentum: str = "keep",
    ) -> None:
        super().__init__(stages, always_train, momentum, seed)
        if gamma < 1 or every < 1:
            raise UserError(f"LISA: gamma={gamma} and every={every} must be at least 1")
        self.gamma = gamma
        self.every = every

    def find_units(self, module: LightningModule) -> Layout:
        """Leave out the embeddings."""
        found = stage_units(module, self.stages, self.always_train, apart=True)
        units = [unit for unit in found.units if unit.name != "before" and not unit.embeds]
        if self.gamma > len(units):
            raise UserError(f"LISA: gamma={self.gamma} is above the number of stages, {len(units)}")
        return Layout(units, found.notes)

    def choose(self, now: Moment) -> Iterable[int] | None:
        """Draw stages when it is time."""
        if now.step % self.every and self.active is not None:
            return None
        drawn: list[int] = torch.randperm(len(now.units), generator=self.generator).tolist()
        return drawn[: self.gamma]


class BlockCoordinate(Freezing):
    """Train one block at a time, for some steps each, and the head.

    With the defaults BAdam (Luo et al., NeurIPS 2024): the optimizer remembers the block that is
    trained and no other. With ``every=1, momentum="keep", embeddings=True`` HiFT (Liu et al.,
    EMNLP 2024).

    Args:
        every: steps that a block trains.
        order: ``down`` from the output to the input, ``up``, or ``random``, anew in each sweep.
        momentum: of a block that trains again: ``reset``, ``keep`` or ``reset_m``.
        embeddings: whether the embeddings are a block too; else they stay as they are.
        rate_per_sweep: keep the learning rate of a sweep's first step until all blocks had a turn.
        seed: of the random order.
        stages: a regular expression for each block, from the input on; None takes the network's.
        always_train: regular expressions of parameters that are never frozen; None takes the head.

    Raises:
        UserError: if a setting is out of range.
    """

    def __init__(
        self,
        every: int = 50,
        order: str = "down",
        momentum: str = "reset",
        embeddings: bool = False,
        rate_per_sweep: bool = False,
        seed: int = 0,
        stages: list[str] | None = None,
        always_train: Patterns = None,
    ) -> None:
        super().__init__(stages, always_train, momentum, seed)
        if every < 1 or order not in ("down", "up", "random"):
            raise UserError(
                f"BlockCoordinate: every={every} must be at least 1, and order={order!r} down, up"
                " or random"
            )
        self.every = every
        self.order = order
        self.embeddings = embeddings
        self.rate_per_sweep = rate_per_sweep

    def find_units(self, module: LightningModule) -> Layout:
        """Find the blocks; the embeddings come last where they have no turn."""
        found = stage_units(module, self.stages, self.always_train, apart=True)
        still: list[Unit] = [] if self.embeddings else [u for u in found.units if u.embeds]
        turns = [unit for unit in found.units if not any(unit is each for each in still)]
        if not turns:
            raise UserError(
                "BlockCoordinate: all blocks hold embeddings; set embeddings=true, or name blocks"
                " by stages"
            )
        self._turns = len(turns)
        told = [f"{unit.name} holds embeddings and is not trained" for unit in still]
        return Layout([*turns, *still], [*found.notes, *told])

    def begin(self, trainer: Trainer) -> None:
        """Begin before the first sweep."""
        self.memory["sweep"] = -1
        self._own_rates: list[float] = []

    def choose(self, now: Moment) -> Iterable[int] | None:
        """Give the block whose turn it is."""
        turn = now.step // self.every
        sweep, place = divmod(turn, self._turns)
        if sweep != self.memory["sweep"]:
            order = list(range(self._turns))
            if self.order == "random":
                order = torch.randperm(self._turns, generator=self.generator).tolist()
            elif self.order == "down":
                order.reverse()
            rates = self._own_rates or [float(group["lr"]) for group in self._groups()]
            self.memory = {"sweep": sweep, "order": order, "rates": rates}
        if self.rate_per_sweep:
            self._own_rates = self._own_rates or [group["lr"] for group in self._groups()]
            for group, rate in zip(self._groups(), self.memory["rates"], strict=True):
                group["lr"] = rate
        return [self.memory["order"][place]]

    def after_step(self, optimizer: Optimizer) -> None:
        """Give the scheduler its own rates back."""
        for group, rate in zip(self._groups(), self._own_rates, strict=False):
            group["lr"] = rate
        self._own_rates = []

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]
