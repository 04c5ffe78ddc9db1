"""Outputs of a frozen prefix kept for each sample, so that it is computed once and then skipped."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from core.errors import UserError

Spec = tuple[tuple[tuple[int, ...], torch.dtype], ...]


class _Plan(NamedTuple):
    """How a pass goes for inputs of one shape: each module's output, the last of which is kept."""

    outputs: dict[int, tuple[Any, Spec]]
    last: int


class PrefixCache:
    """Skip modules whose outputs are known for all samples of a batch.

    The output of the module that is called last is kept in memory of the host, a row a sample. A
    sample that comes with more or less padding, at its end, is cut or filled up. The first sample
    that comes again is computed again, to see that it is the same. The modules before the last give
    NaN of the right shape, which :meth:`end` finds where something else uses them.

    Args:
        limit: bytes that are kept at most; what comes later is not.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.fault = ""
        self.hits = self.batches = 0
        self._modules: list[tuple[nn.Module, Any]] = []
        self._noise: list[Any] = []
        self.clear()

    def clear(self) -> None:
        """Forget all, for the prefix has changed."""
        self._rows: dict[Hashable, list[Tensor]] = {}
        self._plans: dict[Spec, _Plan] = {}
        self._bytes = 0
        self._compared = self._checked = False
        self._ids: list[int] | None = None

    def bind(self, root: nn.Module, modules: Sequence[nn.Module]) -> None:
        """Skip these modules of ``root`` from now on, wherever their outputs are known."""
        self.unbind()
        self._modules = [(module, vars(module).get("forward")) for module in modules]
        for module in modules:
            module.forward = _Skipped(self, module, module.forward)
        inside = {id(part) for module in modules for part in module.modules()}
        for part in root.modules():
            noisy = "Drop" in type(part).__name__ or getattr(part, "running_mean", None) is not None
            if noisy and id(part) not in inside:
                self._noise.append(part.register_forward_pre_hook(self._note_noise))

    def unbind(self) -> None:
        """Let all modules work as they did."""
        for module, own in self._modules:
            del module.forward
            if own is not None:
                module.forward = own
        for handle in self._noise:
            handle.remove()
        self._modules, self._noise = [], []
        self.clear()

    def begin(self, ids: Sequence[int]) -> None:
        """Say which samples the next forward pass is of."""
        self._ids = None if self.fault or not self._modules else list(ids)
        self._key: Spec | None = None
        self._hit = False
        self._order: list[tuple[nn.Module, Any]] = []
        self._heard: list[tuple[int, nn.Module]] = []

    def end(self, loss: Tensor) -> list[nn.Module]:
        """Keep what the pass has given; give modules that made noise within it.

        Raises:
            UserError: if the loss shows that a skipped output was used.
        """
        if self._ids is None or self._key is None:
            return []
        self.batches += 1
        noise: list[nn.Module] = []
        if self._hit:
            self.hits += 1
            self._check(loss)
        else:
            noise = [part for place, part in self._heard if place < len(self._order)]
            if not noise:
                self._keep()
        self._ids = None
        return noise

    def call(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Give a module's output: known, skipped, or computed."""
        if self._ids is None:
            return forward(*args, **kwargs)
        if self._key is None:
            leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self._width = leaves[0].shape[1] if leaves and leaves[0].dim() > 1 else -1
            self._key = _spec(leaves, self._width)
            self._device = leaves[0].device if leaves else torch.device("cpu")
            known = all((number, self._key) in self._rows for number in self._ids)
            self._hit = known and self._compared
        if not self._hit:
            output = forward(*args, **kwargs)
            self._order.append((module, output))
            return output
        plan = self._plans[self._key]
        structure, spec = plan.outputs[id(module)]
        if id(module) == plan.last:
            rows = zip(*(self._rows[number, self._key] for number in self._ids), strict=True)
            leaves = [
                torch.stack([_fit(part, shape, self._width) for part in parts]).to(self._device)
                for parts, (shape, _) in zip(rows, spec, strict=True)
            ]
        else:
            sizes = [([self._width if n < 0 else n for n in each], kind) for each, kind in spec]
            leaves = [_stand_in(len(self._ids), *size, device=self._device) for size in sizes]
        return pytree.tree_unflatten(leaves, structure)

    def _keep(self) -> None:
        assert self._ids is not None
        assert self._key is not None
        outputs: dict[int, tuple[Any, Spec]] = {}
        for module, output in self._order:
            leaves, structure = pytree.tree_flatten(output)
            if id(module) in outputs:
                self._stop("the network is applied more than once a step")
                return
            if not all(isinstance(t, Tensor) and t.shape[:1] == (len(self._ids),) for t in leaves):
                self._stop("a frozen layer gives something else than a row a sample")
                return
            outputs[id(module)] = structure, _spec(leaves, self._width)
        if any(t.requires_grad for t in leaves):
            self._stop("something that trains stands before the frozen layers")
            return
        plan = self._plans.setdefault(self._key, _Plan(outputs, id(self._order[-1][0])))
        if plan.last != id(self._order[-1][0]):
            self._stop("the layers are not called in the same order each time")
            return
        kept = [leaf.detach().to("cpu") for leaf in leaves]
        for place, number in enumerate(self._ids):
            row = [leaf[place].clone() for leaf in kept]
            if (known := self._rows.get((number, self._key))) is not None:
                if not all(_alike(a, b) for a, b in zip(known, row, strict=True)):
                    self._stop("samples change from epoch to epoch, or are padded at their front")
                    return
                self._compared = True
            elif self._bytes + (size := sum(part.nbytes for part in row)) <= self.limit:
                self._rows[number, self._key] = row
                self._bytes += size

    def _check(self, loss: Tensor) -> None:
        if not self._checked and bool(loss.isnan().any()):
            raise UserError(
                "AutoFreeze: cache=true does not fit this network: outputs within its frozen layers"
                " are used behind them too (skip connections); set cache=false"
            )
        self._checked = True

    def _stop(self, reason: str) -> None:
        self.fault = reason
        self.unbind()

    def _note_noise(self, part: nn.Module, inputs: Any) -> None:
        if self._ids is not None and part.training and getattr(part, "p", True):
            self._heard.append((len(self._order), part))


class _Skipped:
    """A module's forward that asks the cache first."""

    def __init__(self, cache: PrefixCache, module: nn.Module, forward: Callable[..., Any]) -> None:
        self.cache, self.module, self.forward = cache, module, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.cache.call(self.module, self.forward, args, kwargs)


def _spec(leaves: Iterable[Tensor], width: int) -> Spec:
    """Give shapes without the batch, -1 for the width that differs with padding, and types."""
    return tuple(
        (tuple(-1 if size == width else size for size in leaf.shape[1:]), leaf.dtype)
        for leaf in leaves
    )


def _fit(row: Tensor, shape: tuple[int, ...], width: int) -> Tensor:
    """Cut a row, or fill it up with zeros, to the width of the batch."""
    for place, size in enumerate(shape):
        if size < 0 and row.shape[place] > width:
            row = row.narrow(place, 0, width)
        elif size < 0 and row.shape[place] < width:
            more = [*row.shape[:place], width - row.shape[place], *row.shape[place + 1 :]]
            row = torch.cat([row, row.new_zeros(more)], place)
    return row


def _alike(known: Tensor, now: Tensor) -> bool:
    """Say whether a sample's output is the one that is known, as far as both go."""
    shared = tuple(slice(min(sizes)) for sizes in zip(known.shape, now.shape, strict=True))
    first, second = known[shared].float(), now[shared].float()
    return bool((first - second).abs().mean() <= 0.02 * first.abs().mean() + 1e-6)


def _stand_in(count: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    value = float("nan") if dtype.is_floating_point else 0
    return torch.full((), value, dtype=dtype, device=device).expand(count, *shape)
