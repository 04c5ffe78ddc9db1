"""The whole way by the command: a user's file, a run folder, and answers from its model."""

import json

import pytest
from transformers import AutoModelForTokenClassification, BertConfig, BertModel

from domains.nlp.tokenizer import load_tokenizer
from pleiad.predict import predict
from pleiad.run import Options, evaluate, fit

CITIES = ["Rome", "Oslo", "Lima", "Bonn"]


@pytest.fixture
def checkpoint(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path / "tiny"
    BertModel(BertConfig(**sizes, intermediate_size=64)).save_pretrained(folder)
    load_tokenizer("minilm").save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_file_becomes_a_tagger(tmp_path, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"saw{n}\tV\tO\n{CITIES[n % 4]}\tN\tB-LOC\n" for n in range(80)]
    (tmp_path / "x.conll").write_text("\n".join(rows), "utf-8")
    overrides = [
        *("--data.train=x.conll", "--data.tags=pos:2,ner:3", "--data.batch_size=8"),
        *("--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--model.optimizer.lr=0.01"),
        *("--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"),
    ]
    folder = fit("nlp/tag", overrides, Options(checkpoint=str(checkpoint)))
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert results["task"] == "Tagging"
    assert {"test/f1_ner", "test/accuracy_pos"} <= set(results["metrics"])
    assert set(results["baselines"]) == {"majority tag of a word", "frozen encoder + linear"}
    assert results["baselines"]["majority tag of a word"]["test/f1_ner"] == 1
    pictures = sorted(path.name for path in (folder / "pictures").iterdir())
    assert pictures == ["confusion_pos.png", "f1_by_type_ner.png"]
    again = evaluate(str(folder), [], Options(), "test")
    assert again["test/f1_ner"] == pytest.approx(results["metrics"]["test/f1_ner"])
    outcome = predict(folder, ["x.conll"], tmp_path / "y.jsonl")
    assert "160 words of 80 sentences" in outcome.text
    lines = (tmp_path / "y.jsonl").read_text("utf-8").splitlines()
    assert [len(json.loads(line)["predicted_ner"]) for line in lines] == [2] * 80
    plain = AutoModelForTokenClassification.from_pretrained(folder / "model")
    assert list(plain.config.id2label.values()) == ["pos: N", "pos: V", "ner: O", "ner: B-LOC"]
