import json

import pandas as pd
import pytest
import torch

from core.errors import UserError
from core.networks.hugging_face import architecture
from domains.nlp import labelled_files
from domains.nlp.labelled_files import LabelledFiles
from domains.nlp.networks.sequence_classifier import SequenceClassifier
from domains.nlp.tables import read_table
from domains.nlp.tokenizer import load_tokenizer

SINGLE = {"name": "", "kind": "single", "labels": ["a", "b", "c"]}
MULTI = {"name": "", "kind": "multi", "labels": ["x", "y"]}
MEASURE = {"name": "", "kind": "regression", "labels": ["score"]}
SEVERAL = [{**SINGLE, "name": "topic"}, {**MULTI, "name": "mood"}, {**MEASURE, "name": "size"}]
TEXTS = ["good", "bad and long " * 9, "fine", "so it is, is it not", "unbelievable 😀", "ok"]


@pytest.fixture
def build(tiny_bert):
    config = architecture(json.loads((tiny_bert / "config.json").read_text()))

    def build(*heads, **changes):
        torch.manual_seed(0)
        network = SequenceClassifier(config, list(heads)).eval()
        torch.nn.init.normal_(network.model.classifier.weight)
        settings = {
            "text": "text",
            "pair": None,
            "separator": ";",
            "max_length": 16,
            "long_input": "window",
            "tokenizer": load_tokenizer(str(tiny_bert)),
            "temperature": [2.0] * len(heads),
            "threshold": [0.5] * network.outputs,
            "curves": [[[0.3, 1.0, 1.0]] for _ in heads],
        }
        return network, LabelledFiles(heads=list(heads), **settings | changes)

    return build


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.csv"
    pd.DataFrame({"id": range(6), "text": TEXTS}).to_csv(path, index=False)
    return path


def logits_of(network, files, text, pair=None):
    """The mean over windows, a text by itself."""
    files_ = files.tokenizer(
        [text],
        None if pair is None else [pair],
        truncation="only_first" if pair is None else True,
        max_length=files.max_length,
        stride=(files.max_length - 2) // 4,
        return_overflowing_tokens=pair is None,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        given = (files_[key] for key in ("input_ids", "attention_mask", "token_type_ids"))
        return network(*given).mean(0)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
def test_every_form_of_output(build, source, tmp_path, suffix):
    network, files = build(SINGLE)
    output = tmp_path / f"out{suffix}"
    told = files.predict_file(network, source, output)
    frame = read_table(output)
    assert frame["id"].tolist() == [str(n) for n in range(6)]
    assert frame["text"].str.strip().tolist() == [text.strip() for text in TEXTS]
    assert list(frame.columns) == [
        *("id", "text", "label", "probability"),
        *(f"top_{n}{end}" for n in (1, 2, 3) for end in ("", "_probability")),
        "abstain",
    ]
    for row, text in zip(frame.to_dict("records"), TEXTS, strict=True):
        expected = (logits_of(network, files, text) / 2).softmax(0)
        order = expected.argsort(descending=True)
        assert row["label"] == row["top_1"] == "abc"[order[0]]
        assert [row[f"top_{n}"] for n in (1, 2, 3)] == ["abc"[n] for n in order]
        written = [float(row[f"top_{n}_probability"]) for n in (1, 2, 3)]
        assert written == pytest.approx(expected[order].tolist(), abs=2e-6)
        assert float(row["probability"]) == written[0]
    assert told == f"{output}: 6 rows; labels: abstains on 0 (asked for an accuracy of 0.9)"


def test_answers_do_not_depend_on_batches(build, source, tmp_path, monkeypatch):
    network, files = build(*SEVERAL)
    files.predict_file(network, source, tmp_path / "a.parquet")
    monkeypatch.setattr(labelled_files, "BUDGET", 1)  # a text at a time
    files.predict_file(network, source, tmp_path / "b.parquet")
    one, other = (pd.read_parquet(tmp_path / f"{n}.parquet") for n in "ab")
    pd.testing.assert_frame_equal(one, other, rtol=0, atol=2e-6)


def test_several_labels(build, source, tmp_path):
    network, files = build(MULTI, threshold=[0.2, 0.6])
    files.predict_file(network, source, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, text in zip(rows, TEXTS, strict=True):
        scores = (logits_of(network, files, text) / 2).sigmoid()
        given = [float(scores[0]) >= 0.2, float(scores[1]) >= 0.6]
        assert row["label"] == ";".join(n for n, taken in zip("xy", given, strict=True) if taken)
        least = min(float(s) if t else 1 - float(s) for s, t in zip(scores, given, strict=True))
        assert row["probability"] == pytest.approx(least, abs=2e-6)
        assert {row["top_1"], row["top_2"]} == {"x", "y"}
        assert "top_3" not in row


def test_a_measure_has_a_value_alone(build, source, tmp_path):
    network, files = build(MEASURE, temperature=[1.0])
    told = files.predict_file(network, source, tmp_path / "out.csv")
    frame = pd.read_csv(tmp_path / "out.csv")
    assert list(frame.columns) == ["id", "text", "predicted"]
    expected = [float(logits_of(network, files, text)) for text in TEXTS]
    assert frame["predicted"].tolist() == pytest.approx(expected, abs=2e-6)
    assert told == f"{tmp_path / 'out.csv'}: 6 rows"


def test_several_heads(build, source, tmp_path):
    network, files = build(*SEVERAL)
    told = files.predict_file(network, source, tmp_path / "out.csv", top="1")
    frame = pd.read_csv(tmp_path / "out.csv")
    assert {"label_topic", "top_1_topic", "label_mood", "predicted_size"} <= set(frame.columns)
    assert "top_2_topic" not in frame
    assert "topic: abstains on 0; mood: abstains on 0 (asked" in told


def test_pairs(build, tmp_path):
    network, files = build(SINGLE, pair="other", long_input="truncate")
    frame = pd.DataFrame({"other": ["yes", "no", None], "text": ["a b", "word " * 20, "c"]})
    frame.to_csv(tmp_path / "in.csv", index=False)
    told = files.predict_file(network, tmp_path / "in.csv", tmp_path / "out.parquet")
    found = pd.read_parquet(tmp_path / "out.parquet")
    for n in range(2):
        expected = logits_of(network, files, frame["text"][n], frame["other"][n])
        assert found["label"][n] == "abc"[int(expected.argmax())]
        assert found["probability"][n] == pytest.approx(
            float((expected / 2).softmax(0).max()), abs=2e-6
        )
    assert found["label"][2] is None
    assert "3 rows; 1 rows have no text" in told
    (tmp_path / "in.txt").write_text("one\n")
    with pytest.raises(UserError, match="pairs need a table with 'text' and 'other'"):
        files.predict_file(network, tmp_path / "in.txt", tmp_path / "out.csv")
    pd.DataFrame({"text": ["a"]}).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(UserError, match=r"--data.pair: .*in.csv has no column 'other'"):
        files.predict_file(network, tmp_path / "in.csv", tmp_path / "out.csv")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_without_a_text_abstain(build, tmp_path, suffix):
    network, files = build(SINGLE)
    (tmp_path / "in.txt").write_text("one\n\n   \ntwo\n")
    told = files.predict_file(network, tmp_path / "in.txt", tmp_path / f"out{suffix}")
    frame = read_table(tmp_path / f"out{suffix}")
    assert frame["label"].isna().tolist() == [False, True, True, False]
    assert frame["abstain"].tolist() == ["False", "True", "True", "False"]
    assert "4 rows; 2 rows have no text; labels: abstains on 2" in told
    (tmp_path / "in.txt").write_text("\n \n")
    files.predict_file(network, tmp_path / "in.txt", tmp_path / f"out{suffix}")
    assert read_table(tmp_path / f"out{suffix}")["label"].tolist() == [None, None]


def test_unsure_answers_abstain(build, source, tmp_path):
    network, files = build(SINGLE)
    best = [float((logits_of(network, files, t) / 2).softmax(0).max()) for t in TEXTS]
    cut = sorted(best)[3] - 1e-4
    files = files.calibrated([2.0], [0.5] * 3, [[[0.99, 1.0, 0.2], [cut, 0.8, 0.5], [0, 0.7, 1]]])
    expected = {"0.7": [False] * 6, "0.8": [b < cut for b in best], "1": [b < 0.99 for b in best]}
    for accuracy, abstains in expected.items():
        files.predict_file(network, source, tmp_path / "out.csv", accuracy=accuracy)
        assert pd.read_csv(tmp_path / "out.csv")["abstain"].tolist() == abstains
    never = files.calibrated([2.0], [0.5] * 3, [[[0.5, 0.6, 1.0]]])
    told = never.predict_file(network, source, tmp_path / "out.csv")
    assert "abstains on 6" in told


def test_columns_of_the_same_name_are_kept_under_another(build, tmp_path):
    network, files = build(SINGLE)
    frame = pd.DataFrame({"text": ["one"], "label": ["mine"], "label_given": ["older"]})
    frame.to_csv(tmp_path / "in.csv", index=False)
    told = files.predict_file(network, tmp_path / "in.csv", tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["label_given_given"].tolist() == ["mine"]
    assert found["label_given"].tolist() == ["older"]
    assert told.endswith("; given columns renamed: label_given_given")
    for _ in range(2):  # its own output is a table too
        (tmp_path / "out.csv").replace(tmp_path / "in.csv")
        files.predict_file(network, tmp_path / "in.csv", tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv")
    assert len(set(found.columns)) == len(found.columns)


def test_a_table_of_one_column_needs_no_name(build, tmp_path):
    network, files = build(SINGLE)
    pd.DataFrame({"headline": TEXTS}).to_csv(tmp_path / "in.csv", index=False)
    files.predict_file(network, tmp_path / "in.csv", tmp_path / "out.csv")
    assert pd.read_csv(tmp_path / "out.csv")["headline"].tolist() == TEXTS


@pytest.mark.parametrize(
    ("options", "output", "told"),
    [
        ({"accuracy": "2"}, "o.csv", r"--accuracy=2: must be a number above 0 and up to 1"),
        ({"accuracy": "high"}, "o.csv", "--accuracy=high"),
        ({"top": "0"}, "o.csv", r"--top=0: must be a whole number from 1 on"),
        ({"top": "²"}, "o.csv", "--top=²"),
        ({}, "o.txt", r"name a file that ends in .csv, .tsv, .jsonl, .ndjson, .parquet"),
        ({}, "o", "name a file that ends in"),
    ],
)
def test_mistakes(build, source, tmp_path, options, output, told):
    network, files = build(SINGLE)
    with pytest.raises(UserError, match=told):
        files.predict_file(network, source, tmp_path / output, **options)
    assert not (tmp_path / output).exists()


def test_a_wrong_column_or_an_empty_table(build, tmp_path):
    network, files = build(SINGLE)
    path = tmp_path / "in.csv"
    pd.DataFrame({"txt": ["a"], "n": [1]}).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"in.csv has no column 'text'; did you mean 'txt'"):
        files.predict_file(network, path, tmp_path / "out.csv")
    path.write_text("text,n\n")
    with pytest.raises(UserError, match=r"in.csv: holds no rows"):
        files.predict_file(network, path, tmp_path / "out.csv")
    with pytest.raises(UserError, match="there is no picture of labels"):
        files.predict_file(network, path, tmp_path / "out.csv", tmp_path / "plot.png")


def test_it_travels_as_json(build, tiny_bert):
    _, files = build(*SEVERAL)
    again = LabelledFiles.from_json(json.loads(json.dumps(files.to_json())))
    assert again.tokenizer is None
    assert again.attach(tiny_bert) == files
