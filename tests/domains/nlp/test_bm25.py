"""BM25 against its formula, and on Cranfield."""

import math

import numpy as np
import pytest

from domains.nlp.bm25 import BM25

TEXTS = ["The wing, the WING", "a jet engine", "wing and engine of a jet", ""]


def _by_hand(question, text, k1=1.2, b=0.75):
    """Score one text from the formula, word by word."""
    split = [t.lower().replace(",", "").split() for t in TEXTS]
    mean = sum(map(len, split)) / len(split)
    score = 0.0
    for word in question.split():
        have = sum(word in words for words in split)
        f, n = split[text].count(word), len(split[text])
        idf = math.log(1 + (len(TEXTS) - have + 0.5) / (have + 0.5))
        score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * n / mean))
    return score


@pytest.mark.parametrize("question", ["wing", "the jet", "wing wing engine", "unknown a", ""])
def test_scores_are_those_of_the_formula(question):
    found = BM25(TEXTS).scores([question]).toarray()[0]
    assert found == pytest.approx([_by_hand(question, i) for i in range(4)], rel=1e-6)


def test_other_constants_are_taken():
    found = BM25(TEXTS, k1=0.9, b=0.4).scores(["wing jet"]).toarray()[0]
    assert found[2] == pytest.approx(_by_hand("wing jet", 2, 0.9, 0.4), rel=1e-6)


def test_a_batch_gives_what_single_questions_give():
    bm25, questions = BM25(TEXTS), ["wing", "jet engine", "nothing known"]
    whole = bm25.scores(questions).toarray()
    assert (whole == np.vstack([bm25.scores([q]).toarray() for q in questions])).all()
    assert not whole[2].any()


def test_a_corpus_of_empty_texts_scores_nothing():
    assert BM25(["", ""]).scores(["a"]).toarray().tolist() == [[0, 0]]
