"""Golden files: weights, inputs and outputs of published code, kept outside the suite."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture
def golden():
    """Load a golden file by name; skips where PLEIAD_GOLDEN names no folder that has it."""
    root = os.environ.get("PLEIAD_GOLDEN")
    if not root:
        pytest.skip("PLEIAD_GOLDEN is not set, so there are no published outputs to compare with")

    def load(name):
        path = Path(root) / f"{name}.pt"
        if not path.is_file():
            pytest.skip(f"{path} is missing")
        return torch.load(path, weights_only=True)

    return load
