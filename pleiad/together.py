"""Files that are answered together, such as a pair: from a table with a column for each."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import UserError
from core.openers import file_digest, read_text
from pleiad.inputs import LIST_BYTES, bare


@dataclass(frozen=True)
class Together:
    """Files by the names under which a model takes them.

    Attributes:
        files: by name.
        options: what else belongs to them alone.
        title: names them among the rows of a table; empty where there is none.
    """

    files: Mapping[str, Path]
    options: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    @property
    def name(self) -> Path:
        """What stands for them in a manifest: their title, in the folder of the first."""
        return next(iter(self.files.values())).parent / self.title

    def digest(self) -> str:
        """Identify the files and what belongs to them by their content.

        Raises:
            UserError: if one is missing.
        """
        found = hashlib.sha256()
        beside = {name: Path(value) for name, value in self.options.items()}
        for name, path in sorted({**self.files, **beside}.items()):
            if not path.is_file():
                raise UserError(f"{path}: no such file, the {name}")
            found.update(f"{name} {path} {file_digest(path)}\n".encode())
        return found.hexdigest()


def read_table(path: Path, names: Sequence[str], beside: Sequence[str]) -> list[Together]:
    """Read a CSV with a row for each set of files; paths are relative to its folder.

    Args:
        path: the file.
        names: the columns that every row fills.
        beside: columns that may be there, and may be empty.

    Raises:
        UserError: if a column or a cell is missing, or there is no row.
    """
    table = csv.DictReader(io.StringIO(read_text(path, LIST_BYTES)))
    columns = [column.strip() for column in table.fieldnames or ()]
    if missing := [name for name in names if name not in columns]:
        raise UserError(f"{path}: has no column {missing[0]}; it has {', '.join(columns)}")
    if unknown := [column for column in columns if column not in (*names, *beside)]:
        raise UserError(
            f"{path}: nothing is known of a column {unknown[0]}; there may be"
            f" {', '.join((*names, *beside))}"
        )
    table.fieldnames = columns
    rows = []
    for cells in table:
        filled = {name: str(value).strip() for name, value in cells.items() if value}
        for name in names:
            if not filled.get(name):
                raise UserError(f"{path}:{table.line_num}: has no {name}; name its file")
        found = {name: path.parent / value for name, value in filled.items() if value}
        own = {name: found[name] for name in names}
        rows.append((own, {name: str(found[name]) for name in beside if name in found}))
    if not rows:
        raise UserError(f"{path}: has no row")
    titles = _titles([list(files.values()) for files, _ in rows])
    return [Together(*row, title) for row, title in zip(rows, titles, strict=True)]


def _titles(rows: Sequence[Sequence[Path]]) -> list[str]:
    """Name rows by their files; where two would be one, by the folders too, or else by numbers."""
    titles = ["_to_".join(bare(path) for path in row) for row in rows]
    if len(set(titles)) < len(titles):
        titles = ["_to_".join(f"{path.parent.name}_{bare(path)}" for path in row) for row in rows]
    if len(set(titles)) < len(titles):
        titles = [f"{number}_{title}" for number, title in enumerate(titles, 1)]
    return [title.replace(".", "_") for title in titles]
