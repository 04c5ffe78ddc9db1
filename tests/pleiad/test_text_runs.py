"""Classifiers of texts from the command: begun from a folder, exported, gone on from."""

import json
import random
import socket
from pathlib import Path

import pandas as pd
import pytest
import torch

from core.errors import UserError
from core.pretrained import from_pretrained
from data import DataError, find_model
from pleiad import command

transformers = pytest.importorskip("transformers")
WORDS = {"yes": ("good", "great", "fine", "superb"), "no": ("bad", "awful", "poor", "dull")}
CLASSIFY = ["fit", "nlp/classify", "--data.train=reviews.csv", "--data.text=review"]
CLASSIFY += ["--data.label=liked", "--data.max_length=32", "--data.probe=false"]
QUICK = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
FAST = ["--model.optimizer.lr=0.01", "--model.scheduler.max_lr=0.01"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A random BERT of two layers with the tokenizer of MiniLM, as transformers saves it."""
    try:
        place = find_model("minilm")
    except DataError:
        pytest.skip("the package of MiniLM is not installed")
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(
        **sizes, intermediate_size=64, max_position_embeddings=64, vocab_size=30522
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(place).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLEIAD_RUN", raising=False)

    def refuse(*arguments, **options):
        raise AssertionError("nothing may ask the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    reviews(240).to_csv("reviews.csv", index=False)


def reviews(count: int, labels=("yes", "no")) -> pd.DataFrame:
    draw = random.Random(count)
    rows = []
    for number in range(count):
        liked = labels[number % 2]
        a, b = draw.sample(WORDS["yes" if number % 2 == 0 else "no"], 2)
        rows.append((f"film {number} of {draw.randrange(90)} was {a} and {b}", liked))
    return pd.DataFrame(rows, columns=["review", "liked"])


def told(arguments: list[str]) -> str:
    with pytest.raises((UserError, DataError)) as caught:
        command.run(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def results(folder: str) -> dict:
    return json.loads(Path(folder, "results.json").read_text())


def plain_logits(folder: Path, texts: list[str]) -> torch.Tensor:
    """Let plain transformers answer, with nothing of ours."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def test_a_round_trip(tiny, capsys):
    command.run([*CLASSIFY, f"--checkpoint={tiny}", *QUICK, *FAST, "--run=first"])
    printed = capsys.readouterr().out
    assert "2 missing: model.classifier.weight, model.classifier.bias" in printed
    first = results("first")
    assert first["metrics"]["test/accuracy"] >= 0.9
    assert {"majority", "TF-IDF + linear"} <= set(first["baselines"])
    assert first["checkpoint"]["path"] == str(tiny)

    command.run(["test", "first", *QUICK])
    repeated = dict(line.split() for line in capsys.readouterr().out.strip().splitlines())
    for name, value in first["metrics"].items():
        assert float(repeated[name]) == pytest.approx(value, rel=1e-5), name

    unseen = reviews(30).drop(columns="liked")
    unseen.to_csv("unseen.csv", index=False)
    command.run(["predict", "first", "--input=unseen.csv", "--output=answers.csv"])
    answers = pd.read_csv("answers.csv")
    assert list(answers["review"]) == list(unseen["review"])
    assert {"label", "probability", "top_1", "top_2", "abstain"} <= set(answers)
    assert (answers["label"] == reviews(30)["liked"]).mean() > 0.9

    texts = list(unseen["review"])
    logits = plain_logits(Path("first/model"), texts)
    config = json.loads(Path("first/model/config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes"}
    named = [config["id2label"][str(place)] for place in logits.argmax(1).tolist()]
    assert named == list(answers["label"])
    loaded = from_pretrained("first")
    tokens = loaded.preprocessing.tokenizer(texts, padding=True, return_tensors="pt")
    ours = loaded.network(tokens["input_ids"], tokens["attention_mask"], tokens["token_type_ids"])
    torch.testing.assert_close(ours.detach(), logits, rtol=0, atol=1e-6)

    more = [*CLASSIFY, "--checkpoint=first/model", *QUICK, "--trainer.max_steps=1", "--run=more"]
    command.run(more)
    printed = capsys.readouterr().out
    assert "missing" not in printed
    assert "begins anew" not in printed  # the labels are the same, so the head is kept
    assert results("more")["metrics"]["test/accuracy"] >= 0.9


def test_new_labels_are_listed_and_the_old_order_does_not_matter(tiny, capsys):
    command.run([*CLASSIFY, f"--checkpoint={tiny}", *QUICK, *FAST, "--run=first"])
    frame = reviews(240)
    frame["liked"] = frame["liked"].map({"yes": "a yes", "no": "no"})
    frame.to_csv("reviews.csv", index=False)
    capsys.readouterr()
    steps = ["--trainer.max_steps=1", "--run=second"]
    command.run([*CLASSIFY, "--checkpoint=first", *QUICK, *steps])
    printed = " ".join(capsys.readouterr().out.split())
    assert "the weights know no, yes, wanted are a yes, no; new is a yes" in printed

    folder = Path("renamed")  # the same weights with the labels the other way round
    model = transformers.AutoModelForSequenceClassification.from_pretrained("first/model")
    order = [1, 0]
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order].clone())
        model.classifier.bias.copy_(model.classifier.bias[order].clone())
    model.config.id2label = {0: "yes", 1: "no"}
    model.config.label2id = {"yes": 0, "no": 1}
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained("first/model").save_pretrained(folder)
    reviews(240).to_csv("reviews.csv", index=False)
    capsys.readouterr()
    judged = ["test", "nlp/classify", f"--checkpoint={folder}", *CLASSIFY[2:], *QUICK]
    command.run(judged)
    printed = dict(line.split() for line in capsys.readouterr().out.strip().splitlines())
    first = results("first")["metrics"]["test/accuracy"]
    assert float(printed["test/accuracy"]) == pytest.approx(first, abs=1e-6)


def test_a_model_without_a_head_cannot_be_judged(tiny):
    judged = ["test", "nlp/classify", f"--checkpoint={tiny}", *CLASSIFY[2:], *QUICK]
    assert "cannot be judged as it is, it lacks model.classifier.weight" in told(judged)


def test_several_labels_and_several_questions(tiny, capsys):
    frame = reviews(160)
    frame["tags"] = ["film,liked" if word == "yes" else "film" for word in frame["liked"]]
    frame["tags"] = frame["tags"].where(frame.index % 5 > 0, "short")
    frame["score"] = [f"{0.5 + 0.01 * number:.2f}" for number in range(len(frame))]
    frame.to_csv("reviews.csv", index=False)
    given = [*CLASSIFY[:4], "--data.max_length=32", "--data.probe=false", f"--checkpoint={tiny}"]
    quick = [*QUICK, "--trainer.max_steps=3"]
    command.run([*given, "--data.label=tags", "--data.kind=multi", *quick, "--run=tags"])
    assert {"test/f1", "test/f1_macro", "test/exact_match"} <= set(results("tags")["metrics"])
    capsys.readouterr()
    command.run(["test", "tags/model", *given[2:-1], "--data.label=tags", "--data.kind=multi"])
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines() if "/" in line)
    assert {key: float(value) for key, value in lines.items()} == pytest.approx(
        results("tags")["metrics"], rel=1e-4
    )  # thresholds and temperature go with the model
    command.run([*given, "--data.label=liked,score", *quick, "--run=two"])
    found = results("two")["metrics"]
    assert {"test/accuracy_liked", "test/mae_score", "test/pearson_score"} <= set(found)
    command.run(["predict", "two", "--input=reviews.csv", "--output=answers.jsonl"])
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert {"label_liked", "probability_liked", "predicted_score"} <= set(rows[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.max_length=100"], "64 positions in steps of 8"),
        (["--data.label=likd"], "did you mean 'liked'?"),
        (["--data.dataset=sst"], "give --data.train FILE"),
        (["--model.network.config.vocab_size=100"], "the network knows 100"),
        (["--model.network.config.model_type=none"], "'none' cannot be built"),
        (["--checkpoint=sst"], "is a data set, not a model"),
        (["--checkpoint=nowhere"], "no such file or folder"),
        (["--data.val_fraction=0"], "must lie above 0"),
        (["--data.token_budget=8"], "data.token_budget=8"),
    ],
)
def test_bad_input_ends_before_training(tiny, arguments, message):
    given = [*CLASSIFY, f"--checkpoint={tiny}", *QUICK, "--run=bad", *arguments]
    assert message in told(given)
    assert not Path("bad").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"review,liked\na,yes\nb,yes\n", "one class alone ('yes')"),
        (b"review,liked\n", "holds no rows"),
        ("review,liked\ncafé,yes\n".encode("latin-1"), "reviews.csv:2: not UTF-8"),
        (b"review,liked\na,yes\n ,no\n", "no text in row 2"),
    ],
)
def test_bad_files_end_before_training(tiny, content, message):
    Path("reviews.csv").write_bytes(content)
    assert message in told([*CLASSIFY, f"--checkpoint={tiny}", *QUICK, "--run=bad"])


def test_a_label_that_training_never_saw(tiny):
    reviews(20, ("yes", "perhaps")).to_csv("test.csv", index=False)
    given = [*CLASSIFY, "--data.test=test.csv", f"--checkpoint={tiny}", *QUICK]
    assert "labels that training never saw: 'perhaps' (row 2)" in told(given)


def test_a_checkpoint_of_another_architecture(tiny):
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=200), "x": range(200)})
    frame.to_csv("s.csv", index=False)
    sizes = ["--data.lookback=24", "--data.horizon=6", "--trainer.max_steps=1"]
    series = ["fit", "time_series/forecast", "--data.train=s.csv", "--model.network=DLinear"]
    command.run([*series, *sizes, *QUICK, "--run=series"])
    given = [*CLASSIFY, "--checkpoint=series", *QUICK]
    assert "holds no architecture that SequenceClassifier could take" in told(given)
    assert "none of its" in told([*series, *sizes, f"--checkpoint={tiny}", *QUICK])
