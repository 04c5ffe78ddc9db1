"""Write alerts piece by piece: CSV, or JSON lines."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from core.errors import UserError
from domains.security.alert_options import FORMATS


class AlertWriter(AbstractContextManager["AlertWriter"]):
    """A file of alerts.

    A row has ``flow``, its number in the file from 1 on; the columns kept; ``score``, ``verdict``,
    and ``fields``, of alerts alone: as text in CSV, ``service +1.2; flag +0.4``, as an object in
    JSON.

    Args:
        path: of the file.
        form: ``csv`` or ``jsonl``; None takes it from the ending.

    Raises:
        UserError: if the ending tells no form.
    """

    def __init__(self, path: Path, form: str | None) -> None:
        found = [name for name, ending in FORMATS.items() if path.suffix.lower() == ending]
        if form is None and not found:
            raise UserError(
                f"--output {path}: name a file that ends in {' or '.join(FORMATS.values())}, or"
                " give --format"
            )
        self.form = form or found[0]
        self._file = path.open("wb")
        self._csv: pyarrow.csv.CSVWriter | None = None

    def __exit__(self, *fault: object) -> None:
        """Close the file."""
        if self._csv is not None:
            self._csv.close()
        self._file.close()

    def write(self, columns: Mapping[str, Any]) -> None:
        """Write some flows, by column: arrays, arrow's or lists."""
        if self.form == "jsonl":
            self._write_lines(columns)
            return
        texts = [None if fields is None else _text(fields) for fields in columns["fields"]]
        arrays = {**columns, "fields": pa.array(texts, pa.string())}
        table = pa.table({name: _plain(column) for name, column in arrays.items()})
        if self._csv is None:
            options = pyarrow.csv.WriteOptions(quoting_style="needed")
            self._csv = pyarrow.csv.CSVWriter(self._file, table.schema, write_options=options)
        self._csv.write_table(table)

    def _write_lines(self, columns: Mapping[str, Any]) -> None:
        """Write an object a line, without what a flow lacks."""
        lists = [c.to_pylist() if isinstance(c, pa.Array) else c.tolist() for c in columns.values()]
        for row in zip(*lists, strict=True):
            known = {k: v for k, v in zip(columns, row, strict=True) if v is not None and v == v}
            self._file.write(json.dumps(known, ensure_ascii=False).encode() + b"\n")


def _plain(column: Any) -> Any:
    """Write levels as text, which a CSV needs."""
    if isinstance(column, pa.DictionaryArray):
        return column.cast(pa.string())
    return column


def _text(fields: Mapping[str, float]) -> str:
    return "; ".join(f"{name} {value:+.3g}" for name, value in fields.items())
