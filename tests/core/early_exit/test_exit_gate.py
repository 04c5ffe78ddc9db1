"""A gate on networks of several kinds: who leaves where, what it learns from, files."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.early_exit.derived import Derived
from core.early_exit.transform import EarlyExit, exits_of
from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained
from domains.nlp.networks.sequence_classifier import SequenceClassifier
from domains.time_series.networks.patchtst import PatchTST

sys.path.insert(0, str(Path(__file__).parent))
from exit_case import BERT, DEPTH, HEADS, Judged


class Maps(nn.Module):
    """A dense network whose state has its channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Tanh()) for _ in range(DEPTH)
        )

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = layer(images)
        return images


def text():
    lengths = torch.arange(12) % 5 + 3
    mask = (torch.arange(7)[None] < lengths[:, None]).long()
    return torch.randint(1, 50, (12, 7)), mask


CASES = {
    "text": (lambda: SequenceClassifier(BERT, HEADS), text, {}),
    "copies": (lambda: SequenceClassifier(BERT, HEADS), text, {"heads": "copy"}),
    "maps": (Maps, lambda: (torch.randn(12, 16, 8, 6),), {"width": 16}),
    "patchtst": (
        lambda: PatchTST(32, 8, 3, width=16, heads=4, inner=16, depth=DEPTH),
        lambda: (torch.randn(12, 32, 3).cumsum(1),),
        {"values": True},
    ),
}


def gated(name, **given):
    torch.manual_seed(0)
    build, draw, own = CASES[name]
    network, inputs = build().eval(), draw()
    exits = EarlyExit(network, **{"beta": 0.01, **own, **given}).exits
    for parameter in exits.heads.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network, inputs, exits


def judge_of(network, inputs):
    def judge():
        output = network(*inputs)
        target = torch.arange(len(output)) % 3
        if output.ndim > 2:
            return Judged(output.mean(), output, output.detach() + 0.1)
        return Judged(F.cross_entropy(output, target), output, target)

    return judge


def scatter(gate, features):
    """Let the gate send samples everywhere."""
    weight = torch.randn(len(gate.depths), gate.width) / features.std(0).clamp(min=1e-3)
    gate.linear.weight.copy_(weight)
    gate.linear.bias.copy_(-weight @ features.mean(0))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_each_sample_runs_as_many_layers_as_the_gate_says(name):
    network, inputs, exits = gated(name, min_exit=2)
    gate, control = exits.gate, exits.control
    whole = network(*inputs)
    assert exits.report()["exits"] == {"1": 0, "2": 0, "3": 0, "4": 12}  # not fitted yet
    quality, features = gate.examine(judge_of(network, inputs))
    assert quality.shape == (12, 3)
    assert features.shape == (12, 16)
    scatter(gate, features)
    exits.meter.clear()
    found, depths = network(*inputs), control.depths.clone()
    assert torch.equal(depths, gate.choose(features))
    assert set(depths.tolist()) <= {2, 3, 4}
    assert len(set(depths.tolist())) > 1
    for at, depth in enumerate(depths.tolist()):  # whatever else is in the batch
        part = [each[at : at + 1] for each in inputs]
        assert (network(*part)[0] - found[at]).abs().max() <= 1e-5
        assert control.depths.tolist() == [depth]
        with control.depth(depth):
            assert (network(*part)[0] - found[at]).abs().max() <= 1e-5
    order = torch.randperm(12)
    assert (network(*(each[order] for each in inputs)) - found[order]).abs().max() <= 1e-5
    assert torch.equal(control.depths, depths[order])
    with control.using(None):
        assert torch.equal(network(*inputs), whole)
    exits.meter.clear()
    network(*inputs)
    report = exits.report()
    assert report["layers_share"] < 1
    assert report["mean_exit"] == pytest.approx(float(depths.double().mean()), abs=1e-4)


@torch.no_grad()
def test_quality_is_the_share_of_right_answers_at_each_exit():
    network, inputs, exits = gated("text", min_exit=2)
    quality, _ = exits.gate.examine(judge_of(network, inputs))
    for column, depth in enumerate((2, 3, 4)):
        with exits.control.depth(depth):
            right = network(*inputs).argmax(1) == torch.arange(12) % 3
        assert quality[:, column].tolist() == right.float().tolist()


@torch.no_grad()
def test_padding_and_the_batch_do_not_change_what_the_gate_sees():
    network, inputs, exits = gated("text")
    _, features = exits.gate.examine(judge_of(network, inputs))
    for at in range(12):
        count = int(inputs[1][at].sum())
        part = [each[at : at + 1, :count] for each in inputs]
        _, alone = exits.gate.examine(judge_of(network, part))
        assert (alone[0] - features[at]).abs().max() <= 1e-6


def test_only_the_gate_changes_when_it_is_fitted():
    network, inputs, exits = gated("text", heads="copy")

    def content():
        kept = {n: t for n, t in network.state_dict().items() if ".gate." not in n}
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in kept.values())).hexdigest()

    before, gate = content(), [t.clone() for t in exits.gate.buffers()]
    learnt = {name for name, _ in network.named_parameters()}
    assert not any(".gate." in name for name in learnt)
    own = [name for name in network.state_dict() if ".gate." in name]
    assert [name.split(".gate.")[1] for name in own] == ["linear.weight", "linear.bias"]
    with torch.inference_mode():
        quality, features = exits.gate.examine(judge_of(network, inputs))
        quality[:, 0] += torch.linspace(-1, 1, 12)
        derived = Derived(tuple("abcdefghijkl"), exits.gate.depths, quality, features)
        exits.gate.fit(derived)
    assert content() == before
    assert not all(torch.equal(*pair) for pair in zip(gate, exits.gate.buffers(), strict=True))
    assert exits.report()["gate"]["mean_depth"] >= 1
    exits.gate.open()
    assert exits.gate.choose(features).tolist() == [DEPTH] * 12


@torch.no_grad()
def test_a_saved_network_keeps_its_gate(tmp_path):
    network, inputs, exits = gated("text")
    _, features = exits.gate.examine(judge_of(network, inputs))
    scatter(exits.gate, features)
    wanted, depths = network(*inputs), exits.control.depths
    node = {"class_path": "core.early_exit.transform.EarlyExit", "init_args": {"beta": 0.01}}
    save_pretrained(network, tmp_path, transforms=[node])
    again = from_pretrained(tmp_path).network
    assert (again(*inputs) - wanted).abs().max() <= 1e-6
    assert torch.equal(exits_of(again).control.depths, depths)
    assert len(set(depths.tolist())) > 1


@torch.no_grad()
def test_a_network_may_say_what_its_gate_sees():
    network, inputs, exits = gated("text")
    network.gate_tokens = lambda state, ids, mask: state[:, :2] * mask[:, :2, None]
    _, features = exits.gate.examine(judge_of(network, inputs))
    first = network.model.bert.embeddings(inputs[0])
    assert torch.allclose(features, first[:, :2].mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"threshold": 0.5}, "beta=0.01 and threshold=0.5"),
        ({"threshold": "validation"}, "give one of them"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"beta": "much"}, "beta='much'"),
        ({"beta": None, "soft": True}, "soft=True"),
    ],
)
def test_mistakes_are_told_and_leave_the_network_as_it_was(given, fault):
    network = Maps()
    with pytest.raises(UserError, match=fault):
        EarlyExit(network, **{"beta": 0.01, "width": 16, **given})
    assert "forward" not in vars(network.layers[0])
    with pytest.raises(UserError, match="width"):
        EarlyExit(network, beta=0.01)  # no norm and no Linear tells it
    EarlyExit(network)


@torch.no_grad()
def test_a_state_of_another_width_is_refused():
    network = EarlyExit(Maps(), beta=0.01, width=5).network.eval()
    with pytest.raises(UserError, match="give its width"):
        network(torch.randn(2, 16, 8, 6))
