import json

import pytest

from core.errors import UserError
from domains.nlp.answer_parts import own_parts

SHARES = (0.7, 0.1, 0.2)


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        return str(path)

    return write


def row(paragraph, number=0, article="", answer="word"):
    context = f"Paragraph {paragraph} has a word in it."
    asked = {"question": f"Question {number}?", "context": context, "answer": answer}
    return {**asked, "title": article, "id": f"{paragraph}-{number}"}


def contexts(part):
    return {question.context for question in part}


def test_no_paragraph_stands_in_two_parts(write):
    rows = [row(p, n) for p in range(40) for n in range(3)]
    parts = own_parts(write("a.jsonl", rows), None, None, "paragraphs", SHARES)
    train, val, test = map(contexts, (parts.train, parts.val, parts.test))
    assert len(train) + len(val) + len(test) == 40
    assert len(train | val | test) == 40
    assert parts.split.rule == "group:paragraph"
    assert "each paragraph stands in one part" in parts.notes


def test_whole_articles_are_kept_together_where_there_are_many(write):
    rows = [row(p, n, f"article {p // 4}") for p in range(48) for n in range(2)]
    rows += [{**row(0, 9, "article 11"), "context": "PARAGRAPH 0 has a  word in it"}]
    parts = own_parts(write("a.jsonl", rows), None, None, "paragraphs", SHARES)
    assert parts.split.rule == "group:article"
    articles = [{q.context.split()[1] for q in part} for part in (parts.train, parts.val)]
    assert not articles[0] & articles[1]
    first = [n for n, part in enumerate((parts.train, parts.val, parts.test)) for q in part
             if q.id in ("0-0", "0-9")]  # fmt: skip
    assert first[0] == first[1]  # the same paragraph, in another article


def test_texts_of_the_test_do_not_train(write):
    train = write("train.jsonl", [row(p, n) for p in range(5) for n in range(2)])
    val, test = write("val.jsonl", [row(9)]), write("test.jsonl", [row(3), row(4), row(8)])
    parts = own_parts(train, val, test, "paragraphs", SHARES)
    assert len(parts.train) == 6
    assert not contexts(parts.train) & contexts(parts.test)
    assert "2 training texts stand in val or test too, and were left out with 4 questions" in (
        parts.notes
    )
    with pytest.raises(UserError, match="every text of it stands in val or test"):
        own_parts(test, val, test, "paragraphs", SHARES)


def test_a_rule_that_tears_paragraphs_is_told(write):
    rows = [row(p, n) for p in range(3) for n in range(20)]
    parts = own_parts(write("a.jsonl", rows), None, None, "random", SHARES)
    assert any("3 training texts stand in val or test too, by the rule" in n for n in parts.notes)


def test_folds_test_every_question_once(write):
    path = write("a.jsonl", [row(p, n) for p in range(12) for n in range(2)])
    tested = [
        question.id
        for fold in range(3)
        for question in own_parts(path, None, None, "paragraphs", SHARES, 3, fold).test
    ]
    assert len(tested) == len(set(tested)) == 24


def test_folders_and_globs_are_files(write, tmp_path):
    for number in range(3):
        write(f"part{number}.jsonl", [row(10 * number + p) for p in range(10)])
    for given in (tmp_path, tmp_path / "part*.jsonl"):
        parts = own_parts(str(given), None, None, "paragraphs", SHARES)
        assert len(parts.train) + len(parts.val) + len(parts.test) == 30


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"test": [{"question": "?", "context": "x", "id": "u"}]}, r"--data.test: 1 of 1 .*'u'"),
        ({"test": [row(7, answer="")]}, "--data.test: none of its 1 questions has an answer"),
        ({"train": [row(1, answer="absent")]}, "--data.train: not one of its answers stands"),
    ],
)
def test_parts_without_answers_are_refused(write, change, told):
    rows = {"train": [row(1)], "val": [row(2)], "test": [row(3)], **change}
    files = [write(f"{part}.jsonl", rows[part]) for part in ("train", "val", "test")]
    with pytest.raises(UserError, match=told):
        own_parts(*files, "paragraphs", SHARES)


def test_half_of_the_files_is_refused(write, tmp_path):
    train = write("a.jsonl", [row(1)])
    with pytest.raises(UserError, match="give both files or none"):
        own_parts(train, train, None, "paragraphs", SHARES)
    with pytest.raises(UserError, match=r"--data\.folds: the files say already"):
        own_parts(train, train, train, "paragraphs", SHARES, folds=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file of questions"):
        own_parts(str(tmp_path / "empty"), None, None, "paragraphs", SHARES)
