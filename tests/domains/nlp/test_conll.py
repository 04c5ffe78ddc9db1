"""Files of one word a line: columns, white space that is a word, comments, and the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from domains.nlp.conll import read_conll
from domains.nlp.sentences import Answer


@pytest.fixture
def saved(tmp_path):
    def write(content, name="x.conll"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def answers(file, tag="NEW"):
    return [Answer(((tag,) * len(s.words),), ((0.5,) * len(s.words),)) for s in file.sentences]


def words(file):
    return [sentence.words for sentence in file.sentences]


def test_white_space_other_than_tabs_is_a_word(saved):
    file = read_conll(saved("\u00a0\tO\n\u2028\tB-X\na b\tO\n\t\n\u3000\tO\n"))
    assert words(file) == [("\u00a0", "\u2028", "a b"), ("\u3000",)]
    assert file.sentences[0].tags == (("O", "B-X", "O"),)
    assert file.sentences[1].lines == (5,)


def test_spaces_part_columns_where_there_are_no_tabs(saved):
    file = read_conll(saved("EU NNP  B-NP B-ORG\nrejects VBZ B-VP O\n"), tags=["2", "-1"])
    assert words(file) == [("EU", "rejects")]
    assert file.sentences[0].tags == (("NNP", "VBZ"), ("B-ORG", "O"))


def test_documents_comments_and_the_mark_of_byte_order(saved):
    file = read_conll(
        saved(
            b"\xef\xbb\xbf-DOCSTART- -X- O\n\n# id = 7\n# no fact\na\tO\n#\tO\n\nb\tO\n\n"
            b"-DOCSTART- -X- O\n\nc\tO\n"
        )
    )
    assert words(file) == [("a", "#"), ("b",), ("c",)]
    facts = [dict(sentence.facts) for sentence in file.sentences]
    assert facts == [{"document": "1", "id": "7"}, {"document": "1"}, {"document": "2"}]


def test_a_word_with_an_empty_tag_has_none_and_is_counted(saved):
    file = read_conll(saved("a\tO\nb\t\nc\tO\t\t\nd\t\tO\n"))
    assert file.sentences[0].tags == (("O", "", "O", ""),)
    assert file.notes == (
        "x.conll: words without a tag, which count nowhere: 2, first in line 2",
        "x.conll: lines with more columns than the others have: 1, first in line 4",
    )


def test_an_empty_word_stays_a_word(saved):
    assert words(read_conll(saved("\tO\na\tO\n"))) == [("", "a")]


@pytest.mark.parametrize(
    ("content", "name", "options", "told"),
    [
        ("a\tO\nb\n", "x.conll", {}, r"x\.conll:2: has 1 column, and other lines have 2"),
        ("a\nb\n", "x.conll", {}, "has one column"),
        ("\n\n", "x.conll", {"tags": ()}, "holds no words"),
        ("-DOCSTART- O\n", "x.conll", {}, "holds no words"),
        ("a\tO\n", "x.conll", {"tags": ["3"]}, r"no column '3'; its columns are 1 to 2"),
        ("a\tO\n", "x.conll", {"tags": ["1"]}, "column 1 is asked for twice"),
        ("a\tO\n", "x.conll", {"tags": ["-3"]}, "no column '-3'"),
        (b"a\tO\n\xe9\tO\n", "x.conll", {}, r"x\.conll:2: the byte 0xe9 is not UTF-8"),
        ("1\ta\n", "x.conllu", {}, r"x\.conllu:1: has 2 of the 10 columns"),
        ("x" + "\t_" * 9 + "\n", "x.conllu", {}, "'x' is no number of a word"),
        ("# text = a\n", "x.conllu", {}, "holds no words"),
    ],
)
def test_errors_name_file_and_line(saved, content, name, options, told):
    with pytest.raises(UserError, match=told):
        read_conll(saved(content, name), **options)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_conll(tmp_path / "none.conll")


UNIVERSAL = """\
# newdoc id = one
# sent_id = s1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\tV\t_\t0\troot\t_\tSpaceAfter=No
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tgo\t_\t_\t_\t_\t_\t_\t_\t_
3\tal\tal\t_\t_\t_\t1\tobl\t_\t_

# sent_id = s2
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
"""


def test_conllu_has_words_and_facts(saved):
    file = read_conll(saved(UNIVERSAL, "x.conllu"), tags=["upos", "xpos"])
    assert words(file) == [("vamos", "nos", "al"), ("#",)]
    assert file.sentences[0].tags == (("VERB", "PRON", ""), ("V", "", ""))
    assert file.sentences[0].lines == (5, 6, 8)
    assert file.sentences[1].facts == {"document": "one", "sent_id": "s2"}


def test_conllu_is_given_back_with_its_column_filled_in(saved):
    file = read_conll(saved(UNIVERSAL, "x.conllu"))
    lines = file.written(answers(file), ["upos"]).split("\n")
    old = UNIVERSAL.split("\n")
    assert [line for line, was in zip(lines, old, strict=True) if line != was] == [
        "1\tvamos\tir\tNEW\tV\t_\t0\troot\t_\tSpaceAfter=No",
        "2\tnos\tnosotros\tNEW\t_\t_\t1\tobj\t_\t_",
        "3\tal\tal\tNEW\t_\t_\t1\tobl\t_\t_",
        "1\t#\t#\tNEW\t_\t_\t0\troot\t_\t_",
    ]
    lines = file.written(answers(file), ["ner"]).split("\n")
    assert lines[4].endswith("SpaceAfter=No|Ner=NEW")
    assert lines[5].endswith("\t_\tNer=NEW")


def test_conllu_plus_names_its_columns(saved):
    content = "# global.columns = ID FORM NER\r\n1\tRome\tB-LOC\r\n"
    file = read_conll(saved(content, "x.conllup"), tags=["ner"])
    assert file.sentences[0].tags == (("B-LOC",),)
    assert file.written(answers(file), ["ner"]) == content.replace("B-LOC", "NEW")


def test_conll_is_given_back_with_one_column_more(saved):
    content = "-DOCSTART- O\n\n# id 1 x\na\tO\n\u2029\tO\n\n\nb\tO"
    file = read_conll(saved(content))
    assert file.written(answers(file), [""]) == (
        "-DOCSTART- O\n\n# id 1 x\na\tO\tNEW\n\u2029\tO\tNEW\n\n\nb\tO\tNEW"
    )
    windows = read_conll(saved("a X O\r\n\r\nb X O\r\n"))
    assert windows.written(answers(windows), [""]) == "a X O NEW\r\n\r\nb X O NEW\r\n"


CELL = st.text(st.characters(exclude_characters="\n\r\t", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.lists(CELL, min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_words_come_back(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("any") / "x.conll"
    content = "\n\n".join("\n".join(f"{w}\tO" for w in s) for s in sentences)
    if content.startswith("\ufeff") or "-DOCSTART-" in content:
        return
    path.write_text(content, "utf-8", newline="")
    file = read_conll(path)
    assert words(file) == [tuple(s) for s in sentences]
    assert file.written(answers(file, "T"), [""]) == content.replace("\tO", "\tO\tT")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sentences", "tokens", "untagged"),
    [
        ("wnut17/wnut17train.conll", 3394, 62730, 0),
        ("wnut17/emerging.dev.conll", 1009, 15733, 0),
        ("wnut17/emerging.test.annotated", 1287, 23394, 0),
        ("Tweebank-NER-v1.0/train.bio", 1639, 24753, 0),
        ("Tweebank-NER-v1.0/dev.bio", 710, 11759, 0),
        ("Tweebank-NER-v1.0/test.bio", 1201, 19095, 0),
        ("Tweebank-v2-ud/en_tweet-ud-train.conllu", 1639, 24753, 0),
        ("Tweebank-v2-ud/en_tweet-ud-test.conllu", 1201, 19095, 0),
        ("bangla/Bengali-NER/train_data.txt", 4612, 67554, 4),
    ],
)
def test_the_published_counts(real_data, name, sentences, tokens, untagged):
    file = read_conll(real_data / "nlp" / name)
    assert len(file.sentences) == sentences
    assert sum(len(s.words) for s in file.sentences) == tokens
    assert sum(tag == "" for s in file.sentences for tag in s.tags[0]) == untagged
