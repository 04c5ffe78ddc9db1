"""Count the bytes that a forward keeps for its backward, and what else training holds."""

import platform
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd import graph
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as module_hooks
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from core.compiled import compiled_part
from core.nested import every_tensor

OUTSIDE, LOSS = "outside", "loss"
"""Where bytes are kept while no module answers: before the first has answered, and after it."""

SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


class _Entry(NamedTuple):
    reference: StorageWeakRef  # keeps the address from being given to another storage
    size: int
    kind: str
    device: str


class Kept:
    """What autograd was given to keep: whole storages, each once, in bytes.

    The parameters and buffers of the module are left out, copies of them are not (autocast makes
    some). A view counts as the storage that it holds on to.

    Args:
        model: whose parameters and buffers are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._entries: dict[int, _Entry] = {}
        self._running: list[str] = []
        self._answered = False

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(entry.size for entry in self._counted())

    @property
    def by_class(self) -> dict[str, int]:
        """Bytes by the class of the innermost module that was running, the most first.

        ``loss`` is what was kept outside all modules after one had answered, ``outside`` what was
        kept before. What two modules keep is that of the first.
        """
        return self._summed("kind")

    @property
    def by_device(self) -> dict[str, int]:
        """Bytes by device, the most first."""
        return self._summed("device")

    def add(self, tensor: Tensor, kind: str | None = None) -> None:
        """Count the storages of a tensor that are not counted yet."""
        for storage in _storages(tensor):
            if storage._cdata not in self._entries:
                kind = kind or self._kind()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                entry = _Entry(reference, storage.nbytes(), kind, str(storage.device))
                self._entries[storage._cdata] = entry

    def add_attributes(self, output: Tensor) -> None:
        """Count what custom functions on the way to ``output`` keep as attributes of their own.

        Autograd knows of it only here; it counts under the name of the function.
        """
        waiting, seen = [output.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                for tensor in every_tensor(vars(node)):
                    self.add(tensor, node.name().removesuffix("Backward"))

    def drop_freed(self) -> None:
        """Forget what is not held any more."""
        self._entries = {
            key: entry
            for key, entry in self._entries.items()
            if not entry.reference.expired()  # type: ignore[no-untyped-call]
        }

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(type(module).__name__)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running:
            self._running.pop()
        self._answered = True

    def _kind(self) -> str:
        if self._running:
            return self._running[-1]
        return LOSS if self._answered else OUTSIDE

    def _counted(self) -> Iterator[_Entry]:
        own = {
            storage._cdata
            for tensor in (*self.model.parameters(), *self.model.buffers())
            for storage in _storages(tensor)
        }
        return (entry for key, entry in self._entries.items() if key not in own)

    def _summed(self, field: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in self._counted():
            name = getattr(entry, field)
            found[name] = found.get(name, 0) + entry.size
        return dict(sorted(found.items(), key=lambda item: -item[1]))


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[Kept]:
    """Count the bytes that are kept for the backward while the block runs.

    What a checkpointed part keeps is its input: what it computes again in the backward is never
    held together with the rest, and is not counted. Hooks that are in force outside the block stay
    in force, and what they keep is counted; what hooks inside the block keep cannot be seen.

    Args:
        model: any module; its parameters and buffers are left out.

    Yields:
        The count, which may be read in the block and after it.

    Example:
        >>> layer = nn.Sequential(nn.Linear(4, 3), nn.GELU())
        >>> with saved_bytes(layer) as kept:
        ...     loss = layer(torch.zeros(2, 4)).sum()
        >>> kept.by_class  # the input of each, of 2 x 4 and 2 x 3 numbers of 4 bytes
        {'Linear': 32, 'GELU': 24}
    """
    kept = Kept(model)
    hooks = graph.saved_tensors_hooks(*_hooks(kept))
    with ExitStack() as stack:
        pre = module_hooks.register_module_forward_pre_hook(kept._enter)
        stack.callback(pre.remove)
        post = module_hooks.register_module_forward_hook(kept._leave, always_call=True)
        stack.callback(post.remove)
        stack.enter_context(_stepping_aside(hooks))
        stack.enter_context(hooks)
        yield kept


def countable(model: nn.Module) -> bool:
    """Say whether the kept bytes can be counted without a disturbance: not in compiled code."""
    if torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is not None:
        return False
    if compiled_part(model) is not None:
        return False
    return "torch._dynamo" not in sys.modules or not torch._dynamo.utils.counters["frames"]


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Give the bytes of the tensors' storages, each storage once."""
    sizes = {s._cdata: s.nbytes() for tensor in tensors for s in _storages(tensor)}
    return sum(sizes.values())


def weight_bytes(model: nn.Module) -> int:
    """Give the bytes of a module's parameters."""
    return held_bytes(model.parameters())


def gradient_bytes(model: nn.Module) -> int:
    """Give the bytes of the gradients that a module's parameters hold now."""
    return held_bytes(p.grad for p in model.parameters() if p.grad is not None)


def optimizer_bytes(*optimizers: Optimizer) -> int:
    """Give the bytes of all tensors in the state of optimizers."""
    return held_bytes(
        tensor
        for optimizer in optimizers
        for state in optimizer.state.values()
        for tensor in every_tensor(state)
    )


def peak_bytes() -> int:
    """Give the most bytes held so far: of the GPU where one is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _hooks(kept: Kept) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """Make a pair of hooks that change nothing, or what the hooks in force do."""
    outer = torch._C._autograd._top_saved_tensors_default_hooks(True)

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor)
        return tensor.detach()  # the tensor itself would hold on to its own graph

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    def pack_again(tensor: Tensor) -> Any:
        packed = outer[0](tensor)
        for found in every_tensor(packed):
            kept.add(found)
        return packed

    return (pack, unpack) if outer is None else (pack_again, outer[1])


@contextmanager
def _stepping_aside(hooks: graph.saved_tensors_hooks) -> Iterator[None]:
    """Take the hooks away where something refuses to run below any, as ``torch.func`` does."""
    refuse = graph.disable_saved_tensors_hooks

    @contextmanager
    def aside(error_message: str) -> Iterator[None]:
        top = torch._C._autograd._top_saved_tensors_default_hooks(True)
        with ExitStack() as stack:
            if top is not None and top[0] is hooks.pack_hook:
                hooks.__exit__()
                stack.callback(hooks.__enter__)
            with refuse(error_message):
                yield

    graph.disable_saved_tensors_hooks = aside
    try:
        yield
    finally:
        graph.disable_saved_tensors_hooks = refuse


def _storages(tensor: Tensor) -> list[UntypedStorage]:
    """Give the storages of a tensor: one, or those of its parts."""
    if tensor.layout in SPARSE:
        parts = [getattr(tensor, name)() for name in SPARSE[tensor.layout]]
        return [storage for part in parts for storage in _storages(part)]
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [storage for name in names for storage in _storages(getattr(tensor, name))]
    try:
        return [tensor.untyped_storage()]
    except (NotImplementedError, RuntimeError):  # a kind of tensor that has none
        return []
