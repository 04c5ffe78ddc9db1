"""The fitted preprocessing of a tagger: it reads a user's file and gives it back with tags."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from core.errors import UserError
from core.openers import write_atomic
from domains.nlp.alignment import WordEncoder
from domains.nlp.sentences import Answer, Sentence
from domains.nlp.spans import NO_TAG, decode, marks_spans
from domains.nlp.tagged_batches import TaggedSet, of_words
from domains.nlp.tagged_text import JSON_LINES, PlainText, json_of, read_untagged
from domains.nlp.tokenizer import Tokenized

BATCH = 64
"""Sentences that are tagged at a time."""


@dataclass(frozen=True)
class TaggedFiles(Tokenized):
    """What a tagger needs besides its network; it travels in ``model/``.

    Attributes:
        labels: the tags of each head, in the order of the network's outputs.
        names: what the heads are called; one of no name predicts ``tags``.
        columns: the columns of the training file that held the tags, which CoNLL-U names.
        max_length: the most tokens of a window, the special ones included.
        tokenizer: the network's; its files lie beside.
    """

    labels: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    columns: tuple[str, ...]
    max_length: int
    tokenizer: Any = field(default=None, compare=False, repr=False)

    suffixes: ClassVar[tuple[str, ...]] = (
        *(".conll", ".conllu", ".conllup", ".bio", ".iob", ".iob2", ".tsv", ".txt"),
        *JSON_LINES,
    )
    options: ClassVar[Mapping[str, str]] = {
        "tokens": "the column, or the key, of the words; the usual one is found by itself"
    }

    def to_json(self) -> dict[str, Any]:
        """Give plain values, from which :meth:`from_json` rebuilds it."""
        return asdict(replace(self, tokenizer=None)) | {"tokenizer": None}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "TaggedFiles":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: naming the key that is unknown, missing or of a wrong value.
        """
        where = "preprocessing.json"
        if not isinstance(mapping, Mapping):
            raise UserError(f"{where}: must hold a mapping")
        for name in sorted(mapping.keys() ^ {part.name for part in fields(cls)}):
            raise UserError(f"{where}: {name!r} is {'unknown' if name in mapping else 'missing'}")
        for name in ("names", "columns"):
            if not _words(mapping[name]):
                raise UserError(f"{where}: {name}={mapping[name]!r} must be a list of words")
        labels = mapping["labels"]
        if not isinstance(labels, list | tuple) or not all(map(_words, labels)):
            raise UserError(f"{where}: labels={labels!r} must be lists of words")
        if not 0 < len(labels) == len(mapping["names"]) == len(mapping["columns"]):
            raise UserError(f"{where}: labels, names and columns differ in length")
        length = mapping["max_length"]
        if type(length) is not int or length < 8:
            raise UserError(f"{where}: max_length={length!r} must be a whole number of at least 8")
        return cls(
            tuple(map(tuple, labels)), tuple(mapping["names"]), tuple(mapping["columns"]), length
        )

    def predict_file(
        self,
        network: nn.Module,
        input: Path,
        output: Path,
        plot: Path | None = None,
        *,
        tokens: str | None = None,
    ) -> str:
        """Tag every word of a file and give the file back.

        Args:
            network: maps tokens to logits (W, L, K).
            input: CoNLL, CoNLL-U, JSON lines (``.jsonl``), or plain sentences, one a line
                (``.txt``).
            output: in the form of the input, which gets columns or keys more; JSON lines, with
                probabilities and spans, where its name ends in ``.jsonl``; plain sentences become
                CoNLL.
            plot: a PNG to draw: how often each tag, or type of span, was given.
            tokens: the column or the key of the words.

        Returns:
            One line about what was done.

        Raises:
            UserError: if the file holds no words or is none of these, or what was predicted is not
                finite.
        """
        file = read_untagged(input, tokens)
        answers = self.answers(network, [s.words for s in file.sentences])
        if not all(np.isfinite(p).all() for a in answers for p in a.probabilities):
            raise UserError(f"{input}: the model's output is not finite; train it anew")
        as_json = output.suffix.lower() in JSON_LINES
        if as_json:
            text = json_of(file, answers, self.names)
        elif input.suffix.lower() in JSON_LINES:
            text = PlainText(input, file.sentences, ()).written(answers, self.names)
        else:
            text = file.written(answers, self._titles())
        write_atomic(output, text)
        counts = self._counts(answers)
        if plot is not None:
            from domains.nlp.tagging_pictures import count_picture

            count_picture(plot, counts)
        told = f"{output}: {_told(file.sentences)}; {_listed(counts)}"
        return told + (f" ({'; '.join(file.notes)})" if file.notes else "")

    def answers(self, network: nn.Module, sentences: Sequence[Sequence[str]]) -> list[Answer]:
        """Tag sentences; every word gets a tag, however long the sentence."""
        encoder = WordEncoder(self.tokenizer)
        pieces = encoder(sentences)
        blank = [np.full((len(words), len(self.labels)), NO_TAG) for words in sentences]
        items = TaggedSet(encoder, pieces, blank, self.max_length)
        none: tuple[tuple[()], ...] = ((),) * len(self.labels)
        found = [Answer(none, none)] * len(sentences)
        parameter = next(network.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        network.eval()
        tokens, _ = items.lengths
        order = np.argsort(tokens, kind="stable").tolist()
        for begin in range(0, len(order), BATCH):
            batch = items.__getitems__(order[begin : begin + BATCH])
            moved = batch._replace(
                tokens=type(batch.tokens)(*(part.to(device) for part in batch.tokens)),
                places=batch.places.to(device),
            )
            with torch.inference_mode():
                logits = of_words(network, moved).float().cpu()  # (B, N, K)
            rows = zip(batch.rows.tolist(), batch.lengths.tolist(), logits, strict=True)
            for row, length, scores in rows:
                found[row] = self._answer(scores[:length])
        return found

    def _answer(self, scores: torch.Tensor) -> Answer:
        """Turn the logits (N, K) of a sentence into tags."""
        tags, shares = [], []
        for part, labels in zip(self._of_heads(scores), self.labels, strict=True):
            probability, label = part.softmax(-1).max(-1)
            tags.append(tuple(labels[number] for number in label.tolist()))
            shares.append(tuple(probability.tolist()))
        return Answer(tuple(tags), tuple(shares))

    def _of_heads(self, scores: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.split(scores, [len(labels) for labels in self.labels], -1)

    def _titles(self) -> list[str]:
        """Name the heads for a file that names its columns."""
        return [
            name or (column if column.isidentifier() else "tag")
            for name, column in zip(self.names, self.columns, strict=True)
        ]

    def _counts(self, answers: Sequence[Answer]) -> dict[str, Counter[str]]:
        """Count what was given, by head: types of spans, or tags."""
        counts: dict[str, Counter[str]] = {}
        for number, (name, labels) in enumerate(zip(self.names, self.labels, strict=True)):
            spans = marks_spans(labels)
            counter: Counter[str] = Counter()
            for answer in answers:
                tags = answer.tags[number]
                counter.update([span.type for span in decode(tags)] if spans else tags)
            counts[f"{name} spans".strip() if spans else name or "tags"] = counter
        return counts


def _told(sentences: Sequence[Sentence]) -> str:
    words = sum(len(sentence.words) for sentence in sentences)
    return f"{words:,} words of {len(sentences):,} sentences"


def _listed(counts: Mapping[str, Counter[str]], most: int = 6) -> str:
    parts = []
    for name, counter in counts.items():
        shown = ", ".join(f"{count:,} {tag}" for tag, count in counter.most_common(most))
        more = ", ..." if len(counter) > most else ""
        parts.append(f"{sum(counter.values()):,} {name}" + (f": {shown}{more}" if shown else ""))
    return "; ".join(parts)


def _words(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)
