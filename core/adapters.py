"""Adapters: few new parameters beside frozen layers, in any network, by the library ``peft``.

Whatever the network states as its ``head`` stays trainable, with the parameters named by
``train_too``; where neither is given the last Linear does. All else is frozen. Frozen parts go on
as Lightning leaves them: dropout is active in training and BatchNorm keeps counting.
"""

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import nn

from core.adapter_targets import Patterns, choose
from core.errors import UserError
from core.transform import Transform

BEFORE = "_before_adapters"
"""Attribute of a module with the values that its other attributes had before."""


class Adapters(Transform, ABC):
    """Put adapters into a network; a subclass says which.

    Attributes:
        layers: names of the adapted layers.
        whole: names of the parameters that are trained beside the adapters, as they are.
        notes: what was decided where the network does not state it.
    """

    merges = True
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,)

    def __init__(self, network: nn.Module, target: Patterns, train_too: Patterns) -> None:
        if any(_is_adapter(module) for module in network.modules()):
            raise UserError("transforms: the network has adapters already; one kind at a time")
        chosen = choose(network, target, train_too, self.kinds, self.fault)
        whole = [network.get_parameter(name) for name in chosen.whole]
        learnt = [name for name, p in network.named_parameters() if p.requires_grad]
        paths = [
            (path, module)
            for path, module in network.named_modules(remove_duplicate=False)
            if any(module is layer for layer in chosen.layers.values())
        ]
        _inject(network, self.config(_only(chosen.layers)))
        adapters = {id(layer): network.get_submodule(n) for n, layer in chosen.layers.items()}
        for path, layer in paths:  # a layer that is repeated is adapted wherever it is
            _put(network, path, adapters[id(layer)])
            adapters[id(layer)].train(layer.training)
        for parameter in whole:
            parameter.requires_grad_(True)
        setattr(network, BEFORE, {"learnt": learnt})
        _take_plain_path(network)
        super().__init__(network)
        self.layers = list(chosen.layers)
        self.whole = chosen.whole
        self.notes = chosen.notes

    @abstractmethod
    def config(self, layers: str) -> Any:
        """Give peft's configuration for the layers that a regular expression matches whole."""

    def fault(self, layer: nn.Module) -> str | None:
        """Say why a layer cannot be adapted."""
        rank = getattr(self, "rank", None)
        weight = layer.weight
        most = min(weight.shape[0], weight[0].numel())  # type: ignore[index]
        if rank is not None and rank > most:
            return f"rank={rank} is larger than its {most} allow"
        return None

    def report(self) -> dict[str, Any]:
        """Say how many layers are adapted, and what is trained beside them."""
        return {"layers": len(self.layers), "whole": self.whole, "notes": self.notes}

    @classmethod
    def merge(cls, network: nn.Module) -> nn.Module:
        """Give a copy of the network with its adapters folded in."""
        return merged(network)


class LoRA(Adapters):
    """Low-rank adapters: Hu et al., LoRA, ICLR 2022.

    Args:
        network: any network; changed in place.
        rank: of each layer's change.
        alpha: scales the change by ``alpha / rank``.
        dropout: on an adapter's input.
        target: patterns of layers' names, such as ``query`` or ``layers.0.*``, convolutions
            included; None takes every Linear outside the head that is large enough.
        train_too: patterns of names of parameters that are trained whole, beside the head.
        use_rslora: scale by ``alpha / sqrt(rank)``: Kalajdzievski, 2023.
        use_dora: learn the length of each weight vector apart: Liu et al., DoRA, ICML 2024.

    Raises:
        UserError: if a pattern matches nothing, or a layer is too small or of another kind.

    Example:
        >>> network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> LoRA(network, rank=2).layers
        ['0']
    """

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def __init__(
        self,
        network: nn.Module,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        target: Patterns = None,
        train_too: Patterns = None,
        use_rslora: bool = False,
        use_dora: bool = False,
    ) -> None:
        self.rank = _checked(rank)
        self.alpha = alpha
        self.dropout = dropout
        self.use_rslora = use_rslora
        self.use_dora = use_dora
        super().__init__(network, target, train_too)

    def config(self, layers: str) -> Any:
        """Give peft's configuration."""
        return _peft().LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            target_modules=layers,
        )


class IA3(Adapters):
    """One learnt factor a feature: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning, 2022.

    Args:
        network: any network; changed in place.
        target: patterns of layers' names, two-dimensional convolutions included; None takes every
            Linear outside the head.
        feedforward: patterns of those layers whose inputs are scaled, not their outputs.
        train_too: patterns of names of parameters that are trained whole, beside the head.

    Raises:
        UserError: if a pattern matches nothing.
    """

    kinds = (nn.Linear, nn.Conv2d)

    def __init__(
        self,
        network: nn.Module,
        target: Patterns = None,
        feedforward: Patterns = None,
        train_too: Patterns = None,
    ) -> None:
        self.feedforward: list[str] = []
        if feedforward is not None:
            inputs = choose(network, feedforward, train_too, self.kinds, lambda layer: None)
            self.feedforward = list(inputs.layers)
        super().__init__(network, target, train_too)

    def config(self, layers: str) -> Any:
        """Give peft's configuration."""
        return _peft().IA3Config(
            target_modules=layers, feedforward_modules=_only(self.feedforward) or "(?!)"
        )


class LoHa(Adapters):
    """Low-rank Hadamard products: Hyeon-Woo et al., FedPara, ICLR 2022.

    Args:
        network: any network; changed in place.
        rank: of each factor.
        alpha: scales the change by ``alpha / rank``.
        target: patterns of layers' names; None takes every Linear outside the head.
        train_too: patterns of names of parameters that are trained whole, beside the head.

    Raises:
        UserError: if a pattern matches nothing, or a layer is too small or of another kind.
    """

    def __init__(
        self,
        network: nn.Module,
        rank: int = 8,
        alpha: float = 8.0,
        target: Patterns = None,
        train_too: Patterns = None,
    ) -> None:
        self.rank = _checked(rank)
        self.alpha = alpha
        super().__init__(network, target, train_too)

    def config(self, layers: str) -> Any:
        """Give peft's configuration."""
        return _peft().LoHaConfig(r=self.rank, alpha=self.alpha, target_modules=layers)


class LoKr(LoHa):
    """Kronecker products: Yeh et al., LyCORIS, ICLR 2024.

    Args:
        network: any network; changed in place.
        rank: of the larger factor.
        alpha: scales the change by ``alpha / rank``.
        target: patterns of layers' names; None takes every Linear outside the head.
        train_too: patterns of names of parameters that are trained whole, beside the head.
    """

    def config(self, layers: str) -> Any:
        """Give peft's configuration."""
        return _peft().LoKrConfig(r=self.rank, alpha=self.alpha, target_modules=layers)


class OFT(Adapters):
    """Orthogonal changes of blocks of inputs: Qiu et al., NeurIPS 2023.

    Args:
        network: any network; changed in place.
        block: inputs that are turned together; divides a layer's inputs.
        target: patterns of layers' names; None takes every Linear outside the head.
        train_too: patterns of names of parameters that are trained whole, beside the head.

    Raises:
        UserError: if a pattern matches nothing, or ``block`` does not divide a layer's inputs.
    """

    def __init__(
        self,
        network: nn.Module,
        block: int = 8,
        target: Patterns = None,
        train_too: Patterns = None,
    ) -> None:
        self.block = block
        if block < 2:
            raise UserError(f"transforms: block={block} must be at least 2")
        super().__init__(network, target, train_too)

    def fault(self, layer: nn.Module) -> str | None:
        """Say why a layer cannot be adapted."""
        inputs = layer.weight.shape[1]  # type: ignore[index]
        if inputs % self.block:
            return f"block={self.block} does not divide its {inputs} inputs"
        return None

    def config(self, layers: str) -> Any:
        """Give peft's configuration."""
        return _peft().OFTConfig(oft_block_size=self.block, target_modules=layers)


def merged(network: nn.Module) -> nn.Module:
    """Give a copy of a network with its adapters folded in, plain and with its own names again."""
    plain = copy.deepcopy(network)
    done: set[int] = set()
    for path, module in list(plain.named_modules(remove_duplicate=False)):
        if not _is_adapter(module):
            continue
        if id(module) not in done:
            module.merge()
            done.add(id(module))
        _put(plain, path, module.get_base_layer())
    for module in plain.modules():
        before = vars(module).pop(BEFORE, {})
        for name in before.pop("learnt", ()):
            module.get_parameter(name).requires_grad_(True)
        vars(module).update(before)
    return plain


def _only(names: Iterable[str]) -> str:
    """Write a regular expression for exactly these layers."""
    return "|".join(f"network.{re.escape(name)}" for name in names)


def _inject(network: nn.Module, config: Any) -> None:
    """Put peft's layers into the network, out of sight of its own ``config``."""
    _peft().inject_adapter_in_model(config, nn.ModuleDict({"network": network}))


def _take_plain_path(network: nn.Module) -> None:
    """Keep torch's encoder layers from their fast path, which passes by the adapters."""
    kinds = {
        nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
        nn.TransformerEncoder: ("use_nested_tensor", False),
    }
    for module in network.modules():
        for kind, (name, value) in kinds.items():
            if isinstance(module, kind) and any(_is_adapter(part) for part in module.modules()):
                setattr(module, BEFORE, {**vars(module).get(BEFORE, {}), name: vars(module)[name]})
                setattr(module, name, value)


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def _is_adapter(module: Any) -> bool:
    return any(cls.__name__ == "BaseTunerLayer" for cls in type(module).__mro__)


def _checked(rank: int) -> int:
    if rank < 1:
        raise UserError(f"transforms: rank={rank} must be at least 1")
    return rank


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError(
            "transforms: adapters need the package peft: pip install 'pleiad[adapters]'"
        ) from None
    return peft
