import pytest

from core.errors import UserError
from domains.nlp.benchmarks import READERS, _words, read_benchmark

SIZES = {
    ("sst", None): (6920, 872, 1821),
    ("sst", "trees"): (8544, 1101, 2210),
    ("cola", None): (8551, 527, 516),
    ("ficle", None): (6443, 806, 806),
    ("bangla", None): (5252, 1227, 1294),
    ("bangla", "emotion"): (1867, 501, 286),
}


def counts(frame, label):
    return frame[label].value_counts().to_dict()


@pytest.mark.data
@pytest.mark.parametrize(("name", "part"), SIZES)
def test_published_sizes(real_data, name, part):
    found = read_benchmark(name, part)
    assert tuple(len(found.frames[each]) for each in ("train", "val", "test")) == SIZES[name, part]
    for frame in found.frames.values():
        texts = frame[found.text].tolist() + (frame[found.pair].tolist() if found.pair else [])
        assert all(isinstance(text, str) and text.strip() for text in texts)
        assert frame[found.label].notna().all()


@pytest.mark.data
def test_sst(real_data):
    binary, trees = (read_benchmark("sst", part).frames["test"] for part in ("binary", "trees"))
    assert counts(binary, "label") == {"negative": 912, "positive": 909}
    assert set(trees["label"]) == set("01234")
    assert trees["text"][0] == "Effective but too-tepid biopic"
    assert not trees["text"].str.contains(r"[()]{2}|-LRB-").any()
    kept = trees[trees["label"] != "2"]  # without the neutral ones they are the same sentences
    assert len(kept) == len(binary)


@pytest.mark.data
def test_cola(real_data):
    found = read_benchmark("cola", None)
    accepted = [counts(found.frames[p], "label")["acceptable"] for p in ("train", "val", "test")]
    assert accepted == [6023, 365, 354]
    assert "withheld" in found.notes[0]


@pytest.mark.data
def test_ficle(real_data):
    found = read_benchmark("ficle", None)
    total: dict[str, int] = {}
    for frame in found.frames.values():
        for label, count in counts(frame, found.label).items():
            total[label] = total.get(label, 0) + count
    assert total == {
        **{"Taxonomic relations": 4842, "Negation": 1630, "Set Based": 642},
        **{"Gradable": 526, "Simple": 415},
    }
    assert found.pair == "Context"


@pytest.mark.data
def test_sdoh(real_data):
    found = read_benchmark("sdoh", None)
    train, test = found.frames["train"], found.frames["test"]
    assert len(test) == 480
    assert found.kind == "multi"
    spoken = {" ".join(text.lower().split()) for text in test["text"]}
    assert not any(" ".join(text.lower().split()) in spoken for text in train["text"])
    assert not train["text"].duplicated().any()
    assert "of 1,800 sentences" in found.notes[0]
    labels = {each for cell in test["label"].dropna() for each in cell.split(",")}
    assert {
        "EMPLOYMENT",
        "HOUSING",
        "PARENT",
        "RELATIONSHIP",
        "SUPPORT",
        "TRANSPORTATION",
    } >= labels


@pytest.mark.data
def test_bangla(real_data):
    frame = read_benchmark("bangla", "emotion").frames["train"]
    assert counts(frame, "class_label") == {
        **{"None": 535, "Anger/Disgust": 623, "Joy": 545, "Fear/Surprise": 94, "Sadness": 70}
    }


@pytest.mark.data
@pytest.mark.parametrize(("name", "part"), [("sst", "fine"), ("bangla", "ner"), ("bangla", "x")])
def test_there_is_no_such_part(real_data, name, part):
    with pytest.raises(UserError, match=rf"data.part={part}: of {name} there is"):
        read_benchmark(name, part)


def test_there_is_no_such_set():
    with pytest.raises(UserError, match=r"data.dataset=etth1: no labelled texts; there is sst, co"):
        read_benchmark("etth1", None)
    assert set(READERS) == {"sst", "cola", "ficle", "sdoh", "bangla"}


def test_the_words_of_a_tree():
    tree = "(3 (2 (2 The) (2 Rock)) (4 (3 (2 is) (4 -LRB-great-RRB-)) (2 .)))"
    assert _words(tree) == "The Rock is (great) ."
