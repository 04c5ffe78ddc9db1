"""Early exits on networks of several kinds: answers, training by every schedule, cost, files."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.early_exit.cost import counted, encoder_layer_macs
from core.early_exit.criteria import Criterion, mistakes
from core.early_exit.plans import Recorded
from core.early_exit.threshold import exits_at, joined
from core.early_exit.training import Moment
from core.early_exit.transform import EarlyExit, exits_of
from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained
from domains.nlp.networks.sequence_classifier import SequenceClassifier
from domains.nlp.networks.token_classifier import TokenClassifier
from domains.time_series.networks.itransformer import ITransformer
from domains.time_series.networks.patchtst import PatchTST

sys.path.insert(0, str(Path(__file__).parent))
from exit_case import BERT, DEPTH, HEADS, Judged

FORECASTER = {"width": 16, "heads": 4, "inner": 16, "depth": DEPTH}


class Pixels(nn.Module):
    """A small dense network whose layers keep the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()) for _ in range(DEPTH)
        )
        self.head = nn.Conv2d(3, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = layer(images)
        return self.head(images)


def text(samples=12):
    lengths = torch.arange(samples) % 5 + 3
    mask = (torch.arange(7)[None] < lengths[:, None]).long()
    return torch.randint(1, 50, (samples, 7)), mask


CASES = {
    "text": (lambda: SequenceClassifier(BERT, HEADS), text, {}),
    "words": (lambda: TokenClassifier(BERT, HEADS), text, {}),
    "pixels": (Pixels, lambda samples=12: (torch.randn(samples, 3, 8, 6),), {}),
    "patchtst": (
        lambda: PatchTST(32, 8, 3, **FORECASTER),
        lambda samples=12: (torch.randn(samples, 32, 3).cumsum(1),),
        {"criterion": {"class_path": "core.early_exit.criteria.Patience"}, "values": True},
    ),
    "itransformer": (
        lambda: ITransformer(32, 8, 3, **FORECASTER),
        lambda samples=12: (torch.randn(samples, 32, 3).cumsum(1),),
        {"criterion": "saturation", "values": True},
    ),
}
CASES["patchtst"][2]["criterion"]["init_args"] = {"theta": 2.0}


def drawn(name, seed=0):
    torch.manual_seed(seed)
    build, draw, given = CASES[name]
    return build().eval(), draw(), copy.deepcopy(given)


def middle(exits, network, inputs):
    """Find a threshold, far from any score, at which samples leave at the most exits."""
    table = exits.table(lambda: judged(network, inputs, exits))
    scores = table.scores[table.scores.isfinite()].unique()
    gaps = scores.diff()
    wide = (gaps > 1e-5).nonzero().squeeze(1)
    between = [float((scores[place] + scores[place + 1]) / 2) for place in wide]
    return max(between, key=lambda tau: len(exits_at(table.scores, tau).unique()))


def judged(network, inputs, exits=None):
    output = network(*inputs)
    if exits is not None and exits.learning.values:
        return Judged(F.mse_loss(output, output.detach() + 1), output, output.detach() + 1)
    target = torch.arange(len(output)) % 3
    if output.ndim == 3:
        target = target[:, None].expand(output.shape[:2])
        return Judged(F.cross_entropy(output.mT, target), output, target)
    if output.ndim == 4:
        target = target[:, None, None].expand(len(output), *output.shape[2:])
    return Judged(F.cross_entropy(output, target), output, target)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_never_is_the_plain_network_and_always_its_first_exit(name):
    network, inputs, given = drawn(name)
    wanted = network(*inputs)
    names = list(network.state_dict())
    made = EarlyExit(network, **given)
    assert torch.equal(network(*inputs), wanted)
    assert made.report()["exits"] == {"1": 0, "2": 0, "3": 0, "4": 12}
    assert [n for n in network.state_dict() if "early_exits" not in n] == names
    made.exits.thresholds.fill_(-1e30)
    found = network(*inputs)
    assert made.exits.control.depths.tolist() == [1] * 12
    with made.exits.control.depth(1):
        assert (network(*inputs) - found).abs().max() <= 1e-6
    assert not torch.allclose(found, wanted, atol=1e-3)


HEADED = [
    *((name, "own") for name in CASES),
    *(("text", kind) for kind in ("classifier", "copy", "linear")),
    *(("words", kind) for kind in ("copy", "tokens")),
    *(("pixels", "copy"), ("itransformer", "copy"), ("itransformer", "classifier")),
]


@pytest.mark.parametrize(("name", "heads"), HEADED)
@torch.no_grad()
def test_a_batch_leaves_and_answers_as_its_samples_alone(name, heads):
    network, inputs, given = drawn(name)
    made = EarlyExit(network, heads=heads, **given)
    for parameter in made.exits.heads.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    made.exits.thresholds.fill_(middle(made.exits, network, inputs))
    found, depths = network(*inputs), made.exits.control.depths
    assert len(set(depths.tolist())) > 1
    for place, depth in enumerate(depths.tolist()):
        alone = network(*(part[place : place + 1] for part in inputs))
        assert made.exits.control.depths.tolist() == [depth]
        assert (alone[0] - found[place]).abs().max() <= 1e-5
        with made.exits.control.depth(depth):
            fixed = network(*(part[place : place + 1] for part in inputs))
        assert (fixed[0] - found[place]).abs().max() <= 1e-5
    shuffled = torch.randperm(12)
    again = network(*(part[shuffled] for part in inputs))
    assert (again - found[shuffled]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_meter_agrees_with_the_counter_of_what_ran(name):
    network, inputs, given = drawn(name)
    made = EarlyExit(network, **given)
    _, plain = counted(lambda: network(*inputs))
    report = made.report()
    heads = made.exits.meter._macs
    judged_at = sum(12 * macs for key, macs in heads.items() if key[0] == "head")
    assert report["macs_full"] * 12 == pytest.approx(plain - judged_at, rel=0.01)
    made.exits.thresholds.fill_(middle(made.exits, network, inputs))
    for order in (torch.arange(12), torch.randperm(12)):  # the second is counted by the formula
        part = [each[order] for each in inputs]
        made.exits.meter.clear()
        _, ran = counted(lambda part=part: network(*part))
        report = made.report()
        assert report["macs"] * 12 == pytest.approx(ran, rel=0.01)
        assert report["samples"] == 12
        assert report["mean_exit"] == pytest.approx(
            made.exits.control.depths.float().mean().item(), abs=1e-3
        )


@torch.no_grad()
def test_a_plain_encoder_layer_costs_what_its_formula_says():
    network = SequenceClassifier({**BERT, "hidden_size": 64, "intermediate_size": 256}, HEADS)
    network.eval()
    EarlyExit(network)
    network(torch.randint(1, 50, (3, 20)), torch.ones(3, 20, dtype=torch.long))
    meter = exits_of(network).meter
    for key, macs in meter._macs.items():
        if key[0] == "stage":
            assert macs == pytest.approx(encoder_layer_macs(20, 64, 256), rel=0.01)


SCHEDULES = [
    ("text", {"schedule": "joint"}),
    ("text", {"schedule": "joint", "heads": "copy", "criterion": "learned"}),
    ("text", {"schedule": "alternating", "heads": "linear"}),
    ("text", {"schedule": "two_stage", "heads": "classifier"}),
    ("text", {"schedule": "self_distilled", "heads": "copy"}),
    ("text", {"schedule": "drawn"}),
    ("words", {"schedule": "joint", "heads": "tokens"}),
    ("pixels", {"schedule": "joint"}),
    ("pixels", {"schedule": "self_distilled", "heads": "copy"}),
    ("patchtst", {"schedule": "joint"}),
    ("itransformer", {"schedule": "self_distilled", "heads": "copy"}),
]


@pytest.mark.parametrize(
    ("name", "given"), SCHEDULES, ids=["-".join([n, *map(str, g.values())]) for n, g in SCHEDULES]
)
def test_every_schedule_makes_early_exits_answer_better(name, given):
    network, inputs, own = drawn(name)
    made = EarlyExit(network, **{**own, **given}, share=0.0)
    exits = made.exits
    frozen = given["schedule"] in ("two_stage", "self_distilled")
    if frozen:
        plain = copy.deepcopy(network.state_dict())
    if name in ("patchtst", "itransformer"):
        target = torch.randn(12, 8, 3)
    else:
        target = judged(network, inputs).target

    def judge():
        output = network(*inputs)
        if target.is_floating_point():
            return Judged(F.mse_loss(output, target), output, target)
        by = output.mT if output.ndim == 3 else output
        return Judged(F.cross_entropy(by, target), output, target)

    def errors():
        network.eval()
        with torch.no_grad():
            if given["schedule"] != "self_distilled":
                return [float(_at(exits, depth, judge)) for depth in range(1, DEPTH + 1)]
            last = network(*inputs)
            found = []
            for depth in range(1, DEPTH + 1):
                with exits.control.depth(depth):
                    found.append(float((network(*inputs) - last).square().mean()))
            return found

    before = errors()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    network.train()
    for step in range(30):
        optimizer.zero_grad()
        exits.training_loss(judge, Moment(step, step / 30)).backward()
        optimizer.step()
    assert network.training
    after = errors()
    assert all(a < b for a, b in zip(after[:-1], before[:-1], strict=True))
    if frozen:
        assert after[-1] == before[-1]
        state = network.state_dict()
        assert all(torch.equal(state[n], plain[n]) for n in plain if "early_exits" not in n)
        assert all(p.requires_grad for p in network.parameters())


def _at(exits, depth, judge):
    with exits.control.depth(depth):
        return judge().loss


def test_joint_training_is_the_weighted_sum_of_each_depths_loss():
    network, inputs, _ = drawn("text")
    exits = EarlyExit(network, weights="depth", min_exit=2).exits
    network.eval()  # no dropout
    loss = exits.training_loss(lambda: judged(network, inputs), Moment(0, 0.0))
    wanted = sum(n / 9 * _at(exits, n, lambda: judged(network, inputs)) for n in (2, 3, 4))
    assert torch.allclose(loss, wanted)
    loss.backward()
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    wanted.backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, atol=1e-6), name


def test_drawn_depths_are_weighted_by_depth_and_all_are_met():
    network, inputs, _ = drawn("text")
    exits = EarlyExit(network, schedule="drawn", min_exit=2).exits
    seen = {}
    for _ in range(40):
        loss = exits.training_loss(lambda: judged(network, inputs), Moment(0, 0.0))
        depth = int(exits.control.depths[0])
        seen[depth] = (loss / _at(exits, depth, lambda: judged(network, inputs))).item()
    assert seen == pytest.approx({2: 2 / 3, 3: 1.0, 4: 4 / 3}, rel=1e-5)


def test_the_first_share_of_two_stages_is_plain_training():
    network, inputs, _ = drawn("text")
    exits = EarlyExit(network, schedule="two_stage", heads="copy", share=0.5).exits
    plain = judged(network, inputs).loss
    assert torch.equal(exits.training_loss(lambda: judged(network, inputs), Moment(0, 0.4)), plain)
    assert exits.training_loss(lambda: judged(network, inputs), Moment(0, 0.5)) != plain


@torch.no_grad()
def test_a_threshold_is_chosen_on_validation_data():
    network, inputs, _ = drawn("text")
    exits = EarlyExit(network, threshold="validation", delta=0.3).exits
    network(*inputs)
    parts = [exits.table(lambda part=part: judged(network, part)) for part in (inputs, text(8))]
    exits.choose(joined(parts))
    exits.meter.clear()
    assert exits.choice.loss <= exits.choice.last_loss + 0.3
    assert exits.choice.mean_exit < DEPTH
    assert exits.report()["choice"]["threshold"] == exits.choice.threshold
    assert "samples" not in exits.report()
    network(*inputs)
    assert exits.report()["samples"] == 12


@pytest.mark.parametrize("heads", ["own", "copy", "linear"])
@torch.no_grad()
def test_a_saved_network_leaves_at_the_same_exits(heads, tmp_path):
    network, inputs, _ = drawn("text")
    given = {"heads": heads, "criterion": "learned", "threshold": "validation"}
    made = EarlyExit(network, **given)
    made.exits.thresholds.fill_(middle(made.exits, network, inputs))
    wanted, depths = network(*inputs), made.exits.control.depths
    node = {"class_path": "core.early_exit.transform.EarlyExit", "init_args": given}
    save_pretrained(network, tmp_path, transforms=[node])
    again = from_pretrained(tmp_path).network
    assert (again(*inputs) - wanted).abs().max() <= 1e-6
    assert torch.equal(exits_of(again).control.depths, depths)


def test_a_copy_has_exits_of_its_own():
    network, inputs, _ = drawn("text")
    exits = EarlyExit(network, heads="copy", threshold=-1.0).exits
    other = copy.deepcopy(network)
    own = exits_of(other)
    assert own is not exits
    with torch.no_grad():
        for parameter in own.heads.parameters():
            parameter.zero_()
        assert not torch.allclose(other(*inputs), network(*inputs))
    assert own.control.depths.tolist() == [1] * 12
    assert sum(exits.meter.exits.values()) == 12


class Odd(Criterion):
    """A user's own criterion."""

    def __init__(self, number: int = 3) -> None:
        super().__init__()
        self.number = number

    def score(self, outputs, history):
        return torch.full((len(outputs.output),), float(len(history) + 1 >= self.number))


@torch.no_grad()
def test_a_criterion_of_ones_own():
    network, inputs, _ = drawn("text")
    made = EarlyExit(network, Odd(2), threshold=0.5)
    network(*inputs)
    assert made.report()["mean_exit"] == 2


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"criterion": "entropie"}, "criterion='entropie'"),
        ({"criterion": {"class_path": "core.early_exit.criteria.Nothing"}}, "there is no"),
        ({"criterion": {"class_path": "core.task.Task"}}, "is no"),
        ({"criterion": {"class_path": "core.early_exit.criteria.Patience", "init_args": {"x": 1}}},
         "criterion: .*'x'"),
        ({"threshold": "best"}, "threshold='best'"),
        ({"threshold": [0.5]}, "give 3"),
        ({"threshold": [0.5, "a", 1]}, "'a'"),
        ({"threshold": float("nan")}, "nan"),
        ({"min_exit": 4}, "min_exit=4"),
        ({"heads": "big"}, "heads='big'"),
        ({"schedule": "none"}, "schedule='none'"),
        ({"schedule": "two_stage"}, "heads=copy"),
        ({"weights": "width"}, "weights='width'"),
        ({"reduce": "best"}, "reduce='best'"),
    ],
)  # fmt: skip
def test_mistakes_are_told_and_leave_the_network_as_it_was(given, fault):
    network, *_ = drawn("text")
    with pytest.raises(UserError, match=fault):
        EarlyExit(network, **given)
    assert "forward" not in vars(network)
    EarlyExit(network)


@pytest.mark.parametrize("criterion", ["confidence", "learned"])
def test_alternating_training_holds_the_last_exits_loss_in_every_step(criterion):
    """In the released code of BERxiT the steps that train all exits leave it out."""
    network, inputs, _ = drawn("text")
    exits = EarlyExit(network, schedule="alternating", criterion=criterion).exits

    def judge():
        return judged(network, inputs)

    last = _at(exits, DEPTH, judge)
    every = [_at(exits, n, judge) for n in range(1, DEPTH + 1)]
    doubts = 0.0
    if criterion == "learned":  # it learns in every step
        with exits.control.using(Recorded()) as recorded:
            judge()
        for number in range(1, DEPTH):
            with exits.control.using(recorded.at(number)) as replay:
                found = judge()
            seen = exits.heads.seen(replay.states[0], *replay.inputs, replay.outputs[0])
            doubts += exits.criterion.loss(seen, mistakes(found.prediction, found.target))
    even, odd = (exits.training_loss(judge, Moment(step, 0.0)) for step in (0, 1))
    assert torch.allclose(even, last + doubts, atol=1e-6)
    wanted = sum(n / 10 * loss for n, loss in enumerate(every, 1)) + doubts
    assert torch.allclose(odd, wanted, atol=1e-6)


def test_heads_are_distilled_by_the_divergence_from_the_last_exit():
    """No temperature divides probabilities, as in the released code of BERxiT."""
    network, inputs, _ = drawn("text")
    exits = EarlyExit(network, schedule="self_distilled", heads="copy", share=0.0).exits
    found = exits.training_loss(lambda: judged(network, inputs), Moment(0, 0.5))
    teacher = network(*inputs).softmax(-1)
    wanted = 0.0
    for number in range(1, DEPTH):
        with exits.control.depth(number):
            student = network(*inputs).log_softmax(-1)
        wanted += F.kl_div(student, teacher, reduction="batchmean")
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_linear_head_sees_the_mean_over_tokens_that_count():
    """The released code of FastBERT averages features instead."""
    network, (ids, mask), _ = drawn("text")
    exits = EarlyExit(network, heads="linear").exits
    with torch.no_grad(), exits.control.using(Recorded()) as recorded:
        network(ids, mask)
        state = recorded.at(1).states[0]
        mean = torch.stack(
            [row[kept.bool()].mean(0) for row, kept in zip(state, mask, strict=True)]
        )
    assert mean.shape == (12, BERT["hidden_size"])
    with torch.no_grad(), exits.control.depth(1):
        assert torch.allclose(network(ids, mask), exits.heads.exits[0](mean), atol=1e-6)
