import json
import zipfile
from datetime import date

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from domains.nlp.tables import column, lines, read_table, write_table

ODD = "one\u2028two\x85three\x0bfour\x1cfive"
ROWS = [["first", "None"], ["NA", "null"], ["nan", "1.0"], ["say 'hi'", "001"], [ODD, "x"]]


def table(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return read_table(path)


def cells(frame):
    return frame.to_numpy().tolist()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_cells_stay_as_they_are_written(tmp_path, suffix, separator, mark, end):
    text = mark + end.join(separator.join(row) for row in [["text", "label"], *ROWS])
    for closing in ("", end):
        frame = table(tmp_path, text + closing, "t" + suffix)
        assert list(frame.columns) == ["text", "label"]
        assert cells(frame) == ROWS


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines(tmp_path, end):
    rows = [{"text": ODD, "label": "None"}, {"text": "b", "label": None}, {"text": "c", "n": 1.0}]
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end
    frame = table(tmp_path, text, "t.jsonl")
    assert cells(frame) == [[ODD, "None", None], ["b", None, None], ["c", None, "1"]]


def test_values_of_json_become_text_and_lists_stay(tmp_path):
    row = {"a": True, "b": 3, "c": 0.5, "d": ["x", "y"], "e": [], "f": None, "g": ""}
    frame = table(tmp_path, json.dumps(row), "t.ndjson")
    assert cells(frame) == [["True", "3", "0.5", ["x", "y"], [], None, ""]]


@pytest.mark.parametrize(
    ("text", "where"),
    [('{"a": 1}\n{"a": \n', "t.jsonl:2: not JSON"), ("[1, 2]", "t.jsonl:1: not a JSON object")],
)
def test_faults_of_json_name_their_line(tmp_path, text, where):
    with pytest.raises(UserError, match=where):
        table(tmp_path, text, "t.jsonl")


def test_parquet(tmp_path):
    given = pd.DataFrame(
        {
            "text": ["a", ODD, None],
            "label": pd.array([1, None, 3], "Int64"),
            "share": [0.5, np.nan, 2.0],
            "day": [date(2020, 1, 2), None, date(2020, 1, 3)],
            "at": pd.to_datetime(["2020-01-02", None, "2021-01-01"]),
            "tags": [["x"], [], ["y", "z"]],
            "yes": [True, False, True],
        }
    )
    given.to_parquet(tmp_path / "t.parquet")
    frame = read_table(tmp_path / "t.parquet")
    assert frame["text"].tolist() == ["a", ODD, None]
    assert frame["label"].tolist() == ["1", None, "3"]
    assert frame["share"].tolist() == ["0.5", None, "2"]
    assert frame["day"].tolist() == ["2020-01-02", None, "2020-01-03"]
    assert frame["at"].tolist() == ["2020-01-02 00:00:00", None, "2021-01-01 00:00:00"]
    assert frame["tags"].tolist() == [["x"], [], ["y", "z"]]
    assert frame["yes"].tolist() == ["True", "False", "True"]


def test_plain_lines(tmp_path):
    frame = table(tmp_path, f"one\r\n{ODD}\n\nlast, with a comma", "t.txt")
    assert list(frame.columns) == ["text"]
    assert frame["text"].tolist() == ["one", ODD, None, "last, with a comma"]


def test_lines_end_at_line_feeds_alone():
    assert lines("a\r\nb\u2028c\n\nd\n") == ["a", "b\u2028c", "", "d"]
    assert lines("") == []


def test_a_member_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/t.csv", "text\na!b\n")
    assert cells(read_table(f"{tmp_path}/a.zip!in/t.csv")) == [["a!b"]]
    with pytest.raises(UserError, match=r"in/none.csv: cannot be read"):
        read_table(f"{tmp_path}/a.zip!in/none.csv")
    (tmp_path / "b.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"b.zip!t.csv: cannot be read"):
        read_table(f"{tmp_path}/b.zip!t.csv")


def test_an_exclamation_mark_may_stand_in_a_name(tmp_path):
    assert cells(table(tmp_path, "text\na\n", "wow!.csv")) == [["a"]]


def test_quotes(tmp_path):
    assert cells(table(tmp_path, 'text,label\n"a, ""b""\nc",x\n')) == [['a, "b"\nc', "x"]]
    rows = [['"open', "x"], ['say "hi"', "y"], ['""', "z"]]
    text = "text\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows)
    assert cells(table(tmp_path, text, "t.tsv")) == rows
    with pytest.raises(UserError, match=r"t.csv: not a table .*EOF inside string"):
        table(tmp_path, 'text,label\n"open,x\n')


def test_cells_that_are_empty_or_blank(tmp_path):
    assert cells(table(tmp_path, 'text,label\n,x\n"",y\n  ,z\n')) == [
        [None, "x"],
        [None, "y"],
        ["  ", "z"],
    ]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.txt"])
def test_other_encodings_name_line_and_byte(tmp_path, name):
    (tmp_path / name).write_bytes(b"text\nfine\ncaf\xe9 au lait\n")
    with pytest.raises(UserError, match=rf"{name}:3: not UTF-8 text \(byte 13\).*iconv"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("row", [2, 3, 6])
@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_a_row_of_too_many_cells_is_an_error(tmp_path, suffix, separator, row):
    rows = [["text", "label"], *[["a", "b"]] * 5]
    rows[row - 1] = ["a", "b", "c"]
    text = "".join(separator.join(each) + "\n" for each in rows)
    with pytest.raises(UserError, match=f"Expected 2 fields in line {row}, saw 3"):
        table(tmp_path, text, "t" + suffix)


def test_every_row_of_too_many_cells_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"Expected 2 fields in line 2, saw 3"):
        table(tmp_path, "text,label\na,b,c\nd,e,f\n")


def test_a_row_of_too_few_cells_has_none(tmp_path):
    assert cells(table(tmp_path, "text,label\na\nb,x\n")) == [["a", None], ["b", "x"]]


@pytest.mark.parametrize("text", ["text,label,text\na,b,c\n", "text,label,text\n"])
def test_a_column_twice_is_an_error(tmp_path, text):
    with pytest.raises(UserError, match=r"t.csv: has two columns 'text'"):
        table(tmp_path, text)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_an_empty_file(tmp_path, name):
    with pytest.raises(UserError, match=name):
        table(tmp_path, "", name)


def test_a_header_alone(tmp_path):
    frame = table(tmp_path, "text,label\n")
    assert frame.empty
    assert list(frame.columns) == ["text", "label"]


def test_what_is_no_table(tmp_path):
    with pytest.raises(UserError, match=r"no reader for .xls files; there is .csv, .tsv"):
        read_table(tmp_path / "t.xls")
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(UserError, match=f"{name}: no such file"):
            read_table(tmp_path / name)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"t.parquet: not a readable Parquet file"):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    texts = ["back\\slash", 'say "hi"', ODD, "a, b;  two blanks", "None", None]
    given = pd.DataFrame({"text": texts, "sure": [0.25, 1.0, 0.5, 0.1, 1e-7, None], "yes": True})
    path = tmp_path / f"t{suffix}"
    write_table(given, path, suffix)
    frame = read_table(path)
    assert frame["text"].tolist() == texts
    numbers = [None if cell is None else float(cell) for cell in frame["sure"]]
    assert numbers == [0.25, 1.0, 0.5, 0.1, 1e-7, None]
    assert set(frame["yes"]) == {"True"}


def test_line_ends_in_a_cell_of_tsv_become_blanks(tmp_path):
    write_table(pd.DataFrame({"text": ["a\tb\r\nc"], "n": [1]}), tmp_path / "t.tsv", ".tsv")
    assert cells(read_table(tmp_path / "t.tsv")) == [["a b  c", "1"]]


def test_columns_are_found():
    frame = pd.DataFrame(columns=["id", "Text", "label_name", "Label"])
    assert column(frame, None, ("sentence", "text"), "text", "f") == "Text"
    assert column(frame, "id", (), "text", "f") == "id"
    with pytest.raises(UserError, match=r"--data.label: f has no column 'lable'; did you mean 'La"):
        column(frame, "lable", (), "label", "f")
    with pytest.raises(UserError, match=r"which column is the text\? .*it has id, Text, label_n"):
        column(frame, None, ("sentence",), "text", "f")
