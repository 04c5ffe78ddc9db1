"""What freezing cannot work with, refused before the first step."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import nn
from torch.optim import Optimizer

from core.compiled import compiled_part
from core.errors import UserError
from core.freezing.units import Unit


def prepare_strategy(trainer: Trainer, method: str) -> None:
    """Let DDP wait for no gradient of a frozen parameter; called before it wraps the module.

    Raises:
        UserError: if the strategy shards parameters, or expects the same graph in every step.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy):
        if strategy._ddp_kwargs.get("static_graph"):
            raise UserError(f"{method} changes what is trained; leave out static_graph=True of DDP")
        strategy._ddp_kwargs["find_unused_parameters"] = True
    elif not isinstance(strategy, SingleDeviceStrategy):
        raise UserError(
            f"{method} works on one device and with DDP; {type(strategy).__name__} fixes what is"
            " trained when it wraps the module. Set --trainer.strategy=ddp"
        )


def check_compiled(module: nn.Module, method: str) -> None:
    """Refuse what torch.compile has traced: it does not look again at what is trained.

    Raises:
        UserError: naming the compiled module.
    """
    name = compiled_part(module)
    if name is not None:
        raise UserError(
            f"{method}: {name or type(module).__name__} is compiled, and a compiled module does"
            " not notice what is frozen or thawed; leave out torch.compile"
        )


def check_checkpointing(module: nn.Module, method: str) -> None:
    """Refuse reentrant activation checkpointing as transformers sets it up.

    Raises:
        UserError: naming the module.
    """
    for name, part in module.named_modules():
        function = getattr(part, "_gradient_checkpointing_func", None)
        used = getattr(part, "gradient_checkpointing", False)
        if used and getattr(function, "keywords", {}).get("use_reentrant"):
            raise UserError(
                f"{method}: {name} checkpoints its activations with use_reentrant=True, which gives"
                " no gradients behind frozen layers; call"
                ' gradient_checkpointing_enable({"use_reentrant": False})'
            )


def check_optimizers(
    module: LightningModule, optimizers: Sequence[Optimizer], units: Sequence[Unit], method: str
) -> None:
    """Check that all that may ever be trained is in an optimizer from the first step on.

    Raises:
        UserError: naming a parameter that is not.
    """
    known = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    for unit in units:
        for name, parameter in zip(unit.names, unit.parameters, strict=True):
            if id(parameter) not in known:
                raise UserError(
                    f"{method}: {name} would be thawed but is in no optimizer;"
                    f" give configure_optimizers of {type(module).__name__} all parameters"
                )


def check_automatic(module: LightningModule, method: str) -> None:
    """Refuse manual optimization, where nothing tells which batches make up a step.

    Raises:
        UserError: naming the module.
    """
    if not module.automatic_optimization:
        raise UserError(
            f"{method}: {type(module).__name__} optimizes by hand, and nothing tells which batches"
            " make up a step; set automatic_optimization to True, or freeze by Static"
        )


def check_alone(trainer: Trainer, kind: type) -> None:
    """Refuse two callbacks that freeze.

    Raises:
        UserError: naming them.
    """
    found = [c for c in trainer.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]
    if len(found) > 1:
        names = " and ".join(type(each).__name__ for each in found)
        raise UserError(f"trainer.callbacks: {names} both freeze; keep one of them")


def check_loss(loss: Any, method: str) -> None:
    """Refuse a loss that nothing learns from, and say what it may come from.

    Raises:
        UserError: if the loss needs no gradient.
    """
    if not loss.requires_grad:
        raise UserError(
            f"{method}: no gradient is left in the loss. Either it depends on nothing that is"
            " trained in this step (widen always_train), or activation checkpointing with"
            " use_reentrant=True stands behind frozen layers (set use_reentrant=False)"
        )
