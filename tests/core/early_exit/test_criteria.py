"""Criteria: their values, for one answer a sample, a token or a pixel, and for any logits."""

import math

import pytest
import torch

from core.early_exit.criteria import (
    Confidence,
    Entropy,
    Learned,
    NormalisedEntropy,
    Patience,
    Saturation,
    Seen,
    by_item,
    mistakes,
    reduced,
)
from core.errors import UserError

ALL = [NormalisedEntropy(), Entropy(), Confidence(), Confidence("margin"), Patience()]
NAMES = ["normalised", "entropy", "largest", "margin", "patience"]


def seen(output, state=None, mask=None):
    return Seen(output, torch.zeros(len(output), 4) if state is None else state, mask)


def test_values_are_those_of_the_papers():
    p = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    entropy = -(p * p.log()).sum(1)
    shown = seen(p.log())
    assert torch.allclose(Entropy().score(shown, []), -entropy)
    assert torch.allclose(
        NormalisedEntropy().score(shown, []), 1 - entropy / math.log(3), atol=1e-6
    )
    assert torch.allclose(Confidence().score(shown, []), torch.tensor([0.7, 1 / 3]))
    assert torch.allclose(
        Confidence("margin").score(shown, []), torch.tensor([0.5, 0.0]), atol=1e-6
    )


@pytest.mark.parametrize("criterion", ALL, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_finite_at_logits_of_ten_thousand(criterion, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [1e4, 1e4, -1e4]], dtype=dtype)
    score = criterion.score(seen(logits), [seen(logits)])
    assert score.dtype == torch.float32
    assert score.isfinite().all()
    if not isinstance(criterion, Patience):
        assert (score[:2] > score[2]).all()


@pytest.mark.parametrize("criterion", ALL, ids=NAMES)
@pytest.mark.parametrize(
    ("shape", "wanted"), [((5, 3), (5,)), ((5, 7, 3), (5, 7)), ((5, 3, 4, 6), (5, 4, 6))]
)
def test_there_is_a_score_for_each_answer(criterion, shape, wanted):
    assert criterion.score(seen(torch.randn(shape)), []).shape == wanted


def test_one_logit_is_that_of_the_second_class():
    z = torch.tensor([[0.0], [3.0], [-3.0]])
    pair = torch.cat([torch.zeros_like(z), z], 1)
    for criterion in ALL:
        assert torch.equal(criterion.score(seen(z), []), criterion.score(seen(pair), []))


def test_patience_counts_for_each_sample_on_its_own():
    classes = torch.tensor(
        [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 0], [1, 0, 1, 0]]
    )  # (samples, exits)
    shown = [seen(torch.eye(2)[classes[:, number]]) for number in range(4)]
    scores = [Patience().score(shown[i], shown[:i]).tolist() for i in range(4)]
    assert scores == [[0, 0, 0, 0], [1, 0, 0, 0], [2, 1, 1, 0], [3, 2, 0, 0]]


def test_patience_of_values_goes_by_their_distance():
    shown = [seen(torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]]))]
    shown.append(seen(torch.tensor([[[1.05, 2.05]], [[1.0, 2.2]]])))
    assert Patience(theta=0.1).score(shown[1], shown[:1]).tolist() == [1, 0]
    with pytest.raises(UserError, match="theta=-1"):
        Patience(theta=-1)


def test_saturation_is_a_cosine_over_the_tokens_that_count():
    one, two = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    answer = torch.zeros(2, 5)
    before, now = Seen(answer, one, mask), Seen(answer, two, mask)
    assert Saturation().score(before, []).tolist() == [-1, -1]
    cosine = torch.cosine_similarity(one, two, dim=-1)
    wanted = torch.stack([cosine[0, :2].mean(), cosine[1].mean()])
    assert torch.allclose(Saturation().score(now, [before]), wanted)
    tokens = torch.zeros(2, 3, 5)
    assert Saturation().score(Seen(tokens, two, mask), [Seen(tokens, one, mask)]).shape == (2, 3)


def test_the_learnt_criterion_learns_where_answers_are_wrong():
    torch.manual_seed(0)
    state = torch.randn(400, 6)
    target = torch.randint(3, (400,))
    wrong = state[:, 0] > 0
    logits = torch.eye(3)[torch.where(wrong, (target + 1) % 3, target)] * 4
    criterion = Learned(6)
    shown = Seen(logits, state.requires_grad_(), None)
    optimizer = torch.optim.Adam(criterion.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        criterion.loss(shown, mistakes(logits, target[:, None])).backward()
        optimizer.step()
    assert state.grad is None
    sure = criterion.score(shown, []) > 0.5
    assert (sure == ~wrong).float().mean() > 0.95


def test_the_learnt_criterion_takes_the_published_target_of_values():
    criterion = Learned(4)
    shown = Seen(torch.tensor([[1.0], [2.0]]), torch.randn(2, 4), None)
    target = torch.tensor([[1.0], [0.0]])
    wanted = (criterion.doubt(shown) - torch.tensor([0.0, math.tanh(2.0)])).square().mean()
    assert torch.allclose(criterion.loss(shown, mistakes(shown.output, target)), wanted)
    with pytest.raises(UserError, match="are judged where"):
        criterion.loss(shown, torch.zeros(3))


def test_mistakes_are_told_for_each_answer_and_not_where_none_is_known():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]])
    target = torch.tensor([[0, 0, -100]])
    wanted = torch.tensor([[0.0, 1.0, torch.nan]])
    assert torch.equal(mistakes(logits, target).isnan(), wanted.isnan())
    assert mistakes(logits, target)[0, :2].tolist() == [0.0, 1.0]
    assert mistakes(logits.argmax(-1), target)[0, :2].tolist() == [0.0, 1.0]
    assert by_item(mistakes(logits, target)).tolist() == [0.5]
    criterion = Learned(4)
    shown = Seen(logits, torch.randn(1, 3, 4), None)
    known = (criterion.doubt(shown)[:, :2] - wanted[:, :2]).square().mean()
    assert torch.allclose(criterion.loss(shown, wanted), known)
    assert criterion.loss(shown, torch.full((1, 3), torch.nan)) == 0


def test_a_text_is_as_sure_as_its_least_sure_word_and_padding_has_no_say():
    score = torch.tensor([[0.9, 0.2, 0.1], [0.5, 0.6, 0.7]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.allclose(reduced(score, mask, "auto"), torch.tensor([0.2, 0.5]))
    assert torch.allclose(reduced(score, mask, "mean"), torch.tensor([0.55, 0.6]))
    assert reduced(score, torch.zeros(2, 3), "worst").isfinite().all()


def test_a_map_is_judged_by_its_mean_or_by_its_least_sure_part():
    score = torch.linspace(0, 1, 101).view(1, 101, 1).expand(2, 101, 1)
    assert torch.allclose(reduced(score, None, "auto"), torch.full((2,), 0.5))
    assert torch.allclose(reduced(score, None, "quantile"), torch.full((2,), 0.05))
    with pytest.raises(UserError, match="reduce='best'"):
        reduced(score, None, "best")
