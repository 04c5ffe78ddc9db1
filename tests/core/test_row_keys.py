import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from core.row_keys import contents, positions, texts

SAME = [
    [1, 2, 30],
    [1.0, 2.0, 30.0],
    pd.array([1, 2, 30], dtype="Int64"),
    pd.Categorical([1, 2, 30], categories=[30, 2, 1, 7]),
    np.array([1, 2, 30], dtype=object),
    np.array([1, 2, 30], dtype=np.int8),
]


@pytest.mark.parametrize("values", [*SAME, ["1", "2", "30"], np.array([1, 2.0, "30"], object)])
def test_texts_do_not_depend_on_the_type(values):
    codes, names = texts(pd.Series(values))
    assert [names[code] for code in codes] == ["1", "2", "30"]


def test_texts_join_what_looks_alike_and_keep_the_rest_apart():
    codes, names = texts(pd.Series([7, "7", 7.0, "07", 7.5, True, " 7"], dtype=object))
    assert [names[code] for code in codes] == ["7", "7", "7", "07", "7.5", "True", " 7"]
    assert codes[0] == codes[1] == codes[2]


def test_texts_of_names_that_are_not_utf8():
    codes, names = texts(pd.Series(["a\udcff.wav", "ü.wav"]))
    assert [names[c] for c in codes] == ["a\\udcff.wav", "ü.wav"]


def test_values_that_cannot_be_compared():
    frame = pd.DataFrame({"x": [[1], [2]]})
    with pytest.raises(UserError, match="column 'x' holds values of type list"):
        texts(frame["x"])
    with pytest.raises(UserError, match="column 'x' holds values of type list"):
        contents(frame)


@pytest.mark.parametrize("values", SAME)
def test_contents_do_not_depend_on_type_or_order_of_columns(values):
    text = ["x", "y", "z"]
    expected = contents(pd.DataFrame({"a": SAME[0], "b": text}))
    assert (contents(pd.DataFrame({"b": pd.Categorical(text), "a": values})) == expected).all()


def test_contents_stay_when_a_row_changes_the_type_of_the_column():
    whole = contents(pd.DataFrame({"a": [1, 2], "b": [True, False]}))
    holes = contents(pd.DataFrame({"a": [1, 2, None], "b": [True, False, None]}))
    fractions = contents(pd.DataFrame({"a": [1, 2, 2.5], "b": [True, False, True]}))
    assert (holes[:2] == whole).all()
    assert (fractions[:2] == whole).all()


def test_contents_differ_where_a_cell_does():
    frame = pd.DataFrame({"a": ["x", "x", "xy", None, ""], "b": ["y", None, "", "y", "y"]})
    assert len(set(contents(frame))) == 5
    large = pd.DataFrame({"a": [2**53, 2**53 + 1, 2**62, 2**62 + 1, -(2**62) - 1]})
    assert len(set(contents(large))) == 5


def test_contents_that_are_equal():
    frame = pd.DataFrame({"a": [0.0, -0.0, np.nan, np.nan], "b": ["x", "x", None, np.nan]})
    keys = contents(frame)
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert keys[0] != keys[2]


def test_positions_are_even_and_their_values_stay_for_ever():
    keys = np.array([f"row {number}" for number in range(20_000)], dtype=object)
    spread = positions(keys, seed=0)
    assert np.histogram(spread, bins=10, range=(0, 1))[0] == pytest.approx([2000] * 10, abs=180)
    assert abs(np.corrcoef(spread, positions(keys, seed=1))[0, 1]) < 0.03
    assert spread[:2] == pytest.approx(positions(keys[:2], seed=0), abs=0)
    assert contents(pd.DataFrame({"a": [1.5], "b": ["x"]}))[0] == "4ae4837f9f67da600665c0ad7688022d"
    assert positions(np.array(["a"], dtype=object), 7)[0] == 0.7687215199567641
