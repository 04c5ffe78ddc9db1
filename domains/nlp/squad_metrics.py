"""Exact match and F1 of answers, as SQuAD's own scripts count them.

Rajpurkar et al., EMNLP 2016 and ACL 2018. An answer is put into lower case, loses ASCII
punctuation and articles, and is compared with the gold answer that it fits best. F1 is that of the
two bags of words. A question without an answer is answered right by the empty text alone; F1 is
then 1, as it is between two answers of which nothing but articles and punctuation was left
(version 2.0; version 1.1 counts 0 there). All values are fractions of one.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

ENGLISH_ARTICLES = ("a", "an", "the")
NEVER = float("inf")
"""The threshold at which no question is left without an answer."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str, articles: Sequence[str] = ENGLISH_ARTICLES) -> str:
    """Lower the case, drop ASCII punctuation and articles, put single spaces.

    Example:
        >>> normalised("The  Cat's hat.")
        'cats hat'
    """
    text = text.lower().translate(_PUNCTUATION)
    if articles:
        text = re.sub(rf"\b({'|'.join(map(re.escape, articles))})\b", " ", text)
    return " ".join(text.split())


def exact_match(
    answer: str, golds: Iterable[str], articles: Sequence[str] = ENGLISH_ARTICLES
) -> float:
    """Say whether an answer equals one of the gold ones (1.0) or none (0.0).

    Args:
        answer: the empty text says that there is none.
        golds: gold answers; without any, there is none.
        articles: words that do not count.
    """
    said = normalised(answer, articles)
    return float(any(said == gold for gold in _golds(golds, articles)))


def f1(answer: str, golds: Iterable[str], articles: Sequence[str] = ENGLISH_ARTICLES) -> float:
    """Give the F1 of an answer's words and those of the gold answer that fits best.

    Args:
        answer: the empty text says that there is none.
        golds: gold answers; without any, there is none.
        articles: words that do not count.
    """
    said = normalised(answer, articles).split()
    return max(_f1(said, gold.split()) for gold in _golds(golds, articles))


def _golds(golds: Iterable[str], articles: Sequence[str]) -> list[str]:
    """Normalise gold answers; those that nothing is left of do not count beside others."""
    return [text for gold in golds if (text := normalised(gold, articles))] or [""]


def _f1(said: Sequence[str], gold: Sequence[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    shared = sum((Counter(said) & Counter(gold)).values())
    return 2 * shared / (len(said) + len(gold))


def best_threshold(gap: Tensor, score: Tensor, null: Tensor) -> float:
    """Find the threshold of the gap above which no answer is best, by the mean score.

    Args:
        gap: by how much the score of no answer exceeds that of the answer, (N,).
        score: what the answer earns where it is given, (N,).
        null: whether the question has no answer, (N,).

    Returns:
        The lowest of the best thresholds; never to leave a question without an answer where that
        is as good.
    """
    order = gap.argsort()
    gain = (score - null.to(score.dtype))[order].cumsum(0)  # of answering the lowest gaps
    gain = torch.cat([gain.new_zeros(1), gain])
    sorted_gap = gap[order]
    last = torch.ones(len(gain), dtype=torch.bool, device=gap.device)  # of equal gaps
    last[1:-1] = sorted_gap[1:] > sorted_gap[:-1]
    gain[~last] = -torch.inf
    if gain[-1] >= gain.max() - 1e-9:
        return NEVER
    answered = int(gain.argmax())
    if not answered:
        return -NEVER
    between = (sorted_gap[answered - 1].double() + sorted_gap[answered].double()) / 2
    return float(between)


class AnswerMetric(Metric):
    """The share that answers earn, once no answer is chosen wherever its gap exceeds a threshold.

    Args:
        threshold: of the gap; None takes the best one for F1 on the questions themselves, as
            SQuAD's script does on a development set.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    exact: list[Tensor]
    overlap: list[Tensor]
    gap: list[Tensor]
    null: list[Tensor]

    def __init__(self, threshold: float | None = NEVER) -> None:
        super().__init__()
        self.threshold = threshold
        for name in ("exact", "overlap", "gap", "null"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, exact: Tensor, overlap: Tensor, gap: Tensor, null: Tensor) -> None:
        """Take what N questions' answers earn if given, each (N,).

        Args:
            exact: exact match.
            overlap: F1.
            gap: by how much the score of no answer exceeds that of the answer.
            null: whether the question has no answer.
        """
        self.exact.append(exact)
        self.overlap.append(overlap)
        self.gap.append(gap)
        self.null.append(null)

    def chosen_threshold(self) -> float:
        """Give the threshold that :meth:`compute` applies."""
        if self.threshold is not None:
            return self.threshold
        gap, overlap, null = (dim_zero_cat(x) for x in (self.gap, self.overlap, self.null))
        return best_threshold(gap, overlap, null)

    def earned(self, score: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """Give what each question earns (N,), and whether it has no answer (N,)."""
        null = dim_zero_cat(self.null)
        silent = dim_zero_cat(self.gap) > self.chosen_threshold()
        return torch.where(silent, null.to(torch.float32), dim_zero_cat(score)), null  # type: ignore[arg-type]

    def compute(self) -> Tensor:
        """Give the share, of one."""
        raise TypeError(f"{type(self).__name__} must define compute()")


class AnswerExactMatch(AnswerMetric):
    """Share of questions whose answer equals a gold one."""

    def compute(self) -> Tensor:
        """Give the share, of one."""
        return self.earned(self.exact)[0].mean()


class AnswerF1(AnswerMetric):
    """Mean F1 of answers and gold ones."""

    def compute(self) -> Tensor:
        """Give the mean, of one."""
        return self.earned(self.overlap)[0].mean()


class AnswerableF1(AnswerMetric):
    """Mean F1 over the questions that have an answer."""

    def compute(self) -> Tensor:
        """Give the mean, of one."""
        earned, null = self.earned(self.overlap)
        return earned[~null].mean()


class NullAccuracy(AnswerMetric):
    """Share of the questions without an answer that were left without one."""

    def compute(self) -> Tensor:
        """Give the share, of one."""
        earned, null = self.earned(torch.zeros_like(dim_zero_cat(self.gap)))
        return earned[null].mean()


class NullThreshold(AnswerMetric):
    """The threshold of the gap above which the questions are best left without an answer."""

    higher_is_better = None  # type: ignore[assignment]

    def compute(self) -> Tensor:
        """Give the threshold."""
        return torch.tensor(self.chosen_threshold(), device=self.device)
