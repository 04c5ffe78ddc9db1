"""A small set of photos and masks, and the smallest network."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from domains.vision.networks.outputs import SegmentationOutput


class Tiny(nn.Module):
    """A convolution a pixel; with ``heads`` auxiliary outputs."""

    def __init__(self, classes: int = 3, heads: int = 0) -> None:
        super().__init__()
        self.classes = classes
        self.heads = nn.ModuleList(nn.Conv2d(3, classes, 3, padding=1) for _ in range(heads + 1))

    def forward(self, images):
        outputs = [head(images) for head in self.heads]
        return SegmentationOutput(outputs[0], tuple(outputs[1:]))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Tiny


def photo(seed, height=24, width=32):
    """Colours that tell the class: 0 dark, 1 red, 2 blue."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)
    colors = np.array([[20, 20, 20], [220, 30, 30], [30, 30, 220]], np.uint8)
    noise = rng.integers(0, 10, (height, width, 3)).astype(np.uint8)
    return colors[labels] + noise, labels.astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    """A folder of twelve photos of three flights, and their masks."""
    folder = tmp_path / "own"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(12):
        pixels, labels = photo(number)
        name = f"flight{'abcd'[number % 4]}_{number:02}"
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{name}.png")
    return folder
