"""Mixtures that lie on the disk with their sources, in the layouts of the published sets.

- wsj0-mix (Hershey et al., ICASSP 2016): ``tr``, ``cv`` and ``tt``, each with ``mix``, ``s1``,
  ``s2`` and perhaps ``s3``, files of the same name.
- WHAM!: ``mix_clean``, ``mix_both`` (with noise), ``s1``, ``s2`` and ``noise``.
- WHAMR!: ``mix_both_reverb`` and the like; the target is ``s1_anechoic``, without the room.
- LibriMix (Cosentino et al., 2020): ``train-360``, ``train-100``, ``dev`` and ``test``, or a
  metadata CSV with the columns ``mixture_path``, ``source_1_path`` and so on.
- files beside each other: ``NAME_mix.wav``, ``NAME_source1.wav``, ``NAME_source2.wav``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from core.errors import UserError
from core.split_columns import listed
from domains.speech.survey import survey
from domains.speech.talkers import files

PART_FOLDERS = {
    "train": ("tr", "train", "train-360", "train-100"),
    "val": ("cv", "val", "dev", "valid"),
    "test": ("tt", "test"),
}
MIXTURES = ("mix", "mix_clean", "mix_both", "mix_clean_anechoic", "mix_both_reverb")
SOURCES = ("s{}", "s{}_anechoic", "s{}_reverb")
BESIDE = "_mix"


class Prepared(NamedTuple):
    """One mixture on the disk: its name, its file, and those of its C sources."""

    name: str
    mixture: Path
    sources: tuple[Path, ...]
    frames: int = 0
    rate: int = 0
    content: int = 0


def is_prepared(path: Path) -> bool:
    """Say whether a path holds mixtures with their sources, rather than single talkers."""
    if path.suffix.lower() == ".csv" and path.is_file():
        return True
    inside = [path, *(path / name for names in PART_FOLDERS.values() for name in names)]
    return any((folder / name).is_dir() for folder in inside for name in MIXTURES) or bool(
        next(path.glob(f"*{BESIDE}.wav"), None) if path.is_dir() else None
    )


def find_part(root: Path, part: str, chosen: str | None = None) -> Path | None:
    """Find the folder of ``train``, ``val`` or ``test`` below a set's folder; None if absent."""
    names = PART_FOLDERS[part] if chosen is None else (chosen,)
    return next((root / name for name in names if (root / name).is_dir()), None)


def read_part(
    given: Path, speakers: int, mixture: str | None = None, sources: str | None = None
) -> list[Prepared]:
    """List the mixtures of a folder or a metadata CSV.

    Args:
        given: the folder with the folders of mixtures and sources, or the CSV.
        speakers: C.
        mixture: the folder of mixtures; None takes the first there is of ``mix``, ``mix_clean``,
            ``mix_both`` and so on.
        sources: the folders of sources, with ``{}`` for the number, such as ``s{}_reverb``; None
            takes ``s1``, ``s2``, or those without the room.

    Raises:
        UserError: if a folder, a partner or a column is missing.
    """
    if given.suffix.lower() == ".csv":
        return _from_table(given, speakers)
    if not given.is_dir():
        raise UserError(f"{given}: no such folder; give a folder of mixtures and sources, or a CSV")
    if mixture is None and (beside := sorted(given.glob(f"*{BESIDE}.wav"))):
        return [_beside(path, speakers) for path in beside]
    names = MIXTURES if mixture is None else (mixture,)
    home = next((given / name for name in names if (given / name).is_dir()), None)
    if home is None:
        there = listed(sorted(path.name for path in given.iterdir() if path.is_dir())) or "none"
        raise UserError(f"{given}: has no folder {' or '.join(names)}; its folders: {there}")
    forms = SOURCES if sources is None else (sources,)
    form = next((own for own in forms if (given / own.format(1)).is_dir()), forms[0])
    homes = [given / form.format(number) for number in range(1, speakers + 1)]
    for folder in homes:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder, and there are {speakers} talkers")
    more = given / form.format(speakers + 1)
    if more.is_dir():
        raise UserError(f"{more}: there are more than {speakers} talkers; set --data.speakers")
    return [
        Prepared(
            path.relative_to(home).with_suffix("").as_posix(),
            path,
            tuple(_partner(path, home, folder) for folder in homes),
        )
        for path in files(home)
    ]


def _partner(path: Path, home: Path, folder: Path) -> Path:
    found = folder / path.relative_to(home)
    if not found.is_file():
        raise UserError(f"{found}: is missing, though there is the mixture {path}")
    return found


def _beside(path: Path, speakers: int) -> Prepared:
    name = path.stem.removesuffix(BESIDE)
    sources = tuple(path.with_name(f"{name}_source{n}.wav") for n in range(1, speakers + 1))
    for source in sources:
        if not source.is_file():
            raise UserError(f"{source}: is missing, though there is the mixture {path}")
    return Prepared(name, path, sources)


def _from_table(path: Path, speakers: int) -> list[Prepared]:
    """Read a metadata CSV, whose paths may be those of the machine that made it."""
    try:
        frame = pd.read_csv(path, dtype=str)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from None
    columns = ["mixture_path", *(f"source_{n}_path" for n in range(1, speakers + 1))]
    for name in columns:
        if name not in frame:
            raise UserError(f"{path}: has no column {name!r}; it has {listed(frame.columns)}")
    if f"source_{speakers + 1}_path" in frame:
        raise UserError(f"{path}: has more than {speakers} talkers; set --data.speakers")
    if not len(frame):
        raise UserError(f"{path}: holds no row")
    found = []
    for line, row in enumerate(frame[columns].itertuples(index=False), 2):
        mixture, *sources = (_resolved(path, line, cell) for cell in row)
        found.append(Prepared(mixture.stem, mixture, tuple(sources)))
    return found


def _resolved(table: Path, line: int, cell: object) -> Path:
    """Find a file of the table: as it is written, or by the end of its path near the table."""
    given = Path(str(cell))
    near = [table.parent / given]
    for home in table.parents[:3]:
        near += [home.joinpath(*given.parts[-count:]) for count in (2, 3, 4)]
    found = next((path for path in [given, *near] if path.is_file()), None)
    if found is None:
        raise UserError(f"{table}:{line}: {given}: no such file, nor one near the table")
    return found


def looked_at(items: Sequence[Prepared], rate: int) -> tuple[list[Prepared], tuple[str, ...]]:
    """Read all files once; give the items with their lengths, and notes.

    Raises:
        UserError: if a file cannot be read, or sources differ from their mixture in rate or length.
    """
    paths = [path for item in items for path in (item.mixture, *item.sources)]
    found = survey(paths, rate)
    each = 1 + len(items[0].sources)
    rates, frames = found.rates.reshape(-1, each), found.frames.reshape(-1, each)
    for what, values in (("samples a second", rates), ("samples", frames)):
        wrong = np.argwhere(values != values[:, :1])
        if len(wrong):
            row, column = wrong[0].tolist()
            raise UserError(
                f"{paths[row * each + column]}: has {values[row, column]:,} {what}, but"
                f" {items[row].mixture} has {values[row, 0]:,}; a mixture and its sources need the"
                " same"
            )
    content = found.content[::each].tolist()
    known = [
        item._replace(frames=int(frames[at, 0]), rate=int(rates[at, 0]), content=content[at])
        for at, item in enumerate(items)
    ]
    return known, found.notes
