"""Scores of displacements, against plain definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt, uniform_filter

from domains.medical.judging import IMAGE_SCORES, LABEL_SCORES, judge
from domains.medical.metrics import hausdorff_95, label_dice, slice_ssim
from domains.medical.pairs import Collate, Pair


def ball(size, centre, radius):
    places = np.indices((size,) * 3).astype(float)
    return sum((p - c) ** 2 for p, c in zip(places, centre, strict=True)) <= radius**2


def test_dice_of_labels():
    found = torch.tensor([[[1, 1, 2, 0]]])
    truth = torch.tensor([[[1, 2, 2, 2]]])
    scores = label_dice(found, truth, torch.tensor([1, 2, 7]))
    assert scores[:2].tolist() == pytest.approx([2 / 3, 2 / 4])
    assert math.isnan(scores[2])


def test_hd95_joins_both_directions_of_the_distances_between_borders():
    a, b = ball(24, (10, 11, 12), 6.2), ball(24, (13, 11, 10), 5.1)
    spacing = (1.0, 1.5, 2.0)
    edges = [mask ^ binary_erosion(mask) for mask in (a, b)]
    ways = [
        distance_transform_edt(~edges[there], spacing)[edges[here]]
        for here, there in ((0, 1), (1, 0))
    ]
    expected = np.percentile(np.concatenate(ways), 95)
    found = hausdorff_95(
        *(torch.from_numpy(mask.astype(np.int64)) for mask in (a, b)),
        torch.tensor([1, 2]),
        torch.tensor(spacing),
    )
    assert found[0, 0].item() == pytest.approx(expected)
    assert found[:, 1].isnan().all()


def test_hd95_of_surfels_takes_the_worse_direction():
    truth, found = np.zeros((20, 20, 20), np.int64), np.zeros((20, 20, 20), np.int64)
    truth[5:15, 5:15, 5:15] = 1
    found[5:15, 5:15, 5:12] = 1  # a side is three voxels short
    scores = hausdorff_95(
        *(torch.from_numpy(part) for part in (found, truth)), torch.tensor([1]), torch.ones(3)
    )
    assert scores[1].item() == pytest.approx(3.0, abs=0.05)
    same = torch.from_numpy(truth)
    assert hausdorff_95(same, same, torch.tensor([1]), torch.ones(3)).tolist() == [[0.0], [0.0]]


def test_ssim_of_slices_by_its_definition():
    generator = np.random.default_rng(0)
    x, y = generator.random((2, 4, 12, 13))
    y = 0.5 * x + 0.5 * y
    c1, c2 = (0.01 * np.ptp(y)) ** 2, (0.03 * np.ptp(y)) ** 2
    slices = []
    for a, b in zip(x, y, strict=True):
        mean = [uniform_filter(part, 7) for part in (a, b, a * a, b * b, a * b)]
        va, vb = (49 / 48 * (mean[2 + n] - mean[n] ** 2) for n in (0, 1))
        vab = 49 / 48 * (mean[4] - mean[0] * mean[1])
        value = (2 * mean[0] * mean[1] + c1) * (2 * vab + c2)
        value /= (mean[0] ** 2 + mean[1] ** 2 + c1) * (va + vb + c2)
        slices.append(value[3:-3, 3:-3].mean())
    found = slice_ssim(torch.from_numpy(x), torch.from_numpy(y))
    assert found.item() == pytest.approx(np.mean(slices))


def test_a_pair_is_judged_at_its_true_size_whatever_fills_it_up():
    generator = torch.Generator().manual_seed(0)
    shape = (10, 9, 11)
    moving, fixed = torch.rand((2, *shape), generator=generator)
    labels = [torch.randint(0, 3, shape, generator=generator) for _ in range(2)]
    mask = torch.ones(shape, dtype=torch.bool)
    own = Pair(moving, fixed, *labels, mask, torch.ones(3), 0, "pair")
    flow = torch.randn(1, 3, 16, 16, 16, generator=generator) * 0.3
    flow[..., 10:, :, :] = flow[..., 9:, :] = flow[..., 11:] = 5.0
    names = [*IMAGE_SCORES, *LABEL_SCORES]
    small, large = (
        judge(
            batch,
            flow[..., : batch.fixed.shape[2], : batch.fixed.shape[3], : batch.fixed.shape[4]],
            torch.tensor([1, 2]),
            ["one", "two"],
            names=names,
        )
        for batch in (Collate(1)([own]), Collate(16)([own]))
    )
    assert set(small) == {*names, "dice/one", "dice/two"}
    for name in small:
        # places just beyond the border blend with what lies there: zeros, as without filling
        assert large[name].item() == pytest.approx(small[name].item(), rel=1e-4), name


def test_a_perfect_displacement_is_told_from_none():
    image = torch.zeros(16, 16, 16)
    image[4:10, 5:11, 6:12] = torch.rand(6, 6, 6) + 0.5
    labels = (image > 0).long()
    moved = image.roll(2, 0)
    mask = torch.ones_like(image, dtype=torch.bool)
    batch = Collate()(
        [Pair(moved, image, labels.roll(2, 0), labels, mask, torch.ones(3), 0, "rolled")]
    )
    flow = torch.zeros(1, 3, 16, 16, 16)
    flow[:, 0] = 2
    found = judge(batch, flow, torch.tensor([1]), ["box"], names=[*IMAGE_SCORES, *LABEL_SCORES])
    assert found["dice"].item() == 1
    assert found["dice_before"].item() < 0.8
    assert found["hd95"].item() == found["folding"].item() == 0
    assert found["sdlogj"].item() == pytest.approx(0, abs=1e-12)
    assert found["hd95_before"].item() == pytest.approx(2)
    assert found["ncc"].item() > found["ncc_before"].item()
    assert found["ssim"].item() == pytest.approx(1, abs=1e-6)
