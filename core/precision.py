"""Which precision this machine is faster with, decided by measuring."""

import json
import os
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from core.openers import write_atomic


def faster_precision() -> str:
    """Choose ``bf16-mixed`` or ``32-true`` by timing a matrix product in both types.

    A processor's flags do not tell: of two that announce bfloat16, one was measured 1.8 times
    faster with it and one 1.5 times slower. The choice is kept in the user's cache folder, for each
    processor, number of threads and version of torch.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    key = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    file = root / "pleiad" / "precision.json"
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    if known.get(key) not in ("bf16-mixed", "32-true"):
        known[key] = "bf16-mixed" if _speedup(device) > 1.1 else "32-true"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(known))
        except OSError:
            pass  # a cache that cannot be kept is measured again
    choice: str = known[key]
    return choice


def processor() -> str:
    """Name the model of the processor, which Python itself gives on few systems."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _speedup(device: torch.device, size: int = 768, rounds: int = 5) -> float:
    """Measure how much faster bfloat16 multiplies (size, size) matrices, casts included."""
    left = torch.randn(size, size, device=device)
    right = torch.randn(size, size, device=device)

    def full() -> Tensor:
        return left @ right

    def half() -> Tensor:
        return left.bfloat16() @ right.bfloat16()

    best = {full: float("inf"), half: float("inf")}
    for _ in range(rounds + 1):  # alternating; the first round only warms up
        for run in best:
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best[run] = min(best[run], time.perf_counter() - began)
    return best[full] / best[half]
