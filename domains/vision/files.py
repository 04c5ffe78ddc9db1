"""The fitted preprocessing of a segmentation: it reads a photo and writes its mask."""

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from core.errors import UserError
from core.openers import write_atomic
from domains.vision.augmentation import normalised
from domains.vision.class_file import Classes
from domains.vision.inference import Inference, rows_resized
from domains.vision.photos import SUFFIXES, Photo, read_photo
from domains.vision.polygons import regions

ROWS = 256
"""Rows of a photo that are brought to its size at a time."""


@dataclass(frozen=True)
class SegmentationFiles:
    """What a segmentation needs besides its network; it travels in ``model/``.

    Attributes:
        classes: in the order of the network's outputs.
        size: height and width that the network was trained at; None is the photo's own.
        window: side of the windows of larger photos; 0 for none.
    """

    classes: Classes
    size: tuple[int, int] | None = None
    window: int = 0
    spent: dict[str, float] = field(
        default_factory=lambda: {"photos": 0.0, "seconds": 0.0}, compare=False, repr=False
    )

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    result: ClassVar[str] = ".png"
    beside: ClassVar[tuple[str, ...]] = (".overlay.png", ".regions.json")
    options: ClassVar[Mapping[str, str]] = {
        "flip": "yes judges the mirrored photo too",
        "scales": "factors of the size, averaged, as in 0.75,1,1.25",
    }

    def to_json(self) -> dict[str, Any]:
        """Give plain values, from which :meth:`from_json` rebuilds it."""
        return {"classes": self.classes.to_json(), "size": self.size, "window": self.window}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "SegmentationFiles":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: naming the key that is unknown, missing or of a wrong value.
        """
        where = "preprocessing.json"
        if not isinstance(mapping, Mapping) or mapping.keys() != {"classes", "size", "window"}:
            raise UserError(f"{where}: must hold classes, size and window")
        size, window = mapping["size"], mapping["window"]
        whole = size is None or (len(size) == 2 and all(type(n) is int and n > 0 for n in size))
        if not whole or type(window) is not int or window < 0:
            raise UserError(f"{where}: size={size!r} or window={window!r} is no number of pixels")
        return cls(Classes.from_json(mapping["classes"]), tuple(size) if size else None, window)

    def predict_file(
        self,
        network: nn.Module,
        input: Path,
        output: Path,
        plot: Path | None = None,
        *,
        flip: str = "no",
        scales: str = "1",
    ) -> str:
        """Segment a photo at its own size.

        Args:
            network: maps images (B, 3, H, W) to logits.
            input: a photo.
            output: the mask, a PNG whose indices are the values of the classes; beside it lie
                ``NAME.overlay.png`` and ``NAME.regions.json``, a COCO file.
            plot: a PNG of the photo under its mask.
            flip: ``yes`` judges the mirrored photo too.
            scales: factors of the size, comma-separated.

        Returns:
            One line about what was done.

        Raises:
            UserError: if the photo cannot be read, an option is wrong, or what was predicted is
                not finite.
        """
        how = self._inference(flip, scales)
        check_output(output)
        photo = read_photo(input)
        began = time.perf_counter()
        labels = self.labels(network, photo.pixels, how)
        self.spent["seconds"] += time.perf_counter() - began
        self.spent["photos"] += 1
        from domains.vision.pictures import overlay

        drawn = overlay(photo.pixels, labels, self.classes)
        described = regions(labels, self.classes.names, input.name)
        self._write(output, plot, self._mask(labels), drawn, described)
        shares = np.bincount(labels.ravel(), minlength=len(self.classes)) / labels.size
        order = np.argsort(-shares)[:4]
        told = ", ".join(f"{self.classes.names[n]} {shares[n]:.0%}" for n in order if shares[n])
        return done(output, photo, told)

    def labels(
        self, network: nn.Module, pixels: NDArray[np.uint8], how: Inference | None = None
    ) -> NDArray[np.uint8]:
        """Give the labels (H, W) of a photo (H, W, 3)."""
        how = how or Inference(self.window)
        height, width = pixels.shape[:2]
        device = device_of(network)
        network.eval()
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        found = np.zeros((height, width), np.uint8)
        with torch.inference_mode():
            if self.size is None:
                bands = how.bands(network, normalised(image).to(device))
                for top, own in bands:
                    found[top : top + own.shape[1]] = self._best(own)
                return found
            small = self._fitted(image)
            own = how.probabilities(network, normalised(small)[None].to(device))[0]
            for top in range(0, height, ROWS):
                stop = min(top + ROWS, height)
                found[top:stop] = self._best(rows_resized(own, (height, width), top, stop))
        return found

    def totals(self) -> str:
        """Say how fast the network was over all photos."""
        photos, seconds = self.spent["photos"], self.spent["seconds"]
        return f"{photos / seconds:.2f} images per second" if seconds else ""

    def _write(
        self,
        output: Path,
        plot: Path | None,
        mask: Image.Image,
        drawn: NDArray[np.uint8],
        described: Mapping[str, Any],
    ) -> None:
        """Write a result, and beside it the photo under it and its description."""
        picture = png(Image.fromarray(drawn))
        write_atomic(output, png(mask))
        write_atomic(output.with_suffix(self.beside[0]), picture)
        if plot is not None:
            write_atomic(plot, picture)
        write_atomic(output.with_suffix(self.beside[1]), json.dumps(described) + "\n")

    def _fitted(self, image: Tensor) -> Tensor:
        """Bring an image (3, H, W) to about the area that training had, in its own proportions."""
        assert self.size is not None
        height, width = image.shape[-2:]
        share = (self.size[0] * self.size[1] / (height * width)) ** 0.5
        size = [max(8, round(height * share)), max(8, round(width * share))]
        if abs(height / width * self.size[1] / self.size[0] - 1) < 0.02:
            size = list(self.size)
        smaller: Tensor = F.interpolate(
            image[None].float(), size=size, mode="bilinear", antialias=True
        )[0]
        return smaller

    def _inference(self, flip: str, scales: str) -> Inference:
        if flip not in ("yes", "no"):
            raise UserError(f"--flip={flip}: say yes or no")
        try:
            return Inference(self.window, tuple(map(float, scales.split(","))), flip == "yes")
        except ValueError:
            raise UserError(f"--scales={scales}: give numbers above 0, as in 0.75,1,1.25") from None

    def _best(self, probabilities: Tensor) -> NDArray[np.uint8]:
        if not bool(torch.isfinite(probabilities).all()):
            raise UserError("the model's output is not finite; train it anew")
        best: NDArray[np.uint8] = probabilities.argmax(0).to(torch.uint8).cpu().numpy()
        return best

    def _mask(self, labels: NDArray[np.uint8]) -> Image.Image:
        values = np.array(self.classes.values)
        if values.max() > 255:
            return Image.fromarray(values.astype(np.uint16)[labels])
        image = Image.fromarray(values.astype(np.uint8)[labels])
        colors = np.zeros((256, 3), np.uint8)
        colors[values] = self.classes.colors
        image.putpalette(colors.tobytes())  # an index PNG that viewers show in colour
        return image


def show(path: Path, picture: Path | None) -> dict[str, str]:
    """Describe a folder of photos and masks: parts, sizes, shares of the pixels; draw samples.

    Raises:
        UserError: if it has no known layout.
    """
    from domains.vision.examples import SegmentationSet
    from domains.vision.layouts import detect, read_layout
    from domains.vision.own_data import own_layout
    from domains.vision.survey import survey

    layout = read_layout(path) if detect(path) else own_layout({"train": str(path)})
    pairs = list({pair.id: pair for part in layout.parts for pair in part}.values())
    found = survey(pairs, layout.classes)
    (low, left), (high, right) = found.sizes.min(0), found.sizes.max(0)
    many = (low, left) != (high, right)
    parts = zip(("train", "val", "test"), layout.parts, strict=True)
    pixels = found.counts.sum(0)
    shares = pixels / pixels.sum()
    facts = {
        "photos": ", ".join(f"{name} {len(part):,}" for name, part in parts),
        "size": f"{left}x{low}{f' to {right}x{high}' if many else ''} pixels",
        "classes": str(len(layout.classes)),
        "void": f"{shares[-1]:.2%} of the pixels",
    }
    if notes := [*layout.notes, *found.notes]:
        facts["notes"] = "; ".join(notes)
    for name, share, count in zip(
        layout.classes.names, shares, (found.counts > 0).sum(0), strict=False
    ):
        facts[f"class {name}"] = f"{share:.2%} of the pixels, in {count:,} photos"
    if picture is not None:
        from domains.vision.pictures import sample_picture

        sample_picture(picture, SegmentationSet(pairs, layout.classes), shares)
    return facts


def check_output(path: Path) -> None:
    """Refuse a name of a result that is none of a PNG.

    Raises:
        UserError: naming a better one.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--output {path}: a mask is written as PNG; let the name end in .png")


def device_of(network: nn.Module) -> torch.device:
    """Say where a network's weights are."""
    parameter = next(network.parameters(), None)
    return parameter.device if parameter is not None else torch.device("cpu")


def done(output: Path, photo: Photo, told: str) -> str:
    """Give the line about a photo that was judged."""
    notes = f" ({'; '.join(photo.notes)})" if photo.notes else ""
    height, width = photo.pixels.shape[:2]
    return f"{output}: {width}x{height} pixels: {told}{notes}"


def png(image: Image.Image) -> bytes:
    """Write an image as a PNG."""
    kept = io.BytesIO()
    image.save(kept, "png")
    return kept.getvalue()
