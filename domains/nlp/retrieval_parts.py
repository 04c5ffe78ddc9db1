"""Which pairs a retriever learns from, and which questions judge it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import data
from core.errors import UserError
from core.split_plan import Split
from core.splits import split
from domains.nlp.collection import (
    Judged,
    Pairs,
    join,
    read_corpus,
    read_pairs,
    read_qrels,
    read_questions,
)
from domains.nlp.trec import Texts, renumbered

CRANFIELD = ("cran.all.1400.xml", "cran.qry.xml", "cranqrel.trec.txt")
Fractions = tuple[float, float, float]


class Asked(NamedTuple):
    """Questions, the documents that are searched, and which of them are relevant."""

    questions: Texts
    documents: Texts
    judged: Judged


class NumberedPairs(NamedTuple):
    """Different questions and documents, and pairs of them.

    ``rows`` (N, 2 + H) has a question, the document that answers it, and H that do not.
    """

    questions: list[str]
    documents: list[str]
    rows: NDArray[np.int64]


class Collected(NamedTuple):
    """All that a retriever learns from and is judged by.

    ``source`` says what the pairs are, and ``split`` how they were divided, where they were.
    """

    pairs: NumberedPairs
    val: Asked
    test: Asked
    source: str
    notes: tuple[str, ...]
    split: Split | None


class _Collection(NamedTuple):
    """A collection for the test, and for training and validation where it has such judgements."""

    documents: Texts
    parts: Mapping[str, Asked]


def collect(files: Mapping[str, str | None], fractions: Fractions) -> Collected:
    """Read what ``files`` names: ``dataset``, or ``corpus``, ``queries``, ``qrels`` and ``train``.

    Args:
        files: names of sets, folders and files.
        fractions: shares of train, val and test, where pairs are divided.

    Raises:
        UserError: naming what is missing or wrong.
    """
    given = _read(files)
    if files["train"]:
        pairs, source = read_pairs(Path(files["train"])), f"as {files['train']} has them"
    elif given is not None and "train" in given.parts:
        pairs, source = _relevant(given.parts["train"]), "from the judgements for training"
    elif given is not None:
        pairs, source = _titles(given.documents), "of titles and their texts"
    else:
        raise UserError("give --data.train PAIRS, or --data.corpus, --data.queries, --data.qrels")
    notes: list[str] = []
    made = None
    test = None if given is None else given.parts["test"]
    val = None if given is None else given.parts.get("val")
    if val is None or test is None:
        shares = fractions if test is None else (fractions[0] + fractions[2], fractions[1], 0.0)
        frame = pd.DataFrame({"question": pairs.questions})
        made = split(frame, "group:question", fractions=shares)
        notes += made.notes
        val = _held_out(pairs, made.val) if val is None else val
        test = _held_out(pairs, made.test) if test is None else test
        pairs = _chosen(pairs, made.train)
    if not pairs.questions:
        raise UserError("no pair is left to train on; lower --data.val_fraction")
    notes += [*_empty(test), *test.judged.notes]
    return Collected(_numbered(pairs), val, test, source, tuple(notes), made)


def read_documents(name: str) -> Texts:
    """Read the documents of a set of the catalogue, a BEIR folder or a file."""
    if Path(name).exists() or name not in data.entries():
        return read_corpus(Path(name))
    return read_corpus(_cranfield(name)[0])


def _read(files: Mapping[str, str | None]) -> _Collection | None:
    """Read the collection, where one is named."""
    own = {key: files[key] for key in ("corpus", "queries", "qrels") if files[key]}
    dataset = files["dataset"]
    if not own and dataset is None:
        return None
    if dataset is None:
        if lacking := {"corpus", "queries", "qrels"} - set(own):
            raise UserError(
                f"--data.{min(lacking)} is missing: a collection is a corpus, queries and qrels"
            )
        corpus, queries, qrels = (Path(str(own[key])) for key in ("corpus", "queries", "qrels"))
        parts = {"test": qrels}
    elif own:
        raise UserError(f"--data.{min(own)}: leave it out beside --data.dataset={dataset}")
    elif Path(dataset).is_dir():
        corpus = queries = Path(dataset)
        names = {"train": "train", "dev": "val", "test": "test"}
        found = {part: corpus / "qrels" / f"{name}.tsv" for name, part in names.items()}
        parts = {part: path for part, path in found.items() if path.is_file() or part == "test"}
    else:
        corpus, queries, qrels = _cranfield(dataset)
        parts = {"test": qrels}
    documents, questions = read_corpus(corpus), read_questions(queries)
    return _Collection(
        documents, {part: _asked(documents, questions, path) for part, path in parts.items()}
    )


def _cranfield(dataset: str) -> list[Path]:
    if dataset != "cranfield":
        raise UserError(
            f"data.dataset={dataset}: no folder, and no collection of the catalogue; there is"
            " cranfield"
        )
    place = data.locate(dataset)
    folder = place if place.is_dir() else place.parent
    return [folder / name for name in CRANFIELD]


def _asked(documents: Texts, questions: Texts, path: Path) -> Asked:
    """Take the questions that a file judges; those without a judgement are not asked."""
    table = read_qrels(path)
    questions = renumbered(questions, table)
    judged = set(table["query"])
    known = [place for place, name in enumerate(questions.ids) if name in judged]
    chosen = Texts(*([part[place] for place in known] for part in questions))
    return Asked(chosen, documents, join(table, documents, chosen, path))


def _relevant(asked: Asked) -> Pairs:
    """Pair each question with each of its relevant documents."""
    questions, documents = asked.questions.whole(), asked.documents.whole()
    found = [
        (questions[place], documents[row])
        for place, rows in enumerate(asked.judged.rows)
        for row in rows.tolist()
        if row < len(documents) and documents[row] and questions[place]
    ]
    return Pairs([q for q, _ in found], [d for _, d in found], [[] for _ in found])


def _titles(documents: Texts) -> Pairs:
    """Pair each title with its text, without the title where the text begins with it."""
    found = []
    for title, text in zip(documents.titles, documents.texts, strict=True):
        rest = text.removeprefix(title).strip()
        if title and rest:
            found.append((title, rest))
    if not found:
        raise UserError(
            "the documents have no titles to learn from; give pairs by --data.train, or only judge"
            " the encoder by `pleiad test`"
        )
    return Pairs([q for q, _ in found], [d for _, d in found], [[] for _ in found])


def _chosen(pairs: Pairs, rows: NDArray[np.int64]) -> Pairs:
    chosen = rows.tolist()
    return Pairs(
        [pairs.questions[row] for row in chosen],
        [pairs.positives[row] for row in chosen],
        [pairs.negatives[row] for row in chosen],
    )


def _held_out(pairs: Pairs, rows: NDArray[np.int64]) -> Asked:
    """Ask the questions of some pairs, among the documents of these pairs."""
    questions, documents, numbered = _numbered(_chosen(pairs, rows))
    if not len(numbered):
        raise UserError(
            f"{len(pairs.questions):,} pairs are too few to hold some out; give more, or raise"
            " --data.val_fraction and --data.test_fraction"
        )
    relevant: list[list[int]] = [[] for _ in questions]
    for question, document in np.unique(numbered[:, :2], axis=0).tolist():
        relevant[question].append(document)
    judged = [np.asarray(each, np.int64) for each in relevant]
    return Asked(
        _plain(questions),
        _plain(documents),
        Judged(judged, [np.ones_like(each) for each in judged], ()),
    )


def _numbered(pairs: Pairs) -> NumberedPairs:
    """Number equal texts alike."""
    questions: dict[str, int] = {}
    documents: dict[str, int] = {}
    rows = [
        [
            questions.setdefault(question, len(questions)),
            *(documents.setdefault(text, len(documents)) for text in (positive, *negatives)),
        ]
        for question, positive, negatives in zip(*pairs, strict=True)
    ]
    return NumberedPairs(list(questions), list(documents), np.asarray(rows, np.int64))


def _plain(texts: Sequence[str]) -> Texts:
    ids = [str(number) for number in range(1, len(texts) + 1)]
    return Texts(ids, [""] * len(texts), list(texts))


def _empty(asked: Asked) -> list[str]:
    """Count what is empty; it stays, and is found last or finds anything."""
    parts = (("documents", asked.documents), ("questions", asked.questions))
    counts = {name: sum(not text for text in texts.whole()) for name, texts in parts}
    return [f"{count:,} {name} are empty" for name, count in counts.items() if count]
