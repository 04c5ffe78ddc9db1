"""Open a file of tagged sentences, or of sentences to tag, by its form."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.errors import UserError
from domains.nlp.conll import ColumnFile, read_conll
from domains.nlp.json_lines import JsonLines, json_text, read_json_lines
from domains.nlp.sentences import Answer, Sentence, read_lines, split_words

JSON_LINES = (".jsonl", ".ndjson")
OTHERS = (".csv", ".json", ".parquet", ".xlsx", ".gz", ".zip")


class Tagged(Protocol):
    """A file of sentences that can be given back with what was predicted for them."""

    @property
    def path(self) -> Path:
        """Where it stands."""
        ...

    @property
    def sentences(self) -> list[Sentence]:
        """In the order of the file."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about it."""
        ...

    def written(self, answers: Sequence[Answer], names: Sequence[str]) -> str:
        """Give the file back with one answer a sentence, of heads that predict ``names``."""
        ...


@dataclass(frozen=True)
class PlainText:
    """A file of one plain sentence a line, parted into words by :func:`split_words`.

    Attributes:
        path: where it stands.
        sentences: in the order of the file.
        notes: what is odd about it.
    """

    path: Path
    sentences: list[Sentence]
    notes: tuple[str, ...]

    def written(self, answers: Sequence[Answer], names: Sequence[str]) -> str:
        """Write CoNLL: each word, a TAB and its tags; an empty line after each sentence."""
        parts = []
        for sentence, answer in zip(self.sentences, answers, strict=True):
            rows = zip(sentence.words, *answer.tags, strict=True)
            parts += ["\t".join(row) for row in rows] + [""]
        return "\n".join(parts) + "\n"


def read_tagged(
    path: Path, tokens: str | None = None, tags: Sequence[str] | None = None
) -> ColumnFile | JsonLines:
    """Read tagged sentences: JSON lines by the suffix, else one word a line.

    Args:
        path: ``.jsonl``; ``.conllu``; or any other text of one word a line.
        tokens: the column or key of words; None takes the usual one.
        tags: the columns or keys of tags; None takes the usual one; none where only words are
            wanted.

    Raises:
        UserError: naming the file, the line and what is wrong with it.
    """
    suffix = path.suffix.lower()
    if suffix in JSON_LINES:
        return read_json_lines(path, tokens, tags)
    if suffix in OTHERS:
        raise UserError(
            f"{path}: {suffix} files are not read here; write one word a line with its tag after a"
            ' TAB and an empty line after each sentence (.conll), or {"tokens": [...], "tags":'
            " [...]} a line (.jsonl)"
        )
    return read_conll(path, tokens, tags)


def read_untagged(path: Path, tokens: str | None = None) -> Tagged:
    """Read sentences to tag; a ``.txt`` in which most lines hold no TAB is of plain sentences.

    Raises:
        UserError: naming the file, the line and what is wrong with it.
    """
    if path.suffix.lower() == ".txt":
        lines = read_lines(path)
        if 2 * sum("\t" in line for line in lines) <= sum(bool(line.strip()) for line in lines):
            return _plain(path, lines)
    return read_tagged(path, tokens, ())


def json_of(file: Tagged, answers: Sequence[Answer], names: Sequence[str]) -> str:
    """Write any file's sentences and answers as JSON lines."""
    if isinstance(file, JsonLines):
        return file.written(answers, names)
    records = [{**s.facts, "tokens": list(s.words)} for s in file.sentences]
    return json_text(records, file.sentences, answers, names)


def _plain(path: Path, lines: Sequence[str]) -> PlainText:
    sentences = []
    for number, line in enumerate(lines, 1):
        if words := split_words(line):
            sentences.append(Sentence(tuple(words), (), (number,) * len(words), {}))
    if not sentences:
        raise UserError(f"{path}: holds no words")
    return PlainText(path, sentences, ())
