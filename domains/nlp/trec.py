"""Test collections in the forms of TREC: documents, topics, judgements and ranked runs.

Documents and topics are marked up by tags that are seldom XML: there is no root, tags stay open,
``&`` and ``<`` stand for themselves. They are read as text with tags; nothing is expanded, and a
declaration of entities is refused.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple, TextIO

import pandas as pd

from core.errors import UserError

CHUNK = 2**20
"""Characters read at a time, and the most that a single tag may have."""
DOCUMENT = {
    **{"docno": "id", "docid": "id", "title": "title", "headline": "title"},
    **{"text": "text", "body": "text", "abstract": "text"},
}
"""Which part of a document a tag holds."""
TOPIC = {"num": "id", "title": "text", "desc": "description", "narr": "narrative"}
"""Which part of a topic a tag holds; of a topic the title is asked."""


class Texts(NamedTuple):
    """Documents or questions: N different ids, and as many titles (may be empty) and texts."""

    ids: list[str]
    titles: list[str]
    texts: list[str]

    def whole(self) -> list[str]:
        """Give each title and text as one string."""
        return [f"{a} {b}".strip() for a, b in zip(self.titles, self.texts, strict=True)]


def read_documents(path: Path) -> Texts:
    """Read documents, each ``<doc>`` with ``<docno>`` and ``<text>``, ``<title>`` or both.

    Raises:
        UserError: naming file, line and id of what is missing or given twice.
    """
    return _texts(path, "doc", DOCUMENT)


def read_topics(path: Path) -> Texts:
    """Read topics, each ``<top>`` with ``<num>`` and ``<title>``.

    Raises:
        UserError: naming file, line and id of what is missing or given twice.
    """
    return _texts(path, "top", TOPIC)


def read_judgements(path: Path) -> pd.DataFrame:
    """Read judgements, ``topic iteration document gain`` a line, parted by white space.

    Returns:
        Columns ``query``, ``document`` (text) and ``gain`` (whole numbers; 0 and below: not
        relevant).

    Raises:
        UserError: naming file and line of what does not have that form.
    """
    rows = []
    with _opened(path) as file:
        for number, words in enumerate(map(str.split, file), 1):
            if not words:
                continue
            if len(words) != 4:
                raise UserError(
                    f"{path}:{number}: {len(words)} words; a judgement is"
                    " 'topic iteration document gain'"
                )
            rows.append((words[0], words[2], gain(words[3], path, number), number))
    return judgements(rows, path)


def judgements(rows: Iterable[tuple[str, str, int, int]], path: Path) -> pd.DataFrame:
    """Check judgements (query, document, gain, line) and put them into a table.

    Raises:
        UserError: if there are none, or a document is judged twice and differently.
    """
    frame = pd.DataFrame(rows, columns=["query", "document", "gain", "line"])
    if frame.empty:
        raise UserError(f"{path}: holds no judgement")
    frame = frame.drop_duplicates(["query", "document", "gain"])
    twice = frame[frame.duplicated(["query", "document"])]
    if len(twice):
        first = twice.iloc[0]
        raise UserError(
            f"{path}:{first.line}: the document {first.document!r} was judged for the question"
            f" {first['query']!r} before, and differently"
        )
    return frame.drop(columns="line").reset_index(drop=True)


def renumbered(topics: Texts, judged: pd.DataFrame) -> Texts:
    """Number topics by their order in the file where the judgements do, not by ``<num>``.

    So it is in the Cranfield collection: its judgements count the topics from 1 to 225, whose own
    numbers go up to 365.
    """
    asked = set(judged["query"])
    by_order = [str(place) for place in range(1, len(topics.ids) + 1)]
    if asked <= set(topics.ids) or not asked <= set(by_order):
        return topics
    return topics._replace(ids=by_order)


def write_run(path: Path, hits: pd.DataFrame, tag: str) -> None:
    """Write ranked documents as trec_eval takes them: ``query Q0 document rank score tag``.

    Args:
        path: the file.
        hits: columns ``query``, ``document``, ``rank`` (from 1) and ``score``.
        tag: one word that names the system.
    """
    rows = zip(hits["query"], hits["document"], hits["rank"], hits["score"], strict=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{q} Q0 {d} {rank} {score:.6f} {tag}\n" for q, d, rank, score in rows)


def gain(word: str, path: Path, number: int) -> int:
    """Read the gain of a judgement at line ``number`` of a file.

    Raises:
        UserError: if it is not a whole number.
    """
    try:
        return int(word)
    except ValueError:
        raise UserError(f"{path}:{number}: the gain {word!r} is not a whole number") from None


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file; what cannot be read of it is the user's mistake."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); convert it first") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _texts(path: Path, record: str, fields: Mapping[str, str]) -> Texts:
    """Read the records of a file."""
    reader = _Reader(path, record, fields)
    with _opened(path) as file:
        while text := file.read(CHUNK):
            reader.take(text)
    return reader.finish()


class _Reader(HTMLParser):
    """Collect the records of a file, and in each the text between known tags."""

    CDATA_CONTENT_ELEMENTS = ()  # type: ignore[misc]  # a script is text like any other
    RCDATA_CONTENT_ELEMENTS = ()  # type: ignore[misc]  # and a title may stay open

    def __init__(self, path: Path, record: str, fields: Mapping[str, str]) -> None:
        super().__init__(convert_charrefs=True)
        self.path = path
        self.record = record
        self.fields = fields
        self.found: dict[str, tuple[str, str]] = {}
        self.parts: dict[str, list[str]] | None = None
        self.field: str | None = None

    def take(self, text: str) -> None:
        """Read on."""
        self.feed(text)
        if len(self.rawdata) > CHUNK:
            raise self._fault("a tag that does not end")

    def finish(self) -> Texts:
        """End the file, and give its records."""
        self.close()
        if self.parts is not None:
            raise self._fault(f"the last <{self.record}> is not closed")
        if not self.found:
            raise UserError(f"{self.path}: holds no <{self.record}>")
        titles, texts = zip(*self.found.values(), strict=True)
        return Texts(list(self.found), list(titles), list(texts))

    def handle_decl(self, decl: str) -> None:
        """Refuse declarations of entities."""
        if "entity" in decl.lower():
            raise self._fault("declares entities, which are not expanded here")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a record or a field."""
        if tag == self.record:
            if self.parts is not None:
                raise self._fault(f"a <{tag}> within another; is one not closed?")
            self.parts, self.field = {}, None
        elif tag in self.fields:
            if self.parts is None:
                raise self._fault(f"<{tag}> outside of a <{self.record}>")
            self.field = self.fields[tag]
            self.parts.setdefault(self.field, []).append(" ")

    def handle_endtag(self, tag: str) -> None:
        """End a record or a field."""
        if tag == self.record and self.parts is not None:
            self._add(self.parts)
            self.parts = self.field = None
        elif tag in self.fields:
            self.field = None

    def handle_data(self, data: str) -> None:
        """Keep the text of a field."""
        if self.parts is not None and self.field is not None:
            self.parts[self.field].append(data)

    def _add(self, parts: Mapping[str, list[str]]) -> None:
        told = {name: " ".join("".join(words).split()) for name, words in parts.items()}
        name = told.get("id", "").removeprefix("Number:").strip()
        if not name:
            tag = next(tag for tag, field in self.fields.items() if field == "id")
            raise self._fault(f"a <{self.record}> without <{tag}>")
        if name in self.found:
            raise self._fault(f"the id {name!r} is given twice")
        self.found[name] = told.get("title", ""), told.get("text", "")

    def _fault(self, told: str) -> UserError:
        return UserError(f"{self.path}:{self.getpos()[0]}: {told}")
