"""Parts of a network that compute in float32 while the rest is in bfloat16 or float16.

A CPU's autocast leaves softmax, norms, exponentials and running sums in bfloat16, and without
autocast (``bf16-true``) nothing is raised at all. With eight bits a sum of ones stops at 256 and
positions above it coincide.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from core.errors import UserError
from core.half_precision import LOW, cast
from core.nested import every_tensor
from core.transform import Transform

Kind = Literal["softmax", "norms", "sums", "losses", "state_space"]

MODULES: Mapping[Kind, str] = {
    "softmax": r"(Log)?Softmax(2d)?|Softmin",
    "norms": r".*Norm(\d?d)?",
    "sums": r"(?!)",
    "losses": r".*Loss",
    "state_space": r"(?!)",
}
"""The names of the classes whose modules are of a kind; only those without matrices are kept."""

FUNCTIONS: Mapping[Kind, tuple[Callable[..., Any], ...]] = {
    "softmax": (
        *(torch.softmax, torch.log_softmax, torch.logsumexp, torch.logcumsumexp),
        *(Tensor.softmax, Tensor.log_softmax, Tensor.logsumexp, Tensor.logcumsumexp),
        *(F.softmax, F.log_softmax, F.softmin, torch.special.softmax, torch.special.log_softmax),
    ),
    "norms": (
        *(F.layer_norm, F.rms_norm, F.group_norm, F.batch_norm, F.instance_norm, F.normalize),
        *(torch.layer_norm, torch.rms_norm, torch.group_norm, torch.batch_norm),
        *(torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm),
        *(torch.var, torch.std, torch.var_mean, torch.std_mean, Tensor.var, Tensor.std),
    ),
    "sums": (torch.cumsum, torch.cumprod, Tensor.cumsum, Tensor.cumprod),
    "losses": (
        *(F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss),
        *(F.binary_cross_entropy_with_logits, F.kl_div, F.cosine_embedding_loss),
    ),
    "state_space": (torch.exp, Tensor.exp, torch.expm1, Tensor.expm1, F.softplus),
}
"""The functions that compute in float32 inside the whole network, by kind."""


class KeepFloat32(Transform):
    """Compute chosen parts of any network in float32, under autocast and under ``bf16-true``.

    Modules of a kind, and those that a pattern names, run without autocast on float32 inputs; their
    weights stay float32 where the network is converted. Functions of a kind that the network calls
    itself, such as a softmax written out in its attention, do so too. Without autocast the
    outputs return to the type of the inputs, which the next module needs. In float32 nothing
    changes, so the plain network is what travels in ``model/``.

    Args:
        network: any network; changed in place.
        patterns: regular expressions, each for the whole names of modules, such as ``head`` or
            ``layers[.]0[.].*``; a module includes all inside it.
        kinds: which parts of every network are kept: ``softmax``, ``norms``, ``sums`` (cumulative),
            ``losses``, ``state_space`` (exponentials and step sizes; name the modules by a pattern
            to keep their weights too); an empty list for the patterns alone.

    Attributes:
        islands: the names of the modules that are kept.

    Raises:
        UserError: if a kind is not known, or a pattern is none or names no module.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        >>> KeepFloat32(network, patterns="2").islands
        ['1', '2']
    """

    merges = True

    def __init__(
        self,
        network: nn.Module,
        patterns: str | Sequence[str] | None = None,
        kinds: Sequence[str] = ("softmax", "norms", "sums", "losses", "state_space"),
    ) -> None:
        super().__init__(network)
        wanted = [patterns] if isinstance(patterns, str) else list(patterns or ())
        self.islands = _chosen(network, wanted, kinds)
        functions = {function for kind in kinds for function in FUNCTIONS[kind]}  # type: ignore[index]
        for name in self.islands:
            keep_float32(network.get_submodule(name))
        if functions:
            network.forward = _Raising(network, functions)

    def report(self) -> dict[str, Any]:
        """Say which modules are kept in float32."""
        return {"layers": len(self.islands), "islands": self.islands}

    @classmethod
    def merge(cls, network: nn.Module) -> nn.Module:
        """Give a copy without islands."""
        plain = copy.deepcopy(network)
        for module in plain.modules():
            let_go(module)
        return plain


def keep_float32(module: nn.Module) -> None:
    """Have a module, and all inside it, compute in float32, in place."""
    if not isinstance(vars(module).get("forward"), _Island):
        module.forward = _Island(module)
        setattr(module, "_apply", _Kept(module._apply))  # noqa: B010 - a method, for mypy


def let_go(module: nn.Module) -> None:
    """Undo :func:`keep_float32`, and the raised functions, for this module alone."""
    while isinstance(vars(module).get("forward"), _Island | _Raising):
        inner = vars(module).pop("forward").inner
        if getattr(inner, "__func__", None) is not type(module).forward:
            module.forward = inner
    if isinstance(vars(module).get("_apply"), _Kept):
        vars(module).pop("_apply")


@contextmanager
def kept_float32(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Have some modules compute in float32 for a while; those that do already go on so."""
    fresh = [m for m in modules if not isinstance(vars(m).get("forward"), _Island)]
    for module in fresh:
        keep_float32(module)
    try:
        yield
    finally:
        for module in fresh:
            let_go(module)


class _Island:
    """A module's forward in float32."""

    def __init__(self, module: nn.Module) -> None:
        self.inner = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = _first(args, kwargs)
        device = found.device.type if found is not None else "cpu"
        mixed = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False):
            given = cast(args, torch.float32, LOW), cast(kwargs, torch.float32, LOW)
            outputs = self.inner(*given[0], **given[1])
        if mixed or found is None or found.dtype not in LOW:
            return outputs
        return cast(outputs, found.dtype, (torch.float32,))


class _Kept:
    """What ``module.to`` and its like do, but float32 is not lowered."""

    def __init__(self, inner: Callable[..., nn.Module]) -> None:
        self.inner = inner

    def __call__(self, change: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        def kept(tensor: Tensor) -> Tensor:
            changed = change(tensor)
            lowered = tensor.dtype == torch.float32 and changed.dtype in LOW
            return tensor.to(changed.device) if lowered else changed

        return self.inner(kept, *args, **kwargs)


class _Raising:
    """A network's forward in which some functions compute in float32."""

    def __init__(self, network: nn.Module, functions: set[Callable[..., Any]]) -> None:
        self.inner = network.forward
        self.network = network
        self.functions = functions

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = _first(args, kwargs)
        device = found.device.type if found is not None else "cpu"
        mixed = torch.is_autocast_enabled(device)
        if not mixed and not any(p.dtype in LOW for p in self.network.parameters()):
            return self.inner(*args, **kwargs)  # nothing is below float32
        with _Mode(self.functions, mixed):
            return self.inner(*args, **kwargs)


class _Mode(TorchFunctionMode):
    def __init__(self, functions: set[Callable[..., Any]], mixed: bool) -> None:
        super().__init__()
        self.functions = functions
        self.mixed = mixed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func not in self.functions:
            return func(*args, **given)
        found = _first(args, given)
        if found is None or found.dtype not in LOW:
            return func(*args, **given)
        with torch.autocast(found.device.type, enabled=False):
            outputs = func(*cast(args, torch.float32, LOW), **cast(given, torch.float32, LOW))
        if self.mixed or given.get("dtype") is not None:
            return outputs
        return cast(outputs, found.dtype, (torch.float32,))


def _first(*given: Any) -> Tensor | None:
    """Find the first floating-point tensor among arguments; one below float32 goes first."""
    found = [x for x in every_tensor(given) if x.is_floating_point()]
    return next((x for x in found if x.dtype in LOW), next(iter(found), None))


def _chosen(network: nn.Module, patterns: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Name the outermost modules that are of a kind, or that a pattern names."""
    for kind in kinds:
        if kind not in get_args(Kind):
            raise UserError(f"transforms: kinds: {kind!r} is none of {', '.join(get_args(Kind))}")
    names = [name for name, _ in network.named_modules() if name]
    wanted: set[str] = set()
    for pattern in patterns:
        try:
            matched = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise UserError(f"transforms: {pattern!r} is no regular expression ({error})") from None
        if not matched:
            raise UserError(
                f"transforms: KeepFloat32: no module is named {pattern!r}; there is"
                f" {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            )
        wanted.update(matched)
    for name, module in network.named_modules():
        plain = all(parameter.ndim < 2 for parameter in module.parameters())
        if (
            name
            and plain
            and any(
                re.fullmatch(MODULES[kind], type(module).__name__)  # type: ignore[index]
                for kind in kinds
            )
        ):
            wanted.add(name)
    return [
        name
        for name in names
        if name in wanted and not any(name.startswith(f"{outer}.") for outer in wanted)
    ]
