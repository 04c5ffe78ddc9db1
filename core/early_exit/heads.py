"""What answers at an exit: the network's own end, parts of its own for each exit, or a linear map.

The end of the network is run from an exit's state by :meth:`ExitController.tail`; what the network
states as its ``head`` is exchanged for the exit's own copy meanwhile.
"""

import copy
from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

from torch import Tensor, nn

from core.early_exit.criteria import Seen, pooled
from core.early_exit.plans import Exit
from core.early_exit.rows import first_tensor
from core.early_exit.stages import ExitController
from core.errors import UserError
from core.network_parts import head
from core.wrapped_forward import WrappedForward

Kind = Literal["own", "classifier", "copy", "linear", "tokens"]
KINDS = ("own", "classifier", "copy", "linear", "tokens")
TOKENS = ("mask", "attention_mask")
PADDING = ("padding", "padding_mask", "key_padding_mask", "src_key_padding_mask")
"""Names of arguments of a network that tell, True on tokens or on padding, what counts."""


class ExitHeads(nn.Module):
    """The answers of the exits before the last one.

    Args:
        exits: the network's exits.
        kind: ``own`` answers by the network's own end, with no new parameters; ``classifier`` has a
            copy of the last part of its head for each exit, so that a pooler is shared (PABEE);
            ``copy`` has one of its whole head (DeeBERT); ``linear`` maps the mean state, and
            ``tokens`` each token's, to the network's outputs.
        first: the first exit.
        width: D of the state; None asks the last stage.

    Raises:
        UserError: if there is no such kind, or the network states no head that has parameters.
    """

    def __init__(
        self, exits: ExitController, kind: Kind, first: int = 1, width: int | None = None
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"EarlyExit: heads={kind!r} must be one of {', '.join(KINDS)}")
        self.kind = kind
        self.first = first
        self.exits = nn.ModuleList()
        self._exits = exits
        count = len(exits.layers) - first
        if kind == "own":
            return
        parts = [m for m in head(exits.network) or [] if any(True for _ in m.parameters())]
        if not parts:
            raise UserError(
                f"EarlyExit: {type(exits.network).__name__} states no head to copy for"
                f" heads={kind}; take heads=own"
            )
        if kind in ("linear", "tokens"):
            outputs = [m for part in parts for m in part.modules() if isinstance(m, nn.Linear)]
            if not outputs:
                raise UserError(f"EarlyExit: no Linear ends the head, so heads={kind} has no size")
            size = width if width is not None else width_of(exits)
            self.exits.extend(nn.Linear(size, outputs[-1].out_features) for _ in range(count))
            exits.answer = self.mapped
            return
        parts = parts[-1:] if kind == "classifier" else parts
        self.exits.extend(nn.ModuleList(map(copy.deepcopy, parts)) for _ in range(count))
        for place, part in enumerate(parts):
            _Switch(part, place, self)

    def answer(self, exit: Exit) -> Any:
        """Give the answer of an exit for the samples that are still in, during a pass."""
        if self.kind not in ("linear", "tokens"):
            return self._exits.tail(exit)
        args, kwargs = self._exits.inputs(exit)
        return self.linear(exit.number, self.seen(exit.state(), args, kwargs, None))

    def mapped(self, number: int, state: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Answer in place of the network where all samples leave at one exit before the last."""
        if number >= len(self._exits.layers) or number < self.first:
            return output
        return self.linear(number, self.seen(state, args, kwargs, None))

    def linear(self, number: int, seen: Seen) -> Tensor:
        """Map a state (n, ..., D) to (n, C), or to (n, T, C)."""
        state = seen.state if self.kind == "tokens" else pooled(seen)
        mapped: Tensor = self.exits[number - self.first](state)
        return mapped

    def seen(self, state: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Seen:
        """Put together what a criterion looks at.

        Args:
            state: what the stage gives, for n samples.
            args: the network's inputs of these samples.
            kwargs: those by their names.
            output: the answer; None where there is none yet.
        """
        main, dim = first_tensor(state), self._exits.batch_dim
        assert main is not None
        main = main.movedim(dim, 0)
        given = first_tensor(output) if output is not None else first_tensor((args, kwargs))
        samples = len(main) if given is None else len(given)
        if samples and len(main) != samples and len(main) % samples == 0:  # a row for each channel
            main = main.reshape(samples, -1, *main.shape[1:])
        answer = first_tensor(output) if output is not None else main
        assert answer is not None
        return Seen(answer, main, self._mask(args, kwargs))

    def _mask(self, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
        named = dict(zip(signature(self._exits.network.forward).parameters, args, strict=False))
        for name, value in {**named, **kwargs}.items():
            if isinstance(value, Tensor) and value.ndim == 2 and name in (*TOKENS, *PADDING):
                return value.bool() if name in TOKENS else ~value.bool()
        return None


def width_of(exits: ExitController) -> int:
    """Find D by the last norm of the last stage, or else by its last Linear.

    Raises:
        UserError: if it has neither.
    """
    found = None
    for module in exits.layers[-1].modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            found = module.normalized_shape[-1]
    for module in exits.layers[-1].modules():
        if found is None and isinstance(module, nn.Linear):
            found = module.out_features
    if found is None:
        raise UserError("EarlyExit: the width of the state is not known; give it as width")
    return int(found)


class _Switch(WrappedForward):
    """The ``forward`` of a part of the network's head that each exit has a copy of."""

    def __init__(self, module: nn.Module, place: int, heads: ExitHeads) -> None:
        super().__init__(module)
        self.place = place
        self.heads = heads

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        number = self.heads._exits.answered
        if number is not None and self.heads.first <= number < len(self.heads._exits.layers):
            return self.heads.exits[number - self.heads.first][self.place](*args, **kwargs)  # type: ignore[index]
        return self.plain()(*args, **kwargs)
