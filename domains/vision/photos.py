"""Read a photo as 8-bit RGB, whatever form it was stored in.

Repairs, each of them told: 16-bit values keep their high byte, unless none is above 255, greyscale
gets three equal channels, CMYK and palettes become RGB, transparency is dropped, and a photo is
turned upright as its EXIF says. What is truncated or no picture is an error.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from core.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LEAST_SIDE = 8
"""Pixels of the shortest side of a photo."""
_ORIENTATION = 0x0112


class Photo(NamedTuple):
    """Pixels (H, W, 3) of 8 bits, what was repaired, and the size (H, W) before it was turned."""

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...]
    stored: tuple[int, int]


def open_image(path: Path) -> Image.Image:
    """Open and decode a picture whole.

    Raises:
        UserError: if it is missing, no picture, truncated or too large to be honest.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
            image.load()
            image.getexif()  # TIFF looks for it in the file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: is no picture that can be read; give PNG, JPEG or TIFF") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: more than 179 million pixels; cut it into smaller ones") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: is truncated or damaged ({error}); bring the whole file"
        ) from None
    return image


def read_photo(path: Path, *, upright: bool = True) -> Photo:
    """Read a photo of at least 8 pixels a side.

    Args:
        path: the file.
        upright: turn it as its EXIF says.

    Raises:
        UserError: as :func:`open_image`, or if it is too small.
    """
    image = open_image(path)
    notes = []
    stored = image.height, image.width
    if min(stored) < LEAST_SIDE:
        raise UserError(
            f"{path}: {image.width}x{image.height} pixels; a photo needs at least {LEAST_SIDE} a"
            " side"
        )
    if upright and image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        notes.append("turned upright as EXIF says")
    pixels, note = _rgb(image, path)
    return Photo(pixels, (*notes, note) if note else tuple(notes), stored)


def _rgb(image: Image.Image, path: Path) -> tuple[NDArray[np.uint8], str]:
    mode = image.mode
    if mode == "RGB":
        return np.asarray(image), ""
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image)
        if mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
            raise UserError(
                f"{path}: holds {mode} values from"
                f" {values.min():g} to {values.max():g}; store 8 or 16 bits a channel"
            )
        deep = values.max() > 0xFF  # else 8 bits that were stored wider
        grey = (values.astype(np.uint32) >> (8 if deep else 0)).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, 2), (
            "16 bits cut to the upper 8" if deep else "greyscale of 8 bits, stored wider"
        )
    kinds = {"L": "greyscale", "LA": "greyscale", "1": "black and white", "P": "palette"}
    what = "transparency was dropped" if mode == "RGBA" else f"{kinds.get(mode, mode)} became RGB"
    if mode == "P":  # a palette may hold transparency
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB")), what
