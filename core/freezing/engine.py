"""The engine of all schedules: what trains is chosen before each optimizer step, and held to."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from core.errors import UserError
from core.freezing import checks
from core.freezing.holding import Holding
from core.freezing.measures import GradientSums, Snapshot
from core.freezing.optimizer_state import forget, gradient_norm, halt, stepped
from core.freezing.record import Record
from core.freezing.units import Layout, Patterns, Unit, stage_units


class Moment(NamedTuple):
    """What a schedule sees before an optimizer step.

    ``units`` are numbered from the input on. ``step`` counts optimizer steps from 0 on, of
    ``total_steps`` (infinite where the fit has no end); ``epoch`` counts from 0 on. ``active``
    holds the numbers of the units that trained in the step before, all at the first.
    """

    units: Sequence[Unit]
    step: int
    total_steps: float
    epoch: int
    active: frozenset[int]


class Freezing(Callback, ABC):
    """Train some units of a module at a time; a subclass says which, by :meth:`choose`.

    Frozen parameters have no gradient, stay what they are to the last bit and cost the optimizer
    nothing; all stay in the optimizer from the first step on. Frozen modules have no dropout, and
    norms that count statistics use and keep those that they have. Parameters that were frozen
    before the fit stay so, and after it all need gradients again that did before. A set is chosen
    once an optimizer step, the same in all processes.

    Args:
        stages: a regular expression of parameters' names for each unit, from the input on; None
            takes the stages that the network states, or its longest list of layers.
        always_train: regular expressions of parameters that are never frozen; None takes the head.
        momentum: of a unit that is thawed: ``keep`` it, ``reset`` all that the optimizer remembers
            (its memory is freed meanwhile) or ``reset_m``, the running mean of gradients alone.
        seed: of the schedule's own draws.

    Attributes:
        units: what is frozen and thawed.
        distances: (T,) how far each unit moved in the last step that trained it, where the
            subclass sets ``needs`` to ``"distance"``; NaN before.
        generator: for draws; part of the checkpoint.
        memory: plain values that a subclass keeps; part of the checkpoint.
        optimizers: those of the fit.
        trained: how many numbers the fit trains in all.

    Raises:
        UserError: if a setting is out of range or the module cannot be trained so.
    """

    needs: str = ""
    """``distance``, ``gradient`` (see :meth:`take_gradients`) or nothing."""
    by_hand: ClassVar[bool] = False
    """Whether it works where the module optimizes by hand."""
    distance: str = "relative_mean"
    eps: float = 1e-8
    drifts = False
    """Whether frozen units that trained before get gradients of zero, and drift by momentum."""

    def __init__(
        self,
        stages: list[str] | None = None,
        always_train: Patterns = None,
        momentum: str = "keep",
        seed: int = 0,
    ) -> None:
        self.method = type(self).__name__
        if momentum not in ("keep", "reset", "reset_m"):
            raise UserError(f"{self.method}: momentum={momentum!r} must be keep, reset or reset_m")
        self.stages = stages
        self.always_train = always_train
        self.momentum = momentum
        self.seed = seed
        self.units: list[Unit] = []
        self.notes: list[str] = []
        self._loaded: dict[str, Any] = {}
        self._handles: list[RemovableHandle] = []
        self._holding: Holding | None = None
        self.optimizers: list[Optimizer] = []
        self._strategy: Strategy | None = None
        self.trained = 0
        self.active: frozenset[int] | None = None
        self.distances = torch.empty(0)
        self.memory: dict[str, Any] = {}
        self._begin_anew()

    @abstractmethod
    def choose(self, now: Moment) -> Iterable[int] | None:
        """Give the numbers of the units that train from this step on; None leaves all as it is."""

    def find_units(self, module: LightningModule) -> Layout:
        """Find the units; a subclass may take others than stages."""
        return stage_units(module, self.stages, self.always_train)

    def begin(self, trainer: Trainer) -> None:
        """Prepare a fit, once the units are known; what was kept in a checkpoint comes later."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Act behind an optimizer's step, before the scheduler's."""

    def take_gradients(self) -> Tensor:
        """Give each unit's L1 norm of its gradients summed since the last call (T,)."""
        return self._sums.take(len(self.units))

    def report(self) -> dict[str, Any]:
        """Say in a few plain values what was done, for ``results.json``."""
        return {**self.record.report(), "notes": self.notes}

    def state_dict(self) -> dict[str, Any]:
        """Keep all that the next choice follows from."""
        return {
            "units": self.record.names,
            "active": None if self.active is None else sorted(self.active),
            "distances": self.distances.clone(),
            "generator": self.generator.get_state(),
            "memory": dict(self.memory),
            "sums": self._sums.state_dict(),
            "record": self.record.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of the interrupted run, once the units are known."""
        self._loaded = state_dict

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare what wraps the module."""
        if stage == "fit":
            checks.check_alone(trainer, Freezing)
            checks.prepare_strategy(trainer, self.method)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the units while all that will be trained still needs gradients."""
        if not self.by_hand:
            checks.check_automatic(pl_module, self.method)
        checks.check_compiled(pl_module, self.method)
        checks.check_checkpointing(pl_module, self.method)
        self.units, self.notes = self.find_units(pl_module)
        self.optimizers = list(trainer.optimizers)
        checks.check_optimizers(pl_module, self.optimizers, self.units, self.method)
        self._strategy = trainer.strategy if trainer.world_size > 1 else None
        self.trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        self._begin_anew()
        self.begin(trainer)
        self._take_over()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to the optimizers; freeze what the interrupted run had frozen."""
        self.total_steps = _total_steps(trainer)
        self._holding = Holding()
        self._handles = [o.register_step_post_hook(self._stepped) for o in self.optimizers]
        if self.active is not None:
            active, self.active = self.active, None
            self._apply(active, thawing=False)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Choose the units of the step that begins; never between two accumulated batches."""
        if self.by_hand or batch_idx % trainer.accumulate_grad_batches == 0:
            every = frozenset(range(len(self.units)))
            active = every if self.active is None else self.active
            now = Moment(
                self.units, trainer.global_step, self.total_steps, trainer.current_epoch, active
            )
            chosen = self.choose(now)
            self._apply(active if chosen is None else frozenset(chosen))
            self.record.add(self.active or ())
            self._logs = bool(trainer.loggers) and (
                (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
            )

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Explain a loss that nothing can learn from."""
        checks.check_loss(loss, self.method)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure before the weights move."""
        active = sorted(self.active or ())
        if self.needs == "distance":
            self._snapshot.take(self.units, active)
        elif self.needs == "gradient":
            self._sums.add(self.units, active)
        if self.drifts:
            for number, unit in enumerate(self.units):
                if number not in active and self.record.counts[number]:
                    for parameter in unit.parameters:
                        parameter.grad = torch.zeros_like(parameter)
        if self._logs and trainer.gradient_clip_val:
            norm = gradient_norm(pl_module.parameters())
            if norm is not None:  # that of what trains, which is what is clipped
                pl_module.log("freezing/gradient_norm", norm)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log what was frozen, where there is a logger."""
        if self._logs:
            pl_module.log_dict(self.record.logged(len(self.active or ()), self.distances))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let all need gradients again that did before the fit."""
        self.release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was, after an error too."""
        self.release()

    def freeze(self, unit: Unit) -> None:
        """Freeze a unit."""
        for parameter in unit.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        if self.momentum == "reset":
            forget(self.optimizers, unit.parameters)
        for module in unit.modules:
            self.hold(module)

    def hold(self, module: nn.Module) -> None:
        """Put a module in evaluation, until its unit is thawed or the fit ends."""
        assert self._holding is not None
        self._holding.hold(module)

    def thaw(self, unit: Unit) -> None:
        """Train a unit again."""
        for parameter in unit.parameters:
            parameter.requires_grad_(True)
        assert self._holding is not None
        for module in unit.modules:
            self._holding.release(module)

    def _apply(self, active: frozenset[int], thawing: bool = True) -> None:
        """Freeze and thaw where the new set differs from the one before."""
        if outside := active - set(range(len(self.units))):
            raise UserError(
                f"{self.method}: choose gave {sorted(outside)}, and there are the units 0 to"
                f" {len(self.units) - 1}"
            )
        before = frozenset(range(len(self.units))) if self.active is None else self.active
        for number in sorted(before - active):
            self.freeze(self.units[number])
        for number in sorted(active - before):
            self.thaw(self.units[number])
            if self.momentum == "reset_m" and thawing:
                halt(self.optimizers, self.units[number].parameters)
        self.active = active

    def _stepped(self, optimizer: Optimizer, *rest: Any) -> None:
        """Measure how far a step has moved the units that it trained."""
        self.after_step(optimizer)
        if self.needs != "distance" or not stepped(optimizer):
            return
        for number, value in self._snapshot.measure(self.units, self.distance, self.eps).items():
            self.distances[number] = value
        if self._strategy is not None:  # the same to the last bit in all processes
            mean = self._strategy.reduce(
                self.distances.to(self._strategy.root_device), reduce_op="mean"
            )
            self.distances = torch.as_tensor(mean).cpu()

    def _begin_anew(self) -> None:
        count = len(self.units)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.active = None
        self.distances = torch.full((count,), torch.nan, dtype=torch.float64)
        self.record = Record(self.units, self.trained)
        self.memory = {}
        self.total_steps = float("inf")
        self._snapshot, self._sums = Snapshot(), GradientSums()
        self._logs = False

    def _take_over(self) -> None:
        """Go on where the interrupted run was."""
        state, self._loaded = self._loaded, {}
        if not state:
            return
        if state["units"] != self.record.names:
            raise UserError(
                f"{self.method}: the checkpoint froze other units ({len(state['units'])}) than"
                f" there are now ({len(self.units)}); keep to the settings it began with"
            )
        self.active = None if state["active"] is None else frozenset(state["active"])
        self.distances = state["distances"].clone()
        self.generator.set_state(state["generator"].cpu())
        self.memory = dict(state["memory"])
        self._sums.load_state_dict(state["sums"], self.units)
        self.record.load_state_dict(state["record"])

    def release(self) -> None:
        """Leave the module as it was before the fit."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.optimizers, self._strategy = [], [], None
        if self._holding is not None:
            self._holding.end()
            self._holding = None
            for unit in self.units:
                for parameter in unit.parameters:
                    parameter.requires_grad_(True)


def _total_steps(trainer: Trainer) -> float:
    """Count the optimizer steps of the whole fit; infinite where they cannot be counted."""
    try:
        total = float(trainer.estimated_stepping_batches)
    except MisconfigurationException:  # different numbers of batches are accumulated
        return float("inf")
    return total if total > 0 else float("inf")
