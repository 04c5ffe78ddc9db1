# ruff: noqa: RUF001 - Turkish letters
import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.functional.text import squad

from domains.nlp.squad_metrics import (
    NEVER,
    AnswerableF1,
    AnswerExactMatch,
    AnswerF1,
    NullAccuracy,
    best_threshold,
    exact_match,
    f1,
    normalised,
)

PAIRS = [
    ("the cat", ["a cat"]),
    ("in 1976", ["1976", "the year 1976"]),
    ("Kemal", ["İbn-i Yunus ve Mewsilî"]),
    ("ve Mewsilî", ["İbn-i Yunus ve Mewsilî"]),
    ("to be or not to be", ["to be, to be!"]),
    ("İstanbul'da", ["istanbul'da", "İstanbul"]),
    ("x y", ["y z x w", "x"]),
]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat's\u00a0hat.", "cats hat"),
        ("an apple, a day", "apple day"),
        ("Athens", "athens"),
        ("the", ""),
    ],
)
def test_normalised(text, plain):
    assert normalised(text) == plain


def test_articles_are_those_of_the_language():
    assert exact_match("a takımı", ["takımı"]) == 1
    assert exact_match("a takımı", ["takımı"], articles=()) == 0
    assert f1("a takımı", ["takımı"], articles=()) == pytest.approx(2 / 3)
    assert exact_match("der Hund", ["Hund"], articles=("der", "die", "das")) == 1


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "overlap"),
    [
        ("in 1976", ["1976"], 0, 2 / 3),
        ("in 1976", ["1976", "In 1976"], 1, 1),
        ("to be or not to be", ["to be to be"], 0, 8 / 10),  # words count as often as they occur
        ("x x x", ["x"], 0, 2 / 4),
        ("y", ["x"], 0, 0),
        ("", [], 1, 1),
        ("x", [], 0, 0),
        ("", ["x"], 0, 0),
        ("the", ["a"], 1, 1),
        ("x", ["the", "x"], 1, 1),
        ("", ["the", "x"], 0, 0),  # a gold answer of nothing but articles does not count
    ],
)
def test_worked_by_hand(answer, golds, exact, overlap):
    assert exact_match(answer, golds) == exact
    assert f1(answer, golds) == pytest.approx(overlap)


def test_equals_torchmetrics():
    answers = [{"prediction_text": said, "id": str(n)} for n, (said, _) in enumerate(PAIRS)]
    golds = [
        {"answers": {"answer_start": [0] * len(texts), "text": texts}, "id": str(n)}
        for n, (_, texts) in enumerate(PAIRS)
    ]
    theirs = squad(answers, golds)
    count = len(PAIRS)
    assert sum(exact_match(*pair) for pair in PAIRS) / count == pytest.approx(
        float(theirs["exact_match"]) / 100
    )
    assert sum(f1(*pair) for pair in PAIRS) / count == pytest.approx(float(theirs["f1"]) / 100)


GAP = torch.tensor([-3.0, -1.0, 0.5, 2.0])
SCORE = torch.tensor([1.0, 0.5, 0.0, 0.0])
NULL = torch.tensor([False, False, True, True])


@pytest.mark.parametrize(
    ("score", "null", "threshold"),
    [
        (SCORE, NULL, -0.25),  # between the last answer that pays and the first that does not
        (SCORE, torch.zeros(4, dtype=torch.bool), NEVER),
        (torch.zeros(4), torch.ones(4, dtype=torch.bool), -NEVER),
        (torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([False, True, False, False]), NEVER),
    ],
)
def test_the_best_threshold(score, null, threshold):
    assert best_threshold(GAP, score, null) == threshold


def test_the_best_threshold_is_that_of_a_search():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        gap = torch.randint(-4, 5, (12,), generator=generator).float()
        null = torch.rand(12, generator=generator) < 0.4
        score = torch.rand(12, generator=generator) * ~null
        tried = [-NEVER, *(gap.unique() + 0.5).tolist(), NEVER]
        means = [torch.where(gap > t, null.float(), score).mean() for t in tried]
        found = torch.where(gap > best_threshold(gap, score, null), null.float(), score).mean()
        assert float(found) == pytest.approx(float(max(means)), abs=1e-6)


def collection(threshold):
    return MetricCollection(
        {
            "exact_match": AnswerExactMatch(threshold),
            "f1": AnswerF1(threshold),
            "f1_answerable": AnswerableF1(threshold),
            "null_accuracy": NullAccuracy(threshold),
        }
    )


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (NEVER, (1 / 4, 1.5 / 4, 0.75, 0)),
        (None, (3 / 4, 3.5 / 4, 0.75, 1)),
        (-2.0, (3 / 4, 3 / 4, 0.5, 1)),
        (1.0, (2 / 4, 2.5 / 4, 0.75, 0.5)),
    ],
)
def test_metrics_apply_the_threshold(threshold, expected):
    metrics = collection(threshold)
    exact = torch.tensor([1.0, 0.0, 0.0, 0.0])
    for part in (slice(0, 1), slice(1, 4)):
        metrics.update(exact[part], SCORE[part], GAP[part], NULL[part])
    values = metrics.compute()
    assert tuple(float(value) for value in values.values()) == pytest.approx(expected)
