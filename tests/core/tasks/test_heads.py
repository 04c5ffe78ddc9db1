import pytest
import torch

from core.errors import UserError
from core.tasks.heads import read_heads, unknown, width

DESCRIBED = [
    {"name": "topic", "kind": "single", "labels": ["a", "b", "c"]},
    {"name": "mood", "kind": "multi", "labels": ["good", "bad"]},
    {"name": "score", "kind": "regression", "labels": ["score"]},
]


def test_heads_lie_side_by_side():
    topic, mood, score = read_heads(DESCRIBED)
    assert (topic.outputs, mood.outputs, score.outputs) == (slice(0, 3), slice(3, 5), slice(5, 6))
    assert (topic.targets, mood.targets, score.targets) == (slice(0, 1), slice(1, 3), slice(3, 4))
    assert width([topic, mood, score]) == 4
    assert topic.labels == ("a", "b", "c")


def test_names_of_metrics():
    topic, *_ = read_heads(DESCRIBED)
    (alone,) = read_heads([{"name": "", "kind": "single", "labels": ["a", "b"]}])
    assert topic.metric("accuracy") == "accuracy_topic"
    assert alone.metric("accuracy") == "accuracy"


def test_what_is_not_known():
    heads = read_heads(DESCRIBED)
    rows = torch.stack([unknown(heads), torch.tensor([2.0, 0, 1, -3.5])])
    for head in heads:
        assert head.known(rows).tolist() == [False, True]
    topic, mood, score = (head.target(rows[1:]) for head in heads)
    assert topic.tolist() == [2]
    assert topic.dtype == torch.long
    assert mood.tolist() == [[0, 1]]
    assert score.tolist() == [[-3.5]]  # a value below 0 is a value


@pytest.mark.parametrize(
    "described",
    [
        [],
        [{"name": "x", "kind": "ordinal", "labels": ["a"]}],
        [{"name": "x", "kind": "single", "labels": []}],
    ],
)
def test_what_is_no_head(described):
    with pytest.raises(UserError, match="head"):
        read_heads(described)


def test_labels_become_text():
    (head,) = read_heads([{"name": "", "kind": "single", "labels": [1, 2]}])
    assert head.labels == ("1", "2")
