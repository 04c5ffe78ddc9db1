"""Tell rows and values apart by what they say, not by where they stand or how pandas stores them.

The same value has the same key as an integer, a float, a category or an object, in every process
and on every machine; so what is decided by key stays decided when a table is read again.
"""

import hashlib
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import UserError

_MISSING = 0x7FF8_5052_4553_4E54
_EXACT = 2**53  # whole numbers up to here are exact in a float


def texts(column: pd.Series) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """Write the values of a column without missing cells as text: ``7`` for 7, 7.0 and "7".

    Returns:
        For each of N rows the index of its text, and the U different texts.

    Raises:
        UserError: if cells hold lists or other values that cannot be compared.
    """
    try:
        codes, values = pd.factorize(column)
    except TypeError:
        kind = next(type(v).__name__ for v in column if getattr(v, "__hash__", None) is None)
        raise UserError(
            f"column {column.name!r} holds values of type {kind}, which cannot be compared;"
            " leave it out, or write them as text"
        ) from None
    written = np.array([_text(value) for value in values], dtype=object)
    again, distinct = pd.factorize(written)  # 7 and "7" are one
    return again[codes] if len(again) else codes, np.asarray(distinct, dtype=object)


def contents(frame: pd.DataFrame) -> NDArray[np.object_]:
    """Give each row a key of 32 hexadecimal digits, which is that of rows equal cell by cell only.

    The order of columns does not count, nor whether whole numbers are stored as floats; a missing
    cell equals a missing cell.

    Raises:
        UserError: as in :func:`texts`.
    """
    order = sorted(range(frame.shape[1]), key=lambda place: str(frame.columns[place]))
    cells = [_cells(frame.iloc[:, place]) for place in order]
    table = np.stack(cells, axis=1).astype("<u8").tobytes()  # (N, C), row by row
    width = 8 * len(cells)
    rows = (table[start : start + width] for start in range(0, len(table), width))
    return np.array([hashlib.blake2b(r, digest_size=16).hexdigest() for r in rows], dtype=object)


def positions(keys: NDArray[np.object_], seed: int) -> NDArray[np.float64]:
    """Spread keys evenly over [0, 1), each by its own text and the seed alone.

    Example:
        >>> positions(np.array(["a", "b"], dtype=object), seed=0).round(3)
        array([0.08 , 0.946])
    """
    secret = str(seed).encode()
    digests = b"".join(
        hashlib.blake2b(k.encode(), digest_size=8, key=secret).digest() for k in keys
    )
    return (np.frombuffer(digests, "<u8") >> np.uint64(11)) / 2.0**53


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating) and value.is_integer() and abs(float(value)) < _EXACT:
        return str(int(value))
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _cells(column: pd.Series) -> NDArray[np.uint64]:
    """Give 64 bits for each cell: those of the number, or a hash of the text."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    column = column.infer_objects()
    missing = column.isna().to_numpy(bool)
    cells = np.full(len(column), _MISSING, np.uint64)
    present = column[~missing]
    if pd.api.types.is_float_dtype(column) or pd.api.types.is_integer_dtype(column):
        numbers = np.asarray(present)
        floats = numbers.astype(np.float64) + 0.0  # -0.0 becomes 0.0
        bits = floats.view(np.uint64)
        if numbers.dtype.kind in "iu":
            large = np.abs(floats) >= _EXACT
            bits = np.where(large, numbers.astype(np.uint64), bits)
        cells[~missing] = bits
    elif len(present):
        codes, values = texts(present)
        hashes = b"".join(hashlib.blake2b(v.encode(), digest_size=8).digest() for v in values)
        cells[~missing] = np.frombuffer(hashes, "<u8")[codes]
    return cells
