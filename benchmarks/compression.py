"""What activation compression saves in one training step of BERT-base, and what time it takes.

``python benchmarks/compression.py`` trains one step of 32 texts of 128 tokens (random weights,
dropout 0.1, AdamW) in a fresh process for each side and prints the process's peak memory, which
holds weights, gradients and Adam's moments as well. A warming step of one text comes first, so that
all moments are there. ``--attention sdpa`` takes torch's fused attention instead of that by hand;
``--minilm`` compares the process time of steps of MiniLM, alternating the sides in one process.
"""

import argparse
import random
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from core.activation_compression import compress, restore

SHARE = 0.95


def bert(implementation: str) -> Any:
    """Build BERT-base with random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(attn_implementation=implementation)).train()


def freeze(model: torch.nn.Module) -> None:
    """Freeze a random share of the weights, and of the gains of norms."""
    named = list(model.named_parameters())
    units = [p for name, p in named if p.dim() > 1 or name.endswith("Norm.weight")]
    for unit in random.Random(0).sample(units, int(SHARE * len(units))):
        unit.requires_grad_(False)


def step(model: Any, optimizer: torch.optim.Optimizer, batch: int, length: int) -> float:
    """Train one step; give its process time in seconds."""
    ids = torch.randint(1000, 30000, (batch, length))
    began = time.process_time()
    model(ids).last_hidden_state.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - began


def one(side: str, implementation: str) -> None:
    """Measure one side in this process."""
    model = bert(implementation)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    step(model, optimizer, 1, 8)
    if side == "compressed":
        compress(model)
    if side != "standard":
        freeze(model)
    seconds = step(model, optimizer, 32, 128)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{peak:.3f} {seconds:.2f}")


def memory(implementation: str) -> None:
    """Measure every side in a process of its own, and print the table."""
    standard = None
    print(f"{'BERT-base, B 32, L 128, AdamW':<34} {'peak GiB':>9} {'share':>6} {'s a step':>9}")
    for side, told in (
        ("standard", "all trained"),
        ("frozen", "95 % of the weights frozen"),
        ("compressed", "95 % frozen, compressed"),
    ):
        command = [sys.executable, __file__, "--one", side, "--attention", implementation]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak, seconds = map(float, found.split())
        standard = standard or peak
        print(f"{told:<34} {peak:9.2f} {peak / standard:6.2f} {seconds:9.1f}")


def minilm(rounds: int = 7) -> None:
    """Compare step times of MiniLM, as it is, frozen, and compressed."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    model = BertModel(BertConfig(**sizes, num_attention_heads=12)).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-5)
    times: dict[tuple[bool, bool], list[float]] = {}
    for _ in range(rounds):
        for frozen in (False, True):
            for compressed in (False, True):
                model.requires_grad_(True)
                if frozen:
                    freeze(model)
                (compress if compressed else restore)(model)
                took = step(model, optimizer, 16, 64)
                times.setdefault((frozen, compressed), []).append(took)
    for frozen in (False, True):
        plain, less = (statistics.median(times[frozen, c]) for c in (False, True))
        told = "95 % frozen" if frozen else "all trained"
        print(f"MiniLM, {told:<12} {plain:.3f} s a step, compressed {less:.3f}, {less / plain:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attention", default="eager", choices=["eager", "sdpa"])
    parser.add_argument("--one", choices=["standard", "frozen", "compressed"])
    parser.add_argument("--minilm", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.one:
        one(asked.one, asked.attention)
    elif asked.minilm:
        minilm()
    else:
        memory(asked.attention)


if __name__ == "__main__":
    main()
