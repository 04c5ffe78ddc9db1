"""Read tables of network flows in pieces: CSV, CSV packed by gzip, Parquet.

A text file is cut into blocks at line ends, and each block is parsed as a whole with the types that
the specification states, so that memory does not grow with the file and every fault has its line.
Arrow's own threads are not used: they let a process that has imported torch abort at its end.
"""

import csv
import glob
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from core.errors import UserError
from core.split_columns import listed
from domains.security.specification import FlowSpecification, near

ROWS = 65_536
"""The most flows in a piece."""
ENDINGS = (".csv", ".txt", ".csv.gz", ".txt.gz", ".parquet")
REPEATED = "lines that repeat the header, left out"
_BLOCK = 2**23
_LEVELS = pa.dictionary(pa.int32(), pa.string())
MISSING = ["", "-", "?", "NA", "N/A", "#N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null"]


def find_flow_files(given: str, key: str) -> tuple[Path, ...]:
    """List the files that a key of the configuration means: a file, a folder or a pattern.

    Raises:
        UserError: if there is none.
    """
    path = Path(given)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name.lower().endswith(ENDINGS))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(given) if Path(p).is_file())  # noqa: PTH207
    if not found:
        raise UserError(f"--data.{key}={given}: there is no such file of flows")
    return tuple(found)


def read_flows(
    paths: Path | Sequence[Path],
    specification: FlowSpecification,
    *,
    also: Iterable[str] = (),
    rows: int = ROWS,
    repairs: Counter[str] | None = None,
) -> Iterator[pa.Table]:
    """Yield the flows of files, in the order of the files and of their lines.

    Numeric fields are float64 with nulls where nothing is stated, all else is a dictionary of
    texts. Lines that repeat the header are left out.

    Args:
        paths: a file, or several that are read as one.
        specification: names the fields.
        also: further columns, such as the label, read as text; a numeric field stays one.
        rows: the most flows in a piece.
        repairs: counts what was mended, by what it was.

    Raises:
        UserError: naming the file, the line and the column of what cannot be read.
    """
    text = tuple(dict.fromkeys((*specification.categorical, *also)))
    wanted = _Wanted(specification, text, Counter() if repairs is None else repairs)
    for path in [paths] if isinstance(paths, Path) else paths:
        count = 0
        for table in _pieces(path, wanted, rows):
            count += table.num_rows
            for start in range(0, table.num_rows, rows):
                yield table.slice(start, rows)
        if not count:
            raise UserError(f"{path}: holds no flows")


class _Wanted(NamedTuple):
    """What is read of each file."""

    specification: FlowSpecification
    text: tuple[str, ...]
    repairs: Counter[str]

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The type of each column."""
        numbers = dict.fromkeys(self.specification.numeric, pa.float64())
        return {**dict.fromkeys(self.text, _LEVELS), **numbers}


def _pieces(path: Path, wanted: _Wanted, rows: int) -> Iterator[pa.Table]:
    if path.suffix.lower() in (".parquet", ".pq"):
        yield from _read_parquet(path, wanted, rows)
        return
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            yield from _read_text(path, stream, wanted)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def columns_of(path: Path, specification: FlowSpecification | None = None) -> list[str]:
    """Name the columns of a file, as they are compared with a specification.

    Raises:
        UserError: if it cannot be read or is empty.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        return [name.strip() for name in _open_parquet(path).schema_arrow.names]
    encoding = specification.encoding if specification else "utf-8"
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            first = stream.read(2**20).partition(b"\n")[0]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    return _Layout.of(path, first, specification, encoding).columns


class _Layout(NamedTuple):
    """How the lines of a text file are divided."""

    columns: list[str]
    delimiter: str
    headed: bool

    @classmethod
    def of(
        cls, path: Path, first: bytes, specification: FlowSpecification | None, encoding: str
    ) -> "_Layout":
        line = _decoded(first.removeprefix(b"\xef\xbb\xbf"), path, 1, encoding).strip("\r\n")
        if not line.strip():
            raise UserError(f"{path}: is empty, or its first line is")
        delimiter = delimiter_of(line)
        cells = _cells(line, delimiter)
        header = specification.header if specification else ()
        names = sum(cell in header for cell in cells)  # of a line that lacks some, or has more
        if not header or 2 * names >= min(len(cells), len(header)):
            return cls(_distinct(cells), delimiter, True)
        if len(cells) > len(header):
            raise UserError(
                f"{path}: has {len(cells)} columns and no header, and the specification names"
                f" {len(header)} columns"
            )
        return cls(list(header[: len(cells)]), delimiter, False)


def delimiter_of(line: str) -> str:
    """Say what divides the cells of a line: a comma, semicolon, tab or bar."""
    return max(",;\t|", key=line.count)


def _distinct(names: Sequence[str]) -> list[str]:
    """Write a name that stands again as ``name.1``."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        found.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def _read_text(path: Path, stream: IO[bytes], wanted: _Wanted) -> Iterator[pa.Table]:
    encoding = wanted.specification.encoding
    begun = stream.read(_BLOCK)
    layout = _Layout.of(path, begun.partition(b"\n")[0], wanted.specification, encoding)
    _check_columns(path, layout.columns, wanted)
    block = begun.removeprefix(b"\xef\xbb\xbf")
    line = 1
    if layout.headed:
        block, line = block.partition(b"\n")[2], 2
    more = begun
    while more:
        more = stream.read(_BLOCK)
        end = block.rfind(b"\n") + 1 if more else len(block)
        if end:
            whole = block[:end]
            yield _parsed(path, whole, line, layout, wanted)
            line += whole.count(b"\n")
        block = block[end:] + more


def _parsed(path: Path, block: bytes, line: int, layout: _Layout, wanted: _Wanted) -> pa.Table:
    """Parse whole lines; only where that fails they are looked at one by one."""
    encoding = wanted.specification.encoding
    try:
        plain = block if encoding == "utf-8" else block.decode(encoding).encode()
        return _arrow(plain, layout, wanted)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        kept = _mended(path, block, line, layout, wanted)
        if kept is None:
            raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
        return _arrow(kept, layout, wanted)


def _arrow(block: bytes, layout: _Layout, wanted: _Wanted) -> pa.Table:
    if not block or block.isspace():
        return pa.schema(list(wanted.types.items())).empty_table()
    return pyarrow.csv.read_csv(
        pa.BufferReader(block),
        pyarrow.csv.ReadOptions(column_names=layout.columns, use_threads=False),
        pyarrow.csv.ParseOptions(delimiter=layout.delimiter),
        pyarrow.csv.ConvertOptions(
            column_types=wanted.types,
            include_columns=list(wanted.types),
            null_values=MISSING,
            strings_can_be_null=False,
        ),
    )


def _mended(path: Path, block: bytes, line: int, layout: _Layout, wanted: _Wanted) -> bytes | None:
    """Leave out repeated headers; None where there was none.

    Raises:
        UserError: naming the first line that cannot be read.
    """
    kept = []
    places = [layout.columns.index(name) for name in wanted.specification.numeric]
    for number, raw in enumerate(block.split(b"\n"), line):
        text = _decoded(raw, path, number, wanted.specification.encoding).strip("\r")
        cells = _cells(text, layout.delimiter)
        if _distinct(cells) == layout.columns:
            wanted.repairs[REPEATED] += 1
            continue
        kept.append(text)
        if not text.strip():
            continue
        if len(cells) != len(layout.columns):
            raise UserError(
                f"{path}:{number}: has {len(cells)} columns, not {len(layout.columns)};"
                " mend the line, or leave it out"
            )
        for place in places:
            _check_number(f"{path}:{number}", layout.columns[place], cells[place])
    return "\n".join(kept).encode() if len(kept) <= block.count(b"\n") else None


def _check_number(where: str, column: str, cell: str) -> None:
    try:
        float(cell if cell not in MISSING else 0)
    except ValueError:
        raise UserError(
            f"{where}: column {column!r} holds {cell!r}, which is no number; mend it, or name the"
            " column among the categorical fields"
        ) from None


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _decoded(line: bytes, path: Path, number: int, encoding: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: byte {line[error.start]:#04x} at place {error.start + 1} of the line"
            f" is not {encoding}; save the file as UTF-8, or set `encoding: cp1252` (Windows) in"
            " the specification"
        ) from None


def _check_columns(path: Path, there: Sequence[str], wanted: _Wanted) -> None:
    lacking = [name for name in wanted.types if name not in there]
    if lacking:
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise UserError(
            f"{path}: has no column {lacking[0]!r}{more}{near(lacking[0], there, 3)}; it has"
            f" {listed(there)}"
        )


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: is no Parquet file ({str(error).splitlines()[0]})") from None


def _read_parquet(path: Path, wanted: _Wanted, rows: int) -> Iterator[pa.Table]:
    file = _open_parquet(path)
    names = {name.strip(): name for name in file.schema_arrow.names}
    _check_columns(path, list(names), wanted)
    read = [names[name] for name in wanted.types]
    first = 1
    for batch in file.iter_batches(rows, columns=read, use_threads=False):
        columns = [
            _typed(batch.column(names[name]), kind, f"{path}: row", name, first)
            for name, kind in wanted.types.items()
        ]
        yield pa.table(dict(zip(wanted.types, columns, strict=True)))
        first += batch.num_rows


def _typed(column: pa.Array, kind: pa.DataType, where: str, name: str, first: int) -> pa.Array:
    if kind == _LEVELS:
        texts = pc.fill_null(pc.cast(column, pa.string()), "")
        return pc.dictionary_encode(texts)
    try:
        return pc.cast(column, pa.float64(), safe=False)
    except pa.ArrowInvalid:
        for row, cell in enumerate(column.to_pylist(), first):
            _check_number(f"{where} {row}", name, "" if cell is None else str(cell).strip())
        texts = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
        missing = pc.is_in(texts, pa.array(MISSING))
        return pc.cast(pc.if_else(missing, None, texts), pa.float64())
