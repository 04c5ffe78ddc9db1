"""Early exits over any sequence of layers: a sample that has left passes through untouched.

Each layer of a stack is wrapped where it stands, by its ``forward`` alone: no tensor gets another
name and the network's own code needs no change. Of a batch whose samples leave at different depths
each layer works on the rows that are still in it, and its results are put back among the others.
Sizes: S samples, R rows of the state, a multiple of S (PatchTST has a row for each channel).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from core.early_exit.key_cache import check_cache
from core.early_exit.plans import Decided, Exit, FixedDepth, GivenDepths, Plan, Replay
from core.early_exit.rows import SHARED, first_tensor, put, spread, take
from core.early_exit.stack import find_stages
from core.errors import UserError
from core.wrapped_forward import WrappedForward, unwrap, wrapped_by


class _Pass:
    """One batch on its way through the stages."""

    def __init__(self, inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None) -> None:
        self.inputs = inputs
        self.reached = 0
        self.rows = 0
        self.group = 1
        self.staying = torch.empty(0, dtype=torch.long)
        self.everyone = True
        self.held: Any = None
        self.depths = torch.empty(0, dtype=torch.long)
        self.entered: list[int] = []


class ExitController:
    """Let samples leave a network's stack of layers early.

    Args:
        network: any network; changed in place by the ``forward`` of itself and of its layers.
        stages: the layers in order, or the name of the list that holds them; None takes what the
            network states as its ``stages``, and else its longest list of layers of one kind.
        compaction: a layer works on fewer rows only where more than this share has left; 1 keeps
            the batch whole, and skips a layer only where nobody is left.
        batch_dim: the axis of the samples in the state.
        shared: names of arguments of a layer that belong to no sample, beside the usual ones.

    Attributes:
        layers: the stages.
        depths: (S,) the stage after which each sample of the last batch left, from 1 on.
        entered: the number of samples that each stage of the last batch worked on.
        passes: ``depths`` of one batch after the other, while it is a list.

    Raises:
        UserError: if there is no such stack, or the network has exits already.

    Example:
        >>> stack = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> exits = ExitController(stack)
        >>> with exits.depth(torch.tensor([1, 2])):
        ...     output = stack(torch.ones(2, 4))
        >>> torch.equal(output[0], stack[0](torch.ones(4)))
        True
    """

    def __init__(
        self,
        network: nn.Module,
        stages: Sequence[nn.Module] | str | None = None,
        *,
        compaction: float = 0.12,
        batch_dim: int = 0,
        shared: Sequence[str] = (),
    ) -> None:
        if not 0 <= compaction <= 1:
            raise UserError(f"EarlyExit: compaction={compaction} must lie from 0 to 1")
        if wrapped_by(network, _Entry) is not None:
            raise UserError("EarlyExit: the network has early exits already; put them on once")
        self.network = network
        self.layers = find_stages(network, stages)
        self.compaction = compaction
        self.batch_dim = batch_dim
        self.shared = SHARED | set(shared)
        self.standing: Plan | None = None
        """The plan of every pass in eval mode that is given no other one."""
        self.depths = torch.empty(0, dtype=torch.long)
        self.entered: list[int] = []
        self.passes: list[Tensor] | None = None
        self.watch: Callable[[int, int, Callable[[], Any], Any], Any] | None = None
        """Runs each stage's work for a count of operations: number, samples, work, inputs."""
        self.answer: Callable[[int, Any, Any, Any, Any], Any] | None = None
        """Answers in place of the network: exit, state, its arguments by place and name, output."""
        self._plan: Plan | None = None
        self._pass: _Pass | None = None
        self._entry = _Entry(network, self)
        for number, layer in enumerate(self.layers, 1):
            ExitStage(layer, number, self)
        self._nested = [m for m in network.modules() if isinstance(m, nn.TransformerEncoder)]
        self._nested = [m for m in self._nested if m.use_nested_tensor]
        for module in self._nested:  # rows of a nested tensor cannot be put back
            module.use_nested_tensor = False

    def remove(self) -> nn.Module:
        """Take the exits off again; give the network."""
        for module in (self.network, *self.layers):
            unwrap(module, _Forward)
        for nested in self._nested:
            nested.use_nested_tensor = True
        return self.network

    @contextmanager
    def using(self, plan: Plan | None) -> Iterator[Any]:
        """Follow a plan inside; None runs every stage for all."""
        before, self._plan = self._plan, Plan() if plan is None else plan
        try:
            yield self._plan
        finally:
            self._plan = before
            if before is None:
                self._pass = None

    def depth(self, depth: int | Tensor) -> Any:
        """Leave after one stage for all, or after one for each sample (S,), counted from 1.

        Raises:
            UserError: if there is no such stage.
        """
        most = len(self.layers)
        low, high = (
            (int(depth.min()), int(depth.max()))
            if isinstance(depth, Tensor) and depth.numel()
            else (depth, depth)
            if isinstance(depth, int)
            else (1, 1)
        )
        if low < 1 or high > most:
            wrong = low if low < 1 else high
            raise UserError(f"EarlyExit: depth={wrong} must lie from 1 to the {most} stages")
        return self.using(FixedDepth(depth) if isinstance(depth, int) else GivenDepths(depth))

    def chosen_by(self, choose: Callable[[Tensor], Tensor]) -> Any:
        """Leave after stages (S,) that a function finds from the state before the first one."""
        return self.using(GivenDepths(choose))

    def decided_by(self, decide: Callable[[Exit], Tensor | bool]) -> Any:
        """Leave as a function says after each stage, for each sample that is still in (n,)."""
        return self.using(Decided(decide))

    def tail(self, exit: Exit) -> Any:
        """Give the network's own answer from this exit for the samples still in, during a pass.

        What lies before the stages is computed again, and its result not looked at.

        Raises:
            UserError: if the stages were not reached through the network's own forward.
        """
        if self._pass is None or self._pass.inputs is None:
            raise UserError("EarlyExit: exits judged by the network's end need its own forward")
        args, kwargs = self.inputs(exit)
        with self.using(Replay(exit.number, [exit.state()])):
            try:
                return self._entry.plain()(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise UserError(
                    f"EarlyExit: the network's end cannot answer from what stage {exit.number}"
                    f" gives ({' '.join(str(error).split())}); take as stages only layers that can"
                    " follow one another in any number (stages=NAME)"
                ) from error

    def inputs(self, exit: Exit) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the network's inputs in this pass, of the samples that are still in."""
        samples = self.samples
        if len(exit.samples) == samples:
            return self.given
        args, kwargs = take(self.given, exit.samples, samples, self.batch_dim)
        return args, kwargs

    @property
    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The network's inputs in the pass that is under way: by place, and by name."""
        if self._pass is None or self._pass.inputs is None:
            return (), {}
        return self._pass.inputs

    @property
    def samples(self) -> int:
        """The number of samples of the pass that is under way."""
        return 0 if self._pass is None else len(self._pass.depths)

    @property
    def answered(self) -> int | None:
        """The number of the exit that all samples are answered from; None where they differ."""
        if isinstance(self._plan, FixedDepth):
            return self._plan.depth
        return self._plan.number if isinstance(self._plan, Replay) else None

    def enter(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the network's own forward under the plan in force."""
        plan = self._plan
        if plan is None and not self.network.training:
            plan = self.standing
        if plan is None:
            return forward(*args, **kwargs)
        if isinstance(plan, Replay):
            plan.inputs = (args, kwargs)
            output = forward(*args, **kwargs)
            return plan.finish(self._answer(plan.number, plan.state, args, kwargs, output))
        with self.using(plan):
            now = self._pass = _Pass((args, kwargs))
            try:
                output = plan.run(lambda: forward(*args, **kwargs), (args, kwargs))
                self._end(now)
                if isinstance(plan, FixedDepth):
                    output = self._answer(plan.depth, now.held, args, kwargs, output)
                return plan.finish(output)
            finally:
                self._pass = None

    def through(self, stage: "ExitStage", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one stage for those who are still in."""
        forward, plan = stage.plain(), self._plan
        if plan is None:
            return forward(*args, **kwargs)
        if isinstance(plan, Replay):
            return plan.state
        now = self._pass
        if now is None or stage.number <= now.reached:
            now = self._pass = _Pass(None if now is None else now.inputs)
        if not now.reached:
            self._begin(plan, now, args, kwargs)
        if now.everyone:
            before = now.held
            now.held = self._work(stage.number, len(now.depths), forward, args, kwargs)
            _check_alike(stage.number, before, now.held)
        elif len(now.staying):
            now.held = self._partly(now, stage, args, kwargs)
        now.entered += [0] * (stage.number - len(now.entered))
        now.reached = stage.number
        if len(now.staying):
            self._leave(plan, now)
        if stage.number == len(self.layers) and now.inputs is None:
            self._end(now)
            self._pass = None
        return now.held

    def _answer(self, number: int, state: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if self.answer is None:
            return output
        return self.answer(number, state, args, kwargs, output)

    def _begin(self, plan: Plan, now: _Pass, args: Any, kwargs: Any) -> None:
        state = first_tensor((*args, kwargs))
        if state is None:
            raise UserError("EarlyExit: the first stage is given no tensor")
        plan.begin(state)
        now.rows = state.shape[self.batch_dim]
        given = first_tensor(now.inputs) if now.inputs is not None else None
        count = now.rows if given is None or self.batch_dim else given.shape[0]
        if plan.samples is not None:
            count = plan.samples
        if now.rows % max(count, 1):
            if plan.samples is not None:
                raise UserError(
                    f"EarlyExit: {count} depths for a state of {now.rows} rows; give one a sample"
                )
            count = now.rows
        now.group = now.rows // max(count, 1)
        now.staying = torch.arange(count, device=state.device)
        now.depths = torch.zeros(count, dtype=torch.long, device=state.device)

    def _work(
        self, number: int, samples: int, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        rows = self._pass.rows if self._pass is not None else 0
        check_cache(number, rows, first_tensor(args), (*args, *kwargs.values()))
        if self._pass is not None:
            self._pass.entered += [0] * (number - 1 - len(self._pass.entered)) + [samples]
        if self.watch is None:
            return forward(*args, **kwargs)
        return self.watch(number, samples, lambda: forward(*args, **kwargs), (args, kwargs))

    def _partly(self, now: _Pass, stage: "ExitStage", args: Any, kwargs: Any) -> Any:
        """Run a stage on the rows that are still in, or on all of a batch that few have left."""
        everyone, forward = len(now.depths), stage.plain()
        index = spread(now.staying, now.group)
        try:
            if 1 - len(now.staying) / everyone > self.compaction:
                named = stage.names(args)
                args = tuple(
                    take(value, index, now.rows, self.batch_dim, name in self.shared)
                    for name, value in zip(named, args, strict=True)
                )
                kwargs = {
                    name: take(value, index, now.rows, self.batch_dim, name in self.shared)
                    for name, value in kwargs.items()
                }
                part = self._work(stage.number, len(now.staying), forward, args, kwargs)
            else:
                whole = self._work(stage.number, everyone, forward, args, kwargs)
                part = take(whole, index, now.rows, self.batch_dim)
            return put(now.held, part, index, now.rows, self.batch_dim)
        except ValueError as error:
            raise UserError(
                f"EarlyExit: stage {stage.number} gives {error}; take as stages only layers that"
                " can follow one another in any number"
            ) from None

    def _leave(self, plan: Plan, now: _Pass) -> None:
        number = now.reached
        left = plan.leave(Exit(number, now.staying, now.held, now.group, self.batch_dim))
        if left is True or number == len(self.layers):
            now.depths[now.staying] = number
            now.staying, now.everyone = now.staying[:0], False
        elif left is not False and bool(left.any()):
            now.depths[now.staying[left]] = number
            now.staying, now.everyone = now.staying[~left], False

    def _end(self, now: _Pass) -> None:
        self.depths, self.entered = now.depths, now.entered
        if self.passes is not None:
            self.passes.append(now.depths)


def _check_alike(number: int, before: Any, after: Any) -> None:
    """Refuse stages whose states differ in shape: none could be left out."""
    shapes = [None if t is None else tuple(t.shape) for t in map(first_tensor, (before, after))]
    if None not in shapes and shapes[0] != shapes[1]:
        raise UserError(
            f"EarlyExit: stage {number} makes {list(shapes[1])} of {list(shapes[0])}; take as"  # type: ignore[arg-type]
            " stages only layers that can follow one another in any number (stages=NAME)"
        )


class _Forward(WrappedForward):
    """The ``forward`` of a module with exits."""

    def __init__(self, module: nn.Module, controller: ExitController) -> None:
        super().__init__(module)
        self.controller = controller


class _Entry(_Forward):
    """The ``forward`` of the network."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.controller.enter(self.plain(), args, kwargs)


class ExitStage(_Forward):
    """The ``forward`` of one layer.

    Args:
        module: the layer.
        number: its place in the stack, from 1 on.
        controller: what the samples follow.
    """

    def __init__(self, module: nn.Module, number: int, controller: ExitController) -> None:
        super().__init__(module, controller)
        self.number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer for those who are still in."""
        return self.controller.through(self, args, kwargs)

    def names(self, args: Sequence[Any]) -> list[str]:
        """Name the arguments that are given by their places."""
        known = list(signature(self.plain()).parameters)
        return (known + [""] * len(args))[: len(args)]
