"""Question and context, cut into windows that a network can read whole.

Devlin et al., BERT, 2019: ``[CLS] question [SEP] part of the context [SEP]``. Windows overlap, so
that an answer cut by one stands whole in the next. Position 0 stands for "no answer in here".
Sizes: W windows, L positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import UserError
from domains.nlp.squad import Question
from domains.nlp.tokens import Encoded, Tokens, pad

UNKNOWN = -100
"""The position of an answer that stands nowhere in the context; the loss leaves it out."""
LEAST_ROOM = 8
"""Tokens of the context that a window has to have room for."""


class AnswerBatch(NamedTuple):
    """Windows of some questions.

    Attributes:
        tokens: (W, L).
        positions: first and last position of the gold answer in each window (W, 2); 0 where it is
            not whole in the window, -100 where it is not known.
        offsets: first character and the one after the last of each token of the context (W, L, 2);
            -1 elsewhere.
        owner: the question of each window (W,), counted in the batch; windows of one question
            follow one another.
        rows: the index of each question in its split (Q,).
        asked: the questions; none in training, where windows stand for themselves.
    """

    tokens: Tokens
    positions: Tensor
    offsets: Tensor
    owner: Tensor
    rows: Tensor
    asked: tuple[Question, ...]


class _Template(NamedTuple):
    """The special tokens around a pair of texts, and the types of all its parts."""

    ids: tuple[list[int], list[int], list[int]]
    types: tuple[list[int], list[int], list[int]]
    text_types: tuple[int, int]

    @property
    def specials(self) -> int:
        return sum(map(len, self.ids))


class _Context(NamedTuple):
    """A text's tokens (n,), and the characters that each stands for (n, 2)."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Windows:
    """All windows of a list of questions; their tokens are put together when they are asked for.

    Attributes:
        questions: Q questions.
        table: of each window its question, its first token of the context, the one after its last,
            and the positions of the gold answer (W, 5).
        borders: where each question's windows begin, and the end (Q + 1,).
        shortened: how many questions were too long and were cut.
        unlabelled: how many questions have answers, but none that stands on tokens.
    """

    questions: Sequence[Question]
    table: NDArray[np.int32]
    borders: NDArray[np.int64]
    shortened: int
    unlabelled: int
    pad_id: int
    _asked: Sequence[NDArray[np.int32]]
    _contexts: Sequence[_Context]
    _context_of: NDArray[np.int64]
    _template: _Template

    def __len__(self) -> int:
        """Count the windows."""
        return len(self.table)

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Whether each window holds a gold answer whole (W,)."""
        return self.table[:, 4] > 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens each window has (W,)."""
        asked = np.array([len(ids) for ids in self._asked], np.int64)
        spans = self.table[:, 2].astype(np.int64) - self.table[:, 1]
        return asked[self.table[:, 0]] + spans + self._template.specials

    def encoded(self, window: int) -> Encoded:
        """Give the tokens of a window."""
        question, first, last = self.table[window, :3]
        asked = self._asked[question]
        context = self._contexts[self._context_of[question]].ids[first:last]
        before, between, after = self._template.ids
        ids = [before, asked, between, context, after]
        kinds = self._template.types
        texts = self._template.text_types
        types = [
            *(kinds[0], [texts[0]] * len(asked), kinds[1]),
            *([texts[1]] * len(context), kinds[2]),
        ]
        return Encoded(np.concatenate(ids).astype(np.int32), np.concatenate(types).astype(np.int8))

    def batch(self, windows: Sequence[int] | NDArray[np.int64]) -> AnswerBatch:
        """Put windows together, without their questions."""
        tokens = pad([self.encoded(window) for window in windows], self.pad_id)
        offsets = np.full((*tokens.ids.shape, 2), -1, np.int64)
        for number, window in enumerate(windows):
            question, first, last = self.table[window, :3]
            begin = _begin(self._template, len(self._asked[question]))
            context = self._contexts[self._context_of[question]]
            offsets[number, begin : begin + last - first] = context.offsets[first:last]
        positions = torch.from_numpy(self.table[windows, 3:].astype(np.int64))
        nothing = torch.zeros(0, dtype=torch.int64)
        return AnswerBatch(tokens, positions, torch.from_numpy(offsets), nothing, nothing, ())

    def of_questions(self, rows: Sequence[int]) -> AnswerBatch:
        """Put all windows of some questions together."""
        spans = [np.arange(self.borders[row], self.borders[row + 1]) for row in rows]
        owner = np.repeat(np.arange(len(rows)), [len(span) for span in spans])
        return self.batch(np.concatenate(spans))._replace(
            owner=torch.from_numpy(owner),
            rows=torch.tensor([int(row) for row in rows]),
            asked=tuple(self.questions[row] for row in rows),
        )


def windows_of(
    questions: Sequence[Question], tokenizer: Any, max_length: int, stride: float = 0.5
) -> Windows:
    """Cut questions with their contexts into windows.

    A question takes at most half of a window; what is longer is cut at its end, and counted.

    Args:
        questions: at least one.
        tokenizer: a fast one.
        max_length: tokens in a window at most, with those around the texts.
        stride: by how much of its room for the context a window moves on from the one before.

    Raises:
        UserError: if there is no room, or a context holds nothing that the tokenizer knows.
    """
    if not 0 < stride <= 1:
        raise UserError(f"data.stride={stride} must lie above 0 and be at most 1")
    template = _template(tokenizer)
    most_asked = (max_length - template.specials) // 2
    if most_asked < LEAST_ROOM:
        raise UserError(
            f"data.max_length={max_length} leaves no room for a question and a context; take at"
            f" least {2 * LEAST_ROOM + template.specials}"
        )
    asked = [
        np.array(ids, np.int32)
        for ids in _tokens(tokenizer, [question.text for question in questions])["input_ids"]
    ]
    distinct = {text: n for n, text in enumerate(dict.fromkeys(q.context for q in questions))}
    found = _tokens(tokenizer, list(distinct), return_offsets_mapping=True)
    contexts = [
        _Context(np.array(ids, np.int32), np.array(offsets, np.int32).reshape(-1, 2))
        for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]
    context_of = np.array([distinct[question.context] for question in questions], np.int64)
    shortened = sum(len(ids) > most_asked for ids in asked)
    asked = [ids[:most_asked] for ids in asked]
    rows: list[tuple[int, int, int, int, int]] = []
    borders = [0]
    unlabelled = 0
    for number, question in enumerate(questions):
        context = contexts[context_of[number]]
        if not len(context.ids):
            raise UserError(f"question {question.id!r}: its context holds no token")
        room = max_length - template.specials - len(asked[number])
        gold = _gold(question, context)
        unlabelled += gold == (UNKNOWN, UNKNOWN)
        begin = _begin(template, len(asked[number]))
        for first in _firsts(len(context.ids), room, max(1, int(room * stride))):
            last = min(first + room, len(context.ids))
            rows.append((number, first, last, *_positions(gold, first, last, begin)))
        borders.append(len(rows))
    return Windows(
        questions,
        np.array(rows, np.int32),
        np.array(borders, np.int64),
        shortened,
        unlabelled,
        int(tokenizer.pad_token_id),
        asked,
        contexts,
        context_of,
        template,
    )


def _template(tokenizer: Any) -> _Template:
    """Find what a tokenizer puts around a pair of texts."""
    pair = tokenizer("a", "a", return_token_type_ids=True)
    ids, types, texts = pair["input_ids"], pair["token_type_ids"], pair.sequence_ids(0)
    firsts = [n for n, text in enumerate(texts) if text == 0]
    seconds = [n for n, text in enumerate(texts) if text == 1]
    parts = (
        slice(0, firsts[0]),
        slice(firsts[-1] + 1, seconds[0]),
        slice(seconds[-1] + 1, len(ids)),
    )
    before, between, after = parts
    return _Template(
        (ids[before], ids[between], ids[after]),
        (types[before], types[between], types[after]),
        (types[firsts[0]], types[seconds[0]]),
    )


def _tokens(tokenizer: Any, texts: Sequence[str], **options: Any) -> Any:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, **options)


def _begin(template: _Template, asked: int) -> int:
    """Give the position of a window's first token of the context."""
    return len(template.ids[0]) + asked + len(template.ids[1])


def _firsts(length: int, room: int, step: int) -> range:
    """Give the first tokens of the windows that cover ``length`` tokens."""
    more = max(0, -(-(length - room) // step))
    return range(0, more * step + 1, step)


def _gold(question: Question, context: _Context) -> tuple[int, int]:
    """Find the first and last token of the gold answer; -1 where there is none, -100 unknown."""
    if not question.answers:
        return (-1, -1) if question.answers is not None else (UNKNOWN, UNKNOWN)
    begins, ends = context.offsets[:, 0], context.offsets[:, 1]
    for text, start in question.answers:
        if start is None:
            continue
        touched = np.flatnonzero((ends > start) & (begins < start + len(text)))
        if len(touched):
            return int(touched[0]), int(touched[-1])
    return UNKNOWN, UNKNOWN


def _positions(gold: tuple[int, int], first: int, last: int, begin: int) -> tuple[int, int]:
    """Give the positions of the gold answer in a window."""
    if gold[0] == UNKNOWN:
        return gold
    if first <= gold[0] and gold[1] < last:
        return begin + gold[0] - first, begin + gold[1] - first
    return 0, 0
