"""Readers of TREC collections: tags of any state, judgements, what is refused."""

import tracemalloc

import pandas as pd
import pytest

from core.errors import UserError
from domains.nlp.trec import (
    CHUNK,
    read_documents,
    read_judgements,
    read_topics,
    renumbered,
    write_run,
)

DOCUMENTS = """<DOC>
<DOCNO> A-1 </DOCNO>
<HEADLINE>R&D at <b>two</b> &amp; more</HEADLINE>
<TEXT>if 2 < 3 then
 so</TEXT>
<TEXT>on</TEXT>
</DOC>
<doc><docno>B</docno><title>only a title</title></doc>
"""


def _write(folder, text, name="file.txt"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_documents_without_a_root_with_bare_marks_and_inner_tags(tmp_path):
    found = read_documents(_write(tmp_path, DOCUMENTS))
    assert found.ids == ["A-1", "B"]
    assert found.titles == ["R&D at two & more", "only a title"]
    assert found.texts == ["if 2 < 3 then so on", ""]
    assert found.whole()[1] == "only a title"


def test_topics_whose_tags_stay_open(tmp_path):
    text = "<top>\n<num> Number: 301\n<title> Crime\n<desc> Description:\nmore\n</top>\n"
    found = read_topics(_write(tmp_path, text))
    assert (found.ids, found.titles, found.texts) == (["301"], [""], ["Crime"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<doc><docno>1</docno>\n<doc>", ":2: a <doc> within another"),
        ("<doc>\n<text>a</text></doc>", ":2: a <doc> without <docno>"),
        (
            "<doc><docno>1</docno></doc>\n<doc><docno>1</docno></doc>",
            ":2: the id '1' is given twice",
        ),
        ("<doc><docno>1</docno>", "the last <doc> is not closed"),
        ("\n<docno>1</docno>", ":2: <docno> outside"),
        ("nothing", "holds no <doc>"),
    ],
)
def test_faults_name_the_line_and_the_id(tmp_path, text, told):
    with pytest.raises(UserError, match=r"file\.txt") as fault:
        read_documents(_write(tmp_path, text))
    assert told in str(fault.value)


def test_entities_are_refused_and_never_expanded(tmp_path):
    bomb = '<!DOCTYPE z [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<doc><docno>&b;</docno></doc>'
    with pytest.raises(UserError, match="entities"):
        read_documents(_write(tmp_path, bomb))


def test_a_tag_without_an_end_does_not_fill_the_memory(tmp_path):
    path = _write(tmp_path, "<doc " + "x" * 40 * CHUNK)
    tracemalloc.start()
    with pytest.raises(UserError, match="does not end"):
        read_documents(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * CHUNK


def test_other_encodings_are_told(tmp_path):
    path = tmp_path / "latin.xml"
    path.write_bytes("<doc><docno>1</docno><text>café</text></doc>".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.xml: not UTF-8"):
        read_documents(path)


def test_judgements_keep_ids_as_text_and_gains_as_numbers(tmp_path):
    found = read_judgements(_write(tmp_path, "01 0 007 2\n\n01 Q0 8\t-1\n01 0 007 2\n"))
    assert found.to_dict("list") == {
        "query": ["01", "01"],
        "document": ["007", "8"],
        "gain": [2, -1],
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 0 5 1\n1 0 5", ":2: 3 words"),
        ("1 0 5 high", ":1: the gain 'high'"),
        ("1 0 5 1\n2 0 5 1\n1 0 5 2", ":3: the document '5' was judged for the question '1'"),
        ("\n", "no judgement"),
    ],
)
def test_wrong_judgements(tmp_path, text, told):
    with pytest.raises(UserError) as fault:
        read_judgements(_write(tmp_path, text))
    assert told in str(fault.value)


def test_topics_keep_their_numbers_where_the_judgements_use_them(tmp_path):
    topics = read_topics(
        _write(tmp_path, "".join(f"<top><num>{n}<title>{n}</top>" for n in (1, 4, 9)))
    )
    judged = pd.DataFrame({"query": ["1", "9"]})
    assert renumbered(topics, judged) is topics
    assert renumbered(topics, pd.DataFrame({"query": ["2", "3"]})).ids == ["1", "2", "3"]
    assert renumbered(topics, pd.DataFrame({"query": ["2", "7"]})) is topics


@pytest.mark.data
def test_cranfield_is_whole_and_its_topics_count_by_order(real_data):
    folder = real_data / "nlp" / "cranfield"
    documents = read_documents(folder / "cran.all.1400.xml")
    topics = read_topics(folder / "cran.qry.xml")
    judged = read_judgements(folder / "cranqrel.trec.txt")
    assert (len(documents.ids), len(topics.ids), len(judged)) == (1400, 225, 1837)
    assert (topics.ids[2], renumbered(topics, judged).ids[2]) == ("4", "3")
    assert judged["gain"].value_counts().to_dict() == {1: 1611, 0: 225, 3: 1}


def test_a_run_is_written_as_trec_eval_reads_it(tmp_path):
    hits = pd.DataFrame({"query": ["q"], "document": ["d"], "rank": [1], "score": [0.5]})
    write_run(tmp_path / "run.trec", hits, "ours")
    assert (tmp_path / "run.trec").read_text() == "q Q0 d 1 0.500000 ours\n"
