"""Compression of whole networks: when it acts, how it travels, what it refuses."""

import copy
import json
import pickle
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.activation_compression import ActivationCompression, compress, report, restore
from core.adapters import LoRA
from core.callbacks.ema import EMAWeightAveraging
from core.errors import UserError
from core.transform import change

sys.path.insert(0, str(Path(__file__).parent / "compression"))
import saved_case


class Plain(nn.Module):
    """A user's own network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(8, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 12)
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x, scale=1.0):
        return self.head(self.body(x)) * scale


class Encoder(nn.Module):
    def __init__(self, **given):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, **given)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x, **given):
        return self.layers(x, **given)


def frozen(module, share=1.0):
    for number, parameter in enumerate(p for p in module.parameters() if p.dim() > 1):
        parameter.requires_grad_(number % 20 >= 20 * share)
    return module


def seeded(module, *inputs):
    torch.manual_seed(4)
    return module(*inputs)


def test_answers_are_equal_bit_for_bit():
    x = torch.randn(5, 8)
    network, same = Plain(), compress(Plain())
    assert torch.equal(seeded(network, x), seeded(same, x))
    assert report(same)["operations"] == {"dropout": 1, "gelu": 1, "linear": 2}
    assert torch.equal(network.eval()(x), same.eval()(x))
    with torch.no_grad():
        assert torch.equal(seeded(network.train(), x), seeded(same.train(), x))


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_nothing_is_done_outside_training(how):
    x = torch.randn(5, 8)
    same = compress(Plain())
    with torch.set_grad_enabled(how != "no_grad"):
        same.train(how == "no_grad")(x)
    assert "operations" not in report(same)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_own_encoder_with_its_masks(norm_first):
    x = torch.randn(3, 9, 32)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[0, 6:] = True
    plain, same = Encoder(norm_first=norm_first), compress(Encoder(norm_first=norm_first))
    for given in ({}, {"src_key_padding_mask": padding}, {"mask": torch.zeros(9, 9).triu(1)}):
        torch.manual_seed(4)
        a = plain(x, **given)
        torch.manual_seed(4)
        assert torch.allclose(same(x, **given), a, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), same.eval()(x))


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("given", [{}, {"kdim": 12, "vdim": 10}, {"add_bias_kv": True}])
def test_torchs_multi_head_attention(given, weights):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(16, 4, dropout=0.2, **given)
    same = compress(copy.deepcopy(plain))
    query = torch.randn(6, 2, 16)
    key = torch.randn(7, 2, given.get("kdim", 16))
    value = torch.randn(7, 2, given.get("vdim", 16))
    torch.manual_seed(1)
    a, w = plain(query, key, value, need_weights=weights)
    torch.manual_seed(1)
    b, v = same(query, key, value, need_weights=weights)
    assert torch.allclose(a, b, atol=1e-6)
    assert not weights or torch.equal(w, v)
    kinds = report(same)["operations"]
    assert {"softmax", "matmul"} <= set(kinds) if weights else "attention" in kinds
    found = saved_case.cosines(saved_case.gradients(same, b), saved_case.gradients(plain, a))
    assert min(found.values()) > 0.98


def test_what_is_frozen_is_looked_at_in_each_pass():
    network = compress(Plain())
    x = torch.randn(64, 8)
    trained, _ = saved_case.kept(network, lambda: network(x))
    frozen(network)
    less, _ = saved_case.kept(network, lambda: network(x))
    network.requires_grad_(True)
    again, _ = saved_case.kept(network, lambda: network(x))
    assert less < trained == again


def test_names_and_tensors_stay_and_all_is_restored():
    network, plain = Plain(), Plain()
    before = [set(vars(m)) for m in network.modules()]
    compress(network)
    compress(network, range="fixed")  # a second time replaces the first
    assert report(network)["range"] == "fixed"
    assert list(network.state_dict()) == list(plain.state_dict())
    assert restore(network) is network
    assert [set(vars(m)) for m in network.modules()] == before
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), plain.parameters(), strict=True)
    )
    x = torch.randn(5, 8)
    assert (
        saved_case.kept(network, lambda: network(x))[0]
        == saved_case.kept(plain, lambda: plain(x))[0]
    )
    with pytest.raises(UserError, match="Plain is not compressed"):
        report(network)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compress_by_themselves(copied):
    network = compress(Plain())
    other = copied(network)
    with torch.no_grad():
        other.head.weight.zero_()
    x = torch.randn(5, 8)
    assert torch.equal(other(x), other.head.bias.expand(5, 3))
    assert not torch.equal(network(x), other(x))
    assert "operations" in report(other)
    network(x)
    assert restore(other).forward.__self__ is other


def test_a_forward_that_was_put_in_before_is_kept():
    network = Plain()
    network.forward = lambda x: network.head(network.body(x)) + 1
    x = torch.randn(5, 8)
    want = seeded(network, x)
    assert torch.equal(seeded(compress(network), x), want)
    assert torch.equal(seeded(restore(network), x), want)


def test_the_signature_of_forward_can_be_read():
    from inspect import signature

    assert list(signature(compress(Plain()).forward).parameters) == ["x", "scale"]


def test_parts_may_be_called_by_themselves():
    network = compress(Plain())
    network.head(network.body(torch.randn(5, 8)))
    assert network.head.forward.policy.passes == 2


def test_excluded_parts_keep_what_torch_keeps():
    network = compress(Plain(), exclude=["body.2", "head"])
    network(torch.randn(5, 8))
    assert report(network)["operations"] == {"dropout": 1, "linear": 1}
    assert report(network)["covered"] == {"Dropout": 1, "LayerNorm": 1, "Linear": 2}
    with pytest.raises(UserError, match="exclude='haed' matches nothing; nearest are head"):
        compress(Plain(), exclude="haed")


def test_an_error_in_the_network_ends_the_pass():
    network = compress(Plain())
    with pytest.raises(RuntimeError):
        network(torch.randn(5, 7))
    size, _ = saved_case.kept(network, lambda: F.gelu(torch.randn(4, 4, requires_grad=True)))
    assert size == 64
    network(torch.randn(5, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [0.0, 0.95])
def test_mixed_precision(dtype, share):
    if dtype == torch.float16 and share:
        pytest.skip("one is enough")
    x = torch.randn(4, 16, 32)
    plain, same = (frozen(Encoder(activation="gelu", dropout=0.0), share) for _ in range(2))
    compress(same)
    with torch.autocast("cpu", dtype):
        before, a = saved_case.kept(plain, lambda: plain(x))
        after, b = saved_case.kept(same, lambda: same(x))
    assert a.dtype == b.dtype
    assert torch.equal(a, b)
    assert before > (2 if share else 1.6) * after
    exact, found = saved_case.gradients(plain, a.float()), saved_case.gradients(same, b.float())
    assert all(g.dtype == torch.float32 for g in found.values())
    assert min(saved_case.cosines(found, exact).values()) > 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_true_precision(dtype):
    x = torch.randn(4, 16, 32, dtype=dtype)
    plain, same = (Encoder(dropout=0.0).to(dtype) for _ in range(2))
    compress(same)
    a, b = plain(x), same(x)
    assert torch.equal(a, b)
    found = saved_case.cosines(saved_case.gradients(same, b), saved_case.gradients(plain, a))
    assert min(found.values()) > 0.95


def test_compiled_networks_are_refused():
    x = torch.randn(5, 8)
    with pytest.raises(UserError, match=r"OptimizedModule is compiled by torch.compile"):
        compress(torch.compile(Plain(), backend="eager"))
    network = Plain()
    network.body.compile(backend="eager")
    with pytest.raises(UserError, match=r"Plain.body is compiled"):
        compress(network)
    compiled = torch.compile(compress(Plain()), backend="eager")
    with pytest.raises(UserError, match=r"Plain is compiled by torch.compile"):
        compiled(x)


def test_gradient_checkpointing_is_refused():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.BertModel(
        transformers.BertConfig(**sizes, vocab_size=50, intermediate_size=64)
    ).train()
    ids = torch.randint(0, 50, (2, 8))
    compress(model)(ids)
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with pytest.raises(UserError, match=r"BertModel.* checkpoints its gradients"):
        model(ids)
    with pytest.raises(UserError, match="checkpoints its gradients"):
        compress(restore(model))


def test_the_transform_says_what_it_covers_and_goes_back():
    network, told, _ = change(Plain(), ActivationCompression, {"exclude": "head", "range": "fixed"})
    assert told["covered"] == {"Dropout": 1, "GELU": 1, "LayerNorm": 1, "Linear": 2}
    assert told["share"] == 1.0
    json.dumps(told)
    network(torch.randn(5, 8)).sum().backward()
    assert report(network)["clip_rate"] == 0
    compress(network, range="fixed")
    nn.init.constant_(network.body[1].weight, 20.0)
    network(torch.randn(5, 8))
    assert 0 < report(network)["clip_rate"] < 1
    plain = ActivationCompression.merge(network)
    assert plain is not network
    assert "forward" not in vars(plain)
    assert "forward" in vars(network)


@pytest.mark.parametrize("first", ["adapters", "compression"])
def test_adapters_beside_it(first):
    network = Plain()
    if first == "compression":
        compress(network)
    LoRA(network, rank=2)
    if first == "adapters":
        compress(network)
    x = torch.randn(64, 8)
    size, out = saved_case.kept(network, lambda: network(x))
    out.sum().backward()
    before, _ = saved_case.kept(restore(network), lambda: network(x))
    assert size < 0.6 * before


class Fit(pl.LightningModule):
    """A user's own LightningModule, whose training step calls a part."""

    def __init__(self):
        super().__init__()
        self.network = Plain()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.3)


def data():
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    labels = x[:, :3].argmax(1)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), 32)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_users_own_module_learns_as_without(precision, tmp_path):
    losses = {}
    for name in ("plain", "compressed"):
        pl.seed_everything(0, verbose=False)
        model = Fit()
        if name == "compressed":
            compress(model)
        trainer = pl.Trainer(
            max_epochs=12,
            accelerator="cpu",
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[EMAWeightAveraging()] if precision == "32-true" else [],
        )
        trainer.fit(model, data())
        x, labels = next(iter(data()))
        model.eval().float()
        with torch.no_grad():
            losses[name] = float(F.cross_entropy(model.network(x), labels))
    assert report(model)["covered"]["Linear"] == 3
    assert model.network.forward.policy.passes == 96
    assert losses["plain"] < 0.9
    assert abs(losses["compressed"] - losses["plain"]) < 0.05
