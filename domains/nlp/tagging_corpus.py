"""The sentences of a set of tagged text: read once, split, and their tags told apart."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import data as catalogue
from core.duplicates import duplicates
from core.errors import UserError
from core.split_columns import listed
from core.split_plan import PARTS, Split
from core.splits import split
from domains.nlp.conll import ColumnFile
from domains.nlp.sentences import Sentence
from domains.nlp.spans import NO_TAG
from domains.nlp.tagged_text import read_tagged

MOST_LABELS = 1000
"""Different tags of a column; beyond it is no column of tags."""
SETS: Mapping[str, Mapping[str, Any]] = {
    "bangla": {"parts": "ner/"},
    "tweebank_ud": {"tags": "upos"},
}
"""What the sets of the catalogue need beside their files."""


class Column(NamedTuple):
    """A head's name, empty where it is the only one, and the column of its tags."""

    name: str
    column: str


@dataclass(frozen=True)
class Corpus:
    """All sentences of a set, and which of them train, validate and test.

    Attributes:
        source: what to call it.
        columns: the H heads.
        labels: the tags of each.
        parts: the sentences of train, val and test.
        split: how rows were placed, where a file had to be divided.
        notes: what the user should know.
    """

    source: str
    columns: tuple[Column, ...]
    labels: tuple[tuple[str, ...], ...]
    parts: tuple[list[Sentence], list[Sentence], list[Sentence]]
    split: Split | None
    notes: tuple[str, ...]

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Describe the heads to a network."""
        return [
            {"name": column.name, "kind": "single", "labels": list(labels)}
            for column, labels in zip(self.columns, self.labels, strict=True)
        ]

    def numbers(self, part: int) -> list[NDArray[np.int64]]:
        """Give the labels (N, H) of each sentence of a part; ``NO_TAG`` where there is no tag."""
        tables = [{label: n for n, label in enumerate(labels)} for labels in self.labels]
        return [
            np.array(
                [
                    [table.get(tag, NO_TAG) for tag in tags]
                    for table, tags in zip(tables, sentence.tags, strict=True)
                ],
                np.int64,
            ).T.reshape(len(sentence.words), len(tables))
            for sentence in self.parts[part]
        ]

    def fingerprint(self) -> str:
        """Identify words, tags and parts."""
        found = hashlib.sha256()
        for part in self.parts:
            for words, tags, _, _ in part:
                found.update(repr((words, tags)).encode("utf-8", "backslashreplace"))
            found.update(b"|")
        return found.hexdigest()


def read_corpus(config: Mapping[str, Any]) -> Corpus:
    """Read the set or the files that the arguments of ``TaggingData`` name; the last is kept.

    Raises:
        UserError: naming what does not fit.
    """
    files, tags = _files(config)
    stamps = tuple(
        (path.stat().st_mtime_ns, path.stat().st_size) for path in files if path and path.is_file()
    )
    return _read(
        files,
        stamps,
        config.get("tokens"),
        config.get("tags") or tags,
        config.get("split", "random"),
        (config.get("val_fraction", 0.1), config.get("test_fraction", 0.2)),
    )


def _files(config: Mapping[str, Any]) -> tuple[tuple[Path | None, ...], str | None]:
    """Find the files of train, val and test, and the columns that the catalogue knows."""
    dataset, given = config.get("dataset"), [config.get(part) for part in PARTS]
    if dataset is None:
        if given[0] is None:
            raise UserError(
                "--data.train=FILE is needed, or --data.dataset, a set of the catalogue"
            )
        return tuple(Path(path) if path else None for path in given), None
    if any(given):
        raise UserError(
            f"--data.dataset={dataset} has files of its own; leave out --data.train, --data.val and"
            " --data.test, or --data.dataset"
        )
    entry = catalogue.entry(dataset)
    known = SETS.get(dataset, {})
    names = {
        part: entry.splits.get("files", {}).get(known.get("parts", "") + part) for part in PARTS
    }
    if entry.domain != "nlp" or not names["train"] or "sentences" not in entry.facts:
        raise UserError(
            f"data.dataset={dataset!r} is no set of tagged words; those are wnut17, tweebank_ner,"
            " tweebank_ud and bangla"
        )
    folder = catalogue.locate(dataset)
    return tuple(folder / name if name else None for name in names.values()), known.get("tags")


@lru_cache(maxsize=1)
def _read(
    files: tuple[Path | None, ...],
    stamps: tuple[Any, ...],
    tokens: str | None,
    tags: str | None,
    rule: str,
    shares: tuple[float, float],
) -> Corpus:
    columns = _columns(tags)
    wanted = [column.column for column in columns] if tags else None
    read = [read_tagged(path, tokens, wanted) if path else None for path in files]
    if isinstance(read[0], ColumnFile) and read[0].layout.universal and not tags:
        columns = (Column("", "upos"),)
    notes = [note for file in read if file is not None for note in file.notes]
    given = [[s for s in file.sentences if s.words] if file else [] for file in read]
    parts, made = _split(given, [file is None for file in read], rule, shares)
    if made is not None:
        notes += made.notes
    source = files[0].name if files[0] else ""
    labels = tuple(_labels(parts, number, source) for number in range(len(columns)))
    notes += _unseen(parts, labels, columns)
    notes += _repeated(parts)
    return Corpus(source, columns, labels, parts, made, tuple(notes))


def _columns(tags: str | None) -> tuple[Column, ...]:
    """Read ``ner:4,pos:2``, ``upos,xpos`` or ``4``."""
    named = []
    for each in (tags or "").split(","):
        name, colon, column = each.strip().rpartition(":")
        named.append(Column(name if colon else column, column))
    if any(not column for _, column in named) and tags:
        raise UserError(f"--data.tags={tags}: write columns, as in 4, upos or ner:4,pos:2")
    if len(named) == 1 and ":" not in (tags or ""):
        return (Column("", named[0].column),)
    if len({name for name, _ in named}) < len(named):
        raise UserError(f"--data.tags={tags}: two heads have the same name")
    return tuple(named)


def _split(
    given: Sequence[list[Sentence]], lacking: Sequence[bool], rule: str, shares: tuple[float, float]
) -> tuple[tuple[list[Sentence], list[Sentence], list[Sentence]], Split | None]:
    """Take from the sentences of training what no file is given for."""
    if not any(lacking):
        return (given[0], given[1], given[2]), None
    val, test = (
        share if absent else 0.0 for share, absent in zip(shares, lacking[1:], strict=True)
    )
    if min(shares) <= 0 or val + test >= 1:
        raise UserError(
            f"data.val_fraction={shares[0]} and data.test_fraction={shares[1]} must be shares that"
            " leave sentences to train on"
        )
    made = split(_frame(given[0], rule), rule, fractions=(1 - val - test, val, test))
    places = [made.train, made.val, made.test]
    taken = [[given[0][row] for row in rows] for rows in places]
    kept = [
        part if absent else own for part, own, absent in zip(taken, given, lacking, strict=True)
    ]
    return (taken[0], kept[1], kept[2]), made


def _frame(sentences: Sequence[Sentence], rule: str) -> pd.DataFrame:
    """Lay out sentences as rows: words, tags, and the facts that the rule asks for."""
    path = Path(rule)
    if path.suffix == ".parquet" and path.is_file():
        rule = Split.load(path).plan.rule
    facts = pd.DataFrame([dict(sentence.facts) for sentence in sentences], dtype=object)
    named = [str(name) for name in facts if rule.partition(":")[2].strip() == name]
    if ":" in rule and not named:
        named = [str(name) for name in facts]  # the splitter tells what there is
    frame = facts[named].set_axis(pd.RangeIndex(len(sentences)))
    frame["words"] = ["\n".join(sentence.words) for sentence in sentences]
    frame["tags"] = ["\n".join("\t".join(tags) for tags in s.tags) for s in sentences]
    return frame


def _labels(parts: Iterable[Sequence[Sentence]], head: int, source: str) -> tuple[str, ...]:
    """List the tags of a head, ``O`` first."""
    found = {tag for part in parts for sentence in part for tag in sentence.tags[head]} - {""}
    if not found:
        raise UserError(f"{source}: no word has a tag")
    if len(found) > MOST_LABELS:
        raise UserError(
            f"{source}: {len(found):,} different tags ({listed(sorted(found), 3)}); is it the"
            " column of tags? --data.tags names it"
        )
    return tuple(sorted(found, key=lambda tag: (tag != "O", tag)))


def _unseen(
    parts: Sequence[Sequence[Sentence]],
    labels: Sequence[Sequence[str]],
    columns: Sequence[Column],
) -> list[str]:
    """Tell of tags that training lacks; refuse a part that has none of its tags.

    Raises:
        UserError: naming the tags of both.
    """
    notes = []
    for head, (name, _) in enumerate(columns):
        seen = {tag for sentence in parts[0] for tag in sentence.tags[head]} - {""}
        for part in (1, 2):
            own = {tag for sentence in parts[part] for tag in sentence.tags[head]} - {""}
            what = f"tags of {name}" if name else "tags"
            if own and not own & seen:
                raise UserError(
                    f"{what}: training has {listed(sorted(seen))}, and {PARTS[part]}"
                    f" {listed(sorted(own))}; are they of one kind, and in one column?"
                )
            if lacking := own - seen:
                count = sum(tag in lacking for s in parts[part] for tag in s.tags[head])
                notes.append(
                    f"{what} of {PARTS[part]} that training lacks, so that they are never found:"
                    f" {listed(sorted(lacking))} ({count:,} words)"
                )
    return notes


def _repeated(parts: Sequence[Sequence[Sentence]]) -> list[str]:
    """Tell of sentences that stand in two parts."""
    frame = pd.DataFrame(
        {
            "words": ["\n".join(s.words) for part in parts for s in part],
            "part": [name for name, part in zip(PARTS, parts, strict=True) for _ in part],
        }
    )
    found = duplicates(frame, split(frame, "column:part"), ["words"])
    return [
        f"sentences of {pair.part} that stand in {pair.other} too: {pair.rows:,}" for pair in found
    ]
