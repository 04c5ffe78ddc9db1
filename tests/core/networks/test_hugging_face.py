import pytest
import torch

from core.errors import UserError
from core.networks.hugging_face import HuggingFace, architecture, label_names

transformers = pytest.importorskip("transformers")

BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
HEADS = [
    {"name": "topic", "kind": "single", "labels": ["a", "b"]},
    {"name": "", "kind": "multi", "labels": ["x"]},
]


class Classifier(HuggingFace):
    auto = "AutoModelForSequenceClassification"

    def read(self, outputs, mask):
        return outputs.logits


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("config", [None, {}, {"hidden_size": 8}])
def test_an_architecture_is_needed(config):
    with pytest.raises(UserError, match="--checkpoint FOLDER") as error:
        HuggingFace(config)
    assert "--model.network.config" in one_line(error)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "no_such_model"},
        {**BERT, "num_attention_heads": 3},  # 8 / 3
        {**BERT, "hidden_size": "wide"},
        {**BERT, "hidden_act": "no_such_function"},
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(config):
    with pytest.raises(UserError, match="cannot be built as HuggingFace") as error:
        HuggingFace(config)
    assert repr(config["model_type"]) in one_line(error)


class Answers(HuggingFace):
    auto = "AutoModelForQuestionAnswering"


def test_a_head_that_an_architecture_lacks():
    with pytest.raises(UserError, match="'vit' cannot be built as Answers") as error:
        Answers({"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2})
    one_line(error)


def test_layers_of_an_encoder_and_decoder_are_in_no_one_order():
    config = {"model_type": "t5", "vocab_size": 20, "d_model": 8, "num_layers": 1, "num_heads": 2}
    with pytest.raises(UserError, match="t5: its layers are not in one list"):
        _ = HuggingFace({**config, "d_ff": 8, "d_kv": 4}).stages


def test_what_a_file_says_of_itself_is_no_architecture():
    said = {"architectures": ["X"], "id2label": {"0": "a"}, "pleiad": {}, "torch_dtype": "float16"}
    assert architecture({**BERT, **said, "auto_map": {"AutoModel": "evil.py"}}) == BERT
    network = Classifier({**BERT, **said}, HEADS)
    assert next(network.parameters()).dtype == torch.float32
    assert network.config == BERT


def test_outputs_are_named_by_head_and_label():
    assert label_names(HEADS) == ["topic: a", "topic: b", "x"]
    network = Classifier(BERT, HEADS)
    published = network.published_config()
    assert network.outputs == 3
    assert published["id2label"] == {0: "topic: a", 1: "topic: b", 2: "x"}
    assert published["label2id"] == {"topic: a": 0, "topic: b": 1, "x": 2}
    assert published["architectures"] == ["BertForSequenceClassification"]
    assert published.get("problem_type") is None  # two heads are none of its problems


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("single", "single_label_classification"),
        ("multi", "multi_label_classification"),
        ("regression", "regression"),
    ],
)
def test_one_head_is_a_problem_that_transformers_knows(kind, problem):
    labels = ["score"] if kind == "regression" else ["a", "b"]
    network = Classifier(BERT, [{"name": "", "kind": kind, "labels": labels}])
    assert network.published_config()["problem_type"] == problem
    assert network.model.num_labels == len(labels)


def test_the_heads_of_the_caller_are_not_shared():
    given = [dict(HEADS[0])]
    network = Classifier(BERT, given)
    given[0]["name"] = "changed"
    assert network.heads[0]["name"] == "topic"


@pytest.mark.parametrize(("end", "pad"), [(3, 3), ([4, 5], 4), (None, 0)])
def test_a_model_without_padding_pads_with_its_end(end, pad):
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    config = {"model_type": "gpt2", **sizes, "eos_token_id": end, "bos_token_id": 3}
    network = Classifier(config, HEADS)
    assert network.model.config.pad_token_id == pad
    assert network(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3)).shape == (2, 3)


@pytest.mark.parametrize(("kind", "unused"), [("bert", 0), ("roberta", 2)])
def test_positions_that_no_token_takes(kind, unused):
    network = HuggingFace({**BERT, "model_type": kind, "pad_token_id": 1})
    assert network.unused_positions == unused
    longest = 16 - unused
    for length, fits in ((longest, True), (longest + 1, False)):
        ids = torch.full((1, length), 5)
        if fits:
            network(ids, torch.ones_like(ids))
        else:
            with pytest.raises((IndexError, RuntimeError)):
                network(ids, torch.ones_like(ids))
