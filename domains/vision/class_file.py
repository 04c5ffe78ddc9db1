"""The classes of a segmentation: names, values and colours in masks, what is void, what is a thing.

A class file is one of these:

- ``.txt``: a name a line, whose values are 0, 1, ...; or ``R G B name`` a line, for RGB masks.
- ``.csv``: a header with ``name``, and ``value`` (or ``index``, ``id``) or ``r,g,b`` (or
  ``red,green,blue``), and perhaps ``thing`` (yes or no). A class named ``void`` is left out of
  everything.
"""

import colorsys
import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.openers import read_text

VOID = 255
"""The label of pixels that count nowhere."""
MOST = 254
Color = tuple[int, int, int]
COLUMNS = ("name", "value", "r", "g", "b", "thing")
ALIASES = {"index": "value", "id": "value", "red": "r", "green": "g", "blue": "b"}
NAMES_OF_VOID = ("void", "ignore", "unlabelled", "unlabeled")


@dataclass(frozen=True)
class Classes:
    """K classes.

    Attributes:
        names: of the classes.
        values: of each class in an index mask.
        colors: of each class, for overlays, and in RGB masks where ``coloured``.
        things: whether a class has instances.
        void: values of masks that are void, besides 255.
        void_colors: colours of RGB masks that are void.
        coloured: the colours are those of RGB masks.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    colors: tuple[Color, ...]
    things: tuple[bool, ...]
    void: tuple[int, ...] = ()
    void_colors: tuple[Color, ...] = ()
    coloured: bool = False

    def __len__(self) -> int:
        """Count the classes."""
        return len(self.names)

    @property
    def table(self) -> NDArray[np.uint8]:
        """The label of every mask value (65536,); 254 where a value is no class."""
        table = np.full(2**16, MOST, np.uint8)
        table[[VOID, *self.void]] = VOID  # unless it is a class, as in masks of 0 and 255
        table[list(self.values)] = np.arange(len(self))
        return table

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "Classes":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: naming the key that does not fit.
        """
        wanted = {part.name for part in fields(cls)}
        if not isinstance(mapping, Mapping) or mapping.keys() != wanted:
            raise UserError(f"classes must hold {', '.join(sorted(wanted))}")
        values: dict[str, Any] = {
            name: tuple(tuple(v) if isinstance(v, list) else v for v in value)
            if isinstance(value, list | tuple)
            else value
            for name, value in mapping.items()
        }
        made = cls(**values)
        if not len(made) == len(made.values) == len(made.colors) == len(made.things):
            raise UserError("classes: names, values, colors and things differ in length")
        return made


def make_classes(
    names: Sequence[str],
    *,
    values: Sequence[int] | None = None,
    colors: Sequence[Color] | None = None,
    things: Sequence[bool] | None = None,
    void: Sequence[int] = (),
    void_colors: Sequence[Color] = (),
    coloured: bool = False,
) -> Classes:
    """Fill in what is not given: values 0, 1, ..., distinct colours, no things.

    Raises:
        UserError: if there is no class or too many, or a name or a value stands twice.
    """
    if not 1 < len(names) <= MOST:
        raise UserError(f"{len(names)} classes; there must be 2 to {MOST}")
    numbers = tuple(values) if values is not None else tuple(range(len(names)))
    for what, items in (("name", names), ("value", numbers)):
        twice = [item for n, item in enumerate(items) if item in items[:n]]
        if twice:
            raise UserError(f"the class {what} {twice[0]!r} is given twice")
    return Classes(
        tuple(names),
        numbers,
        tuple(colors) if colors is not None else palette(len(names)),
        tuple(things) if things is not None else (False,) * len(names),
        tuple(v for v in void if v != VOID),
        tuple(void_colors),
        coloured,
    )


def palette(count: int) -> tuple[Color, ...]:
    """Give colours that differ in hue and brightness.

    Example:
        >>> len(set(palette(100)))
        100
    """
    found = []
    for number in range(count):
        hue, bright = number * 0.618034 % 1, (0.95, 0.7, 0.82)[number % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 - number % 2 * 0.25, bright)
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(found)


def read_classes(path: Path) -> Classes:
    """Read a class file.

    Raises:
        UserError: naming the line that does not fit.
    """
    try:
        if path.suffix.lower() == ".csv":
            return _from_csv(path)
        if path.suffix.lower() == ".txt":
            return _from_text(path)
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    raise UserError(f"{path}: a class file is a .txt or a .csv")


def _from_text(path: Path) -> Classes:
    text = read_text(path).removeprefix("\ufeff")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)", line) for line in lines]
    if not any(found):
        kept = [(n, name) for n, name in enumerate(lines) if name.lower() not in NAMES_OF_VOID]
        void = [n for n, name in enumerate(lines) if name.lower() in NAMES_OF_VOID]
        return make_classes([name for _, name in kept], values=[n for n, _ in kept], void=void)
    rows = []
    for number, (line, match) in enumerate(zip(lines, found, strict=True), 1):
        if match is None:
            raise UserError(f"{path}:{number}: {line!r} is not R G B name, as the others are")
        rows.append({"name": match[4], **dict(zip("rgb", match.groups()[:3], strict=True))})
    return _from_rows(path, rows)


def _from_csv(path: Path) -> Classes:
    text = read_text(path).removeprefix("\ufeff")  # spreadsheets begin with a byte order mark
    header, *rows = [line for line in csv.reader(text.splitlines()) if line] or [[]]
    heads = [cell.strip().lower() for cell in header]
    columns = [ALIASES.get(head, head) for head in heads]
    if "name" in columns and (wrong := [h for h in columns if h not in COLUMNS]):
        raise UserError(f"{path}:1: the column {wrong[0]!r} is none of {', '.join(COLUMNS)}")
    if twice := [head for n, head in enumerate(columns) if head in columns[:n]]:
        raise UserError(f"{path}:1: the column {twice[0]!r} is given twice")
    for number, row in enumerate(rows, 2):
        if len(row) > len(columns):
            raise UserError(f"{path}:{number}: has {len(row)} cells, the header {len(columns)}")
    return _from_rows(path, [dict(zip_longest(columns, row, fillvalue="")) for row in rows])


def _from_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Classes:
    if not rows or "name" not in rows[0]:
        raise UserError(f"{path}: needs a header with a column 'name'")
    coloured, valued = {"r", "g", "b"} <= rows[0].keys(), "value" in rows[0]
    names, values, colors, things = [], [], [], []
    void, void_colors = [], []
    for number, row in enumerate(rows):
        name = str(row["name"]).strip()
        if not name:
            raise UserError(f"{path}:{number + 2}: a class has no name")
        value = _whole(path, number + 2, row["value"], 2**16 - 1) if valued else number
        color = [_whole(path, number + 2, row[key], 255) for key in "rgb"] if coloured else [0] * 3
        if name.lower() in NAMES_OF_VOID:
            void.append(value)
            void_colors.append((color[0], color[1], color[2]))
            continue
        names.append(name)
        values.append(value)
        colors.append((color[0], color[1], color[2]))
        things.append(str(row.get("thing") or "").strip().lower() in ("1", "yes", "true"))
    return make_classes(
        names,
        values=values,
        colors=colors if coloured else None,
        things=things,
        void=void,
        void_colors=void_colors if coloured else (),
        coloured=coloured,
    )


def _whole(path: Path, line: int, cell: Any, most: int) -> int:
    text = str(cell).strip()
    if not text.isdecimal() or int(text) > most:
        raise UserError(f"{path}:{line}: {text!r} must be a whole number from 0 to {most}")
    return int(text)
