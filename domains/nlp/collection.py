"""Test collections and training pairs in the forms that users have: BEIR, tables, lines, TREC."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import UserError
from domains.nlp import trec
from domains.nlp.ranking import FAR
from domains.nlp.tables import SUFFIXES, read_table
from domains.nlp.trec import Texts

ID = ("_id", "id", "docno", "doc_id", "query_id", "query-id", "qid", "pid")
TEXT = ("text", "query", "question", "contents", "document", "passage")
QUERY = ("query-id", "query_id", "qid", "query")
DOCUMENT = ("corpus-id", "corpus_id", "doc_id", "document", "docid", "docno")
GAIN = ("score", "gain", "relevance", "label", "rel")
QUESTION = ("query", "question", "anchor")
POSITIVE = ("positive", "pos", "document", "passage", "text")
NEGATIVE = ("negative", "neg", "negatives")


class Pairs(NamedTuple):
    """N questions, the text that answers each, and texts that do not, as many for each."""

    questions: list[str]
    positives: list[str]
    negatives: list[list[str]]


class Judged(NamedTuple):
    """The relevant documents of each of Q questions.

    ``rows`` in the corpus rise, and end with ``FAR`` for documents that are not in it; ``gains``
    are theirs, above zero.
    """

    rows: list[NDArray[np.int64]]
    gains: list[NDArray[np.int64]]
    notes: tuple[str, ...]


def read_corpus(path: Path) -> Texts:
    """Read documents: a BEIR folder, a table with ``text``, one a line, or TREC.

    Raises:
        UserError: naming file, place and id of what is missing or given twice.
    """
    path = path / "corpus.jsonl" if path.is_dir() else path
    return _texts(path) if _is_table(path) else trec.read_documents(path)


def read_questions(path: Path) -> Texts:
    """Read questions: a BEIR folder, a table with ``text``, one a line, or TREC.

    Raises:
        UserError: naming file, place and id of what is missing or given twice.
    """
    path = path / "queries.jsonl" if path.is_dir() else path
    return _texts(path) if _is_table(path) else trec.read_topics(path)


def read_qrels(path: Path) -> pd.DataFrame:
    """Read judgements: a table with ``query-id``, ``corpus-id`` and ``score``, or TREC.

    Returns:
        Columns ``query``, ``document`` and ``gain``.

    Raises:
        UserError: naming file and place of what does not have that form.
    """
    if not _is_table(path) or path.suffix.lower() == ".txt":
        return trec.read_judgements(path)
    frame = read_table(path)
    names = [_named(frame, names, path) for names in (QUERY, DOCUMENT, GAIN)]
    rows = []
    for number, cells in enumerate(frame[names].itertuples(index=False, name=None), 2):
        query, document, gain = (str(cell).strip() for cell in cells)
        rows.append((query, document, trec.gain(gain, path, number), number))
    return trec.judgements(rows, path)


def read_pairs(path: Path) -> Pairs:
    """Read pairs: ``query``, ``positive`` and any ``negative`` (several: ``negative_1``, a list).

    Raises:
        UserError: naming the row of a text that is empty, or of another number of negatives.
    """
    frame = read_table(path)
    if frame.empty:
        raise UserError(f"{path}: holds no pair")
    asked, answer = (_named(frame, names, path) for names in (QUESTION, POSITIVE))
    others = [n for n in frame.columns if n.lower().rstrip("_0123456789") in NEGATIVE]
    pairs = Pairs([], [], [])
    for number, record in _rows(frame):
        question, positive = (record.get(name) for name in (asked, answer))
        negatives: list[Any] = []
        for value in (record[name] for name in others if name in record):
            negatives += value if isinstance(value, list) else [value]
        if not all(isinstance(t, str) and t.strip() for t in (question, positive, *negatives)):
            raise UserError(f"{path}: row {number}: a text of the pair is empty or no text")
        if pairs.negatives and len(negatives) != len(pairs.negatives[0]):
            raise UserError(
                f"{path}: row {number}: {len(negatives)} negatives, and"
                f" {len(pairs.negatives[0])} before; give every pair as many"
            )
        pairs.questions.append(str(question))
        pairs.positives.append(str(positive))
        pairs.negatives.append(negatives)
    return pairs


def join(judged: pd.DataFrame, documents: Texts, questions: Texts, source: Path) -> Judged:
    """Find the rows of judged documents in the corpus; documents that lack count as not found.

    Raises:
        UserError: if a judgement names no question that there is, or none a document.
    """
    places = {name: place for place, name in enumerate(questions.ids)}
    strange = sorted(set(judged["query"]) - set(places))
    if strange:
        raise UserError(
            f"{source}: judges the question {strange[0]!r}, one of {len(strange):,} that the"
            f" questions do not have (they begin with {questions.ids[0]!r})"
        )
    relevant = judged[judged["gain"] > 0]
    known = {name: row for row, name in enumerate(documents.ids)}
    rows = relevant["document"].map(known)
    lacking = int(rows.isna().sum())
    if lacking == len(relevant):
        raise UserError(
            f"{source}: none of its {len(relevant):,} relevant documents is in the corpus"
            f" (such as {judged['document'].iloc[0]!r}; the corpus begins with"
            f" {documents.ids[0]!r})"
        )
    frame = pd.DataFrame(
        {
            "place": relevant["query"].map(places),
            "row": rows.fillna(FAR).astype(np.int64),
            "gain": relevant["gain"],
        }
    ).sort_values(["place", "row"])
    grouped = dict(iter(frame.groupby("place")))
    none = np.zeros(0, np.int64)
    found = [grouped.get(place) for place in range(len(questions.ids))]
    told = (lacking, "relevant documents are not in the corpus and count as not found")
    without = (sum(part is None for part in found), "questions have no relevant document")
    return Judged(
        [none if part is None else part["row"].to_numpy() for part in found],
        [none if part is None else part["gain"].to_numpy() for part in found],
        tuple(f"{count:,} {what}" for count, what in (told, without) if count),
    )


def _texts(path: Path) -> Texts:
    """Read ids, titles and texts; rows without a column of ids are counted from 1."""
    frame = read_table(path)
    if frame.empty:
        raise UserError(f"{path}: holds no text")
    key = next((name for name in ID if name in frame), None)
    text = _named(frame, TEXT, path)
    found: dict[str, tuple[str, str]] = {}
    for number, record in _rows(frame):
        name = str(record.get(key, "")).strip() if key is not None else str(number)
        if not name or name in found:
            told = f"the id {name!r} is given twice" if name else "the id is empty"
            raise UserError(f"{path}: row {number}: {told}")
        title, whole = (" ".join(str(record.get(n, "")).split()) for n in ("title", text))
        found[name] = title, whole
    titles, texts = zip(*found.values(), strict=True)
    return Texts(list(found), list(titles), list(texts))


def _rows(frame: pd.DataFrame) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number of each row, from 1, and its cells that are not empty."""
    names = list(frame.columns)
    for number, cells in enumerate(frame.itertuples(index=False, name=None), 1):
        yield number, {n: c for n, c in zip(names, cells, strict=True) if c not in (None, "")}


def _named(frame: pd.DataFrame, names: Sequence[str], path: Path) -> str:
    """Find the column that has one of the names."""
    for name in names:
        if name in frame:
            return name
    raise UserError(
        f"{path}: has no column {names[0]!r} (or {', '.join(names[1:])}); it has"
        f" {', '.join(map(str, frame.columns))}"
    )


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES
