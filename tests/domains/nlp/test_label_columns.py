import pandas as pd
import pytest
import torch

from core.errors import UserError
from core.tasks.heads import read_heads
from domains.nlp.label_columns import counts_of, describe_head, split_labels, targets_of


def described(cells, kind="auto", separator=",", name=""):
    return describe_head(pd.Series(cells, dtype=object), name, kind, separator, "label")


def targets(cells, head, separator=","):
    frame = pd.DataFrame({"label": pd.Series(cells, dtype=object)})
    return targets_of(frame, read_heads([head]), ["label"], separator, "test")


def test_classes_are_sorted_as_words():
    head = described(["b", "a", None, "b", "New York", " a "])
    assert head == {"name": "", "kind": "single", "labels": ["New York", "a", "b"]}
    assert targets(["b", None, " New York "], head).tolist() == [[2], [-1], [0]]


def test_numbers_are_sorted_as_numbers():
    assert described(["10", "9", "-1", "2.5", "word"])["labels"] == ["-1", "2.5", "9", "10", "word"]
    assert described([["10", "9"], ["2"]])["labels"] == ["2", "9", "10"]


def test_names_that_look_like_odd_numbers_are_words():
    for order in (["nan", "1", "inf", "b"], ["b", "inf", "1", "nan"]):
        assert described(order)["labels"] == ["1", "b", "inf", "nan"]
    head = described(["None", "NA", "null", "x"])
    assert head["labels"] == ["NA", "None", "null", "x"]


def test_lists_are_several_labels():
    head = described([["b", "a"], [], None, ["c", "b", "b"]])
    assert head == {"name": "", "kind": "multi", "labels": ["a", "b", "c"]}
    found = targets([["b", "b"], [], None, ["a", "c"]], head)
    assert found.tolist() == [[0, 1, 0], [0, 0, 0], [-1, -1, -1], [1, 0, 1]]


def test_labels_in_one_cell():
    head = described(["x; y z", "x", ""], "multi", ";")
    assert head["labels"] == ["x", "y z"]
    assert targets(["y z;x", "y z ;", "  "], head, ";").tolist() == [[1, 1], [0, 1], [-1, -1]]
    assert split_labels(" a, b,,a ", ",") == ["a", "b"]
    assert described(["x,y", "z"])["kind"] == "single"  # a comma alone says nothing


def test_many_fractions_are_a_measure():
    numbers = [str(n / 4) for n in range(30)]
    head = described(numbers)
    assert head == {"name": "", "kind": "regression", "labels": ["label"]}
    found = targets(["1.5", None, "-2"], head)
    assert found[:, 0].tolist() == pytest.approx([1.5, float("nan"), -2], nan_ok=True)


@pytest.mark.parametrize(
    "cells",
    [
        [str(n) for n in range(30)],  # whole numbers
        ["0.5", "1.5", "2.5"] * 9,  # few of them
        [*(str(n / 4) for n in range(30)), "none"],  # a word
    ],
)
def test_other_numbers_are_classes(cells):
    assert described(cells)["kind"] == "single"


def test_a_measure_can_be_asked_for():
    assert described(["1", "2"], "regression")["kind"] == "regression"
    for cell in ("much", "nan", "inf", "1,5", ["1"]):
        with pytest.raises(UserError, match=r"column 'label': row 2 of the training part holds"):
            described(["1", cell], "regression")
    with pytest.raises(UserError, match="row 1 of the test part holds 'much', no number"):
        targets(["much"], described(["1", "2"], "regression"))


@pytest.mark.parametrize(
    ("cells", "kind", "told"),
    [
        (["a", "a", None], "auto", "one class alone"),
        ([None, "  ", None], "auto", "no row of the training part has a value"),
        ([[], []], "auto", "no row of the training part has a label"),
        ([",", ";"], "multi", None),
        ([f"text {n}" for n in range(1001)], "auto", "1,001 different values are no labels"),
        (["a", ["b"]], "single", r"column 'label': holds lists of labels; set --data.kind=multi"),
    ],
)
def test_what_cannot_be_learned(cells, kind, told):
    if told is None:
        assert described(cells, kind)["labels"] == [";"]
        return
    with pytest.raises(UserError, match=told):
        described(cells, kind)


def test_labels_that_training_never_saw():
    head = described(["a", "b"])
    with pytest.raises(UserError, match=r"column 'label': the test part has labels that") as error:
        targets(["a", "c", "d", "c"], head)
    assert "'c' (row 2), 'd' (row 3); known are a, b" in str(error.value)
    multi = described([["a"], ["b"]])
    with pytest.raises(UserError, match=r"'z' \(row 1\)"):
        targets([["a", "z"]], multi)


def test_several_columns_stand_side_by_side():
    frame = pd.DataFrame(
        {"t": ["x", "y", None], "m": [["p"], None, []], "s": ["1", None, "0.5"]}, dtype=object
    )
    heads = read_heads(
        [
            describe_head(frame[name], name, kind, ",", name)
            for name, kind in (("t", "auto"), ("m", "auto"), ("s", "regression"))
        ]
    )
    found = targets_of(frame, heads, ["t", "m", "s"], ",", "train")
    assert torch.nan_to_num(found, 9).tolist() == [[0, 1, 1], [1, -1, 9], [-1, 0, 0.5]]
    counts = counts_of(found, heads)
    assert [count.tolist() for count in counts] == [[1, 1], [[1], [1]], [1]]
