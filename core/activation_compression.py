"""Keep less of a forward pass for the backward pass: activations in few bits.

Ardakani et al., SlimFit, NAACL 2024. What the network answers never changes, bit for bit but for
what dropout draws; only the gradients are of activations that were rounded. A frozen part keeps
least, and what is frozen is looked at in each pass anew, so a schedule may change it each step.

| operation | kept where its weight trains | kept where it is frozen |
| --- | --- | --- |
| Linear | the input; in int8 where it is at least twice as wide as the output | nothing |
| convolution | the input | nothing |
| LayerNorm, RMSNorm, GroupNorm, InstanceNorm, BatchNorm | the input | the normalised input, int8 |
| GELU | 4 bits | 4 bits |
| SiLU | int8 | int8 |
| ReLU, LeakyReLU, dropout | one bit | one bit |
| softmax | probabilities in 8 bits, which the next product shares | the same |
| product of two activations, fused attention | both, or all three, in int8 | the same |

In eval mode, and without autograd, nothing is done at all.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from core.adapter_targets import Patterns, matching
from core.compiled import compiled_part
from core.compression.codes import Policy
from core.compression.heap import unbroken_heap
from core.compression.mode import ACTIVE, Compression
from core.errors import UserError
from core.transform import Transform
from core.wrapped_forward import WrappedForward, unwrap, wrapped_by

LayerNormMode = Literal["topk", "int8", "int4"]
Range = Literal["fixed", "per_token"]
COVERED = (
    *(nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
    *(nn.modules.batchnorm._NormBase, nn.GELU, nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.PReLU),
    *(nn.Dropout, nn.Softmax, nn.MultiheadAttention),
)
"""Modules whose work is taken over, by kinds; functions that a network calls itself are as well."""


class ActivationCompression(Transform):
    """Keep activations in few bits for the backward pass: SlimFit, NAACL 2024.

    Args:
        network: any network; changed in place, its tensors and their names are not.
        ln_mode: how a frozen normalisation keeps its normalised input: ``int8``; ``int4``; or
            ``topk``, its largest tenth, as published, with gradients that are far off.
        range: ``per_token`` scales 8 bits to each row, for 4 bytes a row, and rounds GELU's
            derivative; ``fixed`` is as published: steps of 1/16 up to 8, of 1/255 for
            probabilities, and GELU's input is rounded.
        gelu_bits: 4 or 8 for each entry of GELU.
        load_balancing: keep the input of a trained Linear in int8 where it is at least twice as
            wide as the output.
        dropout_on_values: drop attention's values instead of its probabilities, as published. This
            changes the network in training.
        mask_bits: 1 or 8 for each entry of a mask.
        exclude: patterns of names of modules, such as ``head`` or ``layers.0.*``, that keep what
            torch keeps.

    Raises:
        UserError: if a setting is unknown, a pattern matches nothing, or the network is compiled or
            checkpoints its gradients.

    Example:
        >>> network = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
        >>> ActivationCompression(network).report()["covered"]
        {'GELU': 1, 'Linear': 2}
    """

    merges = True

    def __init__(
        self,
        network: nn.Module,
        ln_mode: LayerNormMode = "int8",
        range: Range = "per_token",
        gelu_bits: Literal[4, 8] = 4,
        load_balancing: bool = True,
        dropout_on_values: bool = False,
        mask_bits: Literal[1, 8] = 1,
        exclude: Patterns = None,
    ) -> None:
        compress(
            network,
            ln_mode=ln_mode,
            range=range,
            gelu_bits=gelu_bits,
            load_balancing=load_balancing,
            dropout_on_values=dropout_on_values,
            mask_bits=mask_bits,
            exclude=exclude,
        )
        super().__init__(network)

    def report(self) -> dict[str, Any]:
        """Say what is covered, and after a training step what was met."""
        return report(self.network)

    @classmethod
    def merge(cls, network: nn.Module) -> nn.Module:
        """Give a copy that keeps what torch keeps."""
        return restore(copy.deepcopy(network))


def compress(
    module: nn.Module,
    *,
    ln_mode: LayerNormMode = "int8",
    range: Range = "per_token",
    gelu_bits: Literal[4, 8] = 4,
    load_balancing: bool = True,
    dropout_on_values: bool = False,
    mask_bits: Literal[1, 8] = 1,
    exclude: Patterns = None,
    exact: bool = False,
) -> nn.Module:
    """Have a module keep its activations in few bits; give the same module.

    Any of its parts may be called by itself as well. The settings are those of
    :class:`ActivationCompression`; ``exact`` keeps activations whole, to check gradients by. On
    Linux the process is told to give large blocks of memory back at once
    (:func:`core.compression.heap.unbroken_heap`).

    Raises:
        UserError: if a setting is unknown, a pattern matches nothing, or the module is compiled or
            checkpoints its gradients.
    """
    choices = {
        "ln_mode": (ln_mode, ("topk", "int8", "int4")),
        "range": (range, ("fixed", "per_token")),
        "gelu_bits": (gelu_bits, (4, 8)),
        "mask_bits": (mask_bits, (1, 8)),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise UserError(
                f"ActivationCompression: {key}={value!r} must be one of"
                f" {', '.join(map(str, known))}"
            )
    _check(module)
    names = {name: part for name, part in module.named_modules(remove_duplicate=False) if name}
    excluded = {id(names[name]) for name in matching(exclude, list(names), "exclude")}
    policy = Policy(
        *(ln_mode, range, gelu_bits, mask_bits), load_balancing, dropout_on_values, exact
    )
    restore(module)
    unbroken_heap()
    for part in module.modules():
        _Forward(part, policy, id(part) in excluded)
    return module


def restore(module: nn.Module) -> nn.Module:
    """Undo :func:`compress`; give the same module."""
    for part in module.modules():
        unwrap(part, _Forward)
    return module


def report(module: nn.Module) -> dict[str, Any]:
    """Say what of a compressed module is covered, how, and what was met in training.

    ``covered`` counts modules by kind. After a training step ``operations`` counts the calls of the
    last one that were taken over, and ``clip_rate`` is the share of values in int8 that were out of
    a fixed range, sampled in one pass of sixteen.

    Raises:
        UserError: if the module is not compressed.
    """
    own = wrapped_by(module, _Forward)
    if own is None:
        raise UserError(f"{type(module).__name__} is not compressed; call compress(module) first")
    policy = own.policy
    excluded = {
        id(inner)
        for part in module.modules()
        if (forward := wrapped_by(part, _Forward)) is not None and forward.excluded
        for inner in part.modules()
    }
    covered = Counter(
        type(part).__name__
        for part in module.modules()
        if isinstance(part, COVERED) and id(part) not in excluded
    )
    found: dict[str, Any] = {
        "covered": dict(sorted(covered.items())),
        **{key: getattr(policy, key) for key in ("ln_mode", "range", "gelu_bits", "mask_bits")},
        **{key: getattr(policy, key) for key in ("load_balancing", "dropout_on_values")},
    }
    if policy.passes:
        found["operations"] = dict(sorted(policy.kinds.items()))
    if policy.counted:
        found["clip_rate"] = policy.clipped / policy.counted
    return found


class _Forward(WrappedForward):
    """The ``forward`` of a compressed module."""

    def __init__(self, module: nn.Module, policy: Policy, excluded: bool) -> None:
        super().__init__(module)
        self.policy = policy
        self.excluded = excluded

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        active = ACTIVE.get()
        forward = self.plain()
        if self.excluded and active is not None:
            return _within(None, forward, args, kwargs)
        if self.excluded or active is not None or not self.module.training:
            return forward(*args, **kwargs)
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        _check(self.module)
        self.policy.passes += 1
        self.policy.kinds.clear()
        mode = Compression(self.policy)
        with mode:
            return _within(mode, forward, args, kwargs)


def _within(mode: Compression | None, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    token = ACTIVE.set(mode)
    try:
        return forward(*args, **kwargs)
    finally:
        ACTIVE.reset(token)


def _check(module: nn.Module) -> None:
    """Refuse what does not go together.

    Raises:
        UserError: if the module is compiled, or checkpoints its gradients.
    """
    inside = torch.compiler.is_compiling() or get_eval_frame_callback() is not None
    compiled = "" if inside else compiled_part(module)
    if compiled is not None:
        raise UserError(
            f"ActivationCompression: {_where(module, compiled)} is compiled by torch.compile, which"
            " would not see what is frozen and thawed; leave out one of the two"
        )
    for name, part in module.named_modules():
        if getattr(part, "gradient_checkpointing", False) is True:
            raise UserError(
                f"ActivationCompression: {_where(module, name)} checkpoints its gradients, so it"
                " keeps no activations to compress; turn that off, or leave out the compression"
            )


def _where(module: nn.Module, name: str) -> str:
    return f"{type(module).__name__}{name and '.'}{name}"
