"""Adapters in networks of many kinds: what is trained, what is merged, what is refused."""

import copy
import shutil
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from core.adapters import IA3, OFT, LoHa, LoKr, LoRA, merged
from core.callbacks.checkpoints import pointed
from core.callbacks.ema import EMAWeightAveraging
from core.errors import UserError
from core.parameter_groups import parameter_groups
from core.pretrained import save_pretrained
from domains.nlp.networks.sequence_classifier import SequenceClassifier

sys.path.insert(0, str(Path(__file__).parent))
import resume_case

KINDS = [
    (LoRA, {"rank": 4}),
    (LoRA, {"rank": 4, "dropout": 0.2, "use_rslora": True}),
    (LoRA, {"rank": 4, "use_dora": True}),
    (IA3, {}),
    (IA3, {"feedforward": "body.0"}),
    (LoHa, {"rank": 4}),
    (LoKr, {"rank": 4}),
    (OFT, {"block": 4}),
]


class Plain(nn.Module):
    """A user's own network, with whatever name a library might trip over."""

    def __init__(self, config=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = config
        self.body = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 12)
        )
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.body(x))


def train(network, *inputs, steps=5, rate=0.1):
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, rate)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        network(*inputs).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None for p in trained)
    return network.eval()


def answer(network, *inputs):
    with torch.no_grad():
        return network.eval()(*inputs)


def check_merges(network, before, *inputs):
    """Merging gives the same answers, in the plain network's own names, and leaves no trace."""
    want = answer(network, *inputs)
    assert not torch.allclose(want, answer(before, *inputs), atol=1e-3)
    plain = merged(network)
    assert (answer(plain, *inputs) - want).abs().max() <= 1e-5
    assert torch.equal(answer(network, *inputs), want)
    assert list(plain.state_dict()) == list(before.state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in before.modules()]
    assert [set(vars(m)) for m in plain.modules()] == [set(vars(m)) for m in before.modules()]
    flags = [p.requires_grad for p in plain.parameters()]
    assert flags == [p.requires_grad for p in before.parameters()]


@pytest.mark.parametrize("config", [None, {"model_type": "bert"}, object()])
@pytest.mark.parametrize(("kind", "arguments"), KINDS, ids=str)
def test_adapted_trained_and_merged(kind, arguments, config):
    network, x = Plain(config), torch.randn(6, 8)
    before = copy.deepcopy(network)
    made = kind(network, **arguments)
    assert made.network is network
    assert made.layers == ["body.0", "body.4"]
    torch.testing.assert_close(answer(network, x), answer(before, x))
    free = {n for n, p in network.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} < free
    frozen = {n: p.clone() for n, p in network.named_parameters() if n not in free}
    assert {n.replace(".base_layer", "") for n in frozen} == {
        n for n, _ in before.named_parameters() if not n.startswith("head")
    }
    train(network, x)
    assert all(torch.equal(network.get_parameter(n), p) for n, p in frozen.items())
    before.load_state_dict(  # what BatchNorm counted, and the head
        {n: v for n, v in network.state_dict().items() if "running" in n or "head" in n},
        strict=False,
    )
    check_merges(network, before, x)


def test_head_is_the_last_linear_where_none_is_stated_and_that_is_told():
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    made = LoRA(network, rank=2)
    assert made.layers == ["0", "2"]
    assert made.whole == ["4.weight", "4.bias"]
    assert made.notes == ["4, the last Linear, is trained whole, for the network states no head"]


def test_a_network_may_state_that_it_has_no_head():
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    network.head = []
    made = LoRA(network, rank=2)
    assert made.layers == ["0", "2"]
    assert made.whole == made.notes == []
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    network.head = nn.Identity()
    assert LoRA(network, rank=2).whole == ["2.weight", "2.bias"]


def test_a_transformer_of_transformers_keeps_its_published_form(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
    network = SequenceClassifier(
        {"model_type": "bert", "num_attention_heads": 2, **sizes},
        [{"name": "", "kind": "single", "labels": ["a", "b", "c"]}],
    )
    inputs = torch.randint(50, (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    before = copy.deepcopy(network)
    made = LoRA(network, rank=4, target=["query", "value"])
    assert len(made.layers) == 4
    assert all("pooler" in name or "classifier" in name for name in made.whole)
    train(network, *inputs)
    heads = {n: v for n, v in network.state_dict().items() if n in made.whole}
    before.load_state_dict(heads, strict=False)
    check_merges(network, before, *inputs)
    save_pretrained(merged(network), tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ours = answer(network, *inputs)
    with torch.no_grad():
        torch.testing.assert_close(theirs(*inputs).logits, ours, atol=1e-5, rtol=0)
    rates = {group["rate"] for group in parameter_groups(before, 0.5)}
    assert rates == {0.125, 0.25, 0.5, 1.0}
    assert len(LoRA(before, rank=4).layers) == 12


def test_parameters_trained_too():
    made = LoRA(Plain(), rank=2, train_too=["body.1.*", "body.4.bias"])
    assert made.whole == ["body.1.weight", "body.1.bias", "body.4.bias", "head.weight", "head.bias"]
    assert made.network.body[4].base_layer.bias.requires_grad
    made = LoRA(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), rank=2, train_too="0.*")
    assert made.layers == ["1"]


def test_what_was_frozen_stays_frozen():
    network = Plain()
    network.head.bias.requires_grad_(False)
    LoRA(network, rank=2)
    assert not network.head.bias.requires_grad
    assert not merged(network).head.bias.requires_grad
    assert merged(network).body[0].weight.requires_grad


def test_a_wrapper_passes_its_networks_head_on():
    class Scaled(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return 2 * self.network(x)

    made = LoRA(Scaled(Plain()), rank=2)
    assert made.layers == ["network.body.0", "network.body.4"]
    assert made.whole == ["network.head.weight", "network.head.bias"]


class Repeated(nn.Module):
    """One Linear at two places, and a block at two."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shared = nn.Linear(6, 6)
        self.first = nn.Sequential(shared, nn.Tanh())
        self.second = nn.Sequential(nn.Linear(6, 6), shared)
        self.block = self.again = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.again(self.second(self.block(self.first(x)))))


@pytest.mark.parametrize("target", [None, "second.1"])
def test_a_repeated_layer_is_adapted_wherever_it_is(target):
    network, x = Repeated(), torch.randn(5, 6)
    before = copy.deepcopy(network)
    made = LoRA(network, rank=2, target=target)
    assert made.layers == (["first.0", "second.0", "block.0"] if target is None else ["first.0"])
    assert network.first[0] is network.second[1]
    check_merges(train(network, x), before, x)
    plain = merged(network)
    assert plain.first[0] is plain.second[1]
    assert plain.block is plain.again


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(9, 2)

    def forward(self, ids):
        return self.head(self.out(self.mix(self.embed(ids))))


def test_a_tied_layer_is_left_out_and_refused_by_name():
    made = LoRA(Tied(), rank=2)
    assert made.layers == ["mix"]
    assert made.notes == ["left out out: its weight is shared with another layer"]
    with pytest.raises(UserError, match="out cannot be adapted: its weight is shared"):
        LoRA(Tied(), rank=2, target="out")


class Encoder(nn.Module):
    """Torch's own encoder, which in evaluation takes a path of its own past its layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 2)

    def forward(self, x, padding):
        return self.head(self.encoder(x, src_key_padding_mask=padding))[~padding]


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
def test_adapters_count_in_evaluation_of_torchs_own_encoder():
    network, x = Encoder(), torch.randn(3, 5, 16)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    before = copy.deepcopy(network)
    made = LoRA(network, rank=4)
    names = [f"encoder.layers.{n}.linear{i}" for n in (0, 1) for i in (1, 2)]
    assert made.layers == names
    assert made.notes == ["the packed projections of nn.MultiheadAttention are left out"]
    train(network, x, padding)
    network.load_state_dict({f"head.{n}": p for n, p in before.head.state_dict().items()}, False)
    with torch.enable_grad():  # no fast path
        want = network.eval()(x, padding)
    assert (answer(network, x, padding) - want).abs().max() <= 1e-5
    check_merges(network, before, x, padding)


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("use_dora", [False, True])
def test_convolutions_by_name(conv, use_dora):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = conv(3, 6, 3, padding=1, stride=2)
            self.grouped = conv(6, 6, 3, groups=3)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.grouped(self.conv(x)).flatten(2).mean(2))

    network = Net()
    x = torch.randn(2, 3, *(8,) * {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[conv])
    before = copy.deepcopy(network)
    with pytest.raises(UserError, match=r"all are trained whole"):
        LoRA(network, rank=2)
    with pytest.raises(UserError, match="grouped cannot be adapted: it is a convolution in groups"):
        LoRA(network, rank=2, target="grouped")
    assert LoRA(network, rank=2, target="conv", use_dora=use_dora).layers == ["conv"]
    check_merges(train(network, x), before, x)


@pytest.mark.parametrize(
    ("network", "arguments", "told"),
    [
        (nn.Sequential(nn.Conv1d(2, 2, 1)), {}, "Sequential has no Linear layer to adapt"),
        (Plain(), {"target": "bodi.0"}, r"target='bodi.0' matches nothing; nearest are body\.0"),
        (Plain(), {"train_too": "bodi.1.*"}, r"train_too='bodi.1.\*' matches nothing; nearest"),
        (Plain(), {"target": "body.1"}, r"no layer of a kind that can be adapted .*body\.0"),
        (Plain(), {"target": "head"}, "head cannot be adapted: it is trained whole"),
        (Plain(), {"rank": 9, "target": "body.0"}, "body.0 cannot be adapted: rank=9 is larger"),
        (Plain(), {"rank": 90}, r"can be adapted \(body.0: rank=90 is larger than its 8 allow"),
        (Plain(), {"rank": 0}, "rank=0 must be at least 1"),
    ],
)
def test_mistakes_are_told(network, arguments, told):
    before = list(network.state_dict())
    with pytest.raises(UserError, match=told):
        LoRA(network, **arguments)
    assert list(network.state_dict()) == before
    assert all(p.requires_grad for p in network.parameters())


def test_layers_too_small_for_the_rank_are_left_out():
    made = LoRA(Plain(), rank=10)
    assert made.layers == ["body.4"]
    assert made.notes == ["left out body.0: rank=10 is larger than its 8 allow"]


def test_a_second_kind_is_refused():
    network = LoRA(Plain(), rank=2).network
    with pytest.raises(UserError, match="has adapters already"):
        IA3(network)


class KeepAside(pl.Callback):
    """Copy the checkpoint that is there when a step begins."""

    def on_train_batch_start(self, trainer, *_):
        folder = Path(trainer.default_root_dir)
        if trainer.global_step in (4, 10, 27):
            name = folder / f"aside{trainer.global_step}.ckpt"
            shutil.copy(pointed(folder / "checkpoints", "last"), name)


def test_a_users_own_lightning_module_is_adapted_resumed_and_merged(tmp_path):
    def made(folder, *callbacks, seed=1):
        torch.manual_seed(3)
        model, data, trainer = resume_case.make(
            folder, extra=[EMAWeightAveraging(0.8), *callbacks], seed=seed
        )
        assert LoRA(model, rank=2, dropout=0.3).layers == ["network.0"]
        return model, data, trainer

    before = copy.deepcopy(made(tmp_path / "x")[0].network[0].base_layer.weight)
    model, data, trainer = made(tmp_path / "whole", KeepAside())
    trainer.fit(model, data)
    assert torch.equal(model.network[0].base_layer.weight, before)
    assert not torch.equal(merged(model).network[0].weight, before)
    for step in (4, 10, 27):
        again, data, trainer = made(tmp_path / f"{step}", seed=77)
        trainer.fit(again, data, ckpt_path=tmp_path / "whole" / f"aside{step}.ckpt")
        assert again.losses == model.losses[step:]
        state = again.state_dict()
        assert all(torch.equal(state[name], v) for name, v in model.state_dict().items())
    (unmerged,) = trainer.test(model, data, verbose=False)
    (plain,) = trainer.test(merged(model), data, verbose=False)
    assert unmerged == pytest.approx(plain, abs=1e-5)
