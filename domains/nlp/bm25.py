"""BM25: the ranking by words that every table of retrieval shows beside the networks.

Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import csr_array

WORD = re.compile(r"\w+")


class BM25:
    """Score documents by the words that they share with a question.

    A word w of the question adds idf(w) * f * (k1 + 1) / (f + k1 * (1 - b + b * n / mean n)) to the
    score of a document that has it f times among n words, each time that it stands in the
    question. idf(w) = ln(1 + (N - m + 0.5) / (m + 0.5)) for m of N documents with w, which is never
    below zero. Words are runs of letters, digits and ``_`` in lower case; there is no stemming and
    no list of stop words.

    Args:
        documents: N texts.
        k1: how fast further occurrences of a word count less.
        b: how much long documents are held back, from 0 to 1.

    Example:
        >>> BM25(["a wing", "a jet engine"]).scores(["engine"]).toarray().round(3)
        array([[0.   , 0.641]], dtype=float32)
    """

    def __init__(self, documents: Iterable[str], k1: float = 1.2, b: float = 0.75) -> None:
        self.words: dict[str, int] = {}
        counts = self._counted(documents, grow=True)
        lengths = counts.sum(1)
        have = np.bincount(counts.indices, minlength=len(self.words))
        idf = np.log1p((counts.shape[0] - have + 0.5) / (have + 0.5))
        held = k1 * (1 - b + b * lengths / max(lengths.mean(), 1))
        f, rows = counts.data, np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        weights = idf[counts.indices] * f * (k1 + 1) / (f + held[rows])
        counts.data = weights.astype(np.float32)
        self.weights = counts.T.tocsr()  # (words, N)

    def scores(self, questions: Sequence[str]) -> csr_array:
        """Give the scores (questions, N); documents that share no word are not stored."""
        return self._counted(questions, grow=False).astype(np.float32) @ self.weights

    def _counted(self, texts: Iterable[str], grow: bool) -> csr_array:
        """Count the words of each text (texts, words); new words are taken in, or left out."""
        counts: list[int] = []
        columns: list[int] = []
        ends = [0]
        for text in texts:
            for word, count in Counter(WORD.findall(text.lower())).items():
                column = self.words.setdefault(word, len(self.words)) if grow else None
                column = self.words.get(word) if column is None else column
                if column is not None:
                    columns.append(column)
                    counts.append(count)
            ends.append(len(columns))
        shape = (len(ends) - 1, len(self.words))
        return csr_array((np.array(counts, np.float64), columns, ends), shape=shape)
