"""Networks of segmentation beside those of other libraries, at 360 x 480.

``python benchmarks/vision.py [forward] [train] [masks] [--output FOLDER]``. In ``forward`` and
``train`` P2AT-S and SegFormer-B0 stand beside DeepLabV3+ on ResNet-18 of
segmentation-models-pytorch, which comes with ``pip install -e '.[peers]'``, best in an environment
of its own, and beside transformers' SegFormer; in ``masks`` Mask2Former on Swin-T beside that of
transformers, with the same weights, and with exits from its encoder. The networks of one part take
turns, there and back, in one process, on one thread; seconds are process time and medians of the
rounds. All have random weights and 11 classes. A forward pass takes one image in evaluation, a
training step two, without an optimizer. DeepLabV3+ takes sides that are multiples of 16 alone: its
images are filled up to 368 x 480. Memory is what the work adds to a forked process at its peak. A
ratio is the other network's time over ours.

On a CPU the convolutional PIDNet-S is about 2.8 times as fast as P2AT-S (as measured with the
official code of both): P2AT is not the network for the least delay there.
"""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import measure
import torch
import torch.nn.functional as F
from measure import Row
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from domains.vision.networks.p2at import P2AT
from domains.vision.networks.segformer import SegFormer

CLASSES = 11
SIZE = (360, 480)
ROUNDS = 7


class Padded(nn.Module):
    """A network of smp at sides that it takes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Score pixels."""
        height, width = images.shape[2:]
        logits: Tensor = self.network(F.pad(images, (0, -width % 16, 0, -height % 16)))
        return logits[..., :height, :width]


class Spread(nn.Module):
    """SegFormer as transformers has it, with the scores brought to the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Score pixels."""
        scores = self.network(images).logits
        return F.interpolate(scores, images.shape[2:], mode="bilinear", align_corners=False)


class Found(nn.Module):
    """Mask2Former as transformers has it; gives what ours gives, and nothing else to train by."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Any, ...]:
        """Find masks and their classes, at every layer."""
        found = self.network(images)
        return found.class_queries_logits, found.masks_queries_logits, found.auxiliary_logits


def deeplab() -> nn.Module | None:
    """Build DeepLabV3+ on ResNet-18, if smp is there."""
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        print("DeepLabV3+ left out: pip install -e '.[peers]', in an environment of its own")
        return None
    import segmentation_models_pytorch as smp

    return Padded(smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=CLASSES))


def pixel_networks(auxiliary: bool) -> dict[str, nn.Module]:
    """Build the networks that score pixels; the auxiliary heads of P2AT are there in training."""
    networks: dict[str, nn.Module | None] = {
        "P2AT-S": P2AT(CLASSES, auxiliary=auxiliary),
        "SegFormer-B0": SegFormer(CLASSES),
        "DeepLabV3+ r18 (smp)": deeplab(),
        "SegFormer-B0 (transformers)": Spread(),
    }
    return {name: network for name, network in networks.items() if network is not None}


def tensors(output: Any) -> list[Tensor]:
    """List the tensors of what a network gives, scores of any kind."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = tuple(output.values())
    nested = (tensors(part) for part in output or () if part is not None)
    return [tensor for part in nested for tensor in part]


def look(network: nn.Module, images: Tensor) -> None:
    """Take a forward pass."""
    with torch.no_grad():
        network(images)


def step(network: nn.Module, images: Tensor) -> None:
    """Take a forward and a backward pass."""
    sum((part.square().mean() for part in tensors(network(images))), torch.zeros(())).backward()
    network.zero_grad()


def work(network: nn.Module, training: bool) -> Callable[[], None]:
    """Give what is timed of a network."""
    images = torch.randn(2 if training else 1, 3, *SIZE)
    return partial(step if training else look, network.train(training), images)


def compared(
    networks: Mapping[str, nn.Module],
    pairs: Mapping[tuple[str, str], float | None],
    training: bool,
    rounds: int,
) -> list[Row]:
    """Time all networks in turn, and compare those of each pair."""
    works = {name: work(network, training) for name, network in networks.items()}
    for each in works.values():  # what is done once is not counted
        each()
    memory = {name: measure.peak(each) - measure.peak(lambda: None) for name, each in works.items()}
    seconds = measure.alternate(works, rounds)
    what = "training step of 2" if training else "forward of 1"
    rows = []
    for (ours, other), required in pairs.items():
        if ours in works and other in works:
            note = f"{memory[ours]:.0f} and {memory[other]:.0f} MB"
            times = (seconds[ours], seconds[other])
            rows.append(Row(f"{ours}, {what}", other, times, required, note))
    return rows


def pixels(training: bool) -> list[Row]:
    """Compare the networks that score pixels."""
    deeplab, theirs = "DeepLabV3+ r18 (smp)", "SegFormer-B0 (transformers)"
    pairs: dict[tuple[str, str], float | None] = {
        ("P2AT-S", deeplab): None if training else 1.0,
        ("P2AT-S", "SegFormer-B0"): None,
        ("SegFormer-B0", deeplab): None,
        ("SegFormer-B0", theirs): None,
    }
    return compared(pixel_networks(training), pairs, training, 3 if training else ROUNDS)


def masks() -> list[Row]:
    """Compare the networks that find masks, at the same weights; and exits of the encoder."""
    if importlib.util.find_spec("domains.vision.networks.mask2former") is None:
        print("Mask2Former left out: domains.vision.networks.mask2former is not there")
        return []
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    from core.early_exit.stages import ExitController
    from domains.vision.networks.mask2former import Mask2Former

    swin = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2]}
    swin |= {"num_heads": [3, 6, 12, 24], "window_size": 7}
    swin |= {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    config = Mask2FormerConfig(backbone_config=swin, num_labels=CLASSES)
    theirs = Found(Mask2FormerForUniversalSegmentation(config))
    ours = Mask2Former.from_published(config.to_dict(), theirs.network.state_dict())
    networks = {"Mask2Former Swin-T": ours, "transformers": theirs}
    pairs: dict[tuple[str, str], float | None] = {("Mask2Former Swin-T", "transformers"): 1.0}
    images = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        gap = float((ours.eval()(images).class_logits - theirs.eval()(images)[0]).abs().max())
    assert gap <= 1e-3, f"Mask2Former: differs from transformers by {gap}"
    rows = compared(networks, pairs, False, 3) + compared(networks, pairs, True, 2)
    controller = ExitController(ours.eval(), ours.pixel_decoder.layers)

    def leaving(depth: int) -> None:
        with controller.depth(depth):
            look(ours, images)

    depths = (6, 4, 2)
    seconds = measure.alternate({str(d): partial(leaving, d) for d in depths}, 3)
    rows += [
        Row(f"exit after {d} of 6 layers", "all 6", (seconds[str(d)], seconds["6"]), None, "")
        for d in depths[1:]
    ]
    return rows


if __name__ == "__main__":
    parts = {"forward": partial(pixels, False), "train": partial(pixels, True), "masks": masks}
    measure.main(parts, "vision.png")
