"""Read masks as labels (H, W): 0 to K - 1, and 255 for void.

A mask is an index PNG of 8 or 16 bits, a PNG with a palette, or RGB whose colours the class file
names. Of a palette the indices count, unless the class file names all of its colours that are met.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from domains.vision.class_file import MOST, VOID, Classes
from domains.vision.photos import open_image

Labels = NDArray[np.uint8]
_LOSSY = (".jpg", ".jpeg", ".webp")


def read_values(path: Path) -> NDArray[np.uint16] | NDArray[np.uint8]:
    """Read the raw values of a mask: indices (H, W), or colours (H, W, 3).

    Three equal channels are one of indices.

    Raises:
        UserError: if it is damaged, lossy, or holds no whole numbers below 65536.
    """
    if path.suffix.lower() in _LOSSY:
        raise UserError(f"{path}: JPEG changes the values of a mask; store masks as PNG")
    image = open_image(path)
    if image.mode in ("L", "P", "1"):
        return np.asarray(image).astype(np.uint8)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UserError(f"{path}: values from {values.min()} to {values.max()} are no classes")
        return values.astype(np.uint16)
    if image.mode in ("RGB", "RGBA", "LA"):
        colors = np.asarray(image.convert("RGB"))
        equal = (colors[..., 0] == colors[..., 1]) & (colors[..., 1] == colors[..., 2])
        return colors[..., 0] if equal.all() else colors
    raise UserError(f"{path}: a mask in mode {image.mode}; store an index PNG or RGB")


def read_mask(path: Path, classes: Classes) -> Labels:
    """Read a mask as labels (H, W).

    Raises:
        UserError: as :func:`read_values`, or if a value or a colour is no class.
    """
    values = read_values(path)
    if classes.coloured and values.ndim == 2 and (found := _by_palette(path, classes)) is not None:
        return found
    if values.ndim == 3:
        if not classes.coloured:
            colors = np.unique(values.reshape(-1, 3), axis=0)
            raise UserError(
                f"{path}: is RGB with {len(colors)} colours, the first {tuple(colors[0].tolist())};"
                " name each in a class file, --data.classes=FILE.csv with name,r,g,b"
            )
        return _from_colors(path, values, classes)
    if classes.coloured and values.max(initial=0) >= len(classes):  # grey colours of the table
        return _from_colors(path, np.repeat(values[:, :, None], 3, 2), classes)
    labels = classes.table[values]
    unknown = labels == MOST
    if unknown.any():
        row, column = (int(place[0]) for place in np.nonzero(unknown))
        raise UserError(
            f"{path}: the value {values[row, column]} (first at row {row}, column {column};"
            f" {unknown.sum():,} such pixels) is no class; the {len(classes)} classes have"
            f" {_told(classes)}, and 255 is void"
        )
    return labels


def _from_colors(path: Path, values: NDArray[np.generic], classes: Classes) -> Labels:
    codes = _codes(values)
    known = _known(classes)
    distinct, place = np.unique(codes, return_inverse=True)
    labels = np.array([known.get(int(code), MOST) for code in distinct], np.uint8)
    if (unknown := labels == MOST).any():
        code = int(distinct[unknown][0])
        color = code >> 16, code >> 8 & 255, code & 255
        raise UserError(
            f"{path}: the colour {color} is not in the class file ({int(unknown.sum())} such"
            " colours); add it, or a line named void with it"
        )
    return labels[place.reshape(codes.shape)]


def _by_palette(path: Path, classes: Classes) -> Labels | None:
    """Read a mask by the colours of its palette; None if one that is met is not in the class file.

    What has the index 255 and a colour of its own is void.
    """
    image = open_image(path)
    if image.mode != "P":
        return None
    indices, colors = np.asarray(image), np.array(image.getpalette() or ()).reshape(-1, 3).tolist()
    known = _known(classes)
    labels = np.full(256, VOID, np.uint8)
    for index in np.unique(indices).tolist():
        color = _code(colors[index]) if index < len(colors) else -1
        if color in known:
            labels[index] = known[color]
        elif index != VOID:
            return None
    found: Labels = labels[indices]
    return found


def _codes(colors: NDArray[np.generic]) -> NDArray[np.uint32]:
    wide = colors.astype(np.uint32)
    codes: NDArray[np.uint32] = wide[..., 0] * 65536 + wide[..., 1] * 256 + wide[..., 2]
    return codes


def _known(classes: Classes) -> dict[int, int]:
    """Give the label of each colour of the class file."""
    known = {_code(color): n for n, color in enumerate(classes.colors)}
    return known | {_code(color): VOID for color in classes.void_colors}


def _code(color: Sequence[int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _told(classes: Classes) -> str:
    values = classes.values
    if values == tuple(range(len(values))):
        return f"0 to {len(values) - 1}"
    return "the values " + ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
