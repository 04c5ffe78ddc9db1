"""Vectors of texts do not depend on the batch that they were made in."""

import numpy as np
import pytest
import torch

from domains.nlp.embedding import batches, embed
from domains.nlp.encoding import encode
from domains.nlp.tokenizer import load_tokenizer

TEXTS = ["a cat", "", "the dog sat on the mat " * 6, "one two three", "wing " * 30, "a cat"]


@pytest.fixture
def encoded():
    return encode(load_tokenizer("minilm"), TEXTS, max_length=48)


def test_batches_hold_the_budget_and_every_text_once():
    lengths = np.array([3, 9, 17, 64, 8, 1])
    found = [rows.tolist() for rows in batches(lengths, 64)]
    assert found == [[3], [2, 1], [4, 0, 5]]
    assert [rows.tolist() for rows in batches(np.array([100]), 64)] == [[0]]


def test_vectors_are_the_same_in_any_batch(tiny_embedder, encoded):
    with torch.no_grad():
        alone = torch.cat([embed(tiny_embedder, encoded, 0, [row]) for row in range(len(TEXTS))])
        for budget in (48, 100, 4096):
            found = embed(tiny_embedder, encoded, 0, budget=budget)
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(len(TEXTS)))
    assert not torch.allclose(alone[0], alone[3], atol=1e-3)


def test_chosen_rows_come_in_the_asked_order(tiny_embedder, encoded):
    with torch.no_grad():
        whole = embed(tiny_embedder, encoded, 0)
        found = embed(tiny_embedder, encoded, 0, [4, 0, 2])
    torch.testing.assert_close(found, whole[[4, 0, 2]], rtol=1e-5, atol=1e-6)
    assert embed(tiny_embedder, encoded, 0, []).shape == (0, 0)
