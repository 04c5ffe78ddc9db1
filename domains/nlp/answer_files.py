"""The preprocessing of a network that answers: it reads a user's questions and writes answers."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import nn

from core.errors import UserError
from core.openers import write_atomic
from domains.nlp.answer_decoding import Decoded, decode, logits_of
from domains.nlp.answer_windows import AnswerBatch, Windows, windows_of
from domains.nlp.squad import SUFFIXES, Question, read_questions
from domains.nlp.tokenizer import Tokenized

AT_ONCE = 64
"""Windows that are put together at a time, but for a question that has more by itself."""
TOLD = 3
"""The answers to a question that are written."""
WRITTEN = (".json", ".jsonl", ".csv", ".tsv")
"""The endings of files of answers."""
NUMBERS = ("probability", "score", "start", "end")


@dataclass(frozen=True)
class AnswerFiles(Tokenized):
    """What it takes to answer questions on texts; it travels in ``model/``.

    Attributes:
        max_length: tokens in a window at most.
        stride: by how much of its room for the context a window moves on.
        max_answer: tokens in an answer at most.
        threshold: no answer is given where its score exceeds that of the best span by more; None
            where every question has one.
        tokenizer: a fast one; its files lie beside this.
    """

    max_length: int
    stride: float
    max_answer: int = 30
    threshold: float | None = None
    tokenizer: Any = field(default=None, compare=False, repr=False)

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    options: ClassVar[Mapping[str, str]] = {
        "n_best": f"answers a question, the best first (default {TOLD}); .json holds the best alone"
    }

    def to_json(self) -> dict[str, Any]:
        """Give plain values, from which :meth:`from_json` rebuilds it."""
        threshold = self.threshold
        if threshold is not None and math.isinf(threshold):  # JSON knows no such number
            threshold = math.copysign(1e30, threshold)
        return {
            "max_length": self.max_length,
            "stride": self.stride,
            "max_answer": self.max_answer,
            "threshold": threshold,
        }

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "AnswerFiles":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: naming the key that is unknown, missing or of a wrong value.
        """
        where = "preprocessing.json"
        for name in sorted(mapping.keys() ^ _CHECKS.keys()):
            raise UserError(f"{where}: {name!r} is {'unknown' if name in mapping else 'missing'}")
        for name, (kinds, wording) in _CHECKS.items():
            if type(mapping[name]) not in kinds:
                raise UserError(f"{where}: {name}={mapping[name]!r} must be {wording}")
        return cls(**mapping)

    def predict_file(
        self,
        network: nn.Module,
        input: Path,
        output: Path,
        plot: Path | None = None,
        *,
        n_best: str | None = None,
    ) -> str:
        """Answer the questions of a file.

        Args:
            network: maps tokens to logits (W, L, 2).
            input: questions, as :func:`domains.nlp.squad.read_questions` takes them; gold answers
                are not looked at.
            output: ``.csv`` or ``.tsv`` with a row a question, ``.jsonl`` with all answers, or
                ``.json`` as SQuAD's script reads predictions: the text of each id, empty for no
                answer. Places are characters of the context, from 0.
            plot: is refused, answers have no picture.
            n_best: how many answers to write a question.

        Returns:
            One line about what was done.

        Raises:
            UserError: if the file cannot be read, or an option is wrong.
        """
        if plot is not None:
            raise UserError(f"--plot {plot}: answers have no picture; leave it out")
        suffix = output.suffix.lower()
        if suffix not in WRITTEN:
            raise UserError(f"--output {output}: answers are written as {', '.join(WRITTEN)}")
        most = _count(n_best)
        read = read_questions([input])
        windows = windows_of(read.questions, self.tokenizer, self.max_length, self.stride)
        rows = []
        for batch in _batches(windows):
            for question, found in zip(batch.asked, self._decoded(network, batch), strict=True):
                rows.append(self._row(question, found, most))
        write_atomic(output, _written(rows, suffix, most))
        notes = [f"{read.renamed:,} ids are used twice: numbered"] if read.renamed else []
        if windows.shortened:
            notes.append(f"{windows.shortened:,} questions too long for half a window: cut")
        if self.threshold is not None:
            empty = sum(not row["answer"] for row in rows)
            notes.append(f"{empty:,} without an answer")
        told = f"{output}: {len(rows):,} questions, {len(windows):,} windows"
        return told + (f" ({'; '.join(notes)})" if notes else "")

    def _decoded(self, network: nn.Module, batch: AnswerBatch) -> list[Decoded]:
        parameter = next(network.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        network.eval()
        with torch.inference_mode():
            tokens = type(batch.tokens)(*(part.to(device) for part in batch.tokens))
            return decode(logits_of(network, tokens).cpu(), batch, self.max_answer)

    def _row(self, question: Question, found: Decoded, most: int) -> dict[str, Any]:
        """Give a question's answers: the chosen one, and the best spans in ``answers``."""
        shares, null = found.probabilities(self.threshold is not None)
        answers = [
            {
                "answer": question.context[span.start : span.end],
                "probability": share,
                **span._asdict(),
            }
            for span, share in zip(found.spans, shares, strict=True)
        ]
        nothing: dict[str, Any] = {
            "answer": "",
            "probability": null,
            "score": found.null,
            "start": None,
            "end": None,
        }
        silent = self.threshold is not None and found.gap > self.threshold
        chosen = nothing if silent or not answers else answers[0]
        row = {"id": question.id, "question": question.text, **chosen}
        if self.threshold is not None:
            row["no_answer_probability"] = null
        return {**row, "answers": answers[:most]}


def _batches(windows: Windows) -> Iterator[AnswerBatch]:
    """Give the windows of some questions at a time, in order."""
    first, questions = 0, len(windows.borders) - 1
    while first < questions:
        last = first + 1
        while last < questions and windows.borders[last + 1] - windows.borders[first] <= AT_ONCE:
            last += 1
        yield windows.of_questions(range(first, last))
        first = last


def _count(n_best: str | None) -> int:
    try:
        most = TOLD if n_best is None else int(n_best)
    except ValueError:
        most = 0
    if not 1 <= most <= 20:
        raise UserError(f"--n_best={n_best}: must be a whole number from 1 to 20")
    return most


def _written(rows: Sequence[Mapping[str, Any]], suffix: str, most: int) -> str:
    """Write answers in the form of a suffix."""
    if suffix == ".json":
        best = {row["id"]: row["answer"] for row in rows}
        return json.dumps(best, ensure_ascii=False, indent=2) + "\n"
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    flat = []
    for row in rows:
        cells = {name: value for name, value in row.items() if name != "answers"}
        for number in range(1, most):
            other = row["answers"][number] if number < len(row["answers"]) else {}
            cells |= {f"{name}_{number + 1}": other.get(name) for name in ("answer", *NUMBERS)}
        flat.append(cells)
    frame = pd.DataFrame(flat)
    places = [name for name in flat[0] if name.split("_")[0] in ("start", "end")]
    frame = frame.astype(dict.fromkeys(places, "Int64"))
    text: str = frame.to_csv(
        index=False, float_format="%.6g", sep="\t" if suffix == ".tsv" else ","
    )
    return text


_CHECKS: dict[str, tuple[tuple[type, ...], str]] = {
    "max_length": ((int,), "a whole number"),
    "stride": ((int, float), "a number above 0 and at most 1"),
    "max_answer": ((int,), "a whole number"),
    "threshold": ((int, float, type(None)), "a number, or null"),
}
