"""The fitted preprocessing of a panoptic segmentation: it reads a photo and writes its segments."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from core.early_exit.transform import exits_of
from core.errors import UserError
from domains.vision.augmentation import normalised
from domains.vision.class_file import Classes
from domains.vision.files import SegmentationFiles, check_output, device_of, done
from domains.vision.mask_inference import find_segments
from domains.vision.metrics import Segments
from domains.vision.photos import read_photo

MOST_PIXELS = 2_000_000
"""Of a photo in which segments are told apart; a larger one is judged smaller."""


@dataclass(frozen=True)
class PanopticFiles(SegmentationFiles):
    """What a panoptic segmentation needs besides its network; it travels in ``model/``.

    Attributes:
        score: least probability of the class of a segment.
        overlap: least share of a mask that no other takes.
    """

    score: float = 0.8
    overlap: float = 0.8

    beside: ClassVar[tuple[str, ...]] = (".overlay.png", ".segments.json")
    options: ClassVar[Mapping[str, str]] = {
        "score": "least probability of the class of a segment, from 0 to 1",
    }

    def to_json(self) -> dict[str, Any]:
        """Give plain values, from which :meth:`from_json` rebuilds it."""
        return {**super().to_json(), "score": self.score, "overlap": self.overlap}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "PanopticFiles":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: naming the key that is unknown, missing or of a wrong value.
        """
        own = ("score", "overlap")
        shares = {key: mapping.get(key) for key in own}
        if not all(isinstance(value, float) and 0 <= value <= 1 for value in shares.values()):
            raise UserError(f"preprocessing.json: {shares} must be numbers from 0 to 1")
        plain = SegmentationFiles.from_json({k: v for k, v in mapping.items() if k not in own})
        return cls(plain.classes, plain.size, plain.window, **shares)  # type: ignore[arg-type]

    def predict_file(  # type: ignore[override]
        self,
        network: nn.Module,
        input: Path,
        output: Path,
        plot: Path | None = None,
        *,
        score: str = "",
    ) -> str:
        """Find the segments of a photo at its own size.

        Args:
            network: maps images (B, 3, H, W) to a ``MaskOutput``.
            input: a photo.
            output: a PNG as COCO has it: the number of a pixel's segment is red + 256 green +
                65536 blue, 0 is void; beside it lie ``NAME.overlay.png`` and
                ``NAME.segments.json``, which tells the class of each.
            plot: a PNG of the photo under its segments.
            score: least probability of the class of a segment; as in the training if empty.

        Returns:
            One line about what was done.

        Raises:
            UserError: if the photo cannot be read, an option is wrong, or what was predicted is
                not finite.
        """
        least = self._least(score)
        check_output(output)
        photo = read_photo(input)
        began = time.perf_counter()
        found = self.segments(network, photo.pixels, least)
        self.spent["seconds"] += time.perf_counter() - began
        self.spent["photos"] += 1
        if (exits := exits_of(network)) is not None:
            self.spent["mean_exit"] = exits.report().get("mean_exit", 0.0)
        from domains.vision.panoptic_pictures import segment_overlay

        numbers, labels = found.map.numpy(), found.classes.tolist()
        drawn = segment_overlay(photo.pixels, numbers, labels, self.classes)
        told = described(numbers, labels, self.classes, input.name)
        self._write(output, plot, Image.fromarray(coco_colors(numbers)), drawn, told)
        names = [self.classes.names[label] for label in labels]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        return done(output, photo, counts or "no segment")

    def segments(
        self, network: nn.Module, pixels: NDArray[np.uint8], score: float | None = None
    ) -> Segments:
        """Find the segments of a photo (H, W, 3)."""
        height, width = pixels.shape[:2]
        device = device_of(network)
        network.eval()
        share = min(1.0, (MOST_PIXELS / (height * width)) ** 0.5)
        size = max(1, round(height * share)), max(1, round(width * share))
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        if self.size is not None:
            image = self._fitted(image)
        elif share < 1:
            image = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
        with torch.inference_mode():
            told = network(normalised(image)[None].to(device))
            if not bool(torch.isfinite(told.class_logits).all()):
                raise UserError("the model's output is not finite; train it anew")
            found = find_segments(
                told.class_logits[0],
                told.mask_logits[0],
                size,
                torch.tensor(self.classes.things, device=device),
                score=self.score if score is None else score,
                overlap=self.overlap,
            )
        numbers = found.map.float()[None, None]
        whole = F.interpolate(numbers, (height, width), mode="nearest-exact")[0, 0]
        return Segments(whole.long().cpu(), found.classes)

    def totals(self) -> str:
        """Say how fast the network was over all photos, and where they left it."""
        told = super().totals()
        exit = self.spent.get("mean_exit")
        return f"{told}, mean exit {exit:.2f}" if told and exit else told

    def _least(self, score: str) -> float:
        try:
            least = float(score) if score else self.score
        except ValueError:
            least = -1.0
        if not 0 <= least <= 1:
            raise UserError(f"--score={score}: give a number from 0 to 1")
        return least


def coco_colors(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Write the numbers of segments (H, W) as colours (H, W, 3), as COCO does."""
    parts = [numbers & 255, numbers >> 8 & 255, numbers >> 16 & 255]
    return np.stack(parts, -1).astype(np.uint8)


def described(
    numbers: NDArray[np.int64], labels: list[int], classes: Classes, image: str
) -> dict[str, Any]:
    """Describe segments (H, W), numbered from 1, as an image of COCO's panoptic JSON."""
    height, width = numbers.shape
    infos = []
    for number, label in enumerate(labels, 1):
        rows, columns = np.nonzero(numbers == number)
        if not len(rows):
            continue
        top, left = int(rows.min()), int(columns.min())
        infos.append(
            {
                "id": number,
                "category_id": label + 1,
                "area": len(rows),
                "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
                "iscrowd": 0,
            }
        )
    kinds = zip(classes.names, classes.things, strict=True)
    return {
        "images": [{"id": 1, "file_name": image, "height": height, "width": width}],
        "categories": [
            {"id": n, "name": name, "isthing": int(thing)}
            for n, (name, thing) in enumerate(kinds, 1)
        ],
        "annotations": [
            {"image_id": 1, "file_name": f"{Path(image).stem}.png", "segments_info": infos}
        ],
    }
