# ruff: noqa: RUF001 - Turkish letters
import json

import pandas as pd
import pytest

from core.errors import UserError
from domains.nlp.squad import Answer, find_answer, read_questions

TEXT = "Ali Kuşçu 1474 yılında öldü. Ali Kuşçu gökbilimciydi."


def squad(*asked, context=TEXT, title="Ali"):
    return {"data": [{"title": title, "paragraphs": [{"context": context, "qas": list(asked)}]}]}


def ask(text="Ne zaman?", start=10, answer="1474", **more):
    answers = [{"text": answer, "answer_start": start}]
    return {"question": text, "id": "q", "answers": answers, **more}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_right_place_is_kept(write):
    read = read_questions([write("a.json", squad(ask()))])
    (question,) = read.questions
    assert question == ("q", "Ne zaman?", TEXT, (Answer("1474", 10),), "Ali")
    assert read.places == {"right": 1}
    assert read.notes() == []


@pytest.mark.parametrize(
    ("text", "start", "answer", "how"),
    [
        ("1474", 3, Answer("1474", 10), "moved"),
        ("Ali Kuşçu", 20, Answer("Ali Kuşçu", 29), "nearest"),
        ("Ali Kuşçu", 5, Answer("Ali Kuşçu", 0), "nearest"),
        (" 1474 ", 9, Answer("1474", 10), "right"),
        ("1474\u00a0yılında", 10, Answer("1474 yılında", 10), "moved"),
        ("1474", None, Answer("1474", 10), "right"),
        ("Kuşçu", None, Answer("Kuşçu", 4), "nearest"),
        ("1475", 10, Answer("1475", None), "lost"),
        ("1474", -5, Answer("1474", 10), "moved"),
        ("1474", 999, Answer("1474", 10), "moved"),
    ],
)
def test_places_are_repaired(text, start, answer, how):
    assert find_answer(text, start, TEXT) == (answer, how)


def test_what_was_repaired_is_told(write):
    asked = [ask(start=0), ask(answer="1500"), ask(), ask(start=0, answer="Kuşçu")]
    read = read_questions([write("a.json", squad(*asked))])
    assert [question.id for question in read.questions] == ["q", "q-2", "q-3", "q-4"]
    assert read.renamed == 3
    told = " ".join(read.notes())
    assert "3 of 4 answers" in told
    assert "1 moved to their only place" in told
    assert "1 moved to the nearest" in told
    assert "1 stand nowhere" in told
    assert "3 ids are used twice" in told


def test_a_new_id_is_nobody_elses(write):
    rows = [{"id": name, "question": "?", "context": "x"} for name in ("q", "q", "q-2", None)]
    rows.append({"question": "?", "context": "x", "id": "4"})
    names = [q.id for q in read_questions([write("a.json", rows)]).questions]
    assert len(set(names)) == 5
    assert names[0] == "q"
    assert names[2] == "q-2"
    assert names[4] == "4"


def test_no_answer_and_unknown_answers_differ(write):
    impossible = ask(is_impossible=True, plausible_answers=[{"text": "1474", "answer_start": 0}])
    unknown = {"question": "Nerede?", "id": 7}
    read = read_questions([write("a.json", squad(impossible, unknown))])
    assert [question.answers for question in read.questions] == [(), None]
    assert read.questions[1].id == "7"


def test_rows_of_three_forms_are_alike(write):
    plain = {"question": "Ne zaman?", "context": TEXT, "answer": "1474", "start": 10, "id": "q"}
    nested = {**ask(), "context": TEXT}
    columns = {**ask(), "context": TEXT, "answers": {"text": ["1474"], "answer_start": [10]}}
    lines = "\n".join(json.dumps(row) for row in (plain, nested, columns))
    first, second, third = read_questions([write("a.jsonl", lines)]).questions
    assert first[1:] == second[1:] == third[1:] == ("Ne zaman?", TEXT, (Answer("1474", 10),), "")


def test_a_table_may_lack_places_and_answers(write, tmp_path):
    table = f'question,context,answer\nNe zaman?,"{TEXT}",1474\nNA,"{TEXT}",\n'
    first, second = read_questions([write("a.csv", "\ufeff" + table)]).questions
    assert first.answers == (Answer("1474", 10),)
    assert (second.text, second.answers) == ("NA", ())
    columns = {"text": ["1474"], "answer_start": [10]}
    frame = pd.DataFrame([{**ask(), "context": TEXT, "answers": columns}])
    frame.to_parquet(tmp_path / "a.parquet")
    (asked,) = read_questions([tmp_path / "a.parquet"]).questions
    assert asked == ("q", "Ne zaman?", TEXT, (Answer("1474", 10),), "")
    marks = {"question": "a", "context": "b\u2028c"}
    marked = read_questions([write("b.jsonl", json.dumps(marks, ensure_ascii=False))]).questions
    assert marked[0].context == "b\u2028c"
    tabs = f"question\tcontext\nNe zaman?\t{TEXT}\n"
    assert read_questions([write("a.tsv", tabs)]).questions[0].answers is None


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "soru,context\na,b\n", "there is no column 'question'.*it has soru, context"),
        ("a.csv", "question,context\n,b\n", "row 1: 'question' is empty"),
        ("a.csv", "question,context\n", "holds no question"),
        ("a.csv", "", "not a table"),
        ("a.csv", "question,context,answer,start\na,b,b,x\n", "row 1: start='x' must be a whole"),
        ("a.csv", "question,context\nNe?,öldü\n".encode("iso-8859-9"), r"not UTF-8 text \(byte"),
        ("a.json", "öldü".encode("iso-8859-9"), r"not UTF-8 text \(byte 0"),
        ("a.json", "{", r"not valid JSON \(line 1"),
        ("a.json", {"rows": []}, "'data' is missing or no list"),
        ("a.json", squad(ask(), context=" "), r"data\[0\].paragraphs\[0\]: 'context' is empty"),
        ("a.json", squad({"id": 1}), r"qas\[0\]: 'question' is missing"),
        ("a.json", squad(ask(answer="")), r"qas\[0\].answers\[0\]: 'text' is empty"),
        ("a.json", squad(ask(start="x")), r"answers\[0\]: answer_start='x' must be a whole"),
        ("a.json", squad(3), r"qas\[0\]: must be a mapping, and is int"),
        ("a.jsonl", '{"question": "a", "context": "b"}\n{', r"a.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"question": "a", "context": 3}', "context=3 must be text"),
        ("a.txt", "x", "questions are read from .json"),
    ],
)
def test_mistakes_name_file_place_and_key(write, name, content, told):
    with pytest.raises(UserError, match=told) as error:
        read_questions([write(name, content)])
    assert name in str(error.value)


def test_a_missing_file_is_told(tmp_path):
    for name in ("a.csv", "a.json", "a.parquet"):
        with pytest.raises(UserError, match=f"{name}: no such file"):
            read_questions([tmp_path / name])


@pytest.mark.data
def test_wrong_places_of_tquad_are_counted(real_data):
    folder = real_data / "nlp" / "TQuAD"
    read = read_questions(sorted(folder.glob("2020*/*/*.json")))
    assert read.places == {"right": 6082, "moved": 113, "nearest": 29, "lost": 51}
    for question in read.questions:
        for text, start in question.answers:
            assert start is None or question.context.startswith(text, start)
    dev = read_questions(sorted(folder.glob("2018*/*.json")))
    assert (len(dev.questions), dev.places, dev.renamed) == (892, {"right": 2676}, 0)
