"""Answers without a network, for every table: what shares words with the question.

Richardson et al., MCTest, EMNLP 2013, for the sliding window; Rajpurkar et al., SQuAD, EMNLP 2016,
section 5, for both as baselines of extractive answers.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import regex  # type: ignore[import-untyped]
from torch import Tensor

from core.data_module import Baseline
from domains.nlp.answer_decoding import Decoded, Span, predictions, targets
from domains.nlp.answer_windows import AnswerBatch
from domains.nlp.squad import Question

Chooser = Callable[[Question], tuple[int, int]]
AROUND = 10
"""Words on either side of a span in which words of the question speak for it."""

_WORD = re.compile(r"\w+")
_SENTENCE = regex.compile(r"\S(?:[^.!?\n]|[.!?](?!\s|$|\p{Lu}))*[.!?]*")


def baseline(choose: Chooser) -> Baseline:
    """Answer all questions of a batch by ``choose``; none is left without an answer."""

    def answer(batch: AnswerBatch) -> tuple[Tensor, Tensor]:
        spans = (Decoded((Span(*choose(one), 0.0),), -math.inf) for one in batch.asked)
        return predictions(spans), targets(batch.asked)

    return answer


def sentence_overlap(question: Question) -> tuple[int, int]:
    """Choose the sentence that shares most different words with the question, the first of them."""
    asked = set(_words(question.text))
    spans = [match.span() for match in _SENTENCE.finditer(question.context)]
    shared = [len(asked & set(_words(question.context[a:b]))) for a, b in spans]
    best: tuple[int, int] = spans[int(np.argmax(shared))]
    return best


def sliding_window(trained: Sequence[Question]) -> Chooser:
    """Choose a span of the usual length, near words of the question but without them.

    Each span of as many words as the median training answer has earns the weights of the
    question's words among the ten words on either side, and loses those inside it; the weight of a
    word is its inverse frequency among the training contexts.
    """
    contexts = list(dict.fromkeys(question.context for question in trained))
    found = Counter(word for text in contexts for word in set(_words(text)))
    weights = {word: math.log((1 + len(contexts)) / (1 + n)) for word, n in found.items()}
    unseen = math.log(1 + len(contexts))
    lengths = [len(_words(gold)) for question in trained for gold in question.golds]
    length = max(1, round(float(np.median(lengths)))) if lengths else 1

    def choose(question: Question) -> tuple[int, int]:
        return _best_window(question, length, weights, unseen)

    return choose


def _best_window(
    question: Question, length: int, weights: Mapping[str, float], unseen: float
) -> tuple[int, int]:
    places = [match.span() for match in _WORD.finditer(question.context)]
    if not places:
        return 0, len(question.context)
    asked = set(_words(question.text))
    words = _words(question.context)
    earned = [weights.get(word, unseen) if word in asked else 0.0 for word in words]
    sums = np.concatenate([[0.0], np.cumsum(earned)])
    first = np.arange(max(1, len(words) - length + 1))
    last = np.minimum(first + length, len(words))
    low, high = np.maximum(first - AROUND, 0), np.minimum(last + AROUND, len(words))
    inside = sums[last] - sums[first]
    best = int(np.argmax(sums[high] - sums[low] - 2 * inside))
    return places[best][0], places[int(last[best]) - 1][1]


def _words(text: str) -> list[str]:
    return _lowered(_WORD.findall(text))


def _lowered(words: Iterable[str]) -> list[str]:
    return [word.lower() for word in words]
