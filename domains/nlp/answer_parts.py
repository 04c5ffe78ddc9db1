"""Which questions train, validate and test: those of a benchmark, or of the user's own files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import data as catalogue
from core.errors import UserError
from core.split_plan import Split
from core.splits import split
from domains.nlp.squad import SUFFIXES, Question, QuestionSet, read_questions

PARTS = ("train", "val", "test")
FEWEST_ARTICLES = 10
"""Articles from which on whole articles are split; of fewer, paragraphs are."""


@dataclass(frozen=True, eq=False)
class AnswerParts:
    """The questions of the three parts, what was noticed, and how they were split.

    Attributes:
        train: questions whose answers are known; no text of ``val`` or ``test`` is among theirs.
        val: questions to validate on.
        test: questions to test on.
        notes: plain sentences on what was repaired and left out.
        split: of own files that were split; else None.
    """

    train: tuple[Question, ...]
    val: tuple[Question, ...]
    test: tuple[Question, ...]
    notes: tuple[str, ...]
    split: Split | None = None

    @property
    def nullable(self) -> bool:
        """Whether any question has no answer."""
        return any(
            question.answers == ()
            for part in (self.train, self.val, self.test)
            for question in part
        )


def benchmark_parts(dataset: str) -> AnswerParts:
    """Read a set of the catalogue, by its splits.

    Raises:
        UserError: if it is no set of questions on texts.
    """
    entry = catalogue.entry(dataset)
    files: Mapping[str, Any] = entry.splits.get("files") or {}
    if not set(PARTS) <= set(files) or not entry.facts.get("questions"):
        raise UserError(f"data.dataset={dataset}: holds no questions on texts; take tquad")
    folder = catalogue.locate(dataset)
    read = {}
    for part in PARTS:
        globs = [files[part]] if isinstance(files[part], str) else files[part]
        read[part] = read_questions(
            sorted(path for pattern in globs for path in folder.glob(pattern))
        )
    return _without_leaks(read, None)


def own_parts(
    train: str,
    val: str | None,
    test: str | None,
    rule: str,
    fractions: tuple[float, float, float],
    folds: int | None = None,
    fold: int = 0,
) -> AnswerParts:
    """Read the user's files, and split them where no file says what validates and tests.

    Args:
        train: a file, a folder of files or a glob.
        val: the same for validation.
        test: the same for the test.
        rule: a rule of :mod:`core.splits` on the columns ``id``, ``article``, ``paragraph``; or
            ``paragraphs``, which keeps whole articles together where there are at least ten, and
            whole paragraphs else.
        fractions: shares of train, val and test.
        folds: K folds instead.
        fold: which of them is the test.

    Raises:
        UserError: naming the file or the key that does not fit.
    """
    if bool(val) != bool(test):
        raise UserError("--data.val and --data.test: give both files or none")
    if val and test:
        if folds:
            raise UserError("--data.folds: the files say already what trains")
        given = zip(PARTS, (train, val, test), strict=True)
        return _without_leaks({part: read_questions(files(f, part)) for part, f in given}, None)
    read = read_questions(files(train, "train"))
    frame, chosen = _frame(read.questions), rule
    if rule == "paragraphs":
        articles = {question.article for question in read.questions} - {""}
        chosen = "group:article" if len(articles) >= FEWEST_ARTICLES else "group:paragraph"
    made = split(frame, chosen, ids="id", fractions=fractions, folds=folds, fold=fold)
    places = {"train": made.train, "val": made.val, "test": made.test}
    parts = {
        part: QuestionSet(tuple(read.questions[row] for row in rows), {}, 0)
        for part, rows in places.items()
    }
    kept = chosen.removeprefix("group:") if chosen.startswith("group:") else "row"
    notes = [*read.notes(), *made.notes, f"each {kept} stands in one part"]
    found = _without_leaks(parts, made)
    return AnswerParts(found.train, found.val, found.test, (*notes, *found.notes), made)


def files(given: str, part: str) -> list[Path]:
    """Find the files that a key means.

    Raises:
        UserError: if there is none.
    """
    path = Path(given)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    elif any(mark in given for mark in "*?["):
        found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    else:
        found = [path]
    if not found:
        raise UserError(f"--data.{part}={given}: no file of questions")
    return found


def _frame(questions: Sequence[Question]) -> pd.DataFrame:
    """Describe each question by its id, its article and its paragraph.

    A paragraph that stands in two articles counts to the first of them.
    """
    article_of: dict[str, str] = {}
    for question in questions:
        article_of.setdefault(plain(question.context), question.article)
    paragraphs = {text: str(number) for number, text in enumerate(article_of)}
    texts = [plain(question.context) for question in questions]
    return pd.DataFrame(
        {
            "id": [question.id for question in questions],
            "article": [article_of[text] or f"paragraph {paragraphs[text]}" for text in texts],
            "paragraph": [paragraphs[text] for text in texts],
        }
    )


def plain(text: str) -> str:
    """Reduce a text to its words in lower case, to find equal ones."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _without_leaks(read: Mapping[str, QuestionSet], made: Split | None) -> AnswerParts:
    """Check the parts, and leave texts of val and test out of training, or tell of them."""
    notes = [
        f"{part}: {note}" if made is None else note for part in PARTS for note in read[part].notes()
    ]
    for part in PARTS:
        _check_answers(read[part].questions, part)
    judged = {plain(q.context) for part in ("val", "test") for q in read[part].questions}
    train = read["train"].questions
    leaked = {plain(q.context) for q in train} & judged
    if leaked and made is not None:
        notes.append(
            f"{len(leaked):,} training texts stand in val or test too, by the rule"
            f" {made.rule}; --data.split=paragraphs keeps them apart"
        )
    elif leaked:
        train = tuple(q for q in train if plain(q.context) not in leaked)
        notes.append(
            f"{len(leaked):,} training texts stand in val or test too, and were left out with"
            f" {len(read['train'].questions) - len(train):,} questions"
        )
        if not train:
            raise UserError("--data.train: every text of it stands in val or test too")
    elif made is None:
        notes.append("no training text stands in val or test too")
    shared = {plain(q.context) for q in read["val"].questions}
    if both := len(shared & {plain(q.context) for q in read["test"].questions}):
        notes.append(f"{both:,} texts stand in val and in test")
    return AnswerParts(train, read["val"].questions, read["test"].questions, tuple(notes), made)


def _check_answers(questions: Sequence[Question], part: str) -> None:
    """Refuse a part of which not every question has known answers, or no answer is found."""
    unknown = [question.id for question in questions if question.answers is None]
    if unknown:
        raise UserError(
            f"--data.{part}: {len(unknown):,} of {len(questions):,} questions have no answers, the"
            f" first is {unknown[0]!r}; give answers (an empty one says that there is none)"
        )
    if not any(question.answers for question in questions):
        raise UserError(f"--data.{part}: none of its {len(questions):,} questions has an answer")
    placed = any(a.start is not None for question in questions for a in question.answers or ())
    if part == "train" and not placed:
        raise UserError("--data.train: not one of its answers stands in its context")
