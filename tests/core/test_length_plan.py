import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.batch_plan import PlannedBatchSampler
from core.length_plan import LengthPlan, Lengths, longest_first, padded


def draw_lengths(count, seed=0, most=512):
    """Lengths as of sentences: most short, a few long."""
    drawn = np.random.default_rng(seed).lognormal(3, 0.6, count)
    return np.clip(drawn.astype(int), 2, most)


def cost(batch, lengths, rows=None):
    rows = np.ones_like(lengths) if rows is None else rows
    return padded(lengths[batch]).max() * rows[batch].sum()


def waste(batches, lengths):
    return 1 - lengths.sum() / sum(cost(batch, lengths) for batch in batches)


items = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 3)), min_size=1, max_size=120)


@given(
    items=items,
    batch_size=st.integers(1, 40),
    budget=st.integers(216, 2000),
    epoch=st.integers(0, 3),
    multiple=st.sampled_from([1, 3, 8, 12]),
)
def test_every_item_within_the_limits(items, batch_size, budget, epoch, multiple):
    lengths, rows = np.array(items).T
    plan = LengthPlan(lengths, batch_size, budget, rows=rows, multiple=multiple)
    batches = list(plan.global_batches(1, epoch))
    seen = [i for batch in batches for i in batch]
    assert len(batches) == len(plan) > 0
    assert len(set(seen)) == len(seen) > len(items) - multiple
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert all(cost(batch, lengths, rows) <= budget for batch in batches)


@given(count=st.integers(1, 300), seed=st.integers(0, 3), world=st.sampled_from([2, 4]), epoch=...)
def test_the_same_global_batches_on_any_number_of_processes(
    count: int, seed: int, world: int, epoch: int
):
    plan = LengthPlan(draw_lengths(count, seed, most=128), 16, 1024)
    plan.check(world)
    for alone, shared in zip(plan(seed, epoch), plan(seed, epoch, world), strict=True):
        assert len({len(share) for share in shared}) == 1
        assert set(alone[0]) == {i for share in shared for i in share}
        if count >= 16:  # nothing needs filling up
            assert sorted(alone[0]) == sorted(i for share in shared for i in share)


def test_no_item_is_left_out_for_ever():
    lengths = draw_lengths(1003)
    plan = LengthPlan(lengths, 32, 4096)
    epochs = [{i for batch in plan.global_batches(0, e) for i in batch} for e in range(12)]
    assert all(len(epoch) == 1000 for epoch in epochs)
    assert set.union(*epochs) == set(range(1003))
    assert len({frozenset(set(range(1003)) - epoch) for epoch in epochs}) > 6


def test_few_items_all_train():
    for count in range(1, 8):
        assert sorted(LengthPlan(range(count), 32, 4096)(0, 0)[0][0]) == list(range(count))


def test_a_new_order_each_epoch_and_seed():
    plan = LengthPlan(draw_lengths(500), 16, 1024)
    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(0, 1)
    assert plan(0, 0) != plan(1, 0)
    assert plan(0, 0) == LengthPlan(draw_lengths(500), 16, 1024)(0, 0)


def test_batches_come_in_no_order_of_length():
    lengths = draw_lengths(4000)
    means = [lengths[batch].mean() for batch in LengthPlan(lengths, 16, 4096).global_batches(0, 0)]
    places = np.corrcoef(np.arange(len(means)), means)[0, 1]
    assert abs(places) < 0.2


def test_even_the_longest_items_meet_others_each_epoch():
    lengths = draw_lengths(4000)
    longest = int(lengths.argmax())
    plan = LengthPlan(lengths, 16, 4096)
    met, places = set(), 0
    for epoch in range(10):
        (batch,) = (b for b in plan.global_batches(0, epoch) if longest in b)
        met |= set(batch) - {longest}
        places += len(batch) - 1
    assert len(met) > places / 3


def test_sampler_goes_on_anywhere():
    plan = LengthPlan(draw_lengths(300), 16, 1024)
    sampler = PlannedBatchSampler(plan, seed=4, rank=1, world_size=2)
    sampler.set_epoch(2)
    whole = list(sampler)
    for start in range(len(plan)):
        sampler.set_position(2, start)
        assert list(sampler) == whole[start:]


def test_a_million_items_are_planned_at_once():
    lengths = draw_lengths(1_000_000)
    began = time.process_time()
    plan = LengthPlan(lengths, 32, 8192)
    next(plan.iterate(0, 3, start=len(plan) - 1))
    assert time.process_time() - began < 4  # 0.5 s on a free processor


def test_rows_count_as_tokens():
    lengths, rows = np.full(64, 100), np.array([1, 7] * 32)
    plan = LengthPlan(lengths, 32, 104 * 16, rows=rows)
    sizes = {}
    for batch in plan.global_batches(0, 0):
        sizes.setdefault(int(rows[batch].max()), set()).add(len(batch))
    assert sizes == {1: {16}, 7: {2}}


@pytest.mark.parametrize(
    ("lengths", "settings", "said"),
    [
        ([], {}, "0 items, batch_size=8"),
        ([3, -1], {}, "lengths (-1 is the least)"),
        ([3, 5], {"rows": [1, 0]}, "rows (0 is the least)"),
        ([3, 5], {"rows": [1]}, "rows has 1 entries for 2 items"),
        ([3, 5], {"batch_size": 0}, "batch_size=0"),
        ([9, 70, 30], {}, "item 1 of 70 tokens takes 1 x 72 padded ones, more than"
         " token_budget=64; set token_budget to 72 or more"),
        ([9, 30], {"rows": [1, 3]}, "item 1 of 30 tokens takes 3 x 32 padded ones"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned(lengths, settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        LengthPlan(lengths, **{"batch_size": 8, "token_budget": 64} | settings)


def test_what_cannot_be_shared():
    lengths = [60] * 40
    LengthPlan(lengths, 8, 128).check(2)
    with pytest.raises(ValueError, match=r"token_budget=128 has no room .* set it to 256 or more"):
        LengthPlan(lengths, 8, 128).check(4)
    LengthPlan(lengths, 8, 256).check(4)
    with pytest.raises(ValueError, match="batch_size=6 is not divisible among 4 processes"):
        LengthPlan(lengths, 6, 4096).check(4)
    with pytest.raises(ValueError, match="use a number of processes that divides 8"):
        LengthPlan(lengths, 12, 512).check(3)
    LengthPlan(lengths, 12, 512, multiple=3).check(3)


@given(items=items, size=st.integers(1, 9), budget=st.integers(216, 600), world=st.integers(1, 3))
def test_longest_first(items, size, budget, world):
    lengths, rows = np.array(items).T
    batches = longest_first(Lengths(lengths, budget, rows), size, world)
    assert sorted(i for batch in batches for i in batch) == list(range(len(items)))
    widest = [padded(lengths[batch]).max() for batch in batches]
    assert widest == sorted(widest, reverse=True)
    for batch in batches:
        assert len(batch) <= max(size, world)
        assert cost(batch, lengths, rows) <= budget or len(batch) <= world


@pytest.mark.data
def test_sentences_are_hardly_padded(real_data):
    lines = (real_data / "nlp" / "SST" / "stsa.binary.train").read_text().splitlines()
    lengths = np.array([len(line.split()) + 1 for line in lines])
    assert len(lengths) == 6920
    plan = LengthPlan(lengths, 32, 8192)
    random = np.array_split(np.random.default_rng(0).permutation(len(lengths)), 216)
    ordered = np.array_split(lengths.argsort(), 216)
    planned = waste(list(plan.global_batches(0, 0)), lengths)
    assert planned < waste(ordered, lengths) + 0.02
    assert planned < waste(random, lengths) / 3
