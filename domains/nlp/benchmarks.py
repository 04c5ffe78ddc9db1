"""The parts of each benchmark set of labelled texts, as frames of one form."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import data
from core.errors import UserError
from domains.nlp.tables import lines, read_table, read_utf8

PARTS = ("train", "val", "test")


class Labelled(NamedTuple):
    """A set in its parts, and where the texts and labels stand.

    A part may be missing: validation rows are then drawn from training.
    """

    frames: Mapping[str, pd.DataFrame]
    text: str
    pair: str | None
    label: str
    kind: str = "single"
    notes: tuple[str, ...] = ()


def read_benchmark(name: str, part: str | None) -> Labelled:
    """Read a set of the catalogue.

    Args:
        name: of the set.
        part: which of its collections, where it has several.

    Raises:
        UserError: if it holds no labelled texts.
    """
    if name not in READERS:
        raise UserError(f"data.dataset={name}: no labelled texts; there is {', '.join(READERS)}")
    place = data.locate(name)
    return READERS[name](place if place.is_dir() else place.parent, part)


def _files(name: str, folder: Path, prefix: str = "") -> dict[str, str]:
    """Give the file of each part, as the catalogue states it."""
    stated = data.entry(name).splits["files"]
    return {
        key.removeprefix(prefix): f"{folder}/{value}"
        for key, value in stated.items()
        if key.startswith(prefix)
    }


def _sst(folder: Path, part: str | None) -> Labelled:
    part = part or "binary"
    if part not in ("binary", "trees"):
        raise UserError(f"data.part={part}: of sst there is binary and trees")
    files = _files("sst", folder, f"{part}/")
    names = {"0": "negative", "1": "positive"}
    frames = {}
    for each in PARTS:
        rows = lines(read_utf8(files[each]))
        if part == "binary":
            cells = [(row[2:], names[row[0]]) for row in rows]
        else:
            cells = [(_words(row), row[1]) for row in rows]
        frames[each] = pd.DataFrame(cells, columns=["text", "label"], dtype=object)
    return Labelled(frames, "text", None, "label")


def _words(tree: str) -> str:
    """Read the sentence of a bracketed tree."""
    return " ".join(re.findall(r" ([^()\s]+)\)", tree)).replace("-LRB-", "(").replace("-RRB-", ")")


def _cola(folder: Path, part: str | None) -> Labelled:
    files = _files("cola", folder)
    names = {"0": "unacceptable", "1": "acceptable"}
    frames = {}
    for each, key in zip(PARTS, ("train", "val", "val_out_of_domain"), strict=True):
        rows = [row.split("\t") for row in lines(read_utf8(files[key]))]
        cells = [(row[3], names[row[1]], row[0]) for row in rows]
        frames[each] = pd.DataFrame(cells, columns=["text", "label", "source"], dtype=object)
    note = "the labels of the published test are withheld: tested on the out-of-domain dev part"
    return Labelled(frames, "text", None, "label", notes=(note,))


def _ficle(folder: Path, part: str | None) -> Labelled:
    files = _files("ficle", folder)
    frames = {each: read_table(files[each]) for each in PARTS}
    return Labelled(frames, "Claim", "Context", "Inconsistency Type")


def _sdoh(folder: Path, part: str | None) -> Labelled:
    test = read_table(folder / "Partial_Iteration_2_annotated.csv")
    written = pd.concat(
        [read_table(folder / f"Iteration_{number}.csv") for number in (1, 2)], ignore_index=True
    )
    key = written["text"].map(_normal)
    tested = key.isin(set(test["text"].map(_normal)))
    again = key.duplicated()
    train = written[~tested & ~again].reset_index(drop=True)
    note = (
        f"of {len(written):,} sentences written for training, {int(again.sum()):,} stand there"
        f" twice and {int((tested & ~again).sum()):,} in the annotated test: left out"
    )
    return Labelled({"train": train, "test": test}, "text", None, "label", "multi", (note,))


def _bangla(folder: Path, part: str | None) -> Labelled:
    part = part or "multichannel"
    known = sorted({key.split("/")[0] for key in _files("bangla", folder)} - {"ner"})
    if part not in known:
        raise UserError(f"data.part={part}: of bangla there is {', '.join(known)}")
    files = _files("bangla", folder, f"{part}/")
    frames = {each: read_table(files[each]) for each in PARTS}
    return Labelled(frames, "text", None, "class_label")


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


READERS: dict[str, Callable[[Path, str | None], Labelled]] = {
    "sst": _sst,
    "cola": _cola,
    "ficle": _ficle,
    "sdoh": _sdoh,
    "bangla": _bangla,
}
