"""Questions on texts, in windows: a benchmark set, or the user's own files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import data as catalogue
from core.batch_plan import mix_seed
from core.data_module import Baseline, whole_batch
from core.errors import UserError
from domains.nlp import answer_pictures
from domains.nlp.answer_baselines import baseline, sentence_overlap, sliding_window
from domains.nlp.answer_files import AnswerFiles
from domains.nlp.answer_parts import AnswerParts, benchmark_parts, own_parts
from domains.nlp.answer_windows import UNKNOWN, AnswerBatch, Windows, windows_of
from domains.nlp.data import TextData
from domains.nlp.tokenizer import fingerprint


class TrainWindows:
    """Windows to learn from, each an item by itself.

    Args:
        windows: all windows of the training questions.
        chosen: those to learn from.
    """

    def __init__(self, windows: Windows, chosen: NDArray[np.int64]) -> None:
        self.windows = windows
        self.chosen = chosen

    def __len__(self) -> int:
        """Count the windows."""
        return len(self.chosen)

    @property
    def lengths(self) -> tuple[NDArray[np.int64], None]:
        """Give the tokens of each window."""
        return self.windows.lengths[self.chosen], None

    def __getitem__(self, item: int) -> AnswerBatch:
        """Give one window as a batch."""
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[int]) -> AnswerBatch:
        """Give a batch of windows."""
        return self.windows.batch(self.chosen[[int(item) for item in items]])


class AskedQuestions:
    """Questions to judge, each an item with all its windows.

    Args:
        windows: all windows of the questions.
    """

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        """Count the questions."""
        return len(self.windows.questions)

    @property
    def lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the tokens in the longest window of each question, and how many windows it has."""
        borders = self.windows.borders
        return np.maximum.reduceat(self.windows.lengths, borders[:-1]), np.diff(borders)

    def __getitem__(self, row: int) -> AnswerBatch:
        """Give one question as a batch."""
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[int]) -> AnswerBatch:
        """Give the windows of some questions."""
        return self.windows.of_questions([int(row) for row in rows])


class AnsweringData(TextData):
    """Questions with the texts that are asked, in windows that overlap.

    Own files are split by article or paragraph, so that no text stands in two parts. Texts of
    validation and test never train. Answers are checked against their texts (see
    :mod:`domains.nlp.squad`). A question that is longer than half a window is cut.

    Args:
        dataset: a set of the catalogue; None takes the user's files.
        train: SQuAD JSON, JSON lines, Parquet, or CSV with the columns question, context, answer
            and, where known, start, id, title; a folder of such files or a glob.
        val: the same for validation; without it a share of ``train``.
        test: the same for the test.
        split: ``paragraphs`` (whole articles where there are at least ten, else paragraphs), a
            rule of the suite such as ``group:article``, or a ``splits.parquet`` of another run.
        val_fraction: share of the questions for validation.
        test_fraction: share of the questions for the test.
        folds: K folds instead.
        fold: which of them is the test, from 0.
        tokenizer: of the network; None takes that of the checkpoint.
        max_length: tokens in a window at most.
        stride: by how much of its room for the text a window moves on from the one before.
        negatives: windows without the answer to train on, for each one with it, drawn once.
        token_budget: the most tokens in a batch, padding included; a question with more is one.
        batch_size: the most windows in a training batch, over all processes together.
        eval_batch_size: the most questions in a batch of validation and test; never changes a
            result.
        num_workers: processes that load data; never changes a result.
        seed: fixes the order of training; None takes the run's seed.
    """

    collate = staticmethod(whole_batch)
    train_set: TrainWindows
    val_set: AskedQuestions
    test_set: AskedQuestions

    def __init__(
        self,
        dataset: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        split: str = "paragraphs",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        folds: int | None = None,
        fold: int = 0,
        tokenizer: str | None = None,
        max_length: int = 256,
        stride: float = 0.5,
        negatives: float = 1.0,
        token_budget: int = 16_384,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length,
            "window",
            token_budget,
            batch_size,
            eval_batch_size,
            num_workers,
            seed,
        )
        if (dataset is None) == (train is None):
            raise UserError("give the questions by --data.train=FILE, or a set by --data.dataset")
        if negatives < 0:
            raise UserError(f"data.negatives={negatives} must be at least 0")
        self.dataset = dataset
        self.own: dict[str, Any] = {
            "train": train,
            "val": val,
            "test": test,
            "rule": split,
            "fractions": (1 - val_fraction - test_fraction, val_fraction, test_fraction),
            "folds": folds,
            "fold": fold,
        }
        self.stride = stride
        self.negatives = negatives
        self.parts: AnswerParts | None = None
        self.notes: list[str] = []

    @property
    def nullable(self) -> bool:
        """Whether questions may have no answer; known after ``setup``."""
        return self.parts is not None and self.parts.nullable

    @property
    def facts(self) -> dict[str, Any]:
        """The set or the file, its licence, and what was noticed."""
        found: dict[str, Any] = {"setting": {}, "notes": self.notes}
        if self.dataset is None:
            return {**found, "dataset": Path(str(self.own["train"])).name}
        entry = catalogue.entry(self.dataset)
        about = {"licence": entry.licence, "citation": entry.citation}
        return {**found, **about, "dataset": self.dataset}

    @property
    def preprocessing(self) -> AnswerFiles:
        """How to answer on files of the user's."""
        return AnswerFiles(self.max_length, self.stride, tokenizer=self.tokenizer)

    def setup(self, stage: str | None = None) -> None:
        """Read the questions and cut them into windows, once."""
        if self.parts is not None:
            return
        tokenizer = self.tokenizer
        parts = benchmark_parts(self.dataset) if self.dataset else own_parts(**self.own)
        limits = tokenizer, self.max_length, self.stride
        train, val, test = (
            windows_of(part, *limits) for part in (parts.train, parts.val, parts.test)
        )
        self.train_set = TrainWindows(train, self._chosen(train))
        self.val_set, self.test_set = AskedQuestions(val), AskedQuestions(test)
        self.notes = [*parts.notes, *_cut(train=train, val=val, test=test)]
        self.parts = parts

    def _chosen(self, windows: Windows) -> NDArray[np.int64]:
        """Choose the windows to learn from: all with an answer, and a share of those without."""
        answered = np.flatnonzero(windows.answered)
        others = np.flatnonzero(~windows.answered & (windows.table[:, 3] != UNKNOWN))
        wanted = min(len(others), round(self.negatives * len(answered)))
        random = np.random.default_rng(mix_seed(self.seed, len(others)))
        return np.sort(np.r_[answered, random.choice(others, wanted, replace=False)])

    def keep(self, folder: Path) -> None:
        """Write which questions train, validate and test, where they were split here."""
        if self.parts is not None and self.parts.split is not None:
            self.parts.split.save(folder / "splits.parquet")

    def summary(self) -> list[str]:
        """Say what was read and what was made of it."""
        self.setup()
        assert self.parts is not None
        sizes = {"training": self.parts.train, "validation": self.parts.val}
        sizes["the test"] = self.parts.test
        told = ", ".join(f"{len(part):,} for {name}" for name, part in sizes.items())
        windows = self.train_set.windows
        chosen = f"{len(self.train_set):,} of {len(windows):,} training windows"
        return [
            f"{self.facts['dataset']}: questions: {told}; {chosen}",
            *(f"note: {note}" for note in self.notes),
        ]

    def baselines(self) -> dict[str, Baseline]:
        """Two that share words with the question."""
        assert self.parts is not None
        return {
            "sentence with most shared words": baseline(sentence_overlap),
            "sliding window of the usual length": baseline(sliding_window(self.parts.train)),
        }

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw scores by length of answer and of text."""
        return answer_pictures.draw(predictions, folder)

    def fingerprint(self) -> str:
        """Identify the questions, the windows and the tokenizer."""
        self.setup()
        assert self.parts is not None
        found = hashlib.sha256()
        for question in self.parts.train:
            found.update(repr(question).encode())
        found.update(np.ascontiguousarray(self.train_set.windows.table).tobytes())
        found.update(self.train_set.chosen.tobytes())
        found.update(fingerprint(self.tokenizer).encode())
        return found.hexdigest()


def _cut(**parts: Windows) -> list[str]:
    """Tell of questions that were cut, and of answers that no token stands for."""
    notes = []
    for name, windows in parts.items():
        if windows.shortened:
            notes.append(
                f"{windows.shortened:,} {name} questions are longer than half a window and were"
                " cut; a larger --data.max_length takes them whole"
            )
    if lost := parts["train"].unlabelled:
        notes.append(f"{lost:,} questions are not trained on: no token stands for their answers")
    return notes
