"""What early exits cost: the multiply-adds that ran, counted once a shape and then by a formula.

MACs = S (rest + last) + sum over stages i of (n_i layer_i + h_i head_i): S samples, n_i of them
worked on by stage i, h_i judged at exit i; ``rest`` is what lies around the stages.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from core.early_exit.rows import first_tensor
from core.nested import every_tensor

Key = tuple[Any, ...]


def counted(work: Callable[[], Any]) -> tuple[Any, int]:
    """Do some work; give its result and its multiply-adds by torch's counter.

    The counter fails in inference mode where a module is given a parameter: no gradient will do.
    """
    with ExitStack() as modes:
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.no_grad())
        counter = modes.enter_context(FlopCounterMode(display=False, custom_mapping=_MORE))
        result = work()
    return result, counter.get_total_flops() // 2


def encoder_layer_macs(tokens: int, width: int, inner: int) -> int:
    """Count the multiply-adds of a plain transformer encoder layer for one sample.

    Example:
        >>> encoder_layer_macs(tokens=128, width=384, inner=1536)
        239075328
    """
    return tokens * (4 * width**2 + 2 * width * inner) + 2 * tokens**2 * width


class Meter:
    """Count exits and multiply-adds over many batches.

    Each stage, each exit's answer and the whole network are measured when a shape is met for the
    first time; later batches of that shape are counted by the formula.

    Args:
        depth: the number of stages.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._macs: dict[Key, float] = {}
        self.clear()

    def clear(self) -> None:
        """Begin anew; what was measured of shapes is kept."""
        self.exits: Counter[int] = Counter()
        self.entered = [0] * self.depth
        self.macs = 0.0
        self.full = 0.0
        self.layers = 0.0
        self.layers_full = 0.0
        self._batch = self._staged = 0.0

    def stage(self, number: int, samples: int, work: Callable[[], Any], inputs: Any) -> Any:
        """Run the work of a stage on some samples."""
        state = first_tensor(inputs)
        return self._run(("stage", number, _shape(state)), samples, work)

    def head(self, number: int, samples: int, work: Callable[[], Any], state: Any) -> Any:
        """Run the answer of an exit for some samples."""
        return self._run(("head", number, _shape(first_tensor(state))), samples, work)

    def whole(self, samples: Callable[[], int], work: Callable[[], Any], inputs: Any) -> Any:
        """Run a batch through the network; ``samples`` gives their number afterwards."""
        key = ("rest", *(_shape(tensor) for tensor in every_tensor(inputs)))
        self._batch = self._staged = 0.0
        if key in self._macs:
            result = work()
        else:
            result, macs = counted(work)
            self._macs[key] = (macs - self._batch) / max(samples(), 1)
        self.macs += self._batch + self._macs[key] * samples()
        self.full += (self._macs[key] + self._stages()) * samples()
        self.layers += self._staged
        self.layers_full += self._stages() * samples()
        return result

    def add(self, depths: Tensor, entered: list[int]) -> None:
        """Count the exits (S,) of a batch, and the samples that entered each stage."""
        self.exits.update(depths.tolist())
        for place, count in enumerate(entered):
            self.entered[place] += count

    def report(self) -> dict[str, Any]:
        """Give the mean exit, how many left at each one, and the share of the full cost.

        ``macs_share`` is of the whole network, ``layers_share`` of its stages alone.
        """
        samples = sum(self.exits.values())
        if not samples:
            return {}
        mean = sum(number * count for number, count in self.exits.items()) / samples
        return {
            "samples": samples,
            "mean_exit": round(mean, 4),
            "exits": {str(number): self.exits[number] for number in range(1, self.depth + 1)},
            "macs": round(self.macs / samples),
            "macs_full": round(self.full / samples),
            "macs_share": round(self.macs / self.full, 4) if self.full else 1.0,
            "layers_share": round(self.layers / self.layers_full, 4) if self.layers_full else 1.0,
        }

    def _run(self, key: Key, samples: int, work: Callable[[], Any]) -> Any:
        if key in self._macs:
            result = work()
        else:
            result, macs = counted(work)
            self._macs[key] = macs / max(samples, 1)
        if key[0] == "stage":
            self._last = key
            self._staged += samples * self._macs[key]
        self._batch += samples * self._macs[key]
        return result

    def _stages(self) -> float:
        """Give the cost of all stages for a sample of the last shape; unmet ones as the mean."""
        shape = self._last[2]
        known = [self._macs.get(("stage", n, shape)) for n in range(1, self.depth + 1)]
        met = [macs for macs in known if macs is not None]
        return sum(met) * self.depth / len(met)


def _shape(tensor: Tensor | None) -> Key:
    return () if tensor is None else tuple(tensor.shape[1:])


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


_MORE = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""What torch's counter does not know: attention on a CPU."""
