"""Collections of a user's own: BEIR folders, tables, pairs, and how judgements are joined."""

import json

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from domains.nlp.collection import join, read_corpus, read_pairs, read_qrels, read_questions
from domains.nlp.ranking import FAR
from domains.nlp.trec import Texts


def _lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def _text(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_beir_folder(tmp_path):
    _lines(tmp_path / "corpus.jsonl", [{"_id": "d1", "title": "A", "text": "one\ntwo"}])
    _lines(tmp_path / "queries.jsonl", [{"_id": "q1", "text": "what?", "metadata": {}}])
    qrels = _text(tmp_path / "test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t2\n")
    assert read_corpus(tmp_path) == Texts(["d1"], ["A"], ["one two"])
    assert read_questions(tmp_path) == Texts(["q1"], [""], ["what?"])
    assert read_qrels(qrels).to_dict("records") == [{"query": "q1", "document": "d1", "gain": 2}]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "txt"])
def test_tables_and_plain_lines(tmp_path, suffix):
    path = tmp_path / f"corpus.{suffix}"
    frame = pd.DataFrame({"id": ["NA", "007"], "text": ["null, and", "x"]})
    if suffix == "parquet":
        frame.to_parquet(path)
    elif suffix == "txt":
        frame["text"].to_csv(path, index=False, header=False, sep="\t")
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    ids = ["1", "2"] if suffix == "txt" else ["NA", "007"]
    assert read_corpus(path) == Texts(ids, ["", ""], ["null, and", "x"])


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (
            "a.jsonl",
            '{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}',
            ": row 2: the id '1' is given",
        ),
        ("a.jsonl", '{"_id": " ", "text": "a"}', ": row 1: the id is empty"),
        ("a.jsonl", '{"_id": "1"', ":1: not JSON"),
        ("a.jsonl", "[1]", ":1: not a JSON object"),
        ("a.jsonl", '{"_id": "1", "body": "a"}', "no column 'text'"),
        ("a.csv", "id,text", "holds no text"),
        ("a.csv", "id,text\n1,a\n2,a,b", "line 3"),
    ],
)
def test_faults_name_file_and_line(tmp_path, name, text, told):
    with pytest.raises(UserError, match=name) as fault:
        read_corpus(_text(tmp_path / name, text))
    assert told in str(fault.value)


def test_what_is_missing_or_in_another_encoding(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.jsonl: no such file"):
        read_corpus(tmp_path)
    (tmp_path / "q.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"q\.txt:1: not UTF-8"):
        read_questions(tmp_path / "q.txt")


def test_pairs_with_and_without_negatives(tmp_path):
    plain = read_pairs(_text(tmp_path / "p.csv", "query,positive\nq,a\n"))
    assert plain == (["q"], ["a"], [[]])
    rows = [
        {"query": "q", "positive": "a", "negative_1": "b", "negative_2": "c"},
        {"query": "r", "positive": "d", "negative": ["e", "f"]},
    ]
    assert read_pairs(_lines(tmp_path / "p.jsonl", rows)).negatives == [["b", "c"], ["e", "f"]]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"query": " ", "positive": "a"}], "row 1: a text of the pair is empty"),
        ([{"query": "q", "positive": None}], "row 1: a text of the pair is empty"),
        (
            [{"query": "q", "positive": "a", "negative": "b"}, {"query": "q", "positive": "a"}],
            "row 2: 0 negatives, and 1 before",
        ),
        ([{"query": "q", "answer": "a"}], "no column 'positive'"),
    ],
)
def test_wrong_pairs(tmp_path, rows, told):
    with pytest.raises(UserError) as fault:
        read_pairs(_lines(tmp_path / "p.jsonl", rows))
    assert told in str(fault.value)


def _judged(*rows):
    return pd.DataFrame(rows, columns=["query", "document", "gain"])


def test_judgements_become_rows_in_order_and_unknown_documents_stay_counted(tmp_path):
    documents = Texts(["a", "b", "c"], [""] * 3, ["x"] * 3)
    questions = Texts(["q", "r", "s"], [""] * 3, ["x"] * 3)
    found = join(
        _judged(("r", "c", 1), ("r", "z", 3), ("r", "a", 2), ("q", "b", 0)),
        documents,
        questions,
        tmp_path,
    )
    assert [rows.tolist() for rows in found.rows] == [[], [0, 2, FAR], []]
    assert [gains.tolist() for gains in found.gains] == [[], [2, 1, 3], []]
    assert all(rows.dtype == np.int64 for rows in found.rows)
    assert found.notes == (
        "1 relevant documents are not in the corpus and count as not found",
        "2 questions have no relevant document",
    )


def test_judgements_of_another_collection_are_refused(tmp_path):
    documents, questions = Texts(["a"], [""], ["x"]), Texts(["q"], [""], ["x"])
    with pytest.raises(UserError, match="judges the question 'u', one of 1"):
        join(_judged(("u", "a", 1)), documents, questions, tmp_path)
    with pytest.raises(UserError, match="none of its 1 relevant documents"):
        join(_judged(("q", "z", 1)), documents, questions, tmp_path)
