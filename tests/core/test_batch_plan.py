import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.batch_plan import BatchPlan, PlannedBatchSampler, PlannedIndex, mix_seed

sizes = st.integers(1, 60)


@given(
    length=sizes, batch=sizes, seed=st.integers(0, 5), epoch=st.integers(0, 3), drop=st.booleans()
)
def test_every_item_once(length, batch, seed, epoch, drop):
    if drop and batch > length:
        with pytest.raises(ValueError, match="batch_size"):
            BatchPlan(length, batch, drop_last=drop)
        return
    plan = BatchPlan(length, batch, drop_last=drop)
    batches = [ranks[0] for ranks in plan(seed, epoch)]
    items = [i for b in batches for i in b]
    assert len(batches) == len(plan)
    assert len(set(items)) == len(items) == (length // batch * batch if drop else length)
    assert all(len(b) == batch for b in batches[:-1])


@given(length=sizes, batch=st.sampled_from([4, 8, 12]), world=st.sampled_from([1, 2, 4]))
def test_the_same_global_batches_on_any_number_of_processes(length, batch, world):
    plan = BatchPlan(length, batch, drop_last=False)
    for alone, shared in zip(plan(3, 1), plan(3, 1, world), strict=True):
        counts = {len(share) for share in shared}
        assert len(counts) == 1  # equal counts a rank
        assert set(alone[0]) == {i for share in shared for i in share}


def test_a_new_order_each_epoch_and_seed():
    plan = BatchPlan(50, 10)
    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(0, 1)
    assert plan(0, 0) != plan(1, 0)
    assert BatchPlan(50, 10, shuffle=False)(0, 7)[0][0] == list(range(10))


def test_sampler_goes_on_anywhere():
    sampler = PlannedBatchSampler(BatchPlan(50, 10), seed=4)
    sampler.set_epoch(2)
    whole = list(sampler)
    for start in range(5):
        sampler.set_position(2, start)
        sampler.set_epoch(2)  # Lightning announces the epoch that is under way
        assert list(sampler) == whole[start:]
        assert len(sampler) == 5
    sampler.set_epoch(3)
    assert next(iter(sampler)) != whole[0]


def test_augmentation_seed_belongs_to_item_and_epoch():
    sampler = PlannedBatchSampler(BatchPlan(8, 4), seed=4)
    first = {int(i): i.seed for batch in sampler for i in batch}
    sampler.set_epoch(1)
    second = {int(i): i.seed for batch in sampler for i in batch}
    assert all(first[i] != second[i] for i in range(8))
    index = PlannedIndex(3, first[3])
    assert [10, 11, 12, 13][index] == 13
    draws = [torch.rand(1, generator=index.generator()).item() for _ in range(2)]
    assert draws[0] == draws[1]


def test_batch_that_cannot_be_shared():
    plan = BatchPlan(50, 9)
    with pytest.raises(ValueError, match="not divisible among 2 processes"):
        list(plan.iterate(0, 0, world_size=2))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=4))
def test_mix_seed_fits_torch(numbers):
    torch.Generator().manual_seed(mix_seed(*numbers))


@given(
    length=st.integers(8, 60),
    batch=st.integers(1, 8),
    share=st.floats(0, 1),
    shuffle=st.booleans(),
    drop=st.booleans(),
)
def test_a_draw_takes_so_many_different_items(length, batch, share, shuffle, drop):
    draw = batch + int(share * (length - batch))
    plan = BatchPlan(length, batch, draw=draw, shuffle=shuffle, drop_last=drop)
    batches = [ranks[0] for ranks in plan(3, 1)]
    items = [i for b in batches for i in b]
    assert len(batches) == len(plan)
    assert len(set(items)) == len(items) == (draw // batch * batch if drop else draw)
    assert set(items) <= set(range(length))
    assert batches == [ranks[0] for ranks in plan(3, 1)]
    assert shuffle or items == sorted(items)


def test_a_draw_is_another_each_epoch_and_goes_on_anywhere():
    plan = BatchPlan(500, 10, draw=50)
    epochs = [{i for ranks in plan(0, epoch) for i in ranks[0]} for epoch in range(4)]
    assert all(len(items) == 50 for items in epochs)
    assert len(set.union(*epochs)) > 120
    assert plan(0, 1) != plan(1, 1)
    sampler = PlannedBatchSampler(plan, seed=4)
    sampler.set_epoch(2)
    whole = list(sampler)
    for start in range(5):
        sampler.set_position(2, start)
        assert list(sampler) == whole[start:]
    for alone, shared in zip(plan(3, 1), plan(3, 1, 2), strict=True):
        assert sorted(alone[0]) == sorted(i for share in shared for i in share)


@pytest.mark.parametrize("draw", [9, 51])
def test_a_draw_of_less_than_a_batch_or_more_than_all_is_refused(draw):
    with pytest.raises(ValueError, match=f"draw={draw} must lie between batch_size=10 and"):
        BatchPlan(50, 10, draw=draw)
