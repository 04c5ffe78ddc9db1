"""The process's heap beside kept activations."""

import platform
import subprocess
import sys

import pytest

PEAK = """
import re, sys, torch
from pathlib import Path
from core.compression.heap import unbroken_heap
if sys.argv[1] == "unbroken":
    assert unbroken_heap()
kept = []
for _ in range(40):  # large ones come and go, small ones stay between them
    large = [torch.ones(6 * 2**18 + i) for i in range(4)]
    kept.append(torch.ones(2**17))
    large += [torch.ones(7 * 2**18 + 2**13 * len(kept))]
    kept.append(torch.ones(2**17))
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this option")
def test_small_kept_blocks_leave_no_holes():
    peaks = [
        float(subprocess.check_output([sys.executable, "-c", PEAK, side]))
        for side in ("broken", "unbroken")
    ]
    assert peaks[1] < peaks[0] - 20
