"""Batches with as many flows of each class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.security.balanced_plan import BalancedPlan


def groups(*counts):
    ends = np.cumsum(counts)
    return [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]


@given(st.lists(st.integers(1, 300), min_size=2, max_size=5), st.integers(5, 64), st.integers(0, 9))
def test_every_class_has_its_share(counts, batch_size, epoch):
    plan = BalancedPlan(groups(*counts), batch_size, 6)
    batches = list(plan.global_batches(3, epoch))
    assert len(batches) == len(plan) == 6
    assert batches[2:] == list(plan.global_batches(3, epoch, start=2))
    ends = np.cumsum(counts)
    total = np.zeros(len(counts), int)
    for batch in batches:
        assert len(batch) == batch_size
        drawn = np.bincount(np.searchsorted(ends, batch, side="right"), minlength=len(counts))
        assert drawn.max() - drawn.min() <= 1
        if min(counts) > batch_size:
            assert len(set(batch)) == batch_size
        total += drawn
    assert total.max() - total.min() <= 1 + 6 // len(counts)
    assert list(plan.global_batches(3, epoch + 1)) != batches


def test_two_processes_see_the_same_batches():
    plan = BalancedPlan(groups(50, 9), 8, 3)
    assert [a + b for a, b in plan(0, 1, 2)] == [
        batch[0::2] + batch[1::2] for batch in plan.global_batches(0, 1)
    ]


@pytest.mark.parametrize(
    ("counts", "batch_size", "steps", "told"),
    [
        ((5, 5), 1, 4, "batch_size=1 must be at least the number of classes, 2"),
        ((5, 5), 4, 0, "steps_per_epoch=0"),
        ((5, 0), 4, 1, "every class needs an item"),
    ],
)
def test_what_cannot_be_drawn(counts, batch_size, steps, told):
    with pytest.raises(ValueError, match=told):
        BalancedPlan(groups(*counts), batch_size, steps)


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(ValueError, match="batch_size=5 is not divisible among 2"):
        list(BalancedPlan(groups(5, 5), 5, 1).iterate(0, 0, world_size=2))
