"""Read and write JSON lines of tagged sentences: ``{"tokens": [...], "tags": [...]}``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from domains.nlp.sentences import Answer, Sentence, count_noted, read_lines
from domains.nlp.spans import decode, marks_spans


@dataclass(frozen=True)
class JsonLines:
    """A file of one sentence a line.

    Attributes:
        path: where it stands.
        sentences: in the order of the file.
        notes: what is odd about it.
        records: what the lines hold, one a sentence.
    """

    path: Path
    sentences: list[Sentence]
    notes: tuple[str, ...]
    records: list[dict[str, Any]]

    def written(self, answers: Sequence[Answer], names: Sequence[str]) -> str:
        """Give the lines back with what was predicted; see :func:`json_text`."""
        return json_text(self.records, self.sentences, answers, names)


def json_text(
    records: Sequence[Mapping[str, Any]],
    sentences: Sequence[Sentence],
    answers: Sequence[Answer],
    names: Sequence[str],
) -> str:
    """Write one object a sentence: what it held, and what was predicted.

    Added are, for a head of no name, ``predicted_tags`` and ``probability`` (one a word) and, where
    tags mark spans, ``predicted_spans``: type, first word, word after the last, and text. For a
    head NAME these are ``predicted_NAME``, ``probability_NAME`` and ``spans_NAME``.
    """
    written = []
    for record, sentence, answer in zip(records, sentences, answers, strict=True):
        added: dict[str, Any] = {}
        for name, tags, shares in zip(names, answer.tags, answer.probabilities, strict=True):
            added[f"predicted_{name or 'tags'}"] = list(tags)
            added[f"probability_{name}" if name else "probability"] = [round(p, 4) for p in shares]
            if marks_spans(tags):
                added[f"spans_{name}" if name else "predicted_spans"] = [
                    {
                        "type": kind,
                        "start": start,
                        "end": stop,
                        "text": " ".join(sentence.words[start:stop]),
                    }
                    for kind, start, stop in decode(tags)
                ]
        written.append(json.dumps({**record, **added}, ensure_ascii=False))
    return "\n".join(written) + "\n"


def read_json_lines(
    path: Path, tokens: str | None = None, tags: Sequence[str] | None = None
) -> JsonLines:
    """Read JSON lines; other plain values of an object are facts of its sentence.

    Args:
        path: one object a line; empty lines are passed over.
        tokens: the key of the words; None takes ``tokens``.
        tags: the keys of tags; None takes ``tags``; none where only words are wanted. A tag that is
            null or empty is none.

    Raises:
        UserError: naming the line and what is wrong with it.
    """
    tokens, keys = tokens or "tokens", ["tags"] if tags is None else list(tags)
    sentences, records = [], []
    untagged: list[int] = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = _record(line, where)
        words = _texts(record, tokens, where)
        columns = [_texts(record, key, where) for key in keys]
        for key, column in zip(keys, columns, strict=True):
            if len(column) != len(words):
                raise UserError(
                    f"{where}: {len(words)} {tokens} and {len(column)} {key}; give every word one"
                )
        if any("" in column for column in columns):
            untagged.append(number)
        facts = {
            key: str(value)
            for key, value in record.items()
            if key not in (tokens, *keys) and isinstance(value, str | int | float)
        }
        sentences.append(Sentence(words, tuple(columns), (number,) * len(words), facts))
        records.append(record)
    if not any(sentence.words for sentence in sentences):
        raise UserError(f"{path}: holds no words")
    notes = count_noted(untagged, "sentences with words without a tag, which count nowhere", path)
    empty = [n for n, s in enumerate(sentences, 1) if not s.words]
    notes += count_noted(empty, "sentences without a word", path)
    return JsonLines(path, sentences, tuple(notes), records)


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        told = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise UserError(f"{where}: not valid JSON ({told})") from None
    if not isinstance(record, dict):
        raise UserError(f'{where}: must be an object such as {{"tokens": [...], "tags": [...]}}')
    return record


def _texts(record: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    if key not in record:
        raise UserError(f"{where}: has no {key!r}; its keys are {', '.join(record) or 'none'}")
    value = record[key]
    if not isinstance(value, list) or not all(isinstance(x, str | int | None) for x in value):
        raise UserError(f"{where}: {key!r} must be a list of words, one for each")
    return tuple("" if item is None else str(item) for item in value)
