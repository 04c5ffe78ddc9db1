"""Sentences of words with tags, whatever file they stand in."""

import codecs
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError

LIMIT_BYTES = 2 * 2**30


class Sentence(NamedTuple):
    """A sentence of N words.

    Attributes:
        words: as they stand in the file, white space and empty ones included.
        tags: N tags for each column that was asked for; a word without one has an empty tag.
        lines: where each word stands, counted from 1.
        facts: what else the file says of the sentence, such as its ``document``.
    """

    words: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    facts: Mapping[str, str]


class Answer(NamedTuple):
    """What was predicted for a sentence of N words: N tags a head, and how probable each is."""

    tags: tuple[tuple[str, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]


def read_lines(path: Path) -> list[str]:
    r"""Read the lines of a UTF-8 file, parted at ``\n`` alone; a mark of byte order is dropped.

    Raises:
        UserError: if the file is missing, too large or not UTF-8; it names line and byte.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if (size := path.stat().st_size) > LIMIT_BYTES:
            raise UserError(f"{path}: {size:,} bytes; at most {LIMIT_BYTES:,} are read from a file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: the byte 0x{wrong:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    return text.split("\n")


def split_words(line: str) -> list[str]:
    r"""Split a plain sentence into words.

    White space parts words. Marks of punctuation at the ends of what is left are words of their
    own, one each; but ``@`` and ``#`` before a letter or a digit stay with it.

    Example:
        >>> split_words('"Don\'t panic," said @marvin (twice).')
        ['"', "Don't", 'panic', ',', '"', 'said', '@marvin', '(', 'twice', ')', '.']
    """
    words: list[str] = []
    for piece in line.split():
        first, last = 0, len(piece)
        while first < last and _is_mark(piece[first]):
            if piece[first] in "@#" and first + 1 < last and piece[first + 1].isalnum():
                break
            first += 1
        while last > first and _is_mark(piece[last - 1]):
            last -= 1
        words += [*piece[:first], *([piece[first:last]] if first < last else []), *piece[last:]]
    return words


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


def count_noted(lines: Sequence[int], what: str, path: Path) -> list[str]:
    """Tell how many lines are odd in a way, and where the first one stands."""
    return [f"{path.name}: {what}: {len(lines):,}, first in line {lines[0]}"] if lines else []
