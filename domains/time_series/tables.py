"""Read a CSV of any origin as a table whose every cell knows its line in the file."""

import csv
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import UserError
from domains.time_series import timestamps

LIMIT_BYTES = 2 * 2**30
SEPARATORS = ",;\t|"


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a file, as pandas reads them.

    Attributes:
        path: the file.
        frame: its columns; the index counts the rows of the file, blank ones included.
        first: the line of row 0, counted from 1.
        separator: what stands between fields.
        notes: what was taken for granted.
    """

    path: Path
    frame: pd.DataFrame
    first: int
    separator: str
    notes: tuple[str, ...]

    def line(self, position: int) -> int:
        """Give the line of the row at ``position``."""
        return int(self.frame.index[position]) + self.first

    def numbers(self, name: str) -> tuple[NDArray[np.float64], str] | None:
        """Read a column as numbers, missing ones as NaN, with a note on how they were written.

        Returns:
            None where no cell holds a number.

        Raises:
            UserError: naming the first cell that holds something else.
        """
        column = self.frame[name]
        if column.isna().all():
            return None
        if pd.api.types.is_numeric_dtype(column):
            return column.to_numpy(np.float64), ""
        text = column.astype("string").str.strip()
        values = pd.to_numeric(text, errors="coerce")
        wrong = values.isna() & text.notna() & text.ne("").fillna(False)
        note = ""
        commas = text[wrong].str.fullmatch(r"[+-]?\d+,\d+")
        points = text.str.contains(".", regex=False).fillna(False)
        if self.separator != "," and commas.all() and not points.any():
            values = pd.to_numeric(text.str.replace(",", "."), errors="coerce")
            wrong &= False
            note = "numbers are written with a decimal comma"
        if values.isna().all() and not commas.all():
            return None
        if wrong.any():
            position = int(np.argmax(wrong))
            fix = "correct it, or leave the cell empty"
            if commas.iloc[0]:
                fix = "write a decimal point and no separator of thousands"
            raise UserError(
                f"{self.path}:{self.line(position)}: column {name!r}: {text.iloc[position]!r} is"
                f" not a number; {fix}"
            )
        return values.to_numpy(np.float64, na_value=np.nan), note


def read_table(path: Path) -> Table:
    """Read a file whose first line that is not blank names the columns.

    Raises:
        UserError: if it is missing, empty, too large, not text or not a table, or if columns have
            no name or the same one.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if (size := path.stat().st_size) > LIMIT_BYTES:
        raise UserError(
            f"{path}: {size:,} bytes is more than the {LIMIT_BYTES:,} that can be read;"
            " leave out columns, or take longer steps"
        )
    try:
        blank, header = _header(path)
        separator = max(SEPARATORS, key=header.count)
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # fields beyond the header
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # cells are looked at below
            frame = pd.read_csv(
                path,
                sep=separator,
                skiprows=blank,
                encoding="utf-8-sig",
                compression=None,
                index_col=False,
                skipinitialspace=True,
                skip_blank_lines=False,
            )
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); save it as CSV in UTF-8"
        ) from None
    except pd.errors.ParserWarning:
        raise UserError(
            f"{path}:{blank + 2}: the row has more fields than the header, which names"
            f" {len(names)}; name every column"
        ) from None
    except (pd.errors.ParserError, csv.Error) as error:
        fault = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{path}: not a table ({fault}); mend that row") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if all(map(_is_data, names)):
        raise UserError(
            f"{path}:{blank + 1}: the first line holds data; put a line before it that names the"
            " columns, such as date,sales"
        )
    frame.columns = pd.Index(names)
    frame = frame.dropna(how="all")
    if frame.empty:
        raise UserError(f"{path}: has a header but no rows; add one row a time step")
    frame, notes = _named(path, frame)
    if separator != ",":
        notes.insert(0, f"fields are separated by {separator!r}")
    return Table(path, frame, blank + 2, separator, tuple(notes))


def listed(names: Iterable[object], most: int = 8) -> str:
    """Write out names for a message, at most ``most`` of them."""
    words = [str(name) for name in names]
    rest = f" and {len(words) - most:,} more" if len(words) > most else ""
    return ", ".join(words[:most]) + rest


def _header(path: Path) -> tuple[int, str]:
    """Count the blank lines at the start, and give the line after them."""
    blank = 0
    with path.open(encoding="utf-8-sig") as file:
        while line := file.readline(2**20):
            if "\0" in line:
                raise UserError(f"{path}: not a text file; save it as CSV in UTF-8")
            if line.strip():
                return blank, line.rstrip("\n")
            blank += 1
    raise UserError(f"{path}: empty; it needs a header and one row a time step")


def _is_data(name: str) -> bool:
    cell = pd.Series([name])
    number = pd.to_numeric(cell, errors="coerce").notna().all()
    return bool(number) or timestamps.parse(cell, named=False) is not None


def _named(path: Path, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out columns without a name that say nothing; refuse other such, and repeated names."""
    names = list(frame.columns)
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"{path}: the header names {listed(repeated)} twice; rename one")
    kept, notes = [], []
    counts = np.arange(len(frame))
    for place, name in enumerate(names):
        column = frame.iloc[:, place]
        if not name and column.isna().all():
            continue
        if not name and place == 0 and any(np.array_equal(column, counts + n) for n in (0, 1)):
            notes.append("the first column has no name and counts the rows; it was left out")
            continue
        if (
            not name
            and place == 0
            and "date" not in names
            and timestamps.parse(column, named=False)
        ):
            names[0] = "date"
        elif not name:
            raise UserError(f"{path}: column {place + 1} has no name; give it one in the header")
        kept.append(place)
    frame = frame.iloc[:, kept]
    frame.columns = pd.Index([names[place] for place in kept])
    return frame, notes
