import pytest
import torch
from torch import nn

from core.errors import UserError
from core.networks.hugging_face import HuggingFace
from core.warm_start import check_finite, check_fit, warm_start

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
IDS = torch.arange(1, 11).reshape(2, 5)
MASK = torch.ones_like(IDS)


class Classifier(HuggingFace):
    auto = "AutoModelForSequenceClassification"

    def read(self, outputs, mask):
        return outputs.logits


def heads(*labels):
    return [{"name": "", "kind": "single", "labels": list(labels)}]


def classifier(*labels, config=BERT, seed=0):
    torch.manual_seed(seed)
    return Classifier(config, heads(*labels or "abc")).eval()


def body(config=BERT, seed=0):
    torch.manual_seed(seed)
    return HuggingFace(config).eval()


def start(network, state, **options):
    return warm_start(network, state, "given", **options)


def states(network):
    with torch.no_grad():
        return network.model.base_model(input_ids=IDS, attention_mask=MASK).last_hidden_state


BODY_TENSORS = len(body().state_dict())


@pytest.mark.parametrize("prefix", ["", "model.", "network.", "encoder.model.bert.", "a.b.c.d."])
def test_a_bare_body_into_a_network_with_a_head(prefix):
    given, network = body(seed=1), classifier()
    told = start(network, {prefix + k[len("model.") :]: v for k, v in given.state_dict().items()})
    assert torch.equal(states(network), states(given))
    assert len(told.matched) == BODY_TENSORS
    assert set(told.missing) == {
        *("model.classifier.weight", "model.classifier.bias"),
        *("model.bert.pooler.dense.weight", "model.bert.pooler.dense.bias"),
    }
    assert told.unexpected == told.reshaped == told.resized == told.notes == ()


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "model."])
def test_a_network_with_a_head_into_a_bare_body(prefix):
    given, network = classifier(seed=1), body()
    state = {prefix + k[len("model.") :]: v for k, v in given.state_dict().items()}
    told = start(network, state)
    assert torch.equal(states(network), states(given))
    assert len(told.matched) == BODY_TENSORS
    assert told.missing == ()
    assert {name.rpartition("classifier")[2] for name in told.unexpected} >= {".weight", ".bias"}
    assert len(told.unexpected) == 4  # the pooler too


@pytest.mark.parametrize("prefix", ["", "model.", "module.model.", "network."])
def test_the_same_network(prefix):
    given, network = classifier(seed=1), classifier(seed=2)
    assert not torch.equal(network(IDS, MASK), given(IDS, MASK))
    told = start(network, {prefix + k: v for k, v in given.state_dict().items()})
    assert torch.equal(network(IDS, MASK), given(IDS, MASK))
    assert told.lines() == [f"{len(given.state_dict())} tensors loaded"]


def test_the_better_of_two_bodies_is_taken():
    """A checkpoint of two towers: names of either fit, and one prefix has more of them."""
    given, network = body(seed=1), body()
    state = {f"student.{k}": v for k, v in given.state_dict().items()}
    state |= {f"teacher.{k}": torch.zeros(3) for k in given.state_dict()}
    told = start(network, state)
    assert torch.equal(states(network), states(given))
    assert len(told.unexpected) == BODY_TENSORS


def test_names_are_mapped_by_the_user():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(2, 2)
            self.norm = nn.LayerNorm(2)

    network = Net()
    state = {"dense/kernel": torch.ones(2, 2), "dense/b": torch.ones(2), "ln": torch.ones(2) * 3}
    names = {"^dense/": "proj.", r"\.kernel$": ".weight", r"\.b$": ".bias", "^ln$": "norm.weight"}
    told = start(network, state, names=names)
    assert set(told.matched) == {"proj.weight", "proj.bias", "norm.weight"}
    assert told.missing == ("norm.bias",)
    assert network.norm.weight.tolist() == [3, 3]
    with pytest.raises(UserError, match=r"two tensors become 'proj.weight'"):
        start(network, state, names={"^.*$": "proj.weight"})
    with pytest.raises(UserError, match=r"checkpoint_names: '\('"):
        start(network, state, names={"(": ""})


def test_old_names_of_norms():
    given, network = body(seed=1), body()
    nn.init.normal_(given.model.embeddings.LayerNorm.weight)
    state = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta")
        .removeprefix("model."): v
        for k, v in given.state_dict().items()
    }
    assert any(name.endswith("LayerNorm.gamma") for name in state)
    told = start(network, state)
    assert len(told.matched) == BODY_TENSORS
    assert torch.equal(states(network), states(given))


def test_a_network_that_really_has_such_names_keeps_them():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.LayerNorm = nn.ParameterDict({"gamma": torch.ones(2), "beta": torch.zeros(2)})

    network = Net()
    told = start(network, {"LayerNorm.gamma": torch.ones(2) * 2, "LayerNorm.beta": torch.ones(2)})
    assert told.missing == ()
    assert network.LayerNorm["gamma"].tolist() == [2, 2]


def test_a_grown_vocabulary_begins_as_the_mean():
    given, network = body(seed=1), body({**BERT, "vocab_size": 23})
    told = start(network, given.state_dict())
    old = given.model.embeddings.word_embeddings.weight
    new = network.model.embeddings.word_embeddings.weight
    assert torch.equal(new[:20], old)
    torch.testing.assert_close(new[20:], old.mean(0).expand(3, -1))
    assert told.resized == ("model.embeddings.word_embeddings.weight from 20 to 23 rows",)
    assert told.missing == told.reshaped == ()
    assert torch.equal(states(network), states(given))
    assert told.lines()[0] == f"{BODY_TENSORS} tensors loaded"
    assert told.lines()[1].startswith("1 resized: ")


def test_a_cut_vocabulary_keeps_its_beginning():
    given, network = body(seed=1), body({**BERT, "vocab_size": 12})
    start(network, given.state_dict())
    old = given.model.embeddings.word_embeddings.weight
    assert torch.equal(network.model.embeddings.word_embeddings.weight, old[:12])
    assert torch.equal(states(network), states(given))


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        ("bert", 40, [*range(16), *range(16), *range(8)]),
        ("bert", 10, list(range(10))),
        # two rows of RoBERTa stand for padding: they are not repeated
        ("roberta", 34, [*range(16), *range(2, 16), *range(2, 6)]),
        ("roberta", 10, list(range(10))),
    ],
)
def test_positions(kind, rows, expected):
    config = {**BERT, "model_type": kind, "pad_token_id": 1}
    given, network = body(config, 1), body({**config, "max_position_embeddings": rows})
    told = start(network, given.state_dict())
    old = given.model.embeddings.position_embeddings.weight
    new = network.model.embeddings.position_embeddings.weight
    assert torch.equal(new, old[expected])
    assert told.resized == (f"model.embeddings.position_embeddings.weight from 16 to {rows} rows",)


def test_positions_of_gpt2_repeat_and_its_old_masks_are_not_told():
    sizes = {"model_type": "gpt2", "vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2}
    sizes |= {"bos_token_id": 1, "eos_token_id": 1}
    given, network = body({**sizes, "n_positions": 4}, 1), body({**sizes, "n_positions": 10})
    state = {k.removeprefix("model."): v for k, v in given.state_dict().items()}
    told = start(network, {**state, "h.0.attn.bias": torch.ones(1, 1, 4, 4)})
    assert torch.equal(network.model.wpe.weight, given.model.wpe.weight[[0, 1, 2, 3] * 2 + [0, 1]])
    assert told.unexpected == ()


def test_tables_of_distances_are_not_resized():
    sizes = {**BERT, "model_type": "deberta-v2", "relative_attention": True, "type_vocab_size": 0}
    given, network = (
        body({**sizes, "position_buckets": 4}, 1),
        body({**sizes, "position_buckets": 8}),
    )
    told = start(network, given.state_dict())
    assert told.resized == ()
    assert told.reshaped == ("model.encoder.rel_embeddings.weight is (8, 8), needed (16, 8)",)


def test_another_width_is_told_with_both_shapes():
    network = body({**BERT, "intermediate_size": 10})
    told = start(network, body(seed=1).state_dict())
    assert told.reshaped[0] == (
        "model.encoder.layer.0.intermediate.dense.weight is (12, 8), needed (10, 8)"
    )
    assert len(told.reshaped) == 3
    assert len(told.matched) == BODY_TENSORS - 3


@pytest.mark.parametrize("theirs", ["cab", "CAB"])
def test_labels_in_another_order(theirs):
    given, network = classifier(*theirs, seed=1), classifier(*"abc", seed=2)
    nn.init.normal_(given.model.classifier.bias)
    told = start(network, given.state_dict(), labels=list(theirs))
    logits, own = given(IDS, MASK), network(IDS, MASK)
    for place, label in enumerate("abc"):
        there = theirs.casefold().index(label)
        torch.testing.assert_close(own[:, place], logits[:, there], rtol=0, atol=1e-6)
    assert told.notes == ()


def test_labels_that_differ_by_case_alone_are_told_apart():
    given, network = classifier("a", "A", seed=1), classifier("A", "a", seed=2)
    start(network, given.state_dict(), labels=["a", "A"])
    assert torch.equal(network.model.classifier.weight, given.model.classifier.weight[[1, 0]])


@pytest.mark.parametrize("theirs", ["abd", "ab", "abcd"])
def test_other_labels_begin_anew(theirs):
    given, network = classifier(*theirs, seed=1), classifier(*"abc", seed=2)
    before = network.model.classifier.weight.clone()
    told = start(network, given.state_dict(), labels=list(theirs))
    assert torch.equal(network.model.classifier.weight, before)
    assert torch.equal(states(network), states(given))
    listed = ", ".join(theirs)
    new = "; new is c" if "c" not in theirs else ""
    assert told.notes == (
        f"the last layer begins anew: the weights know {listed}, wanted are a, b, c{new}",
    )
    assert told.notes[0] in told.lines()
    assert {"model.classifier.weight", "model.classifier.bias"} <= set(told.missing)


def test_labels_that_are_not_known_load_as_they_stand():
    given, network = classifier(*"xyz", seed=1), classifier(*"abc", seed=2)
    start(network, given.state_dict())
    assert torch.equal(network(IDS, MASK), given(IDS, MASK))


@pytest.mark.parametrize("kind", ["roberta", "electra", "distilbert", "bert"])
def test_only_the_last_layer_follows_the_labels(kind):
    """There are as many labels as the network is wide, so that other layers look alike."""
    config = {**BERT, "model_type": kind}
    if kind == "distilbert":
        config |= {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 12}
    ours, theirs = "abcdefgh", "hgfedcba"
    given, network = classifier(*theirs, config=config, seed=1), classifier(*ours, config=config)
    start(network, given.state_dict(), labels=list(theirs))
    torch.testing.assert_close(network(IDS, MASK), given(IDS, MASK).flip(1), rtol=0, atol=1e-6)


def test_nothing_fits():
    with pytest.raises(UserError, match="none of its 1 tensors fits HuggingFace") as error:
        start(body(), {"x": torch.zeros(3)})
    assert "x (3,)" in str(error.value)
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite():
    state = body().state_dict()
    name = "model.encoder.layer.0.output.dense.weight"
    state[name] = state[name].clone()
    state[name][0, 0] = torch.nan
    network = body(seed=3)
    before = states(network)
    with pytest.raises(UserError, match=rf"given: the tensor {name} holds values"):
        start(network, state)
    assert torch.equal(states(network), before)  # nothing was loaded by half
    check_finite({"n": torch.tensor([2**40])}, "whole numbers")


def test_what_does_not_fit_but_is_not_loaded_may_be_anything():
    state = {**body().state_dict(), "extra": torch.tensor([torch.inf])}
    assert start(body(), state).unexpected == ("extra",)


def test_half_precision_is_loaded_in_ours():
    network = body()
    start(network, {k: v.half() for k, v in body(seed=1).state_dict().items()})
    assert next(network.parameters()).dtype == torch.float32


def test_long_reports_are_cut():
    told = start(classifier(), body(seed=1).state_dict())
    assert told.lines(most=1)[1].endswith(" and 3 more")


def test_check_fit_lists_what_does_not_fit():
    own = body()
    state = {k: v for k, v in own.state_dict().items() if "pooler" not in k}
    check_fit(own, state, "file")
    name = next(iter(state))
    del state[name]
    state["odd"] = torch.zeros(1)
    with pytest.raises(UserError, match=f"file: does not fit HuggingFace: missing {name}; unexp"):
        check_fit(own, state, "file")
