"""What early exits save: seconds of a finished run's network with them and without, by batch size.

``python benchmarks/early_exit.py RUN`` takes a run with early exits, such as one of
``pleiad fit nlp/minilm_sst2_early_exit``, and prints process time on one thread over a part of its
test: every layer for all; exits that wait until a whole batch may leave; and exits whose layers go
on with those who are still in. At batch 64 the last must take at most 0.75 of the first.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from core.early_exit.transform import exits_of
from core.errors import UserError
from core.pretrained import from_pretrained
from pleiad.building import build
from pleiad.experiments import resolve

SIZES = {1: 100, 16: 30, 64: 10}
"""Batch sizes, and how many batches of each are timed at most, spread over the test."""
REQUIRED = {64: 0.75}
ROUNDS = 2


def batches_of(run: Path, size: int, most: int) -> list[Any]:
    """Give the inputs of the network in a run's test, in batches of a size."""
    data: Any = build(resolve(str(run), [f"--data.eval_batch_size={size}"])).data
    data.prepare_data()
    data.setup("fit")
    found = [batch.inputs for batch in data.every_item(data.test_set)]
    step = max(1, len(found) // most)
    return found[::step][:most]


def seconds(network: torch.nn.Module, batches: Sequence[Any], way: Callable[[], Any]) -> float:
    """Give the process time of all batches."""
    began = time.process_time()
    with way():
        for inputs in batches:
            network(*inputs)
    return time.process_time() - began


@torch.inference_mode()
def main() -> int:
    """Print the table; give 1 where a ratio that is required is not reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    torch.set_num_threads(1)
    network = from_pretrained(run).network
    exits = exits_of(network)
    if exits is None:
        raise UserError(f"{run}: its network has no early exits")
    control, own = exits.control, exits.control.compaction
    table = Table(
        *("batch", "samples", "every layer", "waiting", "exits", "ratio", "required"),
        *("layers run, waiting", "layers run", "layers needed"),
    )
    missed = 0
    for size, most in SIZES.items():
        batches = batches_of(run, size, most)
        for inputs in batches:  # each shape is counted once, which takes time
            network(*inputs)
        ways: dict[str, tuple[float, Callable[[], Any]]] = {
            "every layer": (own, lambda: control.using(None)),
            "waiting": (1.0, nullcontext),
            "exits": (own, nullcontext),
        }
        best = dict.fromkeys(ways, float("inf"))
        ran = dict.fromkeys(ways, 0.0)
        for _ in range(ROUNDS):
            for name, (compaction, way) in ways.items():
                control.compaction = compaction
                exits.meter.clear()
                best[name] = min(best[name], seconds(network, batches, way))
                met = exits.meter.report()
                if met:
                    ran[name] = sum(exits.meter.entered) / met["samples"]
        ratio, needed = best["exits"] / best["every layer"], REQUIRED.get(size)
        missed += needed is not None and ratio > needed
        table.add_row(
            *(str(size), str(met["samples"])),
            *(f"{best[name]:.2f} s" for name in ways),
            *(f"{ratio:.2f}", "" if needed is None else f"<= {needed}"),
            *(f"{ran['waiting']:.2f}", f"{ran['exits']:.2f}", f"{met['mean_exit']:.2f}"),
        )
    Console(width=120).print(table)
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
