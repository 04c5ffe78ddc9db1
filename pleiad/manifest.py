"""``manifest.csv``: which input has which result in a folder; it survives a kill at any moment."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from core.openers import sync_folder

NAME = "manifest.csv"


class Entry(NamedTuple):
    """One row: an input, by its absolute path, and what became of it.

    ``output`` is below the manifest's folder, ``status`` is ``done`` or ``failed``, ``sha256`` that
    of the input; ``model`` and ``options`` are what the result depends on besides.
    """

    input: str
    output: str
    status: str
    seconds: str
    message: str
    sha256: str
    model: str
    options: str


class Done(NamedTuple):
    """An input's result, by its name below the folder, and the SHA-256 of that input."""

    output: str
    sha256: str


class Manifest:
    """The rows of a folder; each is on the disk before the next input is begun.

    Args:
        folder: the folder of the results.
        model: the identity of the model that answers now.
        options: the options that its answers depend on, written as one line.

    Raises:
        UserError: if there is another file of that name, or a row of another model or options.
    """

    def __init__(self, folder: Path, model: str, options: str) -> None:
        self.path = folder / NAME
        self.model = model
        self.options = options
        self.done: dict[str, Done] = {}
        self._changed = False
        for row in self._rows():
            if row.status != "done" or not (folder / row.output).exists():
                self.done.pop(row.input, None)  # to be tried again
                continue
            for what in ("model", "options"):
                if getattr(row, what) != getattr(self, what):
                    raise UserError(
                        f"{folder}: holds results of {'an' if what == 'model' else ''}other {what}"
                        f" ({getattr(row, what)}, now {getattr(self, what)}); give another --output"
                    )
            self.done[row.input] = Done(row.output, row.sha256)
        self._rewrite()
        self._file = self.path.open("a", encoding="utf-8", newline="")

    def close(self) -> None:
        """Close the file, with one row an input."""
        self._file.close()
        if self._changed:
            self._rewrite(failed=True)

    def outputs(self) -> dict[str, str]:
        """Give the input of every result, and name the manifest itself."""
        taken = {known.output: input for input, known in self.done.items()}
        return {NAME: str(self.path), **taken}

    def append(self, row: Entry) -> None:
        """Write a row and flush it to the disk."""
        if row.input in self.done:
            self._changed = True
            self.done[row.input] = Done(row.output, row.sha256)
        self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _rows(self) -> Iterator[Entry]:
        """Read every whole row; the last may have been cut by a crash."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", newline="") as file:
            head = file.readline()
            if head and head != _line(Entry._fields) and not _line(Entry._fields).startswith(head):
                raise UserError(f"{self.path}: not a manifest of results; give another --output")
            for line in file:
                cells = next(csv.reader([line]))
                if line.endswith("\n") and len(cells) == len(Entry._fields):
                    yield Entry(*cells)

    def _rewrite(self, failed: bool = False) -> None:
        """Leave out the rows that count no more; the file is the old one or the whole new one."""
        part = self.path.with_name(f".{NAME}.part")
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(_line(Entry._fields))
            for row in self._rows():
                known = self.done.get(row.input)
                if known == (row.output, row.sha256) or (failed and known is None):
                    file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)
        sync_folder(self.path.parent)


def _line(cells: tuple[str, ...]) -> str:
    """Write cells as one line of CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(
        [" ".join(cell.splitlines()) for cell in cells]
    )
    return buffer.getvalue()
