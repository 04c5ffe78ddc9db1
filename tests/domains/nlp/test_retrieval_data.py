"""Batches of pairs and of questions, what is told of them, and Cranfield."""

import pytest
import torch

from domains.nlp.ranking import FAR
from domains.nlp.retrieval_data import RetrievalData


@pytest.fixture
def pairs(tmp_path):
    rows = [f"q{n // 2},answer {n},wrong {n % 3},wrong {n}" for n in range(60)]
    text = "query,positive,negative_1,negative_2\n" + "\n".join(rows) + "\n"
    (tmp_path / "pairs.csv").write_text(text)
    return str(tmp_path / "pairs.csv")


def test_a_batch_has_answers_first_then_the_others_of_each(pairs):
    data = RetrievalData(train=pairs, tokenizer="minilm", max_length=16, batch_size=4)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert len(batch.questions.ids) == len(batch.asked) == 4
    assert len(batch.documents.ids) == len(batch.answers) == 12
    told = data.tokenizer.batch_decode(batch.documents.ids, skip_special_tokens=True)
    assert [text.split()[0] for text in told] == ["answer"] * 4 + ["wrong"] * 8
    numbers = {text: int(number) for text, number in zip(told, batch.answers, strict=True)}
    assert [numbers[text] for text in told] == batch.answers.tolist()
    assert data.summary()[0].endswith("pairs.csv has them")


def test_questions_carry_their_rows_and_gains(collection):
    data = RetrievalData(dataset=str(collection), tokenizer="minilm", max_length=16, batch_size=2)
    data.setup()
    batch = data.test_set.__getitems__([1, 0])
    assert batch.rows.tolist() == [1, 0]
    assert batch.judged.tolist() == [[1, FAR], [0, 5]]
    assert batch.gains.tolist() == [[1, 0], [1, 2]]
    words = data.words("test", torch.tensor([1])).toarray()
    assert words.argmax() == 1
    assert data.facts["dataset"] == "beir"
    other = RetrievalData(dataset=str(collection), tokenizer="minilm", query_prefix="query: ")
    other.setup()
    assert other.fingerprint() != data.fingerprint()
    told = data.tokenizer.decode(other.test_set.encoded.windows(0)[0].ids)
    assert "query : which" in told


@pytest.mark.data
@pytest.mark.usefixtures("real_data")
def test_cranfield_is_told_with_what_is_cut():
    data = RetrievalData(dataset="cranfield", tokenizer="minilm")
    data.setup()
    told = "\n".join(data.summary())
    assert "test: 225 questions, 1,400 documents, 1,612 relevant" in told
    assert "of 1,400 documents are cut at their end, to 256 tokens" in told
    assert "2 documents are empty" in told
