"""From the logits of windows to the answers of questions, cut from the text itself.

A span counts the logit of its first token and that of its last. No answer counts the logits of
position 0, of the window that believes in it least (Devlin et al., BERT, 2019, section 4.3).
Sizes: W windows, L positions, Q questions.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import regex  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from domains.nlp.answer_windows import AnswerBatch
from domains.nlp.squad import Question
from domains.nlp.tokens import Tokens

N_BEST = 20
AT_ONCE = 2**14
"""Tokens that a network sees at a time where nothing is learned."""
FIRST_MARK = "\u0300"
"""The first character that may continue the one before it, but for the end of a line."""


class Span(NamedTuple):
    """A part of a context: its first character, the one after its last, and its score."""

    start: int
    end: int
    score: float


class Decoded(NamedTuple):
    """The best spans of a question, the best first, and the score of there being no answer."""

    spans: tuple[Span, ...]
    null: float

    @property
    def gap(self) -> float:
        """By how much the score of no answer exceeds that of the best span."""
        return self.null - self.spans[0].score if self.spans else math.inf

    def probabilities(self, nullable: bool) -> tuple[list[float], float]:
        """Share one among the spans and, where that is possible, no answer."""
        scores = [span.score for span in self.spans] + ([self.null] if nullable else [])
        if not scores:
            return [], 1.0
        shares = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
        return shares[: len(self.spans)], shares[-1] if nullable else 0.0


def logits_of(network: nn.Module, tokens: Tokens) -> Tensor:
    """Call a network, on as many windows at a time as memory surely holds; logits (W, L, 2)."""
    most = max(1, AT_ONCE // tokens.ids.shape[1])
    parts = zip(*(torch.split(part, most) for part in tokens), strict=True)
    return torch.cat([network(*part).float() for part in parts])


def allowed(batch: AnswerBatch) -> Tensor:
    """Say which positions (W, L) an answer may begin or end at: the context's, and 0 for none."""
    inside = batch.offsets[..., 0] >= 0
    inside[:, 0] = True
    return inside


def decode(
    logits: Tensor, batch: AnswerBatch, max_answer: int, n_best: int = N_BEST
) -> list[Decoded]:
    """Choose the best spans of each question over all its windows.

    Args:
        logits: of each position to be first and last, (W, L, 2).
        batch: the windows of Q questions.
        max_answer: tokens in an answer at most.
        n_best: spans to keep.

    Returns:
        One entry a question; equal spans of two windows are one, with the higher score.
    """
    logits = logits.detach().float()
    scores, firsts, lasts = _best(logits, batch.offsets, max_answer, n_best)
    nulls = logits[:, 0].sum(-1).cpu().numpy()
    window = torch.arange(len(logits), device=logits.device)[:, None]
    starts = batch.offsets[window, firsts, 0].cpu().numpy()
    ends = batch.offsets[window, lasts, 1].cpu().numpy()
    owner, values = batch.owner.cpu().numpy(), scores.cpu().numpy()
    decoded = []
    for number, question in enumerate(batch.asked):
        own = np.flatnonzero(owner == number)
        found = zip(starts[own].flat, ends[own].flat, values[own].flat, strict=True)
        spans = [Span(int(a), int(b), float(s)) for a, b, s in found if s > -math.inf]
        decoded.append(Decoded(_merged(spans, question.context, n_best), float(nulls[own].min())))
    return decoded


def predictions(found: Iterable[Decoded]) -> Tensor:
    """Give the best span's characters and the gap of Q questions, (Q, 3)."""
    rows = [(*(one.spans[0][:2] if one.spans else (0, 0)), one.gap) for one in found]
    return torch.tensor(rows, dtype=torch.float64)


def targets(asked: Iterable[Question]) -> Tensor:
    """Give the characters of the first gold answer that stands in the context (Q, 2), or -1."""
    rows = []
    for question in asked:
        placed = (answer for answer in question.answers or () if answer.start is not None)
        text, start = next(placed, ("", None))
        rows.append((-1, -1) if start is None else (start, start + len(text)))
    return torch.tensor(rows)


def _best(
    logits: Tensor, offsets: Tensor, max_answer: int, n_best: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find each window's best spans: their scores, first and last positions, each (W, n)."""
    length = logits.shape[1]
    most = min(max_answer, length)
    scores = logits.masked_fill((offsets[..., 0] < 0)[..., None], -torch.inf)
    ahead = torch.nn.functional.pad(scores[..., 1], (0, most - 1), value=-torch.inf)
    spans = scores[..., :1] + ahead.unfold(1, most, 1)  # (W, L, M)
    best, index = spans.flatten(1).topk(min(n_best, length * most))
    first = index // most
    return best, first, (first + index % most).clamp(max=length - 1)


def _merged(spans: Sequence[Span], context: str, n_best: int) -> tuple[Span, ...]:
    """Keep the best of different spans, in whole characters and without white space around."""
    merged: dict[tuple[int, int], Span] = {}
    for span in sorted(spans, key=lambda span: (-span.score, span.start, span.end)):
        place = whole(context, span.start, span.end)
        if place[0] < place[1]:
            merged.setdefault(place, Span(*place, span.score))
        if len(merged) == n_best:
            break
    return tuple(merged.values())


def whole(context: str, start: int, end: int) -> tuple[int, int]:
    """Widen a span to whole characters as a reader sees them, and drop white space around it.

    Such a character may be several code points: a letter and its marks, a syllable of Devanagari,
    an emoji of several parts (Unicode, annex 29, extended grapheme clusters).

    Example:
        >>> whole("cafe\u0301 noir", 0, 4)
        (0, 5)
    """
    while start < end and context[start].isspace():
        start += 1
    while start < end and context[end - 1].isspace():
        end -= 1
    if start == end:
        return start, end
    if not _is_border(context, start):
        borders = _borders(context)
        start = int(borders[np.searchsorted(borders, start, side="right") - 1])
    if not _is_border(context, end):
        borders = _borders(context)
        end = int(borders[np.searchsorted(borders, end)])
    return start, end


def _is_border(context: str, place: int) -> bool:
    """Say where it is plain that a character ends; of most places it is."""
    return place in (0, len(context)) or (
        max(context[place - 1 : place + 1]) < FIRST_MARK and context[place] != "\n"
    )


@lru_cache(maxsize=16)
def _borders(context: str) -> NDArray[np.int64]:
    """Find where whole characters begin, and the end."""
    found = [match.start() for match in regex.finditer(r"\X", context)]
    return np.array([*found, len(context)], np.int64)
