import json

import numpy as np
import pytest
import torch

from core.errors import UserError
from data import DataError
from domains.nlp.answer_windows import UNKNOWN
from domains.nlp.answering_data import AnsweringData

FILLER = "Nothing is told here. " * 12


def rows(count=30, null_every=0, lost=0):
    found = []
    for n in range(count):
        answer = f"answer{n}"
        context = f"{FILLER} The word of text {n} is {answer}. {FILLER}"
        if null_every and n % null_every == 0:
            answer = ""
        found.append({"id": f"q{n}", "question": "Which word?", "context": context})
        found[-1]["answer"] = "elsewhere" if n < lost else answer
    return found


@pytest.fixture
def make(tmp_path):
    def make(given, **more):
        path = tmp_path / "all.jsonl"
        path.write_text("\n".join(map(json.dumps, given)), "utf-8")
        options = {"tokenizer": "minilm", "max_length": 64, "seed": 3, **more}
        made = AnsweringData(train=str(path), **options)
        made.setup()
        return made

    return make


def test_own_questions_are_split_and_told(make, tmp_path):
    made = make(rows())
    sizes = [len(part) for part in (made.parts.train, made.parts.val, made.parts.test)]
    assert sum(sizes) == 30
    assert min(sizes) > 0
    first, *notes = made.summary()
    assert first.startswith(f"all.jsonl: questions: {sizes[0]:,} for training, ")
    assert any("each paragraph stands in one part" in note for note in notes)
    made.keep(tmp_path)
    again = make(rows(), split=str(tmp_path / "splits.parquet"))
    assert [q.id for q in again.parts.test] == [q.id for q in made.parts.test]
    assert made.facts["dataset"] == "all.jsonl"


def test_negatives_are_a_share_of_the_windows_with_an_answer(make):
    for negatives, factor in ((0.0, 1), (1.0, 2), (0.5, 1.5)):
        made = make(rows(), negatives=negatives)
        answered = int(made.train_set.windows.answered.sum())
        assert len(made.train_set) == round(factor * answered)
        assert len(set(made.train_set.chosen)) == len(made.train_set)
    everything = make(rows(), negatives=1e9)
    assert len(everything.train_set) == len(everything.train_set.windows)
    same = make(rows(), negatives=0.5)
    assert (same.train_set.chosen == made.train_set.chosen).all()
    other = make(rows(), negatives=0.5, seed=4)
    assert (other.train_set.chosen != made.train_set.chosen).any()


def test_questions_with_lost_answers_are_judged_but_do_not_train(make):
    made = make(rows(lost=15), negatives=1e9)
    windows = made.train_set.windows
    trained = windows.table[made.train_set.chosen]
    assert (trained[:, 3] != UNKNOWN).all()
    lost = windows.unlabelled
    assert lost > 0
    assert f"{lost:,} questions are not trained on" in " ".join(made.notes)
    judged = sum(q.golds == ("elsewhere",) for q in made.parts.val + made.parts.test)
    assert judged == 15 - lost


def test_batches_keep_to_the_budget_and_hold_whole_questions(make):
    made = make(rows(), token_budget=512, batch_size=8)
    for batch in made.train_dataloader():
        assert batch.tokens.ids.numel() <= 512
        assert batch.asked == ()
    rows_seen = []
    for batch in made.test_dataloader():
        rows_seen += batch.rows.tolist()
        for number, row in enumerate(batch.rows.tolist()):
            borders = made.test_set.windows.borders
            assert int((batch.owner == number).sum()) == borders[row + 1] - borders[row]
    assert sorted(rows_seen) == list(range(len(made.test_set)))


def test_data_with_and_without_missing_answers(make):
    assert make(rows(null_every=3)).nullable
    made = make(rows())
    assert not made.nullable
    assert made.preprocessing.threshold is None
    assert made.preprocessing.tokenizer is made.tokenizer


def test_baselines_take_test_batches(make):
    made = make(rows())
    batch = made.test_set[0]
    for answer in made.baselines().values():
        prediction, target = answer(batch)
        assert prediction.shape == (1, 3)
        assert target.shape == (1, 2)
        assert prediction.dtype == torch.float64


def test_the_fingerprint_is_that_of_questions_and_windows(make):
    known = make(rows()).fingerprint()
    assert make(rows()).fingerprint() == known
    assert make(rows(), stride=0.7).fingerprint() != known
    changed = rows()
    changed[0]["question"] += "?"
    assert make(changed).fingerprint() != known


def test_mistakes_are_told(make):
    with pytest.raises(UserError, match=r"give the questions by --data.train=FILE"):
        AnsweringData()
    with pytest.raises(UserError, match=r"give the questions by --data.train=FILE"):
        AnsweringData(dataset="tquad", train="a.csv")
    with pytest.raises(UserError, match=r"data.negatives=-1"):
        make(rows(), negatives=-1)
    with pytest.raises(UserError, match=r"data.tokenizer"):
        make(rows(), tokenizer=None)
    with pytest.raises(UserError, match=r"data.dataset=etth1: holds no questions"):
        AnsweringData(dataset="etth1", tokenizer="minilm").setup()
    with pytest.raises(DataError, match=r"tqad"):
        AnsweringData(dataset="tqad", tokenizer="minilm").setup()


@pytest.mark.data
def test_tquad_by_its_protocol(real_data, monkeypatch):
    monkeypatch.setenv("PLEIAD_DATA", str(real_data))
    made = AnsweringData(dataset="tquad", tokenizer="minilm", max_length=128)
    made.setup()
    assert (len(made.parts.train), len(made.val_set), len(made.test_set)) == (5870, 405, 892)
    assert not made.nullable
    told = " ".join(made.notes)
    assert "no training text stands in val or test too" in told
    assert "train: 138 of 5,870 answers do not stand where the file says" in told
    assert "17 questions are not trained on" in told
    held = np.unique(made.train_set.windows.table[made.train_set.windows.answered, 0])
    assert len(held) > 5800
    assert made.facts["licence"] == "MIT"
