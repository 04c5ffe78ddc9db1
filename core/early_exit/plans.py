"""Plans: who of a batch leaves after which stage."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.early_exit.rows import first_tensor, spread, take


class Exit:
    """What has been computed when the samples that are still in have passed a stage.

    Attributes:
        number: of the stage, from 1 on.
        samples: (n,) the places of the samples that are still in, in their batch.
        output: what the stage gives, the rows of all samples.
    """

    def __init__(self, number: int, samples: Tensor, output: Any, group: int, dim: int) -> None:
        self.number = number
        self.samples = samples
        self.output = output
        self.group = group
        self.dim = dim

    def state(self) -> Any:
        """Give the output for the samples that are still in."""
        first = first_tensor(self.output)
        rows = 0 if first is None else first.shape[self.dim]
        if len(self.samples) * self.group == rows:
            return self.output
        return take(self.output, spread(self.samples, self.group), rows, self.dim)


class Plan:
    """Says after each stage who leaves; the plain one lets nobody leave before the end.

    Attributes:
        samples: the number of samples, where the plan knows it.
    """

    samples: int | None = None

    def run(self, work: Callable[[], Any], inputs: Any) -> Any:
        """Run the network's own forward on its inputs (arguments by place, by name)."""
        return work()

    def begin(self, state: Tensor) -> None:
        """Look at the state (R, ...) in front of the first stage."""

    def leave(self, exit: Exit) -> Tensor | bool:
        """Say for each of ``exit.samples``, (n,), or for all of them, who leaves."""
        return False

    def finish(self, output: Any) -> Any:
        """Change what the network gives."""
        return output


class FixedDepth(Plan):
    """Everyone leaves after the same stage, counted from 1."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def leave(self, exit: Exit) -> bool:
        """Leave once the depth is reached."""
        return exit.number >= self.depth


class GivenDepths(Plan):
    """Each sample leaves after a stage of its own, known before the stack or at its first layer.

    Args:
        depths: (S,) stages, from 1 on, or a function that finds them from the first state.
    """

    def __init__(self, depths: Tensor | Callable[[Tensor], Tensor]) -> None:
        self.choose = None if isinstance(depths, Tensor) else depths
        self.depths = depths if isinstance(depths, Tensor) else torch.empty(0, dtype=torch.long)
        self.samples = len(self.depths) if self.choose is None else None

    def begin(self, state: Tensor) -> None:
        """Choose, where the depths were not given."""
        if self.choose is not None:
            self.depths = self.choose(state)
            self.samples = len(self.depths)
        self.depths = self.depths.to(state.device)

    def leave(self, exit: Exit) -> Tensor:
        """Leave where a sample's own depth is reached."""
        return self.depths[exit.samples] <= exit.number


class Decided(Plan):
    """After each stage a function says which of the samples that are still in leave."""

    def __init__(self, decide: Callable[[Exit], Tensor | bool]) -> None:
        self.decide = decide

    def leave(self, exit: Exit) -> Tensor | bool:
        """Ask the function."""
        return self.decide(exit)


class Recorded(Plan):
    """Nobody leaves; what every stage gives is kept, with its gradients.

    Attributes:
        passes: the exits of each pass through the network.
        outputs: what the network gave in each pass.
    """

    def __init__(self) -> None:
        self.passes: list[list[Exit]] = []
        self.outputs: list[Any] = []

    def leave(self, exit: Exit) -> bool:
        """Keep the exit."""
        if not self.passes or exit.number <= self.passes[-1][-1].number:
            self.passes.append([])
        self.passes[-1].append(exit)
        return False

    def finish(self, output: Any) -> Any:
        """Keep the output."""
        self.outputs.append(output)
        return output

    def at(self, number: int) -> "Replay":
        """Give the plan that answers from one exit, in as many passes as were recorded."""
        found = [exit for each in self.passes for exit in each if exit.number == number]
        return Replay(number, [exit.output for exit in found])


class Replay(Plan):
    """Every stage gives a recorded state at once: only what lies around the stages is computed.

    Args:
        number: the exit.
        states: what it gave, one a pass.

    Attributes:
        outputs: what the network gave in each pass.
        inputs: of the last pass: arguments by place, and by name.
    """

    def __init__(self, number: int, states: list[Any]) -> None:
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.number = number
        self.states = states
        self.outputs: list[Any] = []

    @property
    def state(self) -> Any:
        """The state of the pass that is under way."""
        return self.states[len(self.outputs) % len(self.states)]

    def finish(self, output: Any) -> Any:
        """Keep the output, and go on to the next pass."""
        self.outputs.append(output)
        return output
