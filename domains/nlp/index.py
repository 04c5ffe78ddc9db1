"""Search a corpus by vectors, by words, or by both: exact, in chunks, with a running best.

Sizes: B questions, N documents, D features of a vector, K hits.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.sparse import csr_array
from torch import Tensor

from domains.nlp.ranking import Hits, best, merged

CHUNK = 2**16
"""Documents that are scored at a time."""
DEPTH = 1000
"""Documents that are ranked for a question, as is usual with trec_eval."""


def by_vectors(questions: Tensor, documents: Tensor, count: int, chunk: int = CHUNK) -> Hits:
    """Give the K = ``count`` best documents by dot product.

    Args:
        questions: vectors (B, D).
        documents: vectors (N, D).
        count: how many are given.
        chunk: documents scored at a time; never changes a result.
    """
    return _best(lambda part: questions @ documents[part].mT, len(documents), count, chunk)


def by_words(words: csr_array, count: int, chunk: int = CHUNK) -> Hits:
    """Give the K = ``count`` best documents by scores of words (B, N)."""
    return _best(lambda part: _dense(words, part), words.shape[1], count, chunk)


class Spread(NamedTuple):
    """The mean (D,) and the covariance (D, D) of the vectors of a corpus."""

    mean: Tensor
    covariance: Tensor


def spread(documents: Tensor) -> Spread:
    """Measure the vectors (N, D) of a corpus, for :func:`by_both`."""
    mean = documents.mean(0)
    return Spread(mean, documents.mT @ documents / len(documents) - torch.outer(mean, mean))


def by_both(
    questions: Tensor,
    documents: Tensor,
    measured: Spread,
    words: csr_array,
    count: int,
    chunk: int = CHUNK,
) -> Hits:
    """Give the K = ``count`` best documents by the sum of both scores, each standardised.

    A question's scores are standardised over the whole corpus, whose vectors were ``measured`` by
    :func:`spread`. See :func:`by_vectors` and :func:`by_words`.
    """
    varied = ((questions @ measured.covariance) * questions).sum(1)
    of_vectors = _standard(questions @ measured.mean, varied)
    first, second = (torch.from_numpy(w.mean(1)).to(questions) for w in (words, words.power(2)))
    of_words = _standard(first, second - first.square())

    def scored(part: slice) -> Tensor:
        found = of_vectors(questions @ documents[part].mT)
        return found + of_words(_dense(words, part).to(questions))

    return _best(scored, len(documents), count, chunk)


def _best(scored: Callable[[slice], Tensor], length: int, count: int, chunk: int) -> Hits:
    """Give the best of scores (B, n) that come for one part of the corpus after the other."""
    hits: list[Hits] = []
    for start in range(0, length, chunk):
        part = slice(start, min(start + chunk, length))
        hits = [merged([*hits, best(scored(part), count, start)], count)]
    return hits[0]


def _standard(mean: Tensor, variance: Tensor) -> Callable[[Tensor], Tensor]:
    """Give what standardises scores (B, n); scores that do not vary become zero."""
    scale = torch.where(variance > 0, variance.clamp(min=0).rsqrt(), 0)
    return lambda scores: (scores - mean[:, None]) * scale[:, None]


def _dense(words: csr_array, part: slice) -> Tensor:
    return torch.from_numpy(words[:, part].toarray())
