"""SlimFit: in each step only the weights that moved the most when they last trained.

Ardakani et al., SlimFit: Memory-Efficient Fine-Tuning of Transformer-based Models Using Training
Dynamics, NAACL 2024.
"""

from collections.abc import Iterable

import torch
from lightning.pytorch import LightningModule, Trainer

from core.errors import UserError
from core.freezing.engine import Freezing, Moment
from core.freezing.measures import DISTANCES
from core.freezing.units import Layout, Patterns, tensor_units


class SlimFit(Freezing):
    """Freeze a share of the weights in each step: those that moved least when they last trained.

    A unit is one weight: a parameter of two or more dimensions, or the weight of a norm. Biases
    always train. Distances begin as huge random numbers, so that each unit trains once before any
    measured one decides. A learning rate 2 to 8 times that of full fine-tuning is needed, and some
    thousand steps: with few, each weight trains only a few times.

    Args:
        freezing_rate: share of the units that are frozen, at least 0 and below 1.
        distance: ``relative_mean`` of the elements' changes, or the ``norm_ratio`` of the tensor's.
        eps: least size of a weight that a change is compared with.
        seed: of the first distances.
        mode: ``strict`` leaves frozen weights as they are; ``legacy``, as published, lets those
            that trained before drift by momentum and decay.
        include: regular expressions of names; only weights that they find are units.
        exclude: regular expressions of names of weights that are none, and always train.
        always_train: more of these; the head is scheduled too unless it is named.
        warmup_steps: first steps that train everything.
        momentum: of a weight that is thawed: ``keep``, ``reset`` or ``reset_m``.

    Raises:
        UserError: if a setting is out of range, or a pattern finds nothing.
    """

    needs = "distance"

    def __init__(
        self,
        freezing_rate: float = 0.95,
        distance: str = "relative_mean",
        eps: float = 1e-8,
        seed: int = 0,
        mode: str = "strict",
        include: Patterns = None,
        exclude: Patterns = None,
        always_train: Patterns = None,
        warmup_steps: int = 0,
        momentum: str = "keep",
    ) -> None:
        super().__init__(always_train=always_train, momentum=momentum, seed=seed)
        if not 0 <= freezing_rate < 1:
            raise UserError(f"SlimFit: freezing_rate={freezing_rate} must be from 0 to below 1")
        if distance not in DISTANCES:
            raise UserError(f"SlimFit: distance={distance!r} must be {' or '.join(DISTANCES)}")
        if mode not in ("strict", "legacy"):
            raise UserError(f"SlimFit: mode={mode!r} must be strict or legacy")
        if eps <= 0 or warmup_steps < 0:
            raise UserError(
                f"SlimFit: eps={eps} must be above 0 and warmup_steps={warmup_steps} at least 0"
            )
        if mode == "legacy" and momentum == "reset":
            raise UserError("SlimFit: momentum=reset leaves nothing for mode=legacy to drift by")
        self.freezing_rate = freezing_rate
        self.distance = distance
        self.eps = eps
        self.mode = mode
        self.drifts = mode == "legacy"
        self.include = include
        self.exclude = exclude
        self.warmup_steps = warmup_steps

    def find_units(self, module: LightningModule) -> Layout:
        """Make a unit of each weight."""
        return tensor_units(module, self.include, self.exclude, self.always_train)

    def begin(self, trainer: Trainer) -> None:
        """Draw the first distances, above any that will be measured."""
        drawn = torch.rand(len(self.units), generator=self.generator, dtype=torch.float64)
        self.distances = (1 + drawn) * 1e20

    def choose(self, now: Moment) -> Iterable[int]:
        """Train those that moved the most."""
        if now.step < self.warmup_steps:
            return range(len(now.units))
        known = self.distances.nan_to_num(nan=0.0, posinf=1e19)
        frozen = int(self.freezing_rate * len(now.units))
        chosen: list[int] = known.argsort(stable=True)[frozen:].tolist()
        return chosen
