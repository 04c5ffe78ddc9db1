"""Sets of words with tags: files, splits, heads, and batches that lose no word."""

import json

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.split_plan import Split
from domains.nlp.spans import NO_TAG
from domains.nlp.tagging_data import TaggingData

CITIES = ["Rome", "Oslo", "বাংলাদেশের", "Quito", "Lima", "Bonn"]


def sentences(count, seed=0, documents=False):
    """Lines of word, part of speech and entity."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        if documents and number % 5 == 0:
            lines += ["-DOCSTART- O O", ""]
        city = CITIES[rng.integers(len(CITIES))]
        lines += [f"we\tPRON\tO\nsaw{number}\tVERB\tO\n{city}\tPROPN\tB-LOC\n.\tPUNCT\tO\n"]
    return "\n".join(lines)


@pytest.fixture
def saved(tmp_path):
    def write(content, name="x.conll"):
        (tmp_path / name).write_text(content, "utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def made():
    def build(**options):
        data = TaggingData(tokenizer="minilm", **options)
        data.setup()
        return data

    return build


def every_batch(data, items):
    return list(data.every_item(items))


def test_one_file_is_divided_and_its_split_can_be_reused(saved, made, tmp_path):
    path = saved(sentences(200))
    data = made(train=path)
    sizes = [len(part) for part in data.corpus.parts]
    assert sum(sizes) == 200
    assert sizes[0] > sizes[2] > sizes[1] > 0
    assert data.sizes(data.config)["heads"] == [
        {"name": "", "kind": "single", "labels": ["O", "B-LOC"]}
    ]
    data.keep(tmp_path)
    other = made(train=saved(sentences(210)), split=str(tmp_path / "splits.parquet"))
    for before, after in zip(data.corpus.parts, other.corpus.parts, strict=True):
        assert {s.words for s in before} <= {s.words for s in after}
    assert Split.load(tmp_path / "splits.parquet").rule == "random"


def test_whole_documents_stay_together(saved, made):
    data = made(train=saved(sentences(100, documents=True)), split="group:document")
    documents = [{s.facts["document"] for s in part} for part in data.corpus.parts]
    assert all(documents)
    assert not documents[0] & documents[1] | documents[0] & documents[2]


def test_several_columns_are_several_heads(saved, made):
    data = made(train=saved(sentences(50)), tags="ner:-1,pos:2")
    assert [(h["name"], h["labels"]) for h in data.corpus.heads] == [
        ("ner", ["O", "B-LOC"]),
        ("pos", ["PRON", "PROPN", "PUNCT", "VERB"]),
    ]
    batch = every_batch(data, data.test_set)[0]
    assert batch.labels[0, :4].tolist() == [[0, 0], [0, 3], [1, 1], [0, 2]]
    counts = data.label_counts()
    assert [c.sum() for c in counts] == [4 * len(data.corpus.parts[0])] * 2


def test_files_of_their_own_and_json_lines(saved, made):
    lines = [
        json.dumps({"words": ["to", "Rome"], "ner": ["O", "B-LOC"], "doc": n}) for n in range(9)
    ]
    one, two = saved("\n".join(lines), "a.jsonl"), saved("\n".join(lines[:2]), "b.jsonl")
    data = made(train=one, val=two, test=two, tokens="words", tags="ner")
    assert [len(part) for part in data.corpus.parts] == [9, 2, 2]
    assert data.corpus.split is None
    assert "sentences of test that stand in train too: 2" in data.corpus.notes
    assert data.facts["dataset"] == "a.jsonl"
    assert "2 for validation (4 words)" in " ".join(data.summary())


def test_what_no_file_is_given_for_is_taken_from_training(saved, made):
    test = saved(sentences(10, seed=1), "test.conll")
    data = made(train=saved(sentences(100)), test=test)
    sizes = [len(part) for part in data.corpus.parts]
    assert sizes[2] == 10
    assert sizes[0] + sizes[1] == 100
    assert sizes[1] > 0


def test_tags_that_training_lacks_are_listed(saved, made):
    other = saved(sentences(10, seed=1).replace("B-LOC", "B-GPE"), "test.conll")
    data = made(train=saved(sentences(50)), test=other)
    (note,) = [note for note in data.corpus.notes if "training lacks" in note]
    assert note.endswith("never found: B-GPE (10 words)")
    assert data.corpus.labels == (("O", "B-GPE", "B-LOC"),)


def test_tags_of_another_kind_are_refused(saved, made):
    other = saved("a\tX\nb\tY\n", "test.conll")
    with pytest.raises(UserError, match=r"training has B-LOC, O, and test X, Y"):
        made(train=saved(sentences(50)), test=other)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "--data.train=FILE is needed"),
        ({"dataset": "wnut17", "val": "x"}, "has files of its own"),
        ({"dataset": "etth1"}, "no set of tagged words"),
        ({"train": "none.conll"}, "no such file"),
        ({"train": "x.csv"}, ".csv files are not read here"),
        ({"tags": "a:,b:2"}, "write columns"),
        ({"tags": "a:2,a:3"}, "same name"),
        ({"tags": "9"}, "there is no column '9'"),
        ({"tags": "1"}, "asked for twice"),
        ({"split": "group:site"}, "no column 'site'"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave sentences to train on"),
        ({"max_length": 7}, "must be at least 8"),
    ],
)
def test_errors_name_the_key(saved, made, options, told):
    path = saved(sentences(20))
    if "train" not in options and "dataset" not in options and options:
        options = {"train": path, **options}
    with pytest.raises(UserError, match=told):
        made(**options)


def test_a_column_of_words_is_no_column_of_tags(saved, made):
    content = "\n".join(f"w\tlemma{n}\n" for n in range(1200))
    with pytest.raises(UserError, match=r"1,200 different tags .* is it the column of tags"):
        made(train=saved(content))


def first_pieces(data, words):
    ids = [data.tokenizer([[w]], is_split_into_words=True)["input_ids"][0] for w in words]
    return [own[1] if len(own) > 2 else data.tokenizer.unk_token_id for own in ids]


LONG = "\n".join(f"{CITIES[n % 6]}\t{n % 6}" for n in range(90))
SHORT = ["we\t0\nsaw\t1", "a\t0", "\ufe0f\t1", "Bonn\t5\n,\t0\n\t2\nLima\t3"]


def test_every_word_stands_once_where_its_first_piece_is(saved, made):
    path = saved("\n\n".join([LONG, *SHORT]))
    data = made(train=path, val=path, test=path, max_length=24, batch_size=3)
    sentences = data.corpus.parts[2]
    for batch in every_batch(data, data.test_set):
        assert batch.tokens.ids.shape[1] <= 24
        flat = batch.tokens.ids.flatten()
        for at, row in enumerate(batch.rows.tolist()):
            words, count = sentences[row].words, int(batch.lengths[at])
            assert count == len(words)
            assert flat[batch.places[at, :count]].tolist() == first_pieces(data, words)
            assert batch.labels[at, :count, 0].tolist() == [int(t) for t in sentences[row].tags[0]]
            assert (batch.labels[at, count:] == NO_TAG).all()
    assert len(data.test_set) == len(sentences)


def test_training_takes_each_window_by_itself_and_every_word_once(saved, made):
    path = saved("\n\n".join([LONG, *SHORT]))
    data = made(train=path, val=path, test=path, max_length=24, batch_size=3)
    counts = torch.zeros(len(SHORT) + 1, dtype=torch.long)
    for batch in every_batch(data, data.train_set):
        assert len(batch.tokens.ids) == len(batch.rows)
        counts.index_add_(0, batch.rows, batch.lengths)
    assert counts.tolist() == [len(s.words) for s in data.corpus.parts[0]]
    assert len(data.train_set) > len(data.test_set)
    assert "windows more" in data.summary()[2]


def test_words_without_a_tag_have_no_label(saved, made):
    path = saved("a\tO\nb\t\n\nc\tB-X\n\nd\tO\n")
    data = made(train=path, val=path, test=path)
    labels = torch.cat([b.labels.flatten() for b in every_batch(data, data.test_set)])
    assert sorted(labels[labels != NO_TAG].tolist()) == [0, 0, 1]
    assert data.corpus.notes[0].startswith("x.conll: words without a tag")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sizes", "labels"),
    [
        ("wnut17", [3394, 1009, 1287], 13),
        ("tweebank_ner", [1639, 710, 1201], 9),
        ("tweebank_ud", [1639, 710, 1201], 17),
    ],
)
def test_sets_of_the_catalogue(real_data, made, name, sizes, labels):
    data = made(dataset=name)
    assert [len(part) for part in data.corpus.parts] == sizes
    assert len(data.corpus.labels[0]) == labels
    assert data.facts["dataset"] == name
    assert data.facts["licence"]


@pytest.mark.data
def test_bangla_takes_validation_from_training(real_data, made):
    data = made(dataset="bangla")
    sizes = [len(part) for part in data.corpus.parts]
    assert sizes[0] + sizes[1] == 4612
    assert 350 < sizes[1] < 570
    assert sizes[2] == 1950
    assert set(data.corpus.labels[0]) == {
        *("O", "TIM"),
        *(f"{prefix}-{kind}" for prefix in "BI" for kind in ("PER", "LOC", "ORG")),
    }
