"""The static index: every class an experiment may name, with its arguments, without an import.

``python -m pleiad.index`` rebuilds ``pleiad/index.json``; a test fails when it no longer matches
the code.
"""

import importlib
import inspect
import json
import pkgutil
from functools import cache
from importlib.resources import files
from typing import Any

BROUGHT = {
    "optimizer": ("torch.optim", ("Adam", "AdamW", "SGD", "NAdam", "RAdam", "RMSprop", "Adagrad")),
    "scheduler": (
        "torch.optim.lr_scheduler",
        (
            "ConstantLR",
            "CosineAnnealingLR",
            "CosineAnnealingWarmRestarts",
            "ExponentialLR",
            "LinearLR",
            "MultiStepLR",
            "OneCycleLR",
            "PolynomialLR",
            "ReduceLROnPlateau",
            "StepLR",
        ),
    ),
    "callback": (
        "lightning.pytorch.callbacks",
        (
            "DeviceStatsMonitor",
            "EarlyStopping",
            "GradientAccumulationScheduler",
            "LearningRateMonitor",
            "Timer",
        ),
    ),
}
"""The libraries' classes by role; others of the allowed modules work by full path."""

ALLOWED = ("core", "domains", "torch.optim", "torch.nn", "lightning.pytorch", "torchmetrics")
"""Modules a configuration may name; anything else is refused before it is imported."""


@cache
def index() -> dict[str, Any]:
    """Read the index: ``classes``, by path, and the arguments of ``trainer`` and more."""
    content: dict[str, Any] = json.loads(files("pleiad").joinpath("index.json").read_text("utf-8"))
    return content


def build() -> dict[str, Any]:
    """Build the index by importing everything."""
    classes: dict[str, Any] = {}
    for package in ("core", "domains"):
        for module in _modules(package):
            for cls in vars(module).values():
                if inspect.isclass(cls) and cls.__module__ == module.__name__:
                    role = _role(cls)
                    if role and not inspect.isabstract(cls):
                        classes[f"{module.__name__}.{cls.__name__}"] = _describe(cls, role)
    for role, (name, wanted) in BROUGHT.items():
        module = importlib.import_module(name)
        for class_name in wanted:
            classes[f"{name}.{class_name}"] = _describe(getattr(module, class_name), role)
    from lightning.pytorch import Trainer

    from core.callbacks.checkpoints import Checkpoints

    return {
        "classes": dict(sorted(classes.items())),
        "trainer": _arguments(Trainer),
        "checkpoints": _arguments(Checkpoints),
    }


def _modules(package: str) -> list[Any]:
    root = importlib.import_module(package)
    names = [m.name for m in pkgutil.walk_packages(root.__path__, f"{package}.")]
    return [root, *(importlib.import_module(name) for name in sorted(names))]


def _role(cls: type) -> str | None:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from core.data_module import DataModule
    from core.early_exit.criteria import Criterion
    from core.optimizers.exact_state import ExactState
    from core.task import Task
    from core.transform import Transform

    if cls in (Task, DataModule, Transform, ExactState, Criterion) or cls.__name__.startswith("_"):
        return None
    roles = {
        **{"task": LightningModule, "data": LightningDataModule, "callback": Callback},
        **{"optimizer": Optimizer, "scheduler": LRScheduler, "transform": Transform},
        "criterion": Criterion,
    }
    for role, base in roles.items():
        if issubclass(cls, base):
            return role
    if issubclass(cls, nn.Module):
        package, _, module = cls.__module__.rpartition(".")
        main = cls.__name__.lower() == module.replace("_", "")  # its building blocks stay at home
        return "network" if package.endswith(".networks") and main else None
    return None


def _describe(cls: type, role: str) -> dict[str, Any]:
    parts = cls.__module__.split(".")
    described = {
        "role": role,
        "domain": parts[1] if parts[0] == "domains" else "",
        "about": (inspect.getdoc(cls) or "").split("\n")[0],
        "arguments": _arguments(cls),
    }
    if role == "transform":
        described["arguments"] = dict(list(_arguments(cls).items())[1:])  # without the network
    if role == "data":
        described["linked"] = list(getattr(cls, "linked", ()))
    return described


def _arguments(cls: type) -> dict[str, Any]:
    from docstring_parser import parse

    told = {p.arg_name: p.description for p in parse(inspect.getdoc(cls) or "").params}
    init = parse(inspect.getdoc(vars(cls).get("__init__")) or "").params
    told |= {p.arg_name: p.description for p in init}
    arguments = {}
    for name, parameter in list(inspect.signature(cls).parameters.items()):
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        described = {"type": _type(parameter.annotation)}
        if parameter.default is not parameter.empty:
            described["default"] = str(parameter.default)
        text = " ".join((told.get(name) or "").split())
        if text:
            described["help"] = text.split(". ")[0].rstrip(".")[:160]
        arguments[name] = described
    return arguments


def _type(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    for prefix in ("typing.", "collections.abc.", "torch.nn.modules.module."):
        text = text.replace(prefix, "")
    return text[:160]


if __name__ == "__main__":
    from pathlib import Path

    from core.openers import write_atomic

    write_atomic(
        Path(__file__).with_name("index.json"),
        json.dumps(build(), indent=1, ensure_ascii=False) + "\n",
    )
