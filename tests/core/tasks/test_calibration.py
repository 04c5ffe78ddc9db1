import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from core.tasks.calibration import (
    STEPS,
    Collected,
    accuracy_curve,
    temperature,
    threshold_for,
    thresholds,
)
from core.tasks.heads import read_heads

SINGLE, MULTI, REGRESSION = (
    read_heads([{"name": "", "kind": kind, "labels": list("abc")}])[0]
    for kind in ("single", "multi", "regression")
)


def drawn(scale, seed=0, count=300):
    """Logits that are ``scale`` times those which the targets were drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 3, generator=generator) * 2
    single = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    multi = torch.bernoulli(logits.sigmoid(), generator=generator)
    return logits * scale, single, multi


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_temperature_is_that_of_a_fine_grid(kind, scale):
    logits, single, multi = drawn(scale)

    def loss(value):
        if kind == "single":
            return F.cross_entropy(logits.double() / value, single)
        return F.binary_cross_entropy_with_logits(logits.double() / value, multi.double())

    head, targets = (SINGLE, single) if kind == "single" else (MULTI, multi)
    found = temperature(head, logits, targets)
    grid = torch.logspace(np.log10(0.05), np.log10(20), 3_000, dtype=torch.float64)
    best = grid[torch.stack([loss(value) for value in grid]).argmin()]
    assert found == pytest.approx(float(best), rel=3e-3)
    assert found == pytest.approx(scale, rel=0.25)
    assert loss(found) <= loss(1.0) + 1e-9


def test_a_temperature_stays_within_bounds():
    logits = torch.eye(3).repeat(10, 1) * 5
    assert temperature(SINGLE, logits, torch.arange(3).repeat(10)) == pytest.approx(0.05, rel=0.01)
    wrong = torch.tensor([1, 2, 0]).repeat(10)
    assert temperature(SINGLE, logits, wrong) == pytest.approx(20, rel=0.01)


def test_no_temperature_of_a_measure_or_of_nothing():
    assert temperature(REGRESSION, torch.ones(3, 3), torch.ones(3, 3)) == 1
    assert temperature(SINGLE, torch.ones(0, 3), torch.ones(0)) == 1


@pytest.mark.parametrize("decimals", [1, 2, 8])  # few decimals: many equal probabilities
@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_the_best_of_all(seed, decimals):
    logits, _, truth = drawn(1.0, seed, count=60)
    scores = logits.sigmoid().double().round(decimals=decimals)
    found = thresholds(scores, truth)
    for label in range(3):
        own, target = scores[:, label], truth[:, label].numpy()
        cuts = [0.0, *own.unique().tolist(), 1.1]
        best = max(f1_score(target, (own >= cut).numpy(), zero_division=0) for cut in cuts)
        reached = f1_score(target, (own >= found[label]).numpy(), zero_division=0)
        assert reached == pytest.approx(best, abs=1e-9)


def test_of_equal_thresholds_the_one_nearest_to_a_half():
    scores = torch.tensor([0.1] * 5 + [0.9] * 5)[:, None]
    truth = torch.tensor([0.0] * 5 + [1.0] * 5)[:, None]
    assert thresholds(scores, truth).tolist() == [pytest.approx(0.5)]


def test_too_few_items_keep_a_half():
    scores = torch.linspace(0.01, 0.2, 20)[:, None]
    for positives in (0, 4, 16, 20):
        truth = (torch.arange(20) >= 20 - positives).float()[:, None]
        assert thresholds(scores, truth).tolist() == [0.5]
    truth = (torch.arange(20) >= 15).float()[:, None]
    assert thresholds(scores, truth).item() < 0.2


def test_a_curve_by_hand():
    confidence = np.array([0.9, 0.5, 0.7, 0.7, 0.6])
    correct = np.array([True, True, False, True, False])
    assert accuracy_curve(confidence, correct) == [
        [0.9, 1.0, 0.2],
        [0.7, pytest.approx(2 / 3), 0.6],  # equal ones stand together
        [0.6, 0.5, 0.8],
        [0.5, 0.6, 1.0],
    ]


def test_a_curve_keeps_its_ends_and_exact_thresholds():
    confidence = np.random.default_rng(0).random(1000).astype(np.float32).astype(np.float64)
    correct = np.arange(1000) % 3 > 0
    curve = accuracy_curve(confidence, correct)
    assert len(curve) == STEPS
    assert curve[0][0] == confidence.max()
    assert curve[-1] == [confidence.min(), correct.mean(), 1.0]
    for threshold, accuracy, share in curve:
        taken = confidence >= threshold
        assert accuracy == pytest.approx(correct[taken].mean())
        assert share == pytest.approx(taken.mean())


def test_the_confidence_for_an_accuracy():
    curve = [[0.9, 1.0, 0.2], [0.7, 0.66, 0.6], [0.6, 0.5, 0.8], [0.5, 0.6, 1.0]]
    assert threshold_for(curve, 1.0) == 0.9
    assert threshold_for(curve, 0.66) == 0.7
    assert threshold_for(curve, 0.6) == 0.5  # the worse stretch above it is made up for
    assert threshold_for(curve[1:], 0.9) is None
    assert threshold_for([], 0.5) is None


def test_everything_is_collected_in_order():
    collected = Collected()
    parts = [(torch.randn(n, 3), torch.randn(n, 2)) for n in (3, 1, 4)]
    for logits, targets in parts:
        collected.update(logits, targets)
    for found, own in zip(collected.compute(), zip(*parts, strict=True), strict=True):
        assert torch.equal(found, torch.cat(own))
    collected.reset()
    collected.update(*parts[1])
    assert torch.equal(collected.compute()[0], parts[1][0])
