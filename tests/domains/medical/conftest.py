"""Weights and volumes that stored outputs of published networks were made with."""

import json
import math
import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from core import published


def drawn(name, shape, gain):
    """The weight of that published name."""
    count, last = math.prod(shape), name.rsplit(".", 1)[-1]
    phase = 2 * math.pi * zlib.crc32(name.encode()) / 2**32
    wave = np.sin(0.7 * np.arange(1, count + 1, dtype=np.float64) + phase)
    if last == "running_var":
        value = 1 + 0.2 * wave**2
    elif last in ("running_mean", "bias"):
        value = 0.05 * wave
    elif len(shape) >= 2 and not last.startswith("layer_scale") and "position" not in last:
        value = gain * wave / math.sqrt(count / shape[0])
    elif len(shape) == 1 and last == "weight":
        value = 1 + 0.1 * wave
    else:
        value = 0.05 * wave
    return torch.from_numpy(value.reshape(shape)).float()


@pytest.fixture(scope="session")
def recipe():
    """Weights by their published names, for a network and the rules that name them."""

    def give(network, rules=(), gain=1.0, pointwise="^$"):
        weights = {}
        for ours, tensor in network.state_dict().items():
            name, shape = published.renamed(ours, rules), tuple(tensor.shape)
            if tensor.is_floating_point():
                one = (1, 1, 1) if re.search(pointwise, name) else ()
                weights[name] = drawn(name, (*shape, *one), gain)
        return weights

    return give


@pytest.fixture(scope="session")
def volumes():
    """The moving and the fixed volume of stored outputs, (1, 1, D, H, W)."""

    def give(*size, dtype=torch.float32):
        axes = [torch.arange(side, dtype=torch.float64) for side in size]
        i, j, k = torch.meshgrid(*axes, indexing="ij")
        moving = 0.5 + 0.5 * torch.sin(0.3 * i + 0.2 * j + 0.1 * k)
        fixed = 0.5 + 0.5 * torch.cos(0.25 * i - 0.15 * j + 0.35 * k)
        return moving[None, None].to(dtype), fixed[None, None].to(dtype)

    return give


@pytest.fixture(scope="session")
def stored():
    """Load what a file of published outputs holds; skips where there is none."""
    root = os.environ.get("PLEIAD_GOLDEN")
    if not root:
        pytest.skip("PLEIAD_GOLDEN is not set, so there are no published outputs to compare with")

    def load(name):
        path = Path(root) / name
        if not path.is_file():
            pytest.skip(f"{path} is missing")
        if path.suffix == ".json":
            return json.loads(path.read_text())
        with np.load(path) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def smooth():
    """Draw a smooth field (1, 3, D, H, W) of a standard deviation of ``scale`` voxels."""

    def give(*size, scale=1.0, points=6, seed=0):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randn(1, 3, *[points] * 3, generator=generator) * scale
        return torch.nn.functional.interpolate(coarse, size, mode="trilinear", align_corners=True)

    return give
