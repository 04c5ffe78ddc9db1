"""Which precision this machine is faster with, by measuring, and which it cannot train in."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import UserError
from core.openers import write_atomic


def resolve_precision(wish: Any, accelerator: Any = "auto") -> Any:
    """Give what Lightning shall be told for a wish that may be ``auto``.

    Args:
        wish: a precision as Lightning takes it, ``auto`` for the faster one here, or None.
        accelerator: as Lightning takes it.

    Raises:
        UserError: as :func:`check_precision`.
    """
    precision = faster_precision() if wish == "auto" else wish
    check_precision(precision, accelerator)
    return precision


def check_precision(precision: Any, accelerator: Any = "auto") -> None:
    """Refuse float16 where a CPU would train in it.

    Lightning turns ``16-mixed`` into ``bf16-mixed`` there, and lets ``16-true`` run.

    Args:
        precision: as Lightning takes it.
        accelerator: as Lightning takes it; ``auto`` is a CPU where there is nothing else.

    Raises:
        UserError: naming the precision, and what to take instead.
    """
    kind = {"16": "16-mixed"}.get(str(precision), str(precision))
    if kind not in ("16-mixed", "16-true") or not _is_cpu(accelerator):
        return
    reason = (
        "a CPU has no mixed precision with float16"
        if kind == "16-mixed"
        else "on a CPU nothing scales the loss, and gradients below 6e-8 become 0 in float16"
    )
    other = kind.replace("16", "bf16")
    raise UserError(f"precision={precision}: {reason}; take {other}, or 32-true")


def _is_cpu(accelerator: Any) -> bool:
    if accelerator in (None, "auto"):
        return not (torch.cuda.is_available() or torch.backends.mps.is_available())
    return accelerator == "cpu" or type(accelerator).__name__ == "CPUAccelerator"


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
