"""Fine-tuning MiniLM on SST-2: here, by a plain loop, and by Hugging Face's Trainer.

``python benchmarks/nlp.py [--quick | --full] [--output FOLDER]`` prints two tables. In the first
all sides have the very same batches (checked by their hash), initial weights, seeds, optimizer,
schedule and precision; with LoRA the rate is ten times as high. In the second each side has its own
defaults. Seconds are process time on one thread; those of the first table are, for each step, the
least of several rounds in turn, there and back. Memory and accuracy come from a process for each
side. ``taskset -c 0`` keeps it to one core; other work on the machine makes steps dearer, which
the rounds level out in the first table alone. ``--full`` judges whole epochs.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import measure
import nlp_sides
import torch
from matplotlib.figure import Figure
from nlp_sides import OWN, SAME, Trained, Work
from rich.console import Console
from rich.table import Table

from core.precision import processor

EPOCH = 217  # steps
WARM = 2  # steps that are not counted
TARGET = 1.03
"""What a step may cost beside the plain loop."""


class Size(NamedTuple):
    """Rounds of so many timed steps; steps to judge, and in how many parts of the test texts."""

    rounds: int
    timed: int
    judged: int
    parts: int


SIZES = {"quick": Size(3, 6, 8, 5), "usual": Size(4, 8, 48, 1), "full": Size(4, 12, EPOCH, 1)}


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn"), measure.start) as process:
        return process.submit(function, *arguments).result()


def timed(folder: Path, size: Size) -> dict[str, list[list[float]]]:
    """Give each side's seconds of each step in each round, the sides in turn, there and back."""
    work, seconds = Work(folder, size.timed + WARM + 1), {name: [] for name in SAME}
    expected, first = nlp_sides.digest(nlp_sides.read(folder).train[: work.steps]), None
    for number in range(size.rounds):
        for name in list(SAME)[:: -1 if number % 2 else 1]:
            trained = SAME[name](work)
            assert nlp_sides.digest(trained.batches) == expected, f"{name}: other batches"
            first = trained.losses[0] if first is None else first
            assert abs(trained.losses[0] - first) < 0.01, f"{name}: {trained.losses[0]}, {first}"
            seconds[name].append(trained.seconds[WARM:])
    return seconds


def judged(side: Callable[[Work], Trained], work: Work, parts: int) -> dict[str, Any]:
    """Train, and tell of the speed, the memory, the padding and the accuracy."""
    trained = side(work)
    test = nlp_sides.read(work.folder).test[::parts]
    masks = [batch["attention_mask"] for batch in trained.batches]
    texts = sum(map(len, masks[WARM:-1]))
    return {
        "precision": trained.precision,
        "steps": len(masks),
        "first losses": trained.losses[:5],
        "mean loss of the last 10": statistics.fmean(trained.losses[-10:]),
        "seconds a step": statistics.fmean(trained.seconds[WARM:]),
        "seconds for 1,000 texts": sum(trained.seconds[WARM:]) / texts * 1000,
        "share of a core": sum(trained.seconds) / trained.wall,
        "padding": 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks),
        "peak MB": trained.peak,
        "accuracy": nlp_sides.accuracy(trained.model, test, trained.precision),
    }


def same(folder: Path, size: Size) -> dict[str, Any]:
    """Measure the sides with everything the same."""
    seconds = alone(timed, folder, size)
    best = {
        name: statistics.fmean(map(min, zip(*rounds, strict=True)))
        for name, rounds in seconds.items()
    }
    found = {}
    for name, side in SAME.items():
        found[name] = alone(judged, side, Work(folder, size.judged), size.parts)
        found[name] |= {"seconds a step": best[name], "rounds": seconds[name]}
        found[name]["ratio"] = best[name] / best["plain loop"]
    return found


def own(folder: Path, size: Size) -> dict[str, Any]:
    """Measure the sides with their own defaults."""
    work = Work(folder, size.judged)
    found = {name: alone(judged, side, work, size.parts) for name, side in OWN.items()}
    for row in found.values():
        row["ratio"] = row["seconds for 1,000 texts"] / found["ours"]["seconds for 1,000 texts"]
    return found


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print both tables."""
    console = Console(width=110)
    steps, precision = (found["same"]["ours"][key] for key in ("steps", "precision"))
    table = Table("side", "ms a step", "x plain loop", "peak MB", f"accuracy, {steps} steps")
    table.title = f"everything the same, {precision}"
    for name, row in found["same"].items():
        values = [f"{1e3 * row['seconds a step']:.1f}", f"{row['ratio']:.3f}"]
        values += [f"{row['peak MB']:.0f}", f"{row['accuracy']:.4f}"]
        over = name == "ours" and row["ratio"] > TARGET
        table.add_row(name, *values, style="red" if over else None)
    console.print(table)
    columns = ("s for 1,000 texts", "x ours", "padding", "precision", "peak MB", "accuracy")
    table = Table("side", *columns, title=f"own defaults, batches of 32, {steps} steps")
    for name, row in found["own"].items():
        values = [f"{row['seconds for 1,000 texts']:.2f}", f"{row['ratio']:.2f}"]
        values += [f"{row['padding']:.0%}", row["precision"], f"{row['peak MB']:.0f}"]
        table.add_row(name, *values, f"{row['accuracy']:.4f}")
    console.print(table)


def draw(found: Mapping[str, Mapping[str, Any]], picture: Path) -> None:
    """Draw the times of both tables."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = found["same"]
    bars = left.barh(list(rows), [1e3 * row["seconds a step"] for row in rows.values()])
    left.bar_label(bars, [f"x {row['ratio']:.2f}" for row in rows.values()], padding=3)
    left.set(title="everything the same", xlabel="ms of process time a step")
    rows = found["own"]
    bars = right.barh(list(rows), [row["seconds for 1,000 texts"] for row in rows.values()])
    right.bar_label(bars, [f"x {row['ratio']:.2f}" for row in rows.values()], padding=3)
    right.set(title="own defaults", xlabel="s of process time for 1,000 texts")
    for axes in (left, right):
        axes.invert_yaxis()
        axes.margins(x=0.2)
    figure.savefig(picture, dpi=150)


def main() -> None:
    """Write down the data once, measure both tables, show and keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", dest="size", action="store_const", const="quick")
    length.add_argument("--full", dest="size", action="store_const", const="full")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.set_defaults(size="usual")
    given = parser.parse_args()
    size = SIZES[given.size]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        alone(nlp_sides.dump, folder, max(size.judged, size.timed + WARM + 1))
        found = {"same": same(folder, size), "own": own(folder, size)}
    show(found)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(found, given.output / "nlp.png")
    machine = {"processor": processor(), "torch": torch.__version__, "size": given.size}
    text = json.dumps({"machine": machine, **found}, indent=1)
    (given.output / "nlp.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
