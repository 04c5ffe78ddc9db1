"""Spans by hand-worked numbers; readings and scores as seqeval 1.2.2 gave them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from domains.nlp.spans import NO_TAG, SpanScore, SpanTable, decode, marks_spans, parse

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-ORG", "I-ORG"]


def ids(*sentences):
    """Label numbers (B, N), padded."""
    width = max(map(len, sentences))
    return torch.tensor(
        [[LABELS.index(t) for t in s] + [NO_TAG] * (width - len(s)) for s in sentences]
    )


GOLD = (
    ["B-PER", "I-PER", "O", "B-LOC", "O"],
    ["B-ORG", "I-ORG", "B-ORG", "O"],
    ["O", "B-PER", "B-LOC"],
)
GUESS = (
    ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"],  # one right, one too long
    ["B-ORG", "I-ORG", "I-ORG", "O"],  # two run together
    ["B-LOC", "I-PER", "B-LOC"],  # one too many; PER without B
)


@pytest.mark.parametrize(
    ("scheme", "correct", "predicted", "precision", "recall", "f1", "macro"),
    [
        # lenient: right are PER 0-2, PER 1-2 and LOC 2-3; LOC 2*1/(3+2), ORG 0, PER 2*2/(2+2)
        (None, 3, 6, 0.5, 0.5, 0.5, (0.4 + 0 + 1) / 3),
        # strict: the PER that begins with I is none; PER 2*1/(1+2)
        ("BIO", 2, 5, 0.4, 1 / 3, 4 / 11, (0.4 + 0 + 2 / 3) / 3),
    ],
)
def test_scores_by_hand(scheme, correct, predicted, precision, recall, f1, macro):
    scores = {
        "precision": SpanScore(LABELS, "precision", scheme=scheme),
        "recall": SpanScore(LABELS, "recall", scheme=scheme),
        "f1": SpanScore(LABELS, scheme=scheme),
        "f1_macro": SpanScore(LABELS, average="macro", scheme=scheme),
    }
    for metric in scores.values():
        metric.update(ids(*GUESS), ids(*GOLD))
    assert int(scores["f1"].correct.sum()) == correct
    assert int(scores["f1"].predicted.sum()) == predicted
    assert int(scores["f1"].wanted.sum()) == 6
    found = {name: float(metric.compute()) for name, metric in scores.items()}
    wanted = {"precision": precision, "recall": recall, "f1": f1, "f1_macro": macro}
    assert found == pytest.approx(wanted, abs=1e-6)


def test_per_type_by_hand():
    metric = SpanScore(LABELS)
    metric.update(ids(*GUESS), ids(*GOLD))
    assert metric.per_type() == {
        "LOC": {"precision": pytest.approx(1 / 3), "recall": 0.5, "f1": 0.4, "spans": 2},
        "ORG": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "spans": 2},
        "PER": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "spans": 2},
    }


def test_scores_are_those_of_the_whole_set_whatever_the_batches_and_processes():
    whole, batches = SpanScore(LABELS), SpanScore(LABELS)
    whole.update(ids(*GUESS), ids(*GOLD))
    processes = [SpanScore(LABELS) for _ in GOLD]
    for guess, gold, process in zip(GUESS, GOLD, processes, strict=True):
        batches.update(ids(guess), ids(gold))
        process.update(ids(guess), ids(gold))
    for process in processes[1:]:
        processes[0].merge_state(process)
    assert batches.compute() == processes[0].compute() == whole.compute() == 0.5


def test_a_collection_counts_once_for_all_scores():
    collection = MetricCollection(
        {"f1": SpanScore(LABELS), "recall": SpanScore(LABELS, "recall")}, prefix="test/"
    )
    for guess, gold in zip(GUESS, GOLD, strict=True):
        collection.update(ids(guess), ids(gold))
    assert len(collection.compute_groups) == 1
    assert collection.compute()["test/recall"] == 0.5


def test_words_without_a_tag_count_nowhere():
    metric = SpanScore(LABELS)
    target = ids(["B-PER", "O", "O"])
    target[0, 2] = NO_TAG
    metric.update(ids(["B-PER", "O", "B-LOC"]), target)
    assert metric.compute() == 1


def test_nothing_found_and_nothing_to_find_is_zero():
    for average in ("micro", "macro"):
        metric = SpanScore(LABELS, average=average)
        metric.update(ids(["O"]), ids(["O"]))
        assert metric.compute() == 0


# read by seqeval: get_entities, and scheme.Entities
READ = [
    (None, "I-X B-X B-X", [("X", 0, 1), ("X", 1, 2), ("X", 2, 3)]),
    (None, "I-X I-Y E-Y I-Y O E-X", [("X", 0, 1), ("Y", 1, 3), ("Y", 3, 4), ("X", 5, 6)]),
    (None, "S-X I-X B-Y E-X", [("X", 0, 1), ("X", 1, 2), ("Y", 2, 3), ("X", 3, 4)]),
    (None, "B-X S-X I-X", [("X", 0, 1), ("X", 1, 2), ("X", 2, 3)]),
    ("BIO", "I-X B-X I-Y I-Y B-Y I-Y", [("X", 1, 2), ("Y", 4, 6)]),
    ("IOB1", "I-X B-X I-X O I-Y", [("X", 0, 1), ("X", 1, 3), ("Y", 4, 5)]),
    ("IOBES", "B-X B-X E-X I-Y E-Y S-Y B-X I-X", [("X", 1, 3), ("Y", 5, 6)]),
    ("BILOU", "U-X B-Y I-Y L-Y B-X L-Y L-X", [("X", 0, 1), ("Y", 1, 4)]),
]


@pytest.mark.parametrize(("scheme", "tags", "wanted"), READ)
def test_readings_are_those_of_seqeval(scheme, tags, wanted):
    assert decode(tags.split(), scheme) == wanted


def test_an_empty_sequence_has_no_span():
    assert decode([]) == []


def test_a_tag_without_a_prefix_is_a_type():
    assert parse("TIM") == ("I", "TIM")
    assert decode(["TIM", "TIM", "O", "B-PER"]) == [("TIM", 0, 2), ("PER", 3, 4)]


def test_types_may_hold_hyphens():
    assert decode(["B-creative-work", "I-creative-work"]) == [("creative-work", 0, 2)]


def test_parts_of_speech_mark_no_spans():
    assert not marks_spans(["NOUN", "O", "-LRB-", "B-", "I"])
    assert marks_spans(["O", "I-PER"])


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="IOB9"):
        SpanTable(LABELS, "IOB9")


FORMS = {
    "BIO": lambda n: "B" + "I" * (n - 1),
    "IOBES": lambda n: "S" if n == 1 else "B" + "I" * (n - 2) + "E",
    "BILOU": lambda n: "U" if n == 1 else "B" + "I" * (n - 2) + "L",
}


@pytest.mark.parametrize("scheme", FORMS)
@given(
    pieces=st.lists(
        st.tuples(st.sampled_from(["PER", "LOC", ""]), st.integers(1, 4)), min_size=1, max_size=8
    )
)
def test_what_a_scheme_writes_is_read_back(scheme, pieces):
    tags, spans = [], []
    for name, length in pieces:
        if name:
            spans.append((name, len(tags), len(tags) + length))
            tags += [f"{prefix}-{name}" for prefix in FORMS[scheme](length)]
        else:
            tags += ["O"] * length
    assert decode(tags) == decode(tags, scheme) == spans


def test_iob1_writes_b_only_between_spans_of_one_type():
    spans = [("X", 0, 2), ("X", 2, 3), ("Y", 3, 4)]
    assert decode(["I-X", "I-X", "B-X", "I-Y"], "IOB1") == spans


def test_every_short_sequence_has_spans_that_do_not_overlap():
    tags = ["O", "B-X", "I-X", "E-X", "S-Y", "I-Y"]
    for sequence in itertools.product(tags, repeat=4):
        spans = decode(sequence)
        assert sum(stop - start for _, start, stop in spans) == sum(t != "O" for t in sequence)
