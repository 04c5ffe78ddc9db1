"""Samples leave stacks of many kinds early, and a batch answers as its samples would alone."""

import copy
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from core.early_exit.plans import Plan, Recorded
from core.early_exit.rows import put, take
from core.early_exit.stack import find_stages
from core.early_exit.stages import ExitController
from core.errors import UserError
from domains.nlp.networks.sequence_classifier import SequenceClassifier
from domains.nlp.networks.token_classifier import TokenClassifier
from domains.time_series.networks.itransformer import ITransformer
from domains.time_series.networks.patchtst import PatchTST

sys.path.insert(0, str(Path(__file__).parent))
from exit_case import BERT, DEPTH, HEADS


class State(NamedTuple):
    tokens: Tensor
    summary: Tensor


class Block(nn.Module):
    """A stranger's layer, whose state is a NamedTuple and which takes a mask by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.map = nn.Linear(8, 8)

    def forward(self, state: State, *, padding: Tensor) -> State:
        mixed, _ = self.attend(state.tokens, state.tokens, state.tokens, key_padding_mask=padding)
        tokens = state.tokens + mixed
        return State(tokens, state.summary + self.map(tokens).mean(1).tanh())


class Stranger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.end = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        state = State(tokens, tokens[:, 0])
        for block in self.blocks:
            state = block(state, padding=padding)
        return self.end(state.summary)


class Torch(nn.Module):
    """torch's own encoder, with a mask of padding."""

    def __init__(self, batch_first: bool = True, nested: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=nested)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(tokens, src_key_padding_mask=padding)


def padded(samples: int, length: int) -> Tensor:
    lengths = torch.arange(samples) % (length - 2) + 2
    return torch.arange(length)[None] >= lengths[:, None]


def text(samples: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randint(1, 50, (samples, 7)), (~padded(samples, 7)).long()


def tokens(samples: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 5, 8), padded(samples, 5)


def series(samples: int = 6) -> tuple[Tensor]:
    return (torch.randn(samples, 32, 3).cumsum(1),)


FORECASTER = {"width": 16, "heads": 4, "inner": 16, "depth": DEPTH}
CASES = {
    "text": (lambda: SequenceClassifier(BERT, HEADS), text),
    "text tokens": (lambda: TokenClassifier(BERT, HEADS), text),
    "roberta": (lambda: SequenceClassifier({**BERT, "model_type": "roberta"}, HEADS), text),
    "distilbert": (
        lambda: SequenceClassifier(
            {"model_type": "distilbert", "vocab_size": 50, "dim": 16, "n_layers": DEPTH}
            | {"n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32}
            | {"initializer_range": 0.3},
            HEADS,
        ),
        text,
    ),
    "deberta": (
        lambda: SequenceClassifier(
            {**BERT, "model_type": "deberta-v2", "relative_attention": True}
            | {"position_buckets": 4, "pos_att_type": ["c2p", "p2c"], "share_att_key": True},
            HEADS,
        ),
        text,
    ),
    "modernbert": (
        lambda: SequenceClassifier(
            {**BERT, "model_type": "modernbert", "global_attn_every_n_layers": 2}
            | {"cls_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
            | {"pad_token_id": 0},
            HEADS,
        ),
        text,
    ),
    "patchtst": (lambda: PatchTST(32, 8, 3, **FORECASTER), series),
    "itransformer": (lambda: ITransformer(32, 8, 3, **FORECASTER), series),
    "stranger": (Stranger, tokens),
    "torch": (Torch, tokens),
    "sequential": (
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(DEPTH))),
        lambda samples=6: tokens(samples)[:1],
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(3)
    build, draw = CASES[request.param]
    return build().eval(), draw()


def close(found: Tensor, wanted: Tensor, most: float = 1e-5) -> bool:
    return bool((found - wanted).abs().max() <= most)


@torch.no_grad()
def test_nothing_is_renamed_or_changed_before_an_exit_is_asked_for(case):
    network, inputs = case
    wanted, names = network(*inputs), list(network.state_dict())
    exits = ExitController(network)
    assert len(exits.layers) == DEPTH
    assert list(network.state_dict()) == names
    assert torch.equal(network(*inputs), wanted)
    with exits.depth(DEPTH):
        assert torch.equal(network(*inputs), wanted)
    assert exits.depths.tolist() == [DEPTH] * 6
    assert exits.remove() is network
    assert "forward" not in vars(network)
    assert torch.equal(network(*inputs), wanted)


@torch.no_grad()
def test_a_depth_for_all_is_a_network_cut_there(case):
    network, inputs = case
    exits = ExitController(network)
    short = copy.deepcopy(network)
    short_exits = vars(short)["forward"].controller
    assert short_exits is not exits
    for number, layer in enumerate(short_exits.layers, 1):
        assert layer is not exits.layers[number - 1]
    short_exits.remove()
    seen = []
    for depth in range(1, DEPTH + 1):
        with exits.depth(depth):
            found = network(*inputs)
        for layer in short_exits.layers:
            vars(layer).pop("forward", None)
        for layer in short_exits.layers[depth:]:  # gives its state on, as a cut network would
            vars(layer)["forward"] = passing(layer, network)
        assert close(found, short(*inputs), 1e-6)
        assert exits.entered == [6] * depth + [0] * (DEPTH - depth)
        seen.append(found)
    assert not close(seen[0], seen[-1], 1e-3)


def passing(layer: nn.Module, network: nn.Module):
    if isinstance(network, PatchTST):
        return lambda x, scores, residual: (x, scores)
    if "Deberta" in type(layer).__name__:
        return lambda x, *args, **kwargs: (x, None)
    return lambda x, *args, **kwargs: x


@pytest.mark.parametrize("compaction", [0.0, 0.4, 1.0])
@torch.no_grad()
def test_a_mixed_batch_answers_as_its_samples_alone(case, compaction):
    network, inputs = case
    exits = ExitController(network, compaction=compaction)
    depths = torch.tensor([2, 1, 4, 3, 1, 4])
    with exits.depth(depths):
        found = network(*inputs)
    assert torch.equal(exits.depths, depths)
    if compaction == 0.0:
        assert exits.entered == [6, 4, 3, 2]
    if compaction == 0.4:
        assert exits.entered == [6, 6, 3, 2]
    if compaction == 1.0:
        assert exits.entered == [6, 6, 6, 6]
    for place, depth in enumerate(depths.tolist()):
        alone = [part[place : place + 1] for part in inputs]
        with exits.depth(depth):
            assert close(network(*alone)[0], found[place])


@torch.no_grad()
def test_a_decision_after_each_stage_depends_on_no_other_sample(case):
    network, inputs = case
    exits = ExitController(network)

    def decide(exit):
        state = exit.state()
        state = state if isinstance(state, Tensor) else state[0]
        state = state.flatten(1).view(len(exit.samples), -1)
        return (state[:, :7].sum(1) * 1000).long() % 3 == 0

    with exits.decided_by(decide):
        found = network(*inputs)
        depths = exits.depths
    for place, depth in enumerate(depths.tolist()):
        alone = [part[place : place + 1] for part in inputs]
        with exits.depth(depth):
            assert close(network(*alone)[0], found[place])


@torch.no_grad()
def test_a_recorded_pass_answers_from_every_exit(case):
    network, inputs = case
    exits = ExitController(network)
    with exits.using(Recorded()) as recorded:
        last = network(*inputs)
        second = network(*(part[:3] for part in inputs))
    assert [[e.number for e in each] for each in recorded.passes] == [[*range(1, DEPTH + 1)]] * 2
    for number in range(1, DEPTH + 1):
        with exits.depth(number):
            wanted = network(*inputs)
        with exits.using(recorded.at(number)) as replay:
            assert torch.equal(network(*inputs), wanted)
            assert len(network(*(part[:3] for part in inputs))) == 3
        assert torch.equal(replay.outputs[0], wanted)
    assert torch.equal(wanted, last)
    assert torch.equal(replay.outputs[1], second)


@torch.no_grad()
def test_the_networks_own_end_judges_those_who_are_still_in(case):
    network, inputs = case
    exits = ExitController(network)
    depths, tails = torch.tensor([2, 1, 4, 3, 1, 4]), []

    def decide(exit):
        tails.append((exit.number, exit.samples, exits.tail(exit)))
        return depths[exit.samples] <= exit.number

    with exits.decided_by(decide):
        network(*inputs)
    assert torch.equal(exits.depths, depths)
    for number, samples, tail in tails:
        with exits.depth(number):
            assert close(tail, network(*inputs)[samples])


def test_a_gate_chooses_from_the_state_before_the_stack():
    torch.manual_seed(0)
    network, inputs = SequenceClassifier(BERT, HEADS).eval(), text()
    exits = ExitController(network)
    seen = []

    def choose(state):
        seen.append(state)
        return torch.tensor([4, 3, 2, 1, 1, 1])

    with exits.chosen_by(choose):
        network(*inputs)
    assert seen[0].shape == (6, 7, 16)
    assert exits.depths.tolist() == [4, 3, 2, 1, 1, 1]


def test_a_state_with_its_batch_second():
    torch.manual_seed(0)
    network, (states, padding) = Torch(batch_first=False).eval(), tokens()
    states = states.transpose(0, 1)
    exits = ExitController(network, batch_dim=1)
    depths = torch.tensor([2, 1, 4, 3, 1, 4])
    with exits.depth(depths):
        found = network(states, padding)
    for place, depth in enumerate(depths.tolist()):
        with exits.depth(depth):
            alone = network(states[:, place : place + 1], padding[place : place + 1])
        assert close(alone[:, 0], found[:, place])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@torch.no_grad()
def test_torchs_nested_tensors_give_way_and_come_back():
    torch.manual_seed(0)
    network, (states, padding) = Torch(nested=True).eval(), tokens()
    wanted = network(states, padding)
    exits = ExitController(network)
    with exits.depth(torch.tensor([DEPTH] * 5 + [1])):
        found = network(states, padding)
    assert close(found[:5][~padding[:5]], wanted[:5][~padding[:5]])
    exits.remove()
    assert network.encoder.use_nested_tensor


def test_a_mask_of_all_positions_is_no_sample_s_though_its_size_is_that_of_the_batch():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    exits = ExitController(network)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    states = torch.randn(5, 5, 8)
    with exits.depth(torch.tensor([1, 3, 2, 3, 1])):
        found = network(states, mask=causal)
    with exits.depth(3):
        assert close(network(states[1:2], mask=causal)[0], found[1])


def test_gradients_reach_only_the_layers_that_ran():
    torch.manual_seed(0)
    network, inputs = SequenceClassifier(BERT, HEADS).train(), text()
    exits = ExitController(network)
    with exits.depth(2):
        network(*inputs).sum().backward()
    reached = [any(p.grad is not None for p in layer.parameters()) for layer in exits.layers]
    assert reached == [True, True, False, False]
    network.zero_grad()
    with exits.depth(torch.tensor([1, 1, 3, 1, 3, 1])):
        network(*inputs).sum().backward()
    assert all(p.grad.isfinite().all() for p in exits.layers[2].parameters() if p.grad is not None)


def test_nobody_leaves_in_training():
    network, inputs = SequenceClassifier({**BERT, "hidden_dropout_prob": 0.0}, HEADS), text()
    exits = ExitController(network)

    class First(Plan):
        def leave(self, exit):
            return True

    exits.standing = First()
    network.train()
    network(*inputs)
    assert exits.entered == []
    network.eval()
    network(*inputs)
    assert exits.entered == [6, 0, 0, 0]


class Shrinking(nn.Module):
    def forward(self, x):
        return x[:, ::2]


@pytest.mark.parametrize(
    ("build", "fault"),
    [
        (lambda: ExitController(nn.Linear(2, 2)), "no list of two layers"),
        (lambda: ExitController(Stranger(), "block"), "stages='block'"),
        (lambda: ExitController(Stranger(), compaction=2), "compaction=2"),
        (lambda: ExitController(ExitController(Stranger()).network), "already"),
        (lambda: ExitController(Stranger()).depth(5), "depth=5"),
        (lambda: ExitController(Stranger()).depth(torch.tensor([1, 0])), "depth=0"),
    ],
)
def test_mistakes_are_told(build, fault):
    with pytest.raises(UserError, match=fault):
        build()


def test_a_stage_that_changes_the_shape_is_told():
    network = nn.Sequential(Shrinking(), Shrinking(), Shrinking())
    exits = ExitController(network)
    with exits.depth(torch.tensor([1, 3])), pytest.raises(UserError, match="stage 2"):
        network(torch.zeros(2, 8))


def test_depths_that_are_not_as_many_as_the_samples_are_told():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    exits = ExitController(network)
    with exits.depth(torch.tensor([1, 2])), pytest.raises(UserError, match="2 depths"):
        network(torch.zeros(3, 2))


def test_rows_are_taken_and_put_back_in_any_structure():
    value = (State(torch.arange(6).view(3, 2), torch.ones(3)), {"a": torch.zeros(1, 2)}, None)
    index = torch.tensor([2, 0])
    taken = take(value, index, 3)
    assert isinstance(taken[0], State)
    assert taken[0].tokens.tolist() == [[4, 5], [0, 1]]
    assert taken[1]["a"] is value[1]["a"]
    again = put(value, taken, index, 3)
    assert torch.equal(again[0].tokens, value[0].tokens)
    with pytest.raises(ValueError, match="2 values"):
        put((value[0].tokens,), (taken[0].tokens, None), index, 3)


def test_layers_of_other_sizes_are_no_stack():
    """The stages of a hierarchical encoder are of one class, but cannot follow one another."""
    wide = nn.ModuleList(nn.Linear(size, 2 * size) for size in (2, 4, 8, 16))
    blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    assert find_stages(nn.ModuleDict({"stages": wide, "blocks": blocks})) == list(blocks)


def test_layers_that_change_the_shape_are_refused():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 6))
    exits = ExitController(network, list(network))
    with pytest.raises(UserError, match=r"stage 2 makes \[3, 6\] of \[3, 4\]"), exits.depth(3):
        network(torch.zeros(3, 4))


def test_an_end_that_does_not_fit_a_state_is_refused():
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2))
    exits = ExitController(network, list(network)[:2])
    with (
        pytest.raises(UserError, match="cannot answer from what stage 1 gives"),
        exits.decided_by(lambda exit: exits.tail(exit) is None),
    ):
        network(torch.zeros(3, 4))
