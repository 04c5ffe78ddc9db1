import pytest
import torch
import torch.nn.functional as F
from monai.losses import BendingEnergyLoss, LocalNormalizedCrossCorrelationLoss

from domains.medical.losses import (
    bending_energy,
    box_sum,
    diffusion,
    local_correlation,
    local_ncc,
)


def dense(x, y, window=9):
    """The correlation by a convolution with a full cube of ones."""
    cube, n = torch.ones(1, 1, *[window] * 3, dtype=x.dtype), window**3

    def total(values):
        return F.conv3d(values, cube, padding=window // 2)

    c = total(x * y) - total(x) * total(y) / n
    vx, vy = total(x * x) - total(x) ** 2 / n, total(y * y) - total(y) ** 2 / n
    return c * c / (vx * vy + 1e-5)


def test_equal_the_published_values(stored, volumes):
    told = stored("golden.json")["losses_32"]
    x, y = volumes(32, 32, 32)
    flow = 3 * torch.cat([x, y, x * y], 1)
    assert local_ncc(x, y).item() == pytest.approx(told["ncc9(x,y)"], abs=1e-6)
    assert diffusion(flow).item() == pytest.approx(told["grad_l2(3*[x,y,xy])"], abs=1e-7)
    assert diffusion(flow, "l1").item() == pytest.approx(told["grad_l1"], abs=1e-7)


@pytest.mark.parametrize("window", [1, 3, 5, 7, 9, 11, 17])
def test_the_separable_filter_equals_the_dense_one(window):
    x, y = torch.rand(2, 2, 1, 8, 11, 10, dtype=torch.float64)
    torch.testing.assert_close(local_correlation(x, y, window), dense(x, y, window))


def test_gradients_are_right():
    x, y = torch.rand(2, 1, 1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: local_ncc(x, y, 3), (x, y))
    assert torch.autograd.gradgradcheck(lambda x: box_sum(x, 3), (x,))


def test_a_volume_correlates_with_itself_and_its_affine_maps():
    x, y = torch.rand(2, 1, 1, 16, 16, 16)
    assert local_ncc(x, x).item() == pytest.approx(-1, abs=1e-3)
    assert local_ncc(x, y).item() == pytest.approx(local_ncc(y, x).item(), abs=1e-6)
    inner = (..., slice(4, -4), slice(4, -4), slice(4, -4))  # zeros around are not mapped
    mapped = local_correlation(x, 3 * y + 20)[inner]
    torch.testing.assert_close(mapped, local_correlation(x, y)[inner], atol=1e-4, rtol=1e-3)


def test_a_constant_volume_correlates_with_nothing():
    x, flat = torch.rand(1, 1, 16, 16, 16), torch.full((1, 1, 16, 16, 16), 1000.0)
    inner = (..., slice(4, -4), slice(4, -4), slice(4, -4))
    assert local_correlation(x, flat)[inner].abs().max() < 1e-4
    assert local_ncc(flat - 1000, flat - 1000).item() == 0


def test_float32_keeps_its_digits_on_a_high_level():
    torch.manual_seed(0)
    x, y = 1000 + torch.rand(2, 1, 1, 16, 16, 16, dtype=torch.float64)
    want = local_correlation(x, y)
    near = (local_correlation(x.float(), y.float()) - want).abs().max()
    plain = (dense(x.float(), y.float()) - want).abs().max()
    assert near < 1e-3 < plain


def test_a_mask_counts_its_voxels_alone():
    x, y = torch.rand(2, 1, 1, 12, 12, 12)
    mask = torch.zeros_like(x)
    mask[..., 3:9, 4:8, 5:7] = 1
    want = -local_correlation(x, y)[..., 3:9, 4:8, 5:7].mean()
    torch.testing.assert_close(local_ncc(x, y, mask=mask), want)


def test_is_the_loss_of_monai_but_for_its_small_terms():
    x, y = torch.rand(2, 1, 1, 16, 16, 16, dtype=torch.float64)
    other = LocalNormalizedCrossCorrelationLoss(kernel_size=9, smooth_nr=0, smooth_dr=1e-5)
    assert local_ncc(x, y).item() == pytest.approx(other(x, y).item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
def test_bending_energy_equals_that_of_monai():
    flow = torch.randn(2, 3, 6, 5, 7)
    torch.testing.assert_close(bending_energy(flow), BendingEnergyLoss()(flow))


def test_a_plane_does_not_bend_and_diffuses_by_its_slope():
    i, j, k = torch.meshgrid(*[torch.arange(8.0)] * 3, indexing="ij")
    flow = torch.stack([2 * i, j, 0 * k])[None]
    assert bending_energy(flow).item() == 0
    assert diffusion(flow).item() == pytest.approx((4 + 1) / 9)
    assert diffusion(flow, "l1").item() == pytest.approx((2 + 1) / 9)


def test_refuses_what_it_cannot_compare():
    x = torch.zeros(1, 1, 4, 4, 4)
    with pytest.raises(ValueError, match="window=4 must be odd"):
        local_ncc(x, x, 4)
    with pytest.raises(ValueError, match="have no correlation"):
        local_ncc(x, x[..., :3])
