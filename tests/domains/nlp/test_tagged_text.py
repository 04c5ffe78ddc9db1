"""JSON lines and plain sentences, and what is told of files that are neither."""

import json

import pytest

from core.errors import UserError
from domains.nlp.sentences import Answer, split_words
from domains.nlp.tagged_text import json_of, read_tagged, read_untagged


@pytest.fixture
def saved(tmp_path):
    def write(content, name):
        (tmp_path / name).write_text(content, "utf-8")
        return tmp_path / name

    return write


ROME = '{"id": 7, "tokens": ["to", "Rome"], "tags": ["O", "B-LOC"], "pos": ["ADP", null]}\n'


def test_json_lines(saved):
    file = read_tagged(saved(ROME + "\n", "x.jsonl"), tags=["tags", "pos"])
    (sentence,) = file.sentences
    assert sentence == (("to", "Rome"), (("O", "B-LOC"), ("ADP", "")), (1, 1), {"id": "7"})
    assert file.notes == (
        "x.jsonl: sentences with words without a tag, which count nowhere: 1, first in line 1",
    )


def test_json_lines_are_given_back_with_tags_probabilities_and_spans(saved):
    file = read_untagged(saved(ROME, "x.jsonl"))
    answer = Answer((("O", "B-LOC"), ("ADP", "PROPN")), ((0.91234, 0.5), (1.0, 1.0)))
    written = json.loads(file.written([answer], ["", "pos"]))
    assert written == {
        **json.loads(ROME),
        "predicted_tags": ["O", "B-LOC"],
        "probability": [0.9123, 0.5],
        "predicted_spans": [{"type": "LOC", "start": 1, "end": 2, "text": "Rome"}],
        "predicted_pos": ["ADP", "PROPN"],
        "probability_pos": [1.0, 1.0],
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"tokens": ["a"], "tags": []}', r"x\.jsonl:1: 1 tokens and 0 tags"),
        ('{"words": ["a"]}', "has no 'tokens'; its keys are words"),
        ('{"tokens": "a b", "tags": ["O", "O"]}', "'tokens' must be a list of words"),
        ('{"tokens": [["a"]], "tags": ["O"]}', "'tokens' must be a list of words"),
        ("[1]", "must be an object"),
        ("{", "not valid JSON"),
        ('{"tokens": [], "tags": []}', "holds no words"),
    ],
)
def test_errors_of_json_lines_name_the_line(saved, line, told):
    with pytest.raises(UserError, match=told):
        read_tagged(saved(line, "x.jsonl"))


def test_plain_sentences_are_parted_into_words_and_come_back_as_conll(saved):
    file = read_untagged(saved("Hello, @ann!\n\nবাংলা ভাষা।\n", "x.txt"))
    assert [s.words for s in file.sentences] == [
        ("Hello", ",", "@ann", "!"),
        ("বাংলা", "ভাষা", "।"),
    ]
    answers = [Answer((("O",) * len(s.words),), ((1.0,) * len(s.words),)) for s in file.sentences]
    assert file.written(answers, [""]).startswith("Hello\tO\n,\tO\n@ann\tO\n!\tO\n\nবাংলা\tO\n")
    first = json.loads(json_of(file, answers, [""]).split("\n")[0])
    assert first["tokens"] == ["Hello", ",", "@ann", "!"]
    assert "predicted_spans" not in first


def test_no_character_but_white_space_is_lost_between_words():
    for line in ("...", "a(b)c", "«¿Qué?»", "#1 @ # x@y.z", "👩‍👩‍👧❤️!!", "don't—stop"):
        assert "".join(split_words(line)) == "".join(line.split())
    assert split_words("(see http://a.b/c?d=1).") == ["(", "see", "http://a.b/c?d=1", ")", "."]


def test_text_with_tabs_is_of_one_word_a_line(saved):
    file = read_untagged(saved("a\tO\nb\tO\n", "x.txt"))
    assert [s.words for s in file.sentences] == [("a", "b")]


def test_tables_are_refused_with_the_forms_there_are(saved):
    with pytest.raises(UserError, match=r"\.csv files are not read here"):
        read_tagged(saved("a,b\n", "x.csv"))
