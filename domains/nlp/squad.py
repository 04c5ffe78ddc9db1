"""Read questions on texts: SQuAD 1.1 and 2.0 JSON, JSON lines, CSV; check where answers stand.

Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, EMNLP 2016, and Know
What You Don't Know, ACL 2018. Places are counted in characters of the context, from 0.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import UserError
from domains.nlp.tables import lines, read_table, read_utf8

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


class Answer(NamedTuple):
    """A gold answer: its ``text`` and its first character; None where it stands nowhere."""

    text: str
    start: int | None


class Question(NamedTuple):
    """A question on a text.

    Attributes:
        id: a name that no other question of the set has.
        text: the question.
        context: the text that is asked.
        answers: the gold answers; empty where the context has none, None where they are not known.
        article: what the paragraph is part of; empty where that is not known.
    """

    id: str
    text: str
    context: str
    answers: tuple[Answer, ...] | None
    article: str

    @property
    def golds(self) -> tuple[str, ...]:
        """The texts of the gold answers."""
        return tuple(answer.text for answer in self.answers or ())


@dataclass(frozen=True)
class QuestionSet:
    """The questions of some files, and what was noticed about them.

    Attributes:
        questions: in the order of the files.
        places: how many answers stand where the file says (``right``), were moved to their only
            place (``moved``), to the nearest of several (``nearest``), or stand nowhere
            (``lost``).
        renamed: how many ids were used before and were given a number.
    """

    questions: tuple[Question, ...]
    places: Mapping[str, int]
    renamed: int

    def notes(self) -> list[str]:
        """Say in plain sentences what was repaired."""
        wrong = sum(self.places.values()) - self.places.get("right", 0)
        told = []
        if wrong:
            counts = ", ".join(
                f"{self.places[how]:,} {meaning}"
                for how, meaning in _MEANINGS.items()
                if self.places.get(how)
            )
            told.append(
                f"{wrong:,} of {sum(self.places.values()):,} answers do not stand where the file"
                f" says: {counts}"
            )
        if self.renamed:
            told.append(f"{self.renamed:,} ids are used twice; the later ones were given a number")
        return told


_MEANINGS = {
    "moved": "moved to their only place",
    "nearest": "moved to the nearest of several places",
    "lost": "stand nowhere in the context (not trained on; in a test their text counts)",
}


def read_questions(paths: Iterable[Path]) -> QuestionSet:
    """Read files of questions.

    Args:
        paths: ``.json`` files in the form of SQuAD (or a list of rows), ``.jsonl`` with a row a
            line, ``.csv``, ``.tsv`` or ``.parquet``. A row has ``question`` and ``context``, and
            may have ``id``, ``title``, and ``answer`` with ``start``, or ``answers`` as Hugging
            Face writes them. An empty ``answer`` says that the context has none.

    Raises:
        UserError: naming file, place and key of what is missing, empty or of a wrong type.
    """
    questions: list[Question] = []
    places: Counter[str] = Counter()
    for path in paths:
        before = len(questions)
        for where, row in _rows(path):
            questions.append(_question(where, row, places))
        if len(questions) == before:
            raise UserError(f"{path}: holds no question")
    unique, renamed = _unique(questions)
    return QuestionSet(tuple(unique), dict(places), renamed)


def find_answer(text: str, start: int | None, context: str) -> tuple[Answer, str]:
    """Find where an answer stands; white space may differ.

    Args:
        text: the answer.
        start: where it is said to begin; None where nothing is said.
        context: the text.

    Returns:
        The answer as it stands in the context, and how it was found (see :class:`QuestionSet`).
    """
    if start is not None and start >= 0 and context.startswith(text, start):
        inner = text.strip()
        return Answer(inner, start + text.index(inner)), "right"
    pattern = r"\s+".join(re.escape(word) for word in text.split())
    found = list(re.finditer(pattern, context))
    if not found:
        return Answer(text.strip(), None), "lost"
    place = start or 0
    best = min(found, key=lambda match: abs(match.start() - place))
    if start is None and len(found) == 1:
        how = "right"
    else:
        how = "moved" if len(found) == 1 else "nearest"
    return Answer(best.group(), best.start()), how


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give the rows of a file, each with its place for messages."""
    if path.suffix.lower() == ".json":
        yield from _json_rows(path)
    elif path.suffix.lower() == ".jsonl":
        for number, line in enumerate(lines(read_utf8(path)), 1):
            if line.strip():
                yield f"{path}:{number}", _mapping(_parsed(line, f"{path}:{number}"), str(path))
    elif path.suffix.lower() in SUFFIXES:
        yield from _table_rows(path)
    else:
        raise UserError(f"{path}: questions are read from {', '.join(SUFFIXES)}")


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    content = _parsed(read_utf8(path), str(path))
    if isinstance(content, list):
        for number, row in enumerate(content):
            yield f"{path}: [{number}]", _mapping(row, f"{path}: [{number}]")
        return
    articles = _list(_mapping(content, str(path)), "data", str(path))
    for a, article in enumerate(articles):
        where = f"{path}: data[{a}]"
        title = _mapping(article, where).get("title") or ""
        for p, paragraph in enumerate(_list(article, "paragraphs", where)):
            place = f"{where}.paragraphs[{p}]"
            context = _filled(_mapping(paragraph, place), "context", place)
            for q, asked in enumerate(_list(paragraph, "qas", place)):
                there = f"{place}.qas[{q}]"
                row = {**_mapping(asked, there), "context": context, "title": str(title)}
                yield there, row


def _table_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix.lower() == ".parquet":
        table = _parquet(path)
        names, rows = table.column_names, table.to_pylist()
    else:
        frame = read_table(path)
        names, rows = list(map(str, frame)), frame.to_dict("records")
    for name in ("question", "context"):
        if name not in names:
            raise UserError(
                f"{path}: there is no column {name!r}; the columns must be question and context,"
                f" and may be id, title, answer, start; it has {', '.join(names)}"
            )
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


def _parquet(path: Path) -> Any:
    """Read a Parquet file whose columns may hold mappings, as Hugging Face writes answers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None


def _question(where: str, row: Mapping[str, Any], places: Counter[str]) -> Question:
    context = _filled(row, "context", where)
    given = _given_answers(row, where)
    answers: tuple[Answer, ...] | None = None
    if given is not None:
        found = [find_answer(text, start, context) for text, start in given]
        places.update(how for _, how in found)
        answers = tuple(answer for answer, _ in found)
    title = row.get("title") or row.get("article") or ""
    name = row.get("id")
    return Question(
        "" if name is None else str(name),
        _filled(row, "question", where),
        context,
        answers,
        str(title),
    )


def _given_answers(row: Mapping[str, Any], where: str) -> list[tuple[str, int | None]] | None:
    """Read the answers of a row in any of the three forms; None where it has none of them."""
    if row.get("is_impossible") is True:
        return []
    if "answers" not in row:
        if "answer" not in row:
            return None
        text = row["answer"] or ""
        if not isinstance(text, str):
            raise UserError(f"{where}: answer={text!r} must be text")
        start = row.get("start", row.get("answer_start"))
        return [(text, _place(start, "start", where))] if text.strip() else []
    answers = row["answers"]
    if isinstance(answers, Mapping):  # as Hugging Face's data sets write them
        texts, starts = (_list(answers, key, f"{where}.answers") for key in _COLUMNS)
        if len(texts) != len(starts):
            raise UserError(f"{where}.answers: text and answer_start differ in length")
        answers = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    found = []
    for number, answer in enumerate(_list({"answers": answers}, "answers", where)):
        place = f"{where}.answers[{number}]"
        text = _filled(_mapping(answer, place), "text", place)
        found.append((text, _place(answer.get("answer_start"), "answer_start", place)))
    return found


_COLUMNS = ("text", "answer_start")


def _place(value: Any, key: str, where: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: {key}={value!r} must be a whole number, the answer's first character"
        ) from None


def _unique(questions: Sequence[Question]) -> tuple[list[Question], int]:
    """Give every question an id of its own: a number where it had none, or one used before."""
    taken = {question.id for question in questions}
    seen: set[str] = set()
    unique, renamed = [], 0
    for number, question in enumerate(questions, 1):
        name = question.id or str(number)
        if name in seen or (not question.id and name in taken):
            renamed += bool(question.id)
            numbered = (f"{name}-{count}" for count in itertools.count(2))
            name = next(free for free in numbered if free not in taken)
        taken.add(name)
        seen.add(name)
        unique.append(question._replace(id=name))
    return unique, renamed


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON (line {error.lineno}: {error.msg})") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: must be a mapping, and is {type(value).__name__}")
    return value


def _list(row: Mapping[str, Any], key: str, where: str) -> list[Any]:
    if not isinstance(row.get(key), list):
        raise UserError(f"{where}: {key!r} is missing or no list")
    found: list[Any] = row[key]
    return found


def _filled(row: Mapping[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise UserError(f"{where}: {key!r} is missing; it has {', '.join(map(str, row)) or 'none'}")
    value = row[key] if row[key] is not None else ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {key}={value!r} must be text")
    if not value.strip():
        raise UserError(f"{where}: {key!r} is empty")
    return value
