"""FlowTransformer beside its equations, written a second time in NumPy; published weights."""

from itertools import product

import numpy as np
import pytest
import torch

from core.pretrained import from_pretrained, save_pretrained
from domains.security.networks.flow_transformer import FlowTransformer

ENCODINGS = (
    *("none", "record_dense", "record_projection"),
    *("categorical_dense", "categorical_projection", "categorical_lookup"),
)
BLOCKS = ("encoder", "decoder")
HEADS = ("last", "flatten", "average", "featurewise", "featurewise_projection", "cls")
BASE = {
    "encoding": "record_dense",
    "block": "encoder",
    "head": "last",
    "numeric": 3,
    "levels": [4, 3],
    "window": 5,
    "width": 8,
    "layers": 2,
    "inner": 10,
    "heads": 2,
    "mlp": [7],
    "dropout": 0.0,
}
SIZES = (
    {},
    {"window": 1, "layers": 1, "heads": 3, "mlp": []},
    {"numeric": 5, "levels": [2, 6, 1], "window": 9, "width": 4, "layers": 3, "mlp": [6, 5, 4]},
)


class Keras:
    """Variables in the order and under the names that Keras gives them, drawn at random."""

    def __init__(self, config, classes=2, seed=8):
        self.rng = np.random.default_rng(seed)
        self.config = config
        self.classes = classes
        self.weights = {}
        self.dense = 0

    def add(self, name, *shape):
        drawn = self.rng.normal(size=shape) * (0.3 if "bias" in name or "beta" in name else 0.6)
        drawn += "gamma" in name or ("mlp" in name and "bias" in name)
        assert name not in self.weights
        self.weights[name] = drawn.astype(np.float32)

    def linear(self, name, before, after, bias=True):
        self.add(f"{name}/kernel", before, after)
        if bias:
            self.add(f"{name}/bias", after)

    def numbered(self):
        name = f"dense_{self.dense}" if self.dense else "dense"
        self.dense += 1
        return name

    def norm(self, name, width):
        self.add(f"{name}/gamma", width)
        self.add(f"{name}/beta", width)

    def attention(self, name, width, heads, size):
        for part in ("query", "key", "value"):
            self.add(f"{name}/{part}/kernel", width, heads, size)
            self.add(f"{name}/{part}/bias", heads, size)
        self.add(f"{name}/attention_output/kernel", heads, size, width)
        self.add(f"{name}/attention_output/bias", width)

    def built(self):
        c = self.config
        kind, head = c["encoding"], c["head"]
        width = c["numeric"] + sum(c["levels"])
        if kind.startswith("record"):
            self.linear("embed", width, c["width"], kind == "record_dense")
            width = c["width"]
        if kind.startswith("categorical"):
            for n, count in enumerate(c["levels"]):
                if kind == "categorical_lookup":
                    self.add(f"embedding{f'_{n}' if n else ''}/embeddings", count + 1, c["width"])
                else:
                    self.linear(f"embed_field {n}", count, c["width"], kind == "categorical_dense")
            width = c["numeric"] + c["width"] * len(c["levels"])
        width += head == "cls"
        for n in range(c["layers"]):
            if c["block"] == "encoder":
                top = f"block_{n}_transformer_encoder/block_{n}"
                self.attention(f"{top}_multi_head_attn", width, c["heads"], c["inner"])
                self.norm(f"{top}_attention_layer_norm", width)
                self.linear(f"{top}_feed_forward_0", width, c["inner"])
                self.linear(f"{top}_feed_forward_1", c["inner"], width)
                self.norm(f"{top}_feed_forward_layer_norm", width)
            else:
                top, own = (f"_{n}" if n else "" for _ in range(2))
                top = f"transformer_decoder_block{top}"
                self.attention(f"{top}/multi_head_attention{own}", width, c["heads"], width)
                self.norm(f"{top}/layer_normalization{f'_{2 * n}' if n else ''}", width)
                self.linear(self.numbered(), width, c["inner"])
                self.linear(self.numbered(), c["inner"], width)
                self.norm(f"{top}/layer_normalization_{2 * n + 1}", width)
        rows = c["window"] + (head == "cls")
        if head.startswith("featurewise"):
            self.linear("featurewise_embed", width, 1, head == "featurewise")
            width = rows
        width = rows * width if head == "flatten" else width
        for n, size in enumerate(c["mlp"]):
            self.linear(f"classification_mlp_{n}_{size}", width, size)
            width = size
        self.linear("binary_classification_out", width, 1 if self.classes == 2 else self.classes)
        return self.weights


def equations(config, weights, numeric, codes):
    """The published forward pass; takes the variables one after the other."""
    left = [np.asarray(weight, np.float64) for weight in weights.values()]

    def take():
        return left.pop(0)

    def norm(x, gamma, beta):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * gamma + beta

    def attention(parts, query, memory):
        q, k, v = (
            np.einsum("bwd,dhs->bhws", x, parts[2 * n]) + parts[2 * n + 1][:, None]
            for n, x in enumerate((query, memory, memory))
        )
        scores = np.einsum("bhqs,bhks->bhqk", q, k) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bhqk,bhks->bhqs", scores / scores.sum(-1, keepdims=True), v)
        return np.einsum("bhqs,hsd->bqd", mixed, parts[6]) + parts[7]

    kind, head = config["encoding"], config["head"]
    one_hot = [np.eye(n)[codes[..., i]] for i, n in enumerate(config["levels"])]
    if kind == "categorical_lookup":
        encoded = [take()[codes[..., i]] for i in range(len(config["levels"]))]
    elif kind.startswith("categorical"):
        encoded = [x @ take() + (take() if kind.endswith("dense") else 0) for x in one_hot]
    else:
        encoded = one_hot
    x = np.concatenate([numeric, *encoded], -1)
    if kind.startswith("record"):
        x = x @ take() + (take() if kind == "record_dense" else 0)
    if head == "cls":
        wider = np.zeros((len(x), x.shape[1] + 1, x.shape[2] + 1))
        wider[:, :-1, :-1] = x
        wider[:, -1, -1] = 1
        x = wider
    for _ in range(config["layers"]):
        a = [take() for _ in range(8)]
        g1, b1, w1, c1, w2, c2, g2, b2 = (take() for _ in range(8))
        if config["block"] == "encoder":
            o = attention(a, x, x)
            h = np.maximum(norm(x + o, g1, b1) @ w1 + c1, 0)
            x = norm(o + np.maximum(h @ w2 + c2, 0), g2, b2)
        else:
            o1 = norm(x + attention(a, x, x), g1, b1)
            o2 = norm(o1 + attention(a, o1, x), g2, b2)
            x = norm(o2 + np.maximum(o2 @ w1 + c1, 0) @ w2 + c2, g2, b2)
    if head.startswith("featurewise"):
        x = (x @ take() + (take() if head == "featurewise" else 0))[..., 0]
    elif head == "flatten":
        x = x.reshape(len(x), -1)
    else:
        x = x.mean(1) if head == "average" else x[:, -1]
    while len(left) > 2:
        x = np.maximum(x @ take() + take(), 0)
    x = x @ take() + take()
    if x.shape[1] == 1:
        return 1 / (1 + np.exp(-x))
    x = np.exp(x - x.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def inputs(config, batch=6):
    rng = np.random.default_rng(1)
    size = (batch, config["window"])
    numeric = rng.normal(size=(*size, config["numeric"])).astype(np.float32)
    codes = np.stack([rng.integers(0, n, size) for n in config["levels"]], -1)
    return numeric, codes


def answer(network, numeric, codes):
    with torch.no_grad():
        return network.eval()(torch.from_numpy(numeric), torch.from_numpy(codes)).numpy()


def asked(config):
    """The head as the published configuration names it: the bias is told by the weights."""
    return {**config, "head": config["head"].removesuffix("_projection")}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("head", HEADS)
def test_equals_the_equations(encoding, block, head):
    for size in SIZES:
        config = {**BASE, "encoding": encoding, "block": block, "head": head, **size}
        weights = Keras(config).built()
        network = FlowTransformer.from_published(asked(config), weights).double()
        numeric, codes = inputs(config)
        expected = equations(config, weights, numeric, codes)
        assert np.abs(answer(network, numeric.astype(float), codes) - expected).max() <= 1e-10
        assert np.ptp(expected) > 1e-7


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("enc_record_last", {"encoding": "record_dense", "block": "encoder", "head": "last"}),
        ("dec_none_featurewise", {"encoding": "none", "block": "decoder", "head": "featurewise"}),
    ],
)
def test_equals_published_outputs(golden, name, config):
    file = golden(f"flowtransformer_{name}.npz")
    weights = {key: file[f"w{n:02}"] for n, key in enumerate(file["names"])}
    network = FlowTransformer.from_published({**BASE, **config}, weights)
    assert np.abs(answer(network, file["num"], file["codes"]) - file["y"]).max() <= 2e-6
    assert (
        np.abs(equations({**BASE, **config}, weights, file["num"], file["codes"]) - file["y"]).max()
        <= 2e-6
    )


@pytest.mark.parametrize("block", BLOCKS)
def test_names_may_have_other_numbers_prefixes_and_endings(block):
    config = {**BASE, "encoding": "categorical_lookup", "block": block, "mlp": [7, 4]}
    weights = Keras(config).built()
    expected = answer(FlowTransformer.from_published(config, weights), *inputs(config))
    again = {}
    for n, (name, weight) in enumerate(weights.items()):
        top, *rest = name.replace("block_0_multi", "multi").split("/")
        again["/".join(["model", f"{top}_{n // 2 + 17}", *rest]) + ":0"] = torch.from_numpy(weight)
    assert np.array_equal(
        answer(FlowTransformer.from_published(config, again), *inputs(config)), expected
    )


def test_maps_may_be_convolutions_of_width_one():
    weights = Keras(BASE).built()
    expected = answer(FlowTransformer.from_published(BASE, weights), *inputs(BASE))
    as_convolutions = {
        name: weight[None] if "feed_forward" in name and weight.ndim == 2 else weight
        for name, weight in weights.items()
    }
    network = FlowTransformer.from_published(BASE, as_convolutions)
    assert np.array_equal(answer(network, *inputs(BASE)), expected)


def test_several_classes_have_a_softmax():
    weights = Keras(BASE, classes=4).built()
    network = FlowTransformer.from_published({**BASE, "classes": 4}, weights)
    numeric, codes = inputs(BASE)
    expected = equations(BASE, weights, numeric, codes)
    assert expected.shape == (6, 4)
    assert np.abs(answer(network, numeric, codes) - expected).max() <= 2e-6


@pytest.mark.parametrize(("block", "head"), [*product(BLOCKS, ("last", "featurewise"))])
def test_every_entry_that_is_missing_is_named(block, head):
    config = {**BASE, "block": block, "head": head, "mlp": [7, 4]}
    weights = Keras(config).built()
    for name in weights:
        left = {other: weight for other, weight in weights.items() if other != name}
        if name == "featurewise_embed/bias":
            continue
        with pytest.raises(ValueError, match="weights do not fit: missing") as caught:
            FlowTransformer.from_published(config, left)
        assert str(caught.value).count(";") <= 1, name
    unnamed = {key: weight for key, weight in weights.items() if "attention_output" not in key}
    with pytest.raises(ValueError, match=r"missing [^;]*/attention_output/kernel; missing"):
        FlowTransformer.from_published(config, unnamed)


def test_faults_are_listed():
    weights = Keras(BASE).built()
    weights["embed/kernel"] = weights["embed/kernel"].T
    weights["surprise/kernel"] = np.zeros(3)
    with pytest.raises(ValueError, match="weights do not fit") as caught:
        FlowTransformer.from_published(BASE, weights)
    told = str(caught.value)
    assert "embed/kernel is (8, 10), needed (10, 8)" in told
    assert "unexpected surprise/kernel" in told
    with pytest.raises(ValueError, match="unknown breadth; missing numeric"):
        FlowTransformer.from_published({"levels": [2], "breadth": 3}, {})


def test_is_the_same_after_a_save_and_a_load(tmp_path):
    weights = Keras(BASE).built()
    network = FlowTransformer.from_published({**BASE, "levels": np.array([4, 3])}, weights)
    save_pretrained(network, tmp_path / "model")
    again = from_pretrained(tmp_path / "model").network
    assert np.array_equal(answer(again, *inputs(BASE)), answer(network, *inputs(BASE)))
