# ruff: noqa: RUF001 - Turkish letters
import math

import pytest
import torch

from domains.nlp.answer_decoding import Decoded, Span, allowed, decode, whole
from domains.nlp.answer_windows import windows_of
from domains.nlp.squad import Answer, Question
from domains.nlp.tokenizer import load_tokenizer

WORDS = [f"word{n}" for n in range(60)]
CONTEXT = " ".join(WORDS)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("minilm")


def batch_of(tokenizer, *contexts, max_length=48):
    asked = [Question(str(n), "Which?", text, (), "") for n, text in enumerate(contexts)]
    windows = windows_of(asked, tokenizer, max_length)
    return windows.of_questions(range(len(asked)))


def searched(logits, batch, question, max_answer):
    """Try every span of every window, one by one."""
    found = {}
    for w in (batch.owner == question).nonzero().flatten().tolist():
        inside = (batch.offsets[w, :, 0] >= 0).nonzero().flatten().tolist()
        for first in inside:
            for last in inside:
                if first <= last < first + max_answer:
                    place = int(batch.offsets[w, first, 0]), int(batch.offsets[w, last, 1])
                    score = float(logits[w, first, 0] + logits[w, last, 1])
                    found[place] = max(score, found.get(place, -math.inf))
    return sorted(found.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("max_answer", [1, 5, 500])
def test_the_best_spans_are_those_of_a_search(tokenizer, max_answer):
    batch = batch_of(tokenizer, CONTEXT, "a few words, no more", " ".join(WORDS[:30]))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*batch.tokens.ids.shape, 2, generator=generator)
    for number, decoded in enumerate(decode(logits, batch, max_answer, n_best=7)):
        expected = searched(logits, batch, number, max_answer)[:7]
        assert [(s.start, s.end) for s in decoded.spans] == [place for place, _ in expected]
        assert [s.score for s in decoded.spans] == pytest.approx([s for _, s in expected])
        own = logits[batch.owner == number]
        assert decoded.null == pytest.approx(float((own[:, 0, 0] + own[:, 0, 1]).min()))
        assert decoded.gap == pytest.approx(decoded.null - expected[0][1])


def test_nothing_outside_the_context_is_chosen(tokenizer):
    batch = batch_of(tokenizer, "only these words")
    logits = torch.full((*batch.tokens.ids.shape, 2), 100.0)
    logits[batch.offsets[..., 0] >= 0] = -100.0
    (decoded,) = decode(logits, batch, 30)
    assert {(s.start, s.end) for s in decoded.spans} == {
        (0, 4), (0, 10), (0, 16), (5, 10), (5, 16), (11, 16)
    }  # fmt: skip
    assert decoded.null == 200
    assert allowed(batch).sum() == 4


def test_padding_changes_nothing(tokenizer):
    batch = batch_of(tokenizer, "only these words")
    logits = torch.randn(*batch.tokens.ids.shape, 2, generator=torch.Generator().manual_seed(1))
    wider = batch._replace(offsets=torch.nn.functional.pad(batch.offsets, (0, 0, 0, 16), value=-1))
    padded = torch.nn.functional.pad(logits, (0, 0, 0, 16), value=9.0)
    assert decode(padded, wider, 30) == decode(logits, batch, 30)


def test_one_token_a_text_is_enough(tokenizer):
    batch = batch_of(tokenizer, "x")
    (decoded,) = decode(torch.zeros(*batch.tokens.ids.shape, 2), batch, 30)
    assert decoded.spans == (Span(0, 1, 0.0),)


@pytest.mark.parametrize(
    ("context", "start", "end", "expected"),
    [
        ("plain text", 0, 5, (0, 5)),
        ("plain text", 5, 10, (6, 10)),
        ("a  ", 1, 3, (3, 3)),
        ("cafe\u0301 noir", 0, 4, (0, 5)),
        ("cafe\u0301 noir", 4, 10, (3, 10)),
        ("क्षत्रिय", 0, 1, (0, 3)),  # a conjunct is one character to a reader
        ("বাংলা", 1, 3, (0, 3)),
        ("x 👨‍👩‍👧 y", 3, 5, (2, 7)),
        ("İstanbul", 0, 1, (0, 1)),
        ("🇹🇷🇫🇷", 1, 2, (0, 2)),
        ("a\r\nb", 0, 4, (0, 4)),
    ],
)
def test_no_half_of_a_character_is_returned(context, start, end, expected):
    assert whole(context, start, end) == expected


def test_answers_are_cut_from_the_text_itself(tokenizer):
    context = "Türk  Dil\u00a0Kurumu’nun cafe\u0301 “Kâşgarlı” नमस्ते sözlüğü"
    batch = batch_of(tokenizer, context)
    for token in range(batch.offsets.shape[1]):
        if batch.offsets[0, token, 0] < 0:
            continue
        logits = torch.zeros(*batch.tokens.ids.shape, 2)
        logits[0, token] = 10.0
        (decoded,) = decode(logits, batch, 30)
        best = decoded.spans[0]
        assert best.start <= batch.offsets[0, token, 0]
        assert best.end >= batch.offsets[0, token, 1]
        assert context[best.start : best.end].strip() == context[best.start : best.end] != ""
        assert not context[best.end : best.end + 1].startswith(("\u0301", "\u094d", "\u0947"))


def test_probabilities_share_one():
    decoded = Decoded((Span(0, 1, 2.0), Span(0, 2, 1.0)), null=2.0)
    shares, null = decoded.probabilities(nullable=True)
    assert sum(shares) + null == pytest.approx(1)
    assert null == pytest.approx(shares[0])
    shares, null = decoded.probabilities(nullable=False)
    assert shares == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])
    assert null == 0
    assert Decoded((), 1.0).probabilities(nullable=False) == ([], 1.0)
    assert Decoded((), 1.0).gap == math.inf


def test_a_gold_answer_comes_back_from_its_own_positions(tokenizer):
    answer = Answer("word31 word32", CONTEXT.index("word31"))
    asked = [Question("q", "Which?", CONTEXT, (answer,), "")]
    batch = windows_of(asked, tokenizer, 48).of_questions([0])
    logits = torch.zeros(*batch.tokens.ids.shape, 2)
    for w, (first, last) in enumerate(batch.positions.tolist()):
        logits[w, first, 0] = logits[w, last, 1] = 5.0
    (decoded,) = decode(logits, batch, 30)
    best = decoded.spans[0]
    assert CONTEXT[best.start : best.end] == answer.text
