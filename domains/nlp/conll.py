"""Read and write files of one word a line: CoNLL, CoNLL-U and CoNLL-U Plus.

CoNLL, of any number of columns:

- Lines end at line feeds alone, and where half of the lines hold a TAB, columns are parted by TABs
  alone: words may be or hold any other white space. In other files spaces part columns.
- A line without anything but spaces and TABs ends a sentence; ``-DOCSTART-`` begins a document.
- A line that begins with ``#`` before the first word of a sentence, and has not as many columns as
  other lines, is a comment; ``# key = value`` becomes a fact of the sentence.
- A line with too few columns is an error that names it. A word with an empty tag has no tag; more
  columns than the other lines have are left out. Both are counted in the notes.

CoNLL-U (Universal Dependencies): ten columns. The lines of multi-word tokens (``3-4``) and of empty
nodes (``3.1``) are passed over, and ``_`` is no tag.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from domains.nlp.sentences import Answer, Sentence, count_noted, read_lines

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
PLUS = "# global.columns ="
DOCUMENT = "document"
_WORD_ID = re.compile(r"[1-9][0-9]*")
_OTHER_ID = re.compile(r"[0-9]+([-.])[0-9]+")


class _Layout(NamedTuple):
    """How the lines of a file are made."""

    tabs: bool
    columns: tuple[str, ...]
    universal: bool

    def cells(self, line: str) -> list[str]:
        line = line.removesuffix("\r")
        return line.split("\t") if self.tabs else re.split(" +", line.strip(" \t"))


@dataclass(frozen=True)
class ColumnFile:
    """A file of one word a line.

    Attributes:
        path: where it stands.
        sentences: in the order of the file.
        notes: what is odd about it.
        lines: all its lines as they are.
        layout: how they are made.
    """

    path: Path
    sentences: list[Sentence]
    notes: tuple[str, ...]
    lines: list[str]
    layout: _Layout

    def written(self, answers: Sequence[Answer], names: Sequence[str]) -> str:
        """Give the file back with what was predicted.

        CoNLL gets a further column a head, the last ones. CoNLL-U keeps its ten: the column of the
        head's name is filled in where there is one, else ``Name=tag`` goes into ``misc``.

        Args:
            answers: one a sentence.
            names: what the H heads predict.
        """
        lines = list(self.lines)
        for sentence, answer in zip(self.sentences, answers, strict=True):
            for number, tags in zip(sentence.lines, zip(*answer.tags, strict=True), strict=True):
                lines[number - 1] = self._line(lines[number - 1], tags, names)
        return "\n".join(lines)

    def _line(self, line: str, tags: Sequence[str], names: Sequence[str]) -> str:
        end = "\r" if line.endswith("\r") else ""
        if not self.layout.universal:
            return ("\t" if self.layout.tabs else " ").join([line.removesuffix("\r"), *tags]) + end
        cells = self.layout.cells(line)
        for tag, name in zip(tags, names, strict=True):
            place = _place(name.lower(), self.layout.columns)
            if place is not None:
                cells[place] = tag
            else:
                misc = _place("misc", self.layout.columns)
                place = len(cells) - 1 if misc is None else misc
                kept = [] if cells[place] == "_" else [cells[place]]
                cells[place] = "|".join([*kept, f"{name.capitalize()}={tag}"])
        return "\t".join(cells) + end


def read_conll(
    path: Path, tokens: str | None = None, tags: Sequence[str] | None = None
) -> ColumnFile:
    """Read a file of one word a line.

    Args:
        path: its suffix ``.conllu`` or ``.conllup`` tells CoNLL-U; else it is CoNLL.
        tokens: the column of words: a number from 1, or a name in CoNLL-U; None takes the first,
            or ``form``.
        tags: the columns of tags, numbers from 1 or from the end (-1), or names in CoNLL-U; None
            takes the last, or ``upos``; none where only words are wanted.

    Raises:
        UserError: if it is not UTF-8, has no word, lacks a column, or a line is too short.
    """
    lines = read_lines(path)
    layout = _layout(path, lines)
    word_column = _column(path, layout, tokens or ("form" if layout.universal else "1"))
    if tags is None:
        tags = ["upos" if layout.universal else "-1"]
    if tags and len(layout.columns) == 1:
        raise UserError(
            f"{path}: has one column, so it holds no tags; write each word, a TAB and its tag"
        )
    wanted = [word_column, *(_column(path, layout, name) for name in tags)]
    if len(set(wanted)) < len(wanted):
        raise UserError(
            f"{path}: column {wanted[-1] + 1} is asked for twice; --data.tokens and --data.tags"
            " must be different columns"
        )
    return _Reader(path, lines, layout, wanted).read()


class _Reader:
    """Go through the lines of a file once."""

    def __init__(self, path: Path, lines: list[str], layout: _Layout, wanted: list[int]) -> None:
        self.path = path
        self.lines = lines
        self.layout = layout
        self.wanted = wanted
        self.sentences: list[Sentence] = []
        self.rows: list[tuple[str, ...]] = []
        self.places: list[int] = []
        self.facts: dict[str, str] = {}
        self.documents = 0
        self.untagged: list[int] = []
        self.longer: list[int] = []

    def read(self) -> ColumnFile:
        for number, line in enumerate(self.lines, 1):
            if not line.strip(" \t\r"):
                self._end()
            elif line.startswith("-DOCSTART-"):
                self._end()
                self._document(str(self.documents + 1))
            elif not self.rows and self._is_comment(line):
                self._comment(line[1:].strip())
            else:
                self._row(number, line)
        self._end()
        if not self.sentences:
            raise UserError(f"{self.path}: holds no words")
        notes = count_noted(
            self.untagged, "words without a tag, which count nowhere", self.path
        ) + count_noted(self.longer, "lines with more columns than the others have", self.path)
        return ColumnFile(self.path, self.sentences, tuple(notes), self.lines, self.layout)

    def _is_comment(self, line: str) -> bool:
        if not line.startswith("#"):
            return False
        return self.layout.universal or len(self.layout.cells(line)) != len(self.layout.columns)

    def _comment(self, text: str) -> None:
        if text.startswith("newdoc"):
            _, _, name = text.partition("=")
            self._document(name.strip() or str(self.documents + 1))
        elif "=" in text:
            key, _, value = text.partition("=")
            self.facts[key.strip()] = value.strip()

    def _document(self, name: str) -> None:
        self.documents += 1
        self.facts[DOCUMENT] = name

    def _row(self, number: int, line: str) -> None:
        cells = self.layout.cells(line)
        if self.layout.universal and not self._is_word(number, cells):
            return
        if len(cells) <= max(self.wanted):
            count = f"{len(cells)} column{'s' * (len(cells) > 1)}"
            raise UserError(
                f"{self.path}:{number}: has {count}, and other lines have"
                f" {len(self.layout.columns)}; give the word its tag, or leave the line out"
            )
        if any(cells[len(self.layout.columns) :]):
            self.longer.append(number)
        row = tuple(cells[place] for place in self.wanted)
        if self.layout.universal:
            row = (row[0], *("" if tag == "_" else tag for tag in row[1:]))
        if "" in row[1:]:
            self.untagged.append(number)
        self.rows.append(row)
        self.places.append(number)

    def _is_word(self, number: int, cells: list[str]) -> bool:
        columns = len(self.layout.columns)
        if len(cells) != columns:
            raise UserError(
                f"{self.path}:{number}: has {len(cells)} of the {columns} columns of CoNLL-U,"
                " parted by TABs"
            )
        place = _place("id", self.layout.columns)
        if place is None or _WORD_ID.fullmatch(cells[place]):
            return True
        if not _OTHER_ID.fullmatch(cells[place]):
            raise UserError(
                f"{self.path}:{number}: {cells[place]!r} is no number of a word in CoNLL-U; name"
                " the file .conll if it is not of that form"
            )
        return False

    def _end(self) -> None:
        if self.rows:
            words, *tags = zip(*self.rows, strict=True)
            sentence = Sentence(words, tuple(tags), tuple(self.places), dict(self.facts))
            self.sentences.append(sentence)
            self.facts = {k: v for k, v in self.facts.items() if k == DOCUMENT}
        self.rows, self.places = [], []


def _layout(path: Path, lines: Sequence[str]) -> _Layout:
    """Find out how the lines are made: what parts columns, and how many there are."""
    if path.suffix in (".conllu", ".conllup"):
        first = lines[0].removesuffix("\r")
        names = first.removeprefix(PLUS).lower().split() if first.startswith(PLUS) else CONLLU
        return _Layout(True, tuple(names), universal=True)
    rows = [line for line in lines if line.strip(" \t\r") and not line.startswith("-DOCSTART-")]
    if not rows:
        raise UserError(f"{path}: holds no words")
    tabs = 2 * sum("\t" in line for line in rows) >= len(rows)
    layout = _Layout(tabs, (), universal=False)
    columns = Counter(len(layout.cells(line)) for line in rows).most_common(1)[0][0]
    return layout._replace(columns=tuple(str(number + 1) for number in range(columns)))


def _column(path: Path, layout: _Layout, name: str) -> int:
    """Find a column by its number or name."""
    count = len(layout.columns)
    place = _place(name.lower(), layout.columns)
    if place is None and re.fullmatch(r"-[0-9]+", name) and -count <= int(name) < 0:
        place = count + int(name)
    if place is None and layout.universal and name.isdecimal() and 0 < int(name) <= count:
        place = int(name) - 1
    if place is None:
        there = ", ".join(layout.columns) if layout.universal else f"1 to {count}, or -1 (the last)"
        raise UserError(f"{path}: there is no column {name!r}; its columns are {there}")
    return place


def _place(name: str, columns: Sequence[str]) -> int | None:
    return columns.index(name) if name in columns else None
