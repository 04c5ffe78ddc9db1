"""Read and write tables of texts: CSV, TSV, JSON lines, Parquet and plain lines."""

import csv
import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt")
"""The endings of tables; ``.txt`` holds one text a line."""
TEXT = "text"
"""The column that plain lines become."""
LIMIT_BYTES = 2**32
"""The largest file that is read."""
COMMON_TEXT = (TEXT, "sentence", "content", "review", "tweet", "document", "body", "message")
COMMON_LABEL = ("label", "labels", "class", "class_label", "category", "target", "sentiment")


def read_table(source: str | Path) -> pd.DataFrame:
    """Read a table; every cell that is not empty is text, as it stands in the file.

    Args:
        source: a file, or ``ARCHIVE.zip!MEMBER``. Cells of a TSV file are taken without quotes.

    Returns:
        A frame whose missing cells are None; lists of JSON stay lists.

    Raises:
        UserError: naming the file and what is wrong.
    """
    name = str(source)
    suffix = Path(name).suffix.lower()
    if suffix == ".parquet":
        return _parquet(Path(name))
    if suffix not in SUFFIXES:
        told = ", ".join(SUFFIXES)
        raise UserError(f"{name}: no reader for {suffix or 'such'} files; there is {told}")
    text = read_utf8(source)
    if suffix == ".txt":
        return pd.DataFrame({TEXT: lines(text)}, dtype=object).replace("", None)
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(text, name)
    return _cells(_separated(text, name, "\t" if suffix == ".tsv" else ","))


def _separated(text: str, name: str, separator: str) -> pd.DataFrame:
    """Read CSV or TSV; a row of more cells than the header has, or a column twice, is an error."""
    quoting: Any = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                header=None,
                index_col=False,
                dtype=str,
                keep_default_na=False,
                na_values=[""],
                quoting=quoting,
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        raise UserError(f"{name}: not a table ({' '.join(str(error).split())})") from None
    names = frame.iloc[0].fillna("").tolist()
    if twice := [each for number, each in enumerate(names) if each in names[:number]]:
        raise UserError(f"{name}: has two columns {twice[0]!r}; rename one of them")
    return frame.iloc[1:].set_axis(names, axis=1).reset_index(drop=True)


def read_utf8(source: str | Path) -> str:
    """Read the whole of a UTF-8 file, or of ``ARCHIVE.zip!MEMBER``, without its byte-order mark.

    Raises:
        UserError: if it is missing, too large or not UTF-8.
    """
    archive, mark, member = str(source).partition(".zip!")
    path = Path(archive + mark.removesuffix("!"))
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if member:
            with zipfile.ZipFile(path) as opened:
                size = opened.getinfo(member).file_size
                content = opened.read(member) if size <= LIMIT_BYTES else b""
        else:
            size = path.stat().st_size
            content = path.read_bytes() if size <= LIMIT_BYTES else b""
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{source}: cannot be read ({error})") from None
    if size > LIMIT_BYTES:
        raise UserError(f"{source}: {size:,} bytes is more than the {LIMIT_BYTES:,} allowed")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{source}:{line}: not UTF-8 text (byte {error.start}); write it as UTF-8, for example"
            f" by iconv -f ENCODING -t UTF-8"
        ) from None


def lines(text: str) -> list[str]:
    """Split at line feeds alone: other marks that Unicode calls line ends are part of a text."""
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found[:-1] if found and not found[-1] else found


def write_table(frame: pd.DataFrame, path: Path, suffix: str) -> None:
    """Write a frame in the form that ``suffix`` names."""
    if suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif suffix in (".jsonl", ".ndjson"):
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        lines = (json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows)
        path.write_text("".join(lines), "utf-8")
    elif suffix == ".tsv":
        plain = frame.map(lambda cell: re.sub("[\t\r\n]", " ", str(cell)), na_action="ignore")
        plain.to_csv(path, index=False, sep="\t", quoting=csv.QUOTE_NONE)
    else:
        frame.to_csv(path, index=False)


def column(
    frame: pd.DataFrame, name: str | None, common: Sequence[str], key: str, file: str
) -> str:
    """Find the column that is meant: the named one, or the first of the common names.

    Raises:
        UserError: naming the key, and the nearest column.
    """
    names = [str(column) for column in frame.columns]
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    if name is not None:
        if name in names:
            return name
        near = get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"--data.{key}: {file} has no column {name!r}{hint} (it has {listed})")
    low = {column.lower(): column for column in reversed(names)}
    for each in common:
        if each in low:
            return low[each]
    raise UserError(f"{file}: which column is the {key}? Name it by --data.{key} (it has {listed})")


def _json_lines(text: str, name: str) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}:{number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}:{number}: not a JSON object with a key for each column")
        rows.append(row)
    if not rows:
        raise UserError(f"{name}: holds no rows")
    return _cells(pd.DataFrame(rows, dtype=object))


def _parquet(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return _cells(pd.read_parquet(path))
    except Exception as error:  # arrow raises many types
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None


def _cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Write every cell as text, but lists; missing ones as None."""
    frame = frame.set_axis(frame.columns.map(str), axis=1).astype(object)
    return frame.map(_cell).astype(object).where(frame.notna(), None)


def _cell(value: Any) -> Any:
    if isinstance(value, str | list) or value is None:
        return value
    if hasattr(value, "tolist") and not isinstance(value, float):
        value = value.tolist()
        if isinstance(value, list):
            return value
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
