"""What is learned from and what judges: BEIR folders, titles, pairs, and what is missing."""

import numpy as np
import pytest

from core.errors import UserError
from domains.nlp.retrieval_parts import collect, read_documents

NONE = dict.fromkeys(("dataset", "corpus", "queries", "qrels", "train"))
SHARES = (0.7, 0.1, 0.2)


def _table(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return str(path)


def test_titles_are_learned_from_where_there_is_nothing_else(collection):
    found = collect({**NONE, "dataset": str(collection)}, (0.4, 0.6, 0.0))
    assert found.source == "of titles and their texts"
    assert found.test.questions.ids == ["q0", "q1", "q2"]
    assert [rows.tolist() for rows in found.test.judged.rows] == [[0, 5], [1], [2]]
    learned = {found.pairs.questions[q]: found.pairs.documents[d] for q, d in found.pairs.rows}
    held = dict(zip(found.val.questions.texts, found.val.documents.texts, strict=True))
    assert len(learned) + len(held) == 6
    assert not set(learned) & set(held)
    assert all(text == f"is an animal; number {text[-1]}" for text in (learned | held).values())


def test_judgements_for_training_and_validation_are_taken(collection):
    header = ("query-id", "corpus-id", "score")
    _table(collection / "qrels" / "train.tsv", [header, ("q1", "d1", "1"), ("q1", "d2", "0")])
    _table(collection / "qrels" / "dev.tsv", [header, ("q2", "d3", "1")])
    found = collect({**NONE, "dataset": str(collection)}, SHARES)
    assert found.pairs.questions == ["which is the dog?"]
    assert found.pairs.documents == ["the dog the dog is an animal; number 1"]
    assert found.val.questions.ids == ["q2"]
    assert found.split is None
    assert len(found.val.documents.ids) == 6


def test_pairs_alone_are_divided_by_their_question(tmp_path):
    rows = [("query", "positive", "negative"), *((f"q{n // 2}", f"a{n}", "no") for n in range(80))]
    found = collect({**NONE, "train": _table(tmp_path / "p.tsv", rows)}, SHARES)
    parts = [set(found.pairs.questions), set(found.val.questions.texts)]
    parts.append(set(found.test.questions.texts))
    assert sum(map(len, parts)) == 40
    assert set.union(*parts) == {f"q{n}" for n in range(40)}
    assert found.pairs.rows.shape == (2 * len(parts[0]), 3)
    assert len(set(found.pairs.rows[:, 2])) == 1  # the same text has one number
    assert all(len(rows) == 2 for rows in found.test.judged.rows)
    assert found.split.rule == "group:question"
    assert len(found.test.documents.ids) == 2 * len(parts[2]) + 1  # the negative too


def test_pairs_beside_a_collection_leave_its_questions_for_the_test(collection, tmp_path):
    rows = [("query", "positive"), *((f"q {n}", f"a {n}") for n in range(40))]
    files = {**NONE, "dataset": str(collection), "train": _table(tmp_path / "p.tsv", rows)}
    found = collect(files, SHARES)
    assert len(found.pairs.rows) + len(found.val.questions.ids) == 40
    assert found.test.questions.ids == ["q0", "q1", "q2"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "give --data.train PAIRS"),
        ({"corpus": "a", "qrels": "b"}, "--data.queries is missing"),
        ({"dataset": "sst"}, "data.dataset=sst: no folder, and no collection"),
        ({"dataset": "cranfield", "corpus": "a"}, "--data.corpus: leave it out"),
    ],
)
def test_what_is_missing_is_named(files, told):
    with pytest.raises(UserError) as fault:
        collect({**NONE, **files}, SHARES)
    assert told in str(fault.value)


def test_a_collection_without_titles_cannot_be_learned_from(collection, tmp_path):
    _table(tmp_path / "plain.tsv", [("id", "text"), *((f"d{n}", f"t {n}") for n in range(6))])
    files = {
        **{"corpus": str(tmp_path / "plain.tsv"), "queries": str(collection / "queries.jsonl")},
        **{"qrels": str(collection / "qrels" / "test.tsv")},
    }
    with pytest.raises(UserError, match="no titles to learn from"):
        collect({**NONE, **files}, SHARES)


@pytest.mark.data
@pytest.mark.usefixtures("real_data")
def test_cranfield_learns_from_titles_and_never_from_the_test():
    found = collect({**NONE, "dataset": "cranfield"}, SHARES)
    assert (len(found.test.questions.ids), len(found.test.documents.ids)) == (225, 1400)
    assert sum(int((gains > 0).sum()) for gains in found.test.judged.gains) == 1612
    assert not set(found.pairs.questions) & set(found.test.questions.texts)
    assert len(found.val.questions.ids) == pytest.approx(140, abs=25)
    assert found.notes[-1] == "2 documents are empty"
    first = read_documents("cranfield")
    assert first.texts[0].startswith(first.titles[0])
    assert not np.isin(
        first.titles[0], [text[: len(first.titles[0])] for text in found.pairs.documents]
    )
