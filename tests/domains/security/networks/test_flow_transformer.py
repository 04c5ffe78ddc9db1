"""FlowTransformer: sizes, parts, an encoder of transformers, and the techniques of the core."""

import copy
from itertools import product

import pytest
import torch
from torch import nn

from core.activation_compression import compress
from core.adapters import LoRA
from core.early_exit.transform import EarlyExit
from core.freezing.units import stage_units
from core.network_parts import head, stages
from core.pretrained import from_pretrained, save_pretrained
from core.tensor_files import read_tensors
from core.warm_start import warm_start
from domains.security.networks.flow_transformer import FlowTransformer

SMALL = {"numeric": 3, "levels": [4, 2], "window": 5, "width": 8, "layers": 3, "inner": 10}
ENCODINGS = (
    *("none", "record_dense", "record_projection"),
    *("categorical_dense", "categorical_projection", "categorical_lookup"),
)
HEADS = ("last", "flatten", "average", "featurewise", "featurewise_projection", "cls")
NSL_KDD = {"numeric": 34, "levels": [3, 32, 11, 2, 2, 1, 2]}
UNSW = {"numeric": 28, "levels": [32, 32, 32, 32, 32, 32, 32, 8, 8]}


def network(**kwargs) -> FlowTransformer:
    torch.manual_seed(0)
    return FlowTransformer(**{**SMALL, "dropout": 0.0, "mlp_dropout": 0.0, **kwargs})


def inputs(batch=6, window=5):
    generator = torch.Generator().manual_seed(1)
    numeric = torch.randn(batch, window, 3, generator=generator)
    codes = [torch.randint(0, n, (batch, window), generator=generator) for n in (4, 2)]
    return numeric, torch.stack(codes, 2)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("block", ["encoder", "decoder"])
@pytest.mark.parametrize("head", HEADS)
def test_shape_and_a_gradient_for_every_parameter(encoding, block, head):
    for classes, outputs in ((2, 1), (4, 4)):
        net = network(encoding=encoding, block=block, head=head, classes=classes, layers=2)
        logits = net(*inputs(64))
        assert logits.shape == (64, outputs)
        logits.square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            if not name.endswith("key.bias"):  # softmax takes no notice of it
                assert parameter.grad.abs().sum() > 0, name


COUNTS = [
    (UNSW, {"encoding": "none"}, 725_649),
    (UNSW, {}, 192_065),
    (
        UNSW,
        {
            **{"encoding": "record_projection", "block": "decoder", "window": 10},
            "head": "featurewise_projection",
        },
        118_849,
    ),
    (NSL_KDD, {"encoding": "none"}, 236_949),
    (NSL_KDD, {"encoding": "none", "head": "flatten"}, 314_901),
    (NSL_KDD, {"encoding": "none", "head": "average"}, 236_949),
    (NSL_KDD, {"encoding": "none", "head": "cls"}, 239_649),
    (NSL_KDD, {"encoding": "none", "head": "featurewise"}, 226_925),
    (NSL_KDD, {}, 180_481),
    (NSL_KDD, {"head": "flatten"}, 237_825),
    (NSL_KDD, {"head": "cls"}, 183_181),
    (NSL_KDD, {"head": "featurewise"}, 173_378),
    (NSL_KDD, {"encoding": "categorical_dense"}, 397_209),
    (NSL_KDD, {"encoding": "categorical_lookup"}, 397_209),
    (NSL_KDD, {"encoding": "categorical_projection"}, 397_097),
    (NSL_KDD, {"encoding": "none", "block": "decoder"}, 179_385),
    (NSL_KDD, {"block": "decoder"}, 114_177),
    (NSL_KDD, {"encoding": "none", "block": "gpt"}, 6_027_785),
    (NSL_KDD, {"block": "gpt"}, 3_594_497),
    (NSL_KDD, {"encoding": "none", "block": "bert"}, 40_448_249),
    (NSL_KDD, {"block": "bert"}, 29_850_881),
]


@pytest.mark.parametrize(("fields", "parts", "published"), COUNTS)
def test_has_the_published_number_of_parameters(fields, parts, published):
    with torch.device("meta"):
        net = FlowTransformer(**{**fields, **parts})
    assert sum(p.numel() for p in net.parameters()) == published


@pytest.mark.parametrize(
    ("block", "width", "published"),
    [("encoder", 64, 83_200), ("decoder", 64, 50_048), ("encoder", 268, 345_544)],
)
def test_a_block_has_the_published_number_of_parameters(block, width, published):
    with torch.device("meta"):
        net = FlowTransformer(**UNSW, block=block, width=width)
    assert sum(p.numel() for p in net.blocks[0].parameters()) == published


def test_sizes_of_bert_and_gpt_can_be_overruled():
    net = network(block="bert", layers=2, inner=6, dropout=None)
    assert len(net.blocks) == 2
    assert net.blocks[0].attention.query.out_features == 12 * 6
    assert net.blocks[0].drop.p == 0.02
    assert net.classifier[2].p == 0.0


def test_every_code_has_a_column():
    marks = network(encoding="none").encode(torch.zeros(1, 2, 3), torch.tensor([[[0, 1], [3, 0]]]))
    assert marks[0].nonzero().tolist() == [[0, 3], [0, 8], [1, 6], [1, 7]]


@pytest.mark.parametrize("head", ["last", "average"])
@pytest.mark.parametrize("block", ["encoder", "decoder"])
def test_there_are_no_positions_and_no_mask(block, head):
    net = network(block=block, head=head).eval()
    numeric, codes = inputs()
    order = torch.tensor([3, 1, 0, 2, 4])
    with torch.no_grad():
        torch.testing.assert_close(net(numeric[:, order], codes[:, order]), net(numeric, codes))
        first = numeric.clone()
        first[:, 0] += 1
        assert (net(first, codes) - net(numeric, codes)).abs().min() > 1e-6


def test_starts_as_published():
    torch.manual_seed(0)
    net = FlowTransformer(**NSL_KDD)
    attention = net.blocks[0].attention
    assert 0.98 < attention.query.weight.abs().max() / (6 / (64 * 130)) ** 0.5 <= 1
    assert 0.98 < attention.out.weight.abs().max() / (6 / 320) ** 0.5 <= 1
    assert 0.98 < net.encode.embed.weight.abs().max() / (6 / (87 + 64)) ** 0.5 <= 1
    biases = [p for name, p in net.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoding", ["none", "categorical_lookup"])
def test_is_the_same_after_a_save_and_a_load(encoding, head, tmp_path):
    net = network(encoding=encoding, head=head)
    save_pretrained(net, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    with torch.no_grad():
        assert torch.equal(loaded(*inputs()), net.eval()(*inputs()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoding": "record"}, "encoding='record' must be one of none, record_dense"),
        ({"block": "transformer"}, "block='transformer' must be one of encoder, decoder"),
        ({"head": "first"}, "head='first' must be one of last, flatten"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"heads": 0}, "heads=0 must be at least 1"),
        ({"levels": [3, 0]}, "levels.1=0 must be at least 1"),
        ({"mlp": [8, 0]}, "mlp.1=0 must be at least 1"),
        ({"classes": 1}, "classes=1 must be at least 2"),
        ({"numeric": 0, "levels": []}, "no field is left"),
    ],
)
def test_mistakes_are_told(change, told):
    with pytest.raises(ValueError, match=told):
        network(**change)


def test_a_wrong_shape_is_told():
    with pytest.raises(ValueError, match=r"numeric is \(6, 4, 3\) .* needed \(B, 5, 3\)"):
        network()(*inputs(window=4))


@pytest.mark.parametrize(("numeric", "levels"), [(3, []), (0, [4, 2])])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_fields_may_be_of_one_kind(encoding, numeric, levels):
    net = network(encoding=encoding, numeric=numeric, levels=levels)
    given_numeric, codes = inputs()
    logits = net(given_numeric[..., :numeric], codes[..., : len(levels)])
    assert logits.shape == (6, 1)


CONFIGS = {
    "bert": {"hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 20},
    "roberta": {"hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 20},
    "distilbert": {"dim": 12, "n_layers": 2, "hidden_dim": 20, "n_heads": 2},
    "electra": {
        **{"embedding_size": 6, "hidden_size": 12, "num_hidden_layers": 2},
        "intermediate_size": 20,
    },
    "modernbert": {"hidden_size": 12, "num_hidden_layers": 2, "intermediate_size": 20},
}


def encoder_config(kind, **more):
    heads = {} if kind == "distilbert" else {"num_attention_heads": 2}
    shared = {"vocab_size": 30, "pad_token_id": 0, "max_position_embeddings": 40}
    return {"model_type": kind, **shared, **heads, **CONFIGS[kind], **more}


@pytest.mark.parametrize(("kind", "head"), [*product(CONFIGS, ["last"]), ("bert", "cls")])
def test_takes_an_encoder_of_transformers(kind, head, tmp_path):
    """From a folder of weights; the saved network needs that folder no more."""
    transformers = pytest.importorskip("transformers")
    config = encoder_config(kind)
    torch.manual_seed(1)
    theirs = transformers.AutoModel.from_config(
        transformers.AutoConfig.for_model(
            config["model_type"], **{k: v for k, v in config.items() if k != "model_type"}
        )
    ).eval()
    theirs.save_pretrained(tmp_path / "folder")
    net = network(config=config, head=head).eval()
    started = warm_start(net, read_tensors(tmp_path / "folder")[0], "folder")
    own = [name for name in net.state_dict() if ".transformer." in name]
    assert set(own) <= set(started.matched)
    with torch.no_grad():
        x = net.encode(*inputs())
        if head == "cls":
            x = nn.functional.pad(x, (0, 1, 0, 1))
            x[:, -1, -1] = 1
        states = theirs(inputs_embeds=net.blocks.enter(x)).last_hidden_state
        torch.testing.assert_close(net.blocks(x), states)
        torch.testing.assert_close(net(*inputs()), net.classifier(states[:, -1]))
        save_pretrained(net, tmp_path / "model")
        again = from_pretrained(tmp_path / "model").network
        assert torch.equal(again(*inputs()), net(*inputs()))
    net.train()(*inputs()).sum().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None]
    assert unused == []
    assert EarlyExit(network(config=config, head=head)) is not None


def test_an_encoder_has_a_position_for_every_flow():
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="window=41 is longer than the 40 positions"):
        network(config=encoder_config("bert"), window=41)
    with pytest.raises(ValueError, match="window=39"):  # the first of them are for padding
        network(config=encoder_config("roberta", pad_token_id=1), window=39)


@pytest.mark.parametrize("block", ["encoder", "decoder"])
@pytest.mark.parametrize("kind", ["own", "copy", "linear"])
def test_samples_leave_early(block, kind):
    net = network(block=block, head="featurewise").eval()
    whole = copy.deepcopy(net)
    exits = EarlyExit(net, heads=kind)
    assert len(exits.exits.control.layers) == 3
    with torch.no_grad():
        torch.testing.assert_close(net(*inputs()), whole(*inputs()))
        with exits.exits.control.depth(torch.tensor([1, 2, 3, 3, 2, 1])):
            left = net(*inputs())
        if kind != "linear":
            del whole.blocks[2]
            torch.testing.assert_close(left[[1, 4]], whole(*inputs())[[1, 4]])


@pytest.mark.parametrize("encoding", ["record_dense", "none"])
@pytest.mark.parametrize("block", ["encoder", "decoder", "gpt"])
@pytest.mark.parametrize("head", ["last", "cls", "flatten"])
def test_answers_the_same_with_less_work_without_a_gradient(encoding, block, head):
    """Maps multiplied beforehand, and of the last block one row, give what the formula gives."""
    net = network(encoding=encoding, block=block, head=head, heads=3, inner=12).double().eval()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    numeric, codes = inputs()
    expected = net(numeric.double(), codes)
    with torch.no_grad():
        assert any(part.attention._folds() for part in net.blocks)
        torch.testing.assert_close(net(numeric.double(), codes), expected, atol=1e-12, rtol=1e-12)
        if head == "last":
            whole = net.blocks(net.encode(numeric.double(), codes))
            torch.testing.assert_close(net.classifier(whole[:, -1]), expected)


def test_adapted_maps_are_not_multiplied():
    net = network().eval()
    LoRA(net, rank=2)
    for name, parameter in net.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter)
    expected = net(*inputs())
    with torch.no_grad():
        torch.testing.assert_close(net(*inputs()), expected)


def test_states_stages_and_a_head():
    net = network(head="featurewise")
    assert [part for (part,) in stages(net)] == list(net.blocks)
    assert head(net) == [net.featurewise, net.classifier]
    found = stage_units(net).units
    assert len(found) == 3
    assert not any(name.startswith("classifier") for unit in found for name in unit.names)
    assert found[0].names[0].startswith("encode.embed")


def test_takes_adapters():
    net = network()
    before = net.eval()(*inputs())
    LoRA(net, rank=2)
    torch.testing.assert_close(net.eval()(*inputs()), before)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert any("attention.query" in name and "lora" in name for name in trained)
    assert any(name.startswith("classifier") for name in trained)
    net.train()(*inputs()).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("block", ["encoder", "decoder"])
def test_activations_may_be_compressed(block):
    net = network(block=block).train()
    plain = copy.deepcopy(net)
    compress(net)
    output, expected = net(*inputs(64)), plain(*inputs(64))
    assert torch.equal(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    ours, theirs = (torch.cat([p.grad.flatten() for p in n.parameters()]) for n in (net, plain))
    assert torch.cosine_similarity(ours, theirs, 0) > 0.999


@pytest.mark.parametrize("block", ["encoder", "decoder"])
def test_computes_in_bfloat16(block):
    net = network(block=block, encoding="categorical_lookup").eval()
    numeric, codes = inputs()
    with torch.no_grad():
        expected = net(numeric, codes)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(net(numeric, codes).float(), expected, atol=0.05, rtol=0.05)
        half = net.bfloat16()(numeric.bfloat16(), codes)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)
