"""Exact search in chunks, by vectors, by words and by both."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from domains.nlp.index import by_both, by_vectors, by_words, spread


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    questions = torch.randn(4, 8, generator=generator)
    documents = torch.randn(57, 8, generator=generator) + 1
    draw = np.random.default_rng(0)
    words = draw.random((4, 57)) * (draw.random((4, 57)) < 0.3)
    words[3] = 0  # a question without a known word
    return questions, documents, csr_array(words.astype(np.float32))


def test_hits_are_those_of_the_whole_product(case):
    questions, documents, words = case
    for scores, search in (
        (questions @ documents.T, lambda chunk: by_vectors(questions, documents, 10, chunk)),
        (torch.from_numpy(words.toarray()), lambda chunk: by_words(words, 10, chunk)),
    ):
        wanted = scores.sort(dim=1, descending=True, stable=True)
        for chunk in (1, 7, 100):
            found = search(chunk)
            assert (found.rows == wanted.indices[:, :10]).all()
            torch.testing.assert_close(found.scores, wanted.values[:, :10])


def test_both_are_standardised_over_the_corpus_and_added(case):
    questions, documents, words = case
    parts = [questions @ documents.T, torch.from_numpy(words.toarray())]
    whole = [(p - p.mean(1, True)) / p.std(1, correction=0, keepdim=True) for p in parts]
    wanted = (whole[0] + whole[1].nan_to_num(0.0)).sort(dim=1, descending=True)
    for chunk in (5, 100):
        found = by_both(questions, documents, spread(documents), words, 10, chunk)
        assert (found.rows == wanted.indices[:, :10]).all()
        torch.testing.assert_close(found.scores, wanted.values[:, :10], rtol=1e-4, atol=1e-4)


def test_fewer_documents_than_asked_for(case):
    questions, documents, _ = case
    assert by_vectors(questions, documents[:3], 10).rows.shape == (4, 3)
