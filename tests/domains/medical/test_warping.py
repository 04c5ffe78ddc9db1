import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.blocks import DVF2DDF, Warp
from scipy.interpolate import BSpline

from domains.medical.deformation import folding_share
from domains.medical.warping import (
    integrate,
    resize,
    spline_kernel,
    spline_points,
    spline_upsample,
    warp,
)


def test_a_flow_of_zero_is_the_identity(volumes):
    moving, _ = volumes(32, 24, 40)
    zero = torch.zeros(1, 3, 32, 24, 40)
    torch.testing.assert_close(warp(moving, zero), moving, atol=1e-6, rtol=0)
    labels = torch.randint(0, 9, (1, 1, 32, 24, 40)).float()
    assert torch.equal(warp(labels, zero, "nearest"), labels)


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.integers(-3, 3)] * 3))
def test_a_whole_shift_reads_that_many_voxels_on(shift):
    volume = torch.rand(1, 2, 8, 9, 7, generator=torch.Generator().manual_seed(0))
    flow = torch.tensor(shift).float().view(1, 3, 1, 1, 1).expand(1, 3, 8, 9, 7)
    rolled = torch.roll(volume, [-step for step in shift], (2, 3, 4))
    inside = torch.ones(8, 9, 7, dtype=torch.bool)
    for axis, step in enumerate(shift):
        place = torch.arange(inside.shape[axis]) + step
        fits = (place >= 0) & (place < inside.shape[axis])
        inside &= fits.view([-1 if a == axis else 1 for a in range(3)])
    want = torch.where(inside, rolled, 0)  # zero where the place lies outside
    torch.testing.assert_close(warp(volume, flow), want, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*Using PyTorch native grid_sample:UserWarning")
def test_equals_monai(smooth):
    volume, flow = torch.rand(1, 1, 12, 14, 10), smooth(12, 14, 10, scale=2)
    other = Warp(mode="bilinear", padding_mode="zeros")
    torch.testing.assert_close(warp(volume, flow), other(volume, flow), atol=1e-5, rtol=1e-5)
    whole = DVF2DDF(num_steps=7, mode="bilinear", padding_mode="zeros")(flow)
    torch.testing.assert_close(integrate(flow, 7), whole, atol=1e-4, rtol=1e-4)


def test_places_keep_their_precision_in_bfloat16(smooth):
    volume, flow = torch.rand(1, 1, 16, 16, 16), smooth(16, 16, 16).bfloat16()
    torch.testing.assert_close(warp(volume, flow), warp(volume, flow.float()), atol=0, rtol=0)
    assert warp(volume.double(), flow).dtype == torch.float64


def test_refuses_a_flow_of_another_size():
    with pytest.raises(ValueError, match=r"not \(4, 4, 4\) and \(4, 4, 5\) voxels"):
        warp(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 3, 4, 4, 5))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_exponential_has_an_inverse_and_does_not_fold(smooth, seed):
    velocity = smooth(32, 32, 32, seed=seed)
    there, back = integrate(velocity, 7), integrate(-velocity, 7)
    both = back + warp(there, back)
    inner = both[..., 4:-4, 4:-4, 4:-4]  # what leaves the grid is not known there
    assert inner.norm(dim=1).mean() < 0.05
    assert folding_share(there).item() == folding_share(back).item() == 0


def test_the_exponential_of_a_constant_is_that_constant():
    velocity = torch.tensor([0.5, -0.25, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 16, 16, 16)
    inner = integrate(velocity, 7)[..., 4:-4, 4:-4, 4:-4]
    torch.testing.assert_close(inner, velocity[..., 4:-4, 4:-4, 4:-4], atol=1e-5, rtol=0)
    assert torch.equal(integrate(velocity, 0), velocity)


def test_a_resized_flow_points_to_the_same_places(smooth):
    flow = smooth(8, 8, 8)
    fine = resize(flow, (15, 15, 15))
    assert fine.shape == (1, 3, 15, 15, 15)
    torch.testing.assert_close(fine[..., ::2, ::2, ::2], flow * 15 / 8, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(resize(fine, (8, 8, 8)), flow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spacing", range(1, 9))
def test_the_kernel_is_the_cubic_spline(spacing):
    kernel = spline_kernel(spacing, torch.float64)
    t = np.arange(-(2 * spacing - 1), 2 * spacing) / spacing
    want = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)(t)
    np.testing.assert_allclose(kernel, want, atol=1e-12)
    assert kernel.dtype == torch.float64


def test_a_spline_through_a_plane_is_that_plane():
    size, spacing = (17, 12, 9), (4, 3, 2)
    axes = [
        (torch.arange(count).double() - 1) * step
        for count, step in zip(spline_points(size, spacing), spacing, strict=True)
    ]
    i, j, k = torch.meshgrid(*axes, indexing="ij")
    dense = spline_upsample((i + 2 * j - k)[None, None], spacing, size)
    i, j, k = torch.meshgrid(*(torch.arange(side).double() for side in size), indexing="ij")
    torch.testing.assert_close(dense, (i + 2 * j - k)[None, None])
