"""Chosen parts compute in float32 under autocast and under bf16-true, in any network."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from core.errors import UserError
from core.half_precision import NetworkInHalf
from core.precision_islands import KeepFloat32, kept_float32
from core.transform import change


class Net(nn.Module):
    """Hand-written attention, norms and sums; notes the type that each function gave."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.query = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.batch_norm = nn.BatchNorm1d(8)
        self.soft = nn.Softmax(-1)
        self.head = nn.Linear(8, 2)
        self.seen = {}

    def forward(self, ids):
        x = self.embed(ids)
        q = self.query(x)
        weights = torch.softmax(q @ q.mT, -1)
        more = F.softmax(q @ q.mT, dim=-1) + (q @ q.mT).softmax(-1) + self.soft(q @ q.mT)
        mixed = (weights + more) @ q
        normed = self.norm(mixed)
        sums = q.cumsum(1)
        spread = q.logsumexp(-1)
        plain = self.batch_norm(normed.flatten(0, 1))
        self.seen = {
            "softmax": weights.dtype,
            "more": more.dtype,
            "norm": normed.dtype,
            "sums": sums.dtype,
            "spread": spread.dtype,
            "batch_norm": plain.dtype,
            "query": q.dtype,
        }
        return self.head(plain.view_as(q) + sums / 100).mean(1)


IDS = torch.randint(0, 10, (4, 6), generator=torch.Generator().manual_seed(1))
RAISED = ["softmax", "more", "norm", "sums", "spread", "batch_norm"]


def net():
    torch.manual_seed(0)
    return Net()


def test_under_autocast_all_that_is_raised_is_float32():
    plain, kept = net(), net()
    KeepFloat32(kept)
    with torch.autocast("cpu", torch.bfloat16):
        plain(IDS)
        out = kept(IDS)
    assert all(plain.seen[name] == torch.bfloat16 for name in RAISED)
    assert all(kept.seen[name] == torch.float32 for name in RAISED)
    assert kept.seen["query"] == torch.bfloat16
    out.sum().backward()
    assert all(p.grad is not None for p in kept.parameters())


def test_in_bfloat16_alone_weights_stay_and_outputs_return():
    network = net()
    KeepFloat32(network, patterns=["head"])
    before = network.norm.weight.detach().clone()
    with torch.no_grad():
        network.norm.weight.add_(1e-4)  # which bfloat16 does not hold beside 1
    network.to(torch.bfloat16)
    network(IDS)
    for name in ("norm", "batch_norm", "head"):
        assert network.get_submodule(name).weight.dtype == torch.float32
    assert network.batch_norm.running_mean.dtype == torch.float32
    assert float((network.norm.weight - before).detach().mean()) == pytest.approx(1e-4, rel=1e-2)
    assert network.query.weight.dtype == torch.bfloat16
    assert set(network.seen.values()) == {torch.bfloat16}  # what the next layer takes
    network.double()
    assert network.norm.weight.dtype == torch.float64


def test_in_float32_nothing_changes():
    plain, kept = net().eval(), net().eval()
    KeepFloat32(kept, patterns="query")
    assert torch.equal(plain(IDS), kept(IDS))
    assert list(plain.state_dict()) == list(kept.state_dict())


def test_merged_it_is_plain_again():
    network = net()
    changed, told, _ = change(network, KeepFloat32, {"patterns": ["head"]})
    assert changed is network
    assert told["islands"] == ["norm", "batch_norm", "soft", "head"]
    plain = KeepFloat32.merge(network)
    assert not any("forward" in vars(m) or "_apply" in vars(m) for m in plain.modules())
    assert torch.equal(plain.eval()(IDS), network.eval()(IDS))
    assert "forward" in vars(network)


def test_a_copy_computes_with_its_own_weights():
    network = net().eval()
    KeepFloat32(network, patterns="head")
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.head.weight.zero_()
        other.head.bias.zero_()
    assert float(other(IDS).detach().abs().max()) == 0
    assert float(network(IDS).detach().abs().max()) > 0


def test_an_island_helps_where_bfloat16_does_not():
    class Far(nn.Module):
        def forward(self, x):
            return x + 1000 - 1000

    network = nn.Sequential(nn.Linear(4, 4), Far(), nn.Linear(4, 4))
    x = torch.randn(64, 4)
    full = network(x)
    errors = []
    for patterns in ([], ["1"]):
        changed = copy.deepcopy(network)
        KeepFloat32(changed, patterns=patterns, kinds=[])
        with torch.autocast("cpu", torch.bfloat16):
            errors.append(float((changed(x).float() - full).detach().norm() / full.detach().norm()))
    assert errors[0] > 0.1
    assert errors[1] < 2e-2


def test_for_a_while():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        with kept_float32([network[1]]):
            assert network(torch.ones(1, 4)).dtype == torch.float32
        assert network(torch.ones(1, 4)).dtype == torch.bfloat16


def test_blocks_that_bear_a_norm_in_their_name_are_no_norms():
    class PreNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(self.norm(x))

    network = nn.Sequential(PreNorm(), nn.Linear(4, 4))
    assert KeepFloat32(network).islands == ["0.norm"]


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = net()

    def training_step(self, batch, index):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("own", [True, False])
def test_islands_live_through_a_fit_in_bfloat16(tmp_path, own):
    model = Model()
    KeepFloat32(model.network)
    chosen = {"plugins": [NetworkInHalf()]} if own else {"precision": "bf16-true"}
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **chosen,
    )
    trainer.fit(model, DataLoader(TensorDataset(IDS, IDS[:, 0] % 2), 2))
    assert model.network.norm.weight.dtype == torch.float32
    assert model.network.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"patterns": ["heads"]}, r"no module is named 'heads'; there is embed, query"),
        ({"patterns": "("}, "is no regular expression"),
        ({"kinds": ["norm"]}, "'norm' is none of softmax, norms"),
    ],
)
def test_mistakes_are_told(settings, told):
    with pytest.raises(UserError, match=told):
        KeepFloat32(net(), **settings)
