"""A tagger that was saved answers on files: every form, every word, any length."""

import json

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained
from domains.nlp.networks.token_classifier import TokenClassifier
from domains.nlp.tagged_files import TaggedFiles
from domains.nlp.tokenizer import load_tokenizer

LABELS = ("O", "B-LOC", "I-LOC")
HEADS = [{"name": "", "kind": "single", "labels": list(LABELS)}]


TINY = {
    **{"model_type": "bert", "vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128},
}
"""A small random encoder that knows the tokens of the pretrained one."""


@pytest.fixture(scope="module")
def minilm_files():
    return TaggedFiles((LABELS,), ("",), ("upos",), 24, load_tokenizer("minilm"))


@pytest.fixture
def saved_model(tmp_path, minilm_files):
    torch.manual_seed(0)
    network = TokenClassifier(TINY, HEADS).eval()
    save_pretrained(network, tmp_path / "model", preprocessing=minilm_files)
    return from_pretrained(tmp_path / "model")


@pytest.fixture
def predict(tmp_path, saved_model):
    def run(content, name, output, **options):
        (tmp_path / name).write_text(content, "utf-8", newline="")
        told = saved_model.preprocessing.predict_file(
            saved_model.network, tmp_path / name, tmp_path / output, **options
        )
        return (tmp_path / output).read_text("utf-8"), told

    return run


def test_it_is_the_same_after_saving(saved_model, minilm_files, tmp_path):
    assert saved_model.preprocessing == minilm_files
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    words = [["to", "Rome"], [], ["বাংলাদেশের", "\ufe0f", "", "x" * 300]]
    before = minilm_files.answers(saved_model.network, words)
    after = saved_model.preprocessing.answers(saved_model.network, words)
    assert before == after
    assert [len(answer.tags[0]) for answer in after] == [2, 0, 4]


def test_conll_gets_a_column(predict):
    text, told = predict("to\tO\nRome\tB-LOC\n\n\u00a0\tO\n", "x.conll", "y.conll")
    lines = text.split("\n")
    assert [line.rsplit("\t", 1)[0] for line in lines] == [
        "to\tO",
        "Rome\tB-LOC",
        "",
        "\u00a0\tO",
        "",
    ]
    assert {line.rsplit("\t", 1)[-1] for line in lines if line} <= set(LABELS)
    assert "y.conll: 3 words of 2 sentences; " in told


def test_a_file_of_words_alone_gets_its_tags(predict):
    text, _ = predict("to\nRome\n", "x.conll", "y.conll")
    assert [len(line.split(" ")) for line in text.strip().split("\n")] == [2, 2]


def test_conllu_gets_its_column_filled_in(predict):
    row = "\t_\t_\t_\t_\t_\t_\t_\t_"
    text, _ = predict(f"# a = b\n1\tto{row}\n2\tRome{row}\n\n", "x.conllu", "y.conllu")
    cells = [line.split("\t") for line in text.split("\n")[1:3]]
    assert all(len(line) == 10 and line[3] in LABELS for line in cells)


def test_json_lines_have_probabilities_and_spans(predict):
    lines = [{"tokens": ["to", "Rome"], "id": 1}, {"tokens": []}, {"tokens": ["Oslo"]}]
    text, _ = predict("\n".join(map(json.dumps, lines)), "x.jsonl", "y.jsonl")
    found = [json.loads(line) for line in text.strip().split("\n")]
    assert [f["tokens"] for f in found] == [line["tokens"] for line in lines]
    assert found[0]["id"] == 1
    assert [len(f["predicted_tags"]) for f in found] == [2, 0, 1]
    assert all(1 / 3 < p <= 1 for f in found for p in f["probability"])


def test_forms_may_change_by_the_name_of_the_output(predict):
    text, _ = predict("# n = 5\nto O\nRome B-LOC\n", "x.conll", "y.jsonl")
    assert json.loads(text)["n"] == "5"
    text, _ = predict('{"words": ["a", "b"]}', "x.jsonl", "y.conll", tokens="words")
    assert [line.split("\t")[0] for line in text.split("\n")] == ["a", "b", "", ""]
    text, _ = predict("Off to Rome!", "x.txt", "y.txt")
    assert [line.split("\t")[0] for line in text.split("\n")] == ["Off", "to", "Rome", "!", "", ""]


def test_any_length_and_order_is_answered_alike(saved_model):
    rng = np.random.default_rng(0)
    words = ["to", "Rome", "walks", "বাংলাদেশের", "fast"]
    sentences = [list(rng.choice(words, n)) for n in (1, 200, 3, 40, 7)]
    files = saved_model.preprocessing
    together = files.answers(saved_model.network, sentences)
    for sentence, answer in zip(sentences, together, strict=True):
        (alone,) = files.answers(saved_model.network, [sentence])
        assert len(answer.tags[0]) == len(sentence)
        assert alone.tags == answer.tags
        np.testing.assert_allclose(alone.probabilities, answer.probabilities, atol=1e-5)


def test_a_picture_is_drawn(predict, tmp_path):
    _, told = predict("to\nRome\n", "x.conll", "y.conll", plot=tmp_path / "y.png")
    assert (tmp_path / "y.png").read_bytes().startswith(b"\x89PNG")
    assert "spans" in told


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        ('{"text": "no words"}', "x.jsonl", "has no 'tokens'; its keys are text"),
        ("\n", "x.conll", "holds no words"),
        ("a,b", "x.csv", "not read here"),
        ("", "x.txt", "holds no words"),
    ],
)
def test_files_without_words_are_told(predict, content, name, told):
    with pytest.raises(UserError, match=told):
        predict(content, name, "y.out")


def test_an_output_that_is_not_finite_is_told(predict, saved_model):
    with torch.no_grad():
        saved_model.network.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        predict("a\n", "x.conll", "y.conll")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"more": 1}, "'more' is unknown"),
        ({"labels": "O"}, "labels='O' must be lists of words"),
        ({"labels": []}, "differ in length"),
        ({"names": ["a", "b"]}, "differ in length"),
        ({"columns": [1]}, "columns="),
        ({"max_length": 0}, "max_length=0"),
    ],
)
def test_a_damaged_preprocessing_is_told(minilm_files, change, told):
    with pytest.raises(UserError, match=told):
        TaggedFiles.from_json({**minilm_files.to_json(), **change})
