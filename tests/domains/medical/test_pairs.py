"""Batches of pairs, random warps, and which scans are paired."""

import pytest
import torch

from core.batch_plan import PlannedIndex
from domains.medical.data import WarpData
from domains.medical.judging import judge
from domains.medical.pairs import Collate, Pair, padded
from domains.medical.scan_pairs import EveryPair, in_a_ring
from domains.medical.synthetic import WarpedPairs


def pair(shape, row=0):
    image = torch.rand(shape)
    labels = torch.randint(0, 3, shape)
    mask = torch.ones(shape, dtype=torch.bool)
    return Pair(image, image, labels, labels, mask, torch.ones(3), row, f"pair {row}")


def test_a_batch_is_filled_up_to_the_divisor_and_not_counted_there():
    pairs = [pair((9, 16, 7), 0), pair((5, 17, 3), 1)]
    batch = Collate(16)(pairs)
    assert batch.moving.shape == batch.mask.shape == (2, 1, 16, 32, 16)
    assert batch.sizes.tolist() == [[9, 16, 7], [5, 17, 3]]
    assert batch.mask.flatten(1).sum(1).tolist() == [9 * 16 * 7, 5 * 17 * 3]
    assert torch.equal(batch.fixed[1, 0, :5, :17, :3], pairs[1].fixed)
    assert batch.fixed[1, 0, 5:].sum() == 0
    assert batch.fixed_labels.dtype == torch.int64
    assert padded([1, 16, 17], 16) == [16, 16, 32]


def test_every_pair_stands_once():
    every = EveryPair([3, 5, 8, 9])
    assert len(every) == len(set(every)) == 12
    assert all(a != b for a, b in every)
    assert every[2:4] == [every[2], every[3]]
    with pytest.raises(IndexError):
        every[12]
    assert in_a_ring([3, 5, 8]) == [(3, 5), (5, 8), (8, 3)]


def warps(seed):
    generator = torch.Generator().manual_seed(0)
    fixed = torch.rand(12, 12, 12, generator=generator)
    labels = torch.randint(0, 3, (12, 12, 12), generator=generator)
    same = {"points": 3, "amplitude": 1.0}
    return WarpedPairs(fixed, labels, torch.ones(3), 5, seed=seed, **same)


def test_warps_that_are_held_out_never_change_and_those_of_training_follow_their_seed():
    assert torch.equal(warps(7)[1].moving, warps(7)[1].moving)
    assert not torch.equal(warps(7)[1].moving, warps(8)[1].moving)
    fresh = warps(None)
    first, again, other = (fresh[PlannedIndex(1, seed)] for seed in (11, 11, 12))
    assert torch.equal(first.moving, again.moving)
    assert not torch.equal(first.moving, other.moving)
    assert torch.equal(first.fixed, other.fixed)
    assert not torch.equal(first.moving, first.fixed)


@pytest.mark.data
@pytest.mark.parametrize(
    ("given", "dice", "ncc"),
    [
        ({"side": 32, "points": 5, "amplitude": 2.0}, [0.3145, 0.3189, 0.2853, 0.4311], -0.452),
        ({"side": 64, "points": 6, "amplitude": 4.0, "test_warps": 2}, [0.3088, 0.3331], -0.194),
    ],
)
def test_the_warps_of_the_brain_are_as_far_apart_as_was_published(real_data, given, dice, ncc):
    module = WarpData(**given)
    module.setup()
    labels = torch.tensor(list(module.label_names))
    assert len(labels) == 30
    names = ["dice", "dice_before", "ncc", "ncc_before"]
    words = [str(name) for name in module.label_names.values()]
    found = []
    for batch in module.test_dataloader():
        still = torch.zeros_like(batch.fixed).expand(-1, 3, -1, -1, -1)
        found.append(judge(batch, still, labels, words, names=names))
    assert torch.cat([own["dice"] for own in found]).tolist() == pytest.approx(dice, abs=1e-4)
    assert torch.cat([own["ncc_before"] for own in found]).mean() == pytest.approx(-ncc, abs=1e-3)
