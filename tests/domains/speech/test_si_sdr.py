"""The loss and its permutation equal torchmetrics'; lengths and silence are defined."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.audio import (
    permutation_invariant_training,
    scale_invariant_signal_distortion_ratio,
)

from domains.speech.si_sdr import best_order, ordered, pairs, separation_loss


def drawn(batch=3, speakers=2, length=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    references = torch.randn(batch, speakers, length, generator=generator)
    noise = torch.randn(batch, speakers, length, generator=generator)
    estimates = references[:, torch.randperm(speakers, generator=generator)] + 0.3 * noise
    return estimates, references, references.sum(1), torch.full((batch,), length)


def theirs(estimates, references):
    return permutation_invariant_training(
        estimates,
        references,
        lambda e, r: scale_invariant_signal_distortion_ratio(e, r, zero_mean=True),
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(2, 3), st.integers(20, 500), st.integers(0, 1000))
def test_it_equals_torchmetrics(batch, speakers, length, seed):
    estimates, references, mixture, lengths = drawn(batch, speakers, length, seed)
    scores = pairs(estimates, references, mixture, lengths).scores
    order = best_order(scores)
    best, permutation = theirs(estimates, references)
    torch.testing.assert_close(ordered(scores, order).mean(1), best, atol=1e-4, rtol=0)
    assert torch.equal(order, permutation)


def test_what_fills_up_a_batch_counts_nowhere():
    estimates, references, mixture, _ = drawn(batch=2)
    lengths = torch.tensor([400, 251])
    found = pairs(estimates, references, mixture, lengths).scores
    alone = pairs(
        *(part[1:, ..., :251] for part in (estimates, references, mixture)), lengths[1:]
    ).scores
    torch.testing.assert_close(found[1:], alone)


def test_scale_level_and_order_change_nothing():
    estimates, references, mixture, lengths = drawn(speakers=3)

    def loss(e, r, m):
        scores = pairs(e, r, m, lengths).scores
        return separation_loss(ordered(scores, best_order(scores)))

    first = loss(estimates, references, mixture)
    torch.testing.assert_close(loss(7 * estimates, references, mixture), first)
    torch.testing.assert_close(loss(estimates + 5, references, mixture), first)
    torch.testing.assert_close(loss(estimates, references.flip(1), mixture), first)


def test_a_silent_reference_is_judged_by_the_level_of_its_estimate():
    _, references, _, lengths = drawn(batch=1)
    references[:, 1] = 0
    mixture = references.sum(1)
    for level, wanted in ((1.0, 0.0), (0.1, 20.0), (0.0, 30.0)):
        estimates = torch.stack([mixture, level * mixture], 1).requires_grad_()
        found = pairs(estimates, references, mixture, lengths)
        assert found.silent.tolist() == [[False, True]]
        assert found.scores[0, 1, 1].item() == pytest.approx(wanted, abs=0.5)
        found.scores.mean().backward()
        assert estimates.grad.isfinite().all()


def test_silence_throughout_has_finite_gradients():
    zeros = torch.zeros(1, 2, 50)
    estimates = torch.zeros(1, 2, 50, requires_grad=True)
    found = pairs(estimates, zeros, zeros.sum(1), torch.tensor([50]))
    found.scores.sum().backward()
    assert found.silent.all()
    assert estimates.grad.isfinite().all()


def test_easy_mixtures_are_left_out():
    scores = torch.tensor([[40.0, 30.0], [4.0, 6.0]], requires_grad=True)
    loss = separation_loss(scores, threshold=-30)
    assert loss.item() == -5
    loss.backward()
    assert scores.grad.tolist() == [[0, 0], [-0.5, -0.5]]
    assert separation_loss(scores, threshold=-1).item() == 0
    assert separation_loss(scores).item() == -20


def test_low_precision_is_judged_in_float32():
    estimates, references, mixture, lengths = drawn()
    found = pairs(*(x.bfloat16() for x in (estimates, references, mixture)), lengths).scores
    assert found.dtype == torch.float32
    double = pairs(*(x.double() for x in (estimates, references, mixture)), lengths).scores
    assert double.dtype == torch.float64
