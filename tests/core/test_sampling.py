"""Drawing from models whose probabilities are known."""

import math

import pytest
import torch
from torch import nn

from core.errors import UserError
from core.sampling import Choice, sample

END = 0
BEGIN = torch.tensor([1])


class Table(nn.Module):
    """The next token depends on the last one alone."""

    def __init__(self, probabilities) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, ids, lengths):
        assert (lengths <= ids.shape[1]).all()
        return self.logits[ids]


class Sums(nn.Module):
    """The next token depends on the sum of all before it; in steps, or without."""

    def __init__(self, tokens=7) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(tokens, 5)
        self.score = nn.Linear(5, tokens)
        self.asked = []

    def forward(self, ids, lengths):
        return self.score(self.embedding(ids).cumsum(1).sin() * 3)


class SteppingSums(Sums):
    def step(self, ids, state=None, lengths=None):
        self.asked.append(len(ids))
        if ids.ndim == 2:
            sums = self.embedding(ids).cumsum(1)
            last = sums[torch.arange(len(ids)), lengths - 1]
            return self.score(sums.sin() * 3), (last, "a word")
        last = state[0] + self.embedding(ids)
        return self.score(last.sin() * 3), (last, state[1])


@pytest.fixture
def table():
    return Table(
        [
            [0.25, 0.25, 0.25, 0.25],
            [0.00, 0.00, 0.60, 0.40],
            [0.30, 0.00, 0.00, 0.70],
            [1.00, 0.00, 0.00, 0.00],
        ]
    )


def drawn(network, count, **settings):
    choice = Choice(**settings)
    return sample(network, [BEGIN] * count, end=END, longest=5, choice=choice, seed=3)


def share(sampled, *tokens):
    return sum(row.tolist() == list(tokens) for row in sampled.tokens) / len(sampled.tokens)


def test_draws_by_the_probabilities(table):
    found = drawn(table, 20_000)
    assert found.ended.all()
    assert share(found, 2) == pytest.approx(0.18, abs=0.01)
    assert share(found, 2, 3) == pytest.approx(0.42, abs=0.01)
    assert share(found, 3) == pytest.approx(0.4, abs=0.01)


def test_temperature_sharpens_and_zero_is_greedy(table):
    sharp = drawn(table, 20_000, temperature=0.5)  # probabilities squared
    assert share(sharp, 3) == pytest.approx(0.16 / 0.52, abs=0.01)
    assert share(drawn(table, 50, temperature=0.0), 2, 3) == 1


def test_top_k_and_top_p_leave_rare_tokens_out(table):
    assert share(drawn(table, 500, top_k=1), 2, 3) == 1
    assert share(drawn(table, 500, top_p=0.6), 2, 3) == 1
    most = drawn(table, 20_000, top_p=0.61)
    assert share(most, 3) == pytest.approx(0.4, abs=0.01)
    assert share(drawn(table, 500, top_k=9), 3) > 0.3


def test_some_tokens_are_never_drawn(table):
    found = drawn(table, 200, never=(3,))
    assert share(found, 2) == 1


def test_what_does_not_end_is_cut():
    endless = Table([[0.5, 0.5], [0.0, 1.0]])
    found = drawn(endless, 3)
    assert not found.ended.any()
    assert [row.tolist() for row in found.tokens] == [[1] * 5] * 3


@pytest.mark.parametrize("kind", [Sums, SteppingSums])
def test_a_sequence_depends_on_seed_and_number_alone(kind):
    network = kind()
    together = sample(network, [BEGIN] * 40, end=END, longest=30, seed=1)
    apart = [sample(network, [BEGIN], end=END, longest=30, seed=1, first=n) for n in range(40)]
    assert [row.tolist() for row in together.tokens] == [a.tokens[0].tolist() for a in apart]
    other = sample(network, [BEGIN] * 40, end=END, longest=30, seed=2)
    assert [row.tolist() for row in other.tokens] != [row.tolist() for row in together.tokens]
    assert 0 < together.ended.sum() < 40 or len({len(row) for row in together.tokens}) > 5


def test_steps_and_rereading_draw_the_same_from_prompts_of_any_length():
    prompts = [torch.tensor([1]), torch.tensor([3, 4, 5, 2]), torch.tensor([6, 6])] * 5
    plain, stepping = (
        sample(network, prompts, end=END, longest=25, seed=5)
        for network in (Sums(), SteppingSums())
    )
    assert [row.tolist() for row in plain.tokens] == [row.tolist() for row in stepping.tokens]
    assert torch.equal(plain.ended, stepping.ended)


def test_sequences_that_have_ended_are_dropped():
    network = SteppingSums()
    sample(network, [BEGIN] * 64, end=END, longest=60)
    assert network.asked[0] == 64
    assert network.asked == sorted(network.asked, reverse=True)
    assert network.asked[-1] < 32


def test_nothing_is_asked_after_the_last_token():
    network = SteppingSums()
    sample(network, [BEGIN], end=6, longest=4, choice=Choice(never=(6,)))
    assert len(network.asked) == 4


def test_dropout_is_off_meanwhile_and_no_gradient_is_kept():
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).train()
    network.step = lambda ids, state, lengths=None: (  # type: ignore[assignment]
        (torch.zeros(*ids.shape, 2) + (torch.inf if network.training else 0.0)),
        None,
    )
    found = sample(network, [BEGIN] * 3, end=END, longest=2)
    assert network.training
    assert not any(row.requires_grad for row in found.tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_numbers_out_of_range_are_told(table, settings, message):
    with pytest.raises(UserError, match=message):
        drawn(table, 1, **settings)


@pytest.mark.parametrize("prompts", [[], [BEGIN, torch.tensor([], dtype=torch.long)]])
def test_nothing_to_begin_from_is_told(table, prompts):
    with pytest.raises(UserError, match="each prompt needs a token"):
        sample(table, prompts, end=END, longest=3)
