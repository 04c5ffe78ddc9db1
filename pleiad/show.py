"""``pleiad show``: look at a system, an experiment, a benchmark set, or a file of one's own."""

import importlib
from pathlib import Path
from typing import Any

import data
from core.errors import UserError
from core.openers import read_text
from pleiad import listing, registry
from pleiad.experiments import names

READERS = {
    "security": "domains.security.survey",
    "time_series": "domains.time_series.files",
    "vision": "domains.vision.files",
}
"""The module of each domain whose ``show(path, picture)`` describes a file or a folder."""

ENDINGS = {
    ".csv": "time_series",
    ".json": "vision",
    ".txt": "security",
    ".gz": "security",
    ".parquet": "security",
}
"""The domain of a file that belongs to no set, where none is named.

A CSV with the columns ``image`` and ``mask`` is one of vision, and one with the columns of flows of
security.
"""


FLOWS = "domains.security.draft"
"""The module that knows the columns of flows."""


def show(name: str, picture: Path | None = None, domain: str | None = None) -> Any:
    """Describe what ``name`` means, as something the terminal can show.

    A folder is one of photos and masks, and so is a COCO file, unless ``domain`` says otherwise.

    Raises:
        UserError: if it is no system, no experiment, no set and no file.
    """
    if domain is not None and domain not in READERS:
        raise UserError(f"--domain {domain}: must be {', '.join(READERS)}")
    if picture is not None and not (picture.suffix.lower() == ".png" and picture.parent.is_dir()):
        raise UserError(f"--picture {picture}: name a PNG file in a folder that exists")
    path = Path(name)
    if path.is_file():
        domain = domain or _domain(path)
        if domain is None:
            raise UserError(
                f"{name}: no reader for {path.suffix or 'such'} files; there are"
                f" {' and '.join(ENDINGS)}"
            )
        return _described(domain, path, picture or Path(f"{path.stem}.png"), name)
    if path.is_dir() and name not in data.entries():
        return _described(
            domain or "vision", path, picture or Path(f"{path.absolute().name}.png"), name
        )
    if name in data.entries():
        entry = data.entry(name)
        if entry.domain not in READERS or listing.dataset_status(entry) != "here":
            return listing.show_dataset(name)
        return _described(entry.domain, data.locate(name), picture or Path(f"{name}.png"), name)
    if name in names():
        return _experiment(name)
    entries = (*registry.systems(), *registry.peers())
    if name in {str(key) for entry in entries for key in (entry.id, entry.name)}:
        return listing.show_system(name)
    known = [*data.entries(), *names(), *(entry.name for entry in entries)]
    raise UserError(
        f"{name!r} is no system, no experiment, no data set and no file;"
        f" {registry.near(name, known)}see `pleiad list`"
    )


def _experiment(name: str) -> str:
    """Give the recipe as it stands, the systems it is of, and what follows from it."""
    path = registry.config(name)
    assert path is not None
    entries = (*registry.systems(), *registry.peers())
    more = [f"pleiad fit {name} --help  # every key"]
    own = [entry.name for entry in entries if name in entry.experiments]
    more += [f"pleiad show {each}  # its system" for each in own]
    return "\n".join([read_text(path), *more])


def _domain(path: Path) -> str | None:
    """Say of what a file is, by its ending and the names of its columns."""
    domain = ENDINGS.get(path.suffix.lower())
    if domain == "time_series" and _names_photos(path):
        return "vision"
    if domain == "time_series" and importlib.import_module(FLOWS).is_flows(path):
        return "security"
    return domain


def _names_photos(path: Path) -> bool:
    """Say whether the header of a CSV has the columns ``image`` and ``mask``."""
    with path.open("rb") as file:
        header = file.readline(2**16).decode("utf-8", "replace")
    return {"image", "mask"} <= {cell.strip().strip('"') for cell in header.split(",")}


def _described(domain: str, path: Path, picture: Path, title: str) -> Any:
    from rich.table import Table
    from rich.text import Text

    facts = importlib.import_module(READERS[domain]).show(path, picture)
    table = Table(title=title, show_header=False)
    for key, value in {**facts, "picture": str(picture)}.items():
        table.add_row(key, Text(str(value)))
    return table
