"""How far a network in bfloat16 is from itself in float32, and what to keep in float32."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from core.half_precision import LOW, cast, widened
from core.module_statistics import tensors, watched
from core.precision_islands import kept_float32

Measure = Literal["auto", "kl", "mse"]


class Divergence(NamedTuple):
    """The same batches in both types.

    Attributes:
        table: a row a module that was called, in the order of the forward pass: ``module``,
            ``activation`` and ``gradient``, the relative errors of what it gives and of its own
            weights' gradients; NaN where it has none.
        loss: the mean in float32.
        low: the mean in bfloat16.
    """

    table: pd.DataFrame
    loss: float
    low: float


def divergence(
    module: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Divergence:
    """Compare a pass in float32 with one under autocast, module by module, on the same batches.

    Dropout draws the same in both; weights, gradients and buffers are left as they were. Weights
    that are in bfloat16 themselves are taken to float32 for both.

    Args:
        module: a network, or a LightningModule.
        batches: what ``loss`` takes.
        loss: gives the loss of a batch; None takes that of the task, or ``training_step``.
        dtype: of autocast.
    """
    judge = loss or task_loss
    errors: dict[str, list[float]] = {}
    grads: dict[str, list[float]] = {}
    losses: list[tuple[float, float]] = []
    with _left_as_it_was(module), widened(module):
        for number, given in enumerate(batches):
            batch = cast(given, torch.float32, LOW)
            full = _pass(module, batch, judge, number, None)
            low = _pass(module, batch, judge, number, dtype)
            losses.append((full.loss, low.loss))
            for name, value in full.activations.items():
                _add(errors, name, value, low.activations.get(name))
            for name, value in full.gradients.items():
                _add(grads, name.rpartition(".")[0], value, low.gradients.get(name))
    rows = [
        {"module": name, "activation": _relative(error), "gradient": _relative(grads.get(name))}
        for name, error in errors.items()
    ]
    means = [sum(each) / max(len(losses), 1) for each in zip(*losses, strict=True)] or [0.0, 0.0]
    table = pd.DataFrame(rows, columns=["module", "activation", "gradient"])
    return Divergence(table, *means)


def advise(
    module: nn.Module,
    batch: Any,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    tolerance: float = 1e-3,
    measure: Measure = "auto",
    dtype: torch.dtype = torch.bfloat16,
) -> list[str]:
    """Find few modules that have to stay in float32, so that the outputs under autocast hold.

    Groups of modules are put into float32 and taken out again, outer ones first; what can be left
    out is. Where all together do not suffice, all are named.

    Args:
        module: a network, or a LightningModule that keeps it as ``network``.
        batch: what is judged.
        forward: gives the outputs; None calls the task's step, or the module.
        tolerance: of the divergence (KL, in nats an item) or of the mean squared error as a share
            of the mean square.
        measure: ``kl`` for logits, ``mse`` for values; ``auto`` takes outputs (B, K) for logits.
        dtype: of autocast.

    Returns:
        Names below the network, as ``KeepFloat32(patterns=...)`` takes them; empty if nothing has
        to stay.
    """
    root = _root(module)
    run = forward or outputs
    device = next((p.device.type for p in module.parameters()), "cpu")
    batch = cast(batch, torch.float32, LOW)

    def given(names: list[str], enabled: bool = True) -> Tensor:
        kept = [root.get_submodule(name) for name in names]
        with torch.no_grad(), torch.autocast(device, dtype, enabled=enabled), kept_float32(kept):
            return run(module, batch).float()

    def fits(names: list[str]) -> bool:
        return _distance(full, given(names), measure) <= tolerance

    def fewest(names: list[str], others: list[str]) -> list[str]:
        size = (len(names) + 1) // 2
        while size:
            place = 0
            while place < len(names):
                left = names[:place] + names[place + size :]
                if fits([*others, *left]):
                    names = left
                else:
                    place += size
            size //= 2
        return names

    with _left_as_it_was(module), widened(module):
        module.eval()
        full = given([], enabled=False)
        if fits([]):
            return []
        waiting = fewest(_children(root, ""), [])
        done: list[str] = []
        while waiting:
            name = waiting.pop(0)
            inner, others = _children(root, name), [*done, *waiting]
            if inner and fits([*others, *inner]):
                waiting = [*fewest(inner, others), *waiting]
            else:
                done.append(name)
        return done


def outputs(module: nn.Module, batch: Any) -> Tensor:
    """Call a task's ``step``, or a module on a batch, and give the outputs."""
    step = getattr(module, "step", None)
    if callable(step):
        prediction: Tensor = step(batch).prediction
        return prediction
    if isinstance(batch, dict):
        found = module(**batch)
    else:
        found = module(batch[0] if isinstance(batch, tuple | list) else batch)
    return next(
        iter([found] if isinstance(found, Tensor) else tensors(getattr(found, "logits", found)))
    )


def task_loss(module: nn.Module, batch: Any) -> Tensor:
    """Give the loss of a task's ``step``, or of a LightningModule's ``training_step``."""
    step = getattr(module, "step", None)
    if callable(step):
        loss: Tensor = step(batch).loss
        return loss
    assert isinstance(module, LightningModule), "a plain network needs a `loss`"
    with silent(module):
        found = training_step(module, batch, 0)
    return next(tensors(found["loss"] if isinstance(found, dict) else found))


def training_step(module: LightningModule, batch: Any, index: int) -> Any:
    """Call ``training_step`` with as many arguments as it takes."""
    wanted = len(inspect.signature(module.training_step).parameters)
    return module.training_step(*(batch, index)[: max(wanted, 1)])


@contextmanager
def silent(module: LightningModule) -> Iterator[None]:
    """Have a module log nothing."""
    kept: dict[str, Any] = {}
    kept |= {name: vars(module)[name] for name in ("log", "log_dict") if name in vars(module)}
    for name in ("log", "log_dict"):
        setattr(module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            vars(module).pop(name)
        vars(module).update(kept)


def draw(table: pd.DataFrame, path: Path, most: int = 40) -> None:
    """Draw the relative errors of a table of :func:`divergence`, those of the worst modules."""
    from matplotlib.figure import Figure

    worst = table.nlargest(most, "activation").sort_index(ascending=False)
    figure = Figure(figsize=(7, 1.5 + 0.22 * len(worst)), layout="constrained")
    axes = figure.subplots()
    places = range(len(worst))
    axes.plot(worst["activation"], places, "o", color="#0072B2", label="activation")
    axes.plot(worst["gradient"], places, "s", color="#D55E00", label="gradient of the weights")
    axes.set_yticks(places, worst["module"], fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("relative error of bfloat16 to float32")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


class _Pass(NamedTuple):
    loss: float
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


def _pass(
    module: nn.Module,
    batch: Any,
    judge: Callable[[nn.Module, Any], Tensor],
    seed: int,
    dtype: torch.dtype | None,
) -> _Pass:
    kept: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(inner: nn.Module, args: Any, given: Any) -> None:
            for tensor in tensors(given):
                kept.setdefault(name, tensor.detach().float().clone())  # of the first call
                return

        return keep

    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        for name, inner in watched(module, ".*").items():
            stack.callback(inner.register_forward_hook(hook(name)).remove)
        stack.enter_context(torch.random.fork_rng(devices))
        torch.manual_seed(seed)
        module.zero_grad(set_to_none=True)
        with torch.enable_grad():
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                loss = judge(module, batch)
            loss.backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: parameter.grad.float()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return _Pass(float(loss.detach()), kept, gradients)


@contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    modes = [(inner, inner.training) for inner in module.modules()]
    for parameter in module.parameters():
        parameter.grad = None
    try:
        yield
    finally:
        for inner, training in modes:
            inner.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _add(sums: dict[str, list[float]], name: str, full: Tensor, low: Tensor | None) -> None:
    if low is None or low.shape != full.shape:
        return
    known = sums.setdefault(name, [0.0, 0.0])
    known[0] += float((low - full).double().square().sum())
    known[1] += float(full.double().square().sum())


def _relative(sums: list[float] | None) -> float:
    if sums is None or not sums[1]:
        return float("nan")
    return float((sums[0] / sums[1]) ** 0.5)


def _distance(full: Tensor, low: Tensor, measure: Measure) -> float:
    if measure == "kl" or (measure == "auto" and full.ndim == 2 and full.shape[1] > 1):
        known, found = full.log_softmax(-1), low.log_softmax(-1)
        distance = (known.exp() * (known - found)).sum(-1).mean()
    else:
        distance = (low - full).square().mean() / full.square().mean().clamp(min=1e-30)
    return float(distance.nan_to_num(float("inf")))


def _root(module: nn.Module) -> nn.Module:
    network = getattr(module, "network", None)
    return (
        network
        if isinstance(module, LightningModule) and isinstance(network, nn.Module)
        else module
    )


def _children(root: nn.Module, name: str) -> list[str]:
    """Name the modules right inside one; lists of modules stand for what they hold."""
    found = []
    for part, child in root.get_submodule(name).named_children():
        path = f"{name}.{part}" if name else part
        if path not in watched(root, re.escape(path)):
            continue
        found += (
            _children(root, path) if isinstance(child, nn.ModuleList | nn.ModuleDict) else [path]
        )
    return found
