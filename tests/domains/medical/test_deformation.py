import numpy as np
import pytest
import torch

from domains.medical.deformation import folding_share, jacobian_determinant, sd_log_jacobian


def linear(factor, size=8):
    axes = torch.meshgrid(*[torch.arange(float(size))] * 3, indexing="ij")
    return factor * torch.stack(axes)[None]


@pytest.mark.parametrize("factor", [-0.5, 0.0, 0.1, 1.0])
def test_a_linear_flow_changes_volumes_by_its_cube(factor):
    determinant = jacobian_determinant(linear(factor))
    torch.testing.assert_close(determinant, torch.full((1, 8, 8, 8), (1 + factor) ** 3))


def test_equals_numpy():
    flow = torch.randn(2, 3, 6, 7, 5, dtype=torch.float64)
    for each, determinant in zip(flow.numpy(), jacobian_determinant(flow), strict=True):
        rows = [np.stack(np.gradient(part)) for part in each]
        matrix = np.moveaxis(np.stack(rows), (0, 1), (-2, -1)) + np.eye(3)
        np.testing.assert_allclose(determinant, np.linalg.det(matrix))


def test_space_folds_where_the_determinant_is_not_positive():
    both = torch.cat([linear(-1.5), linear(0.2)])
    assert folding_share(both).tolist() == [1, 0]


def test_the_two_deviations_follow_their_definitions():
    flow = 0.2 * torch.randn(1, 3, 9, 9, 9)
    inner = jacobian_determinant(flow)[0, 2:-2, 2:-2, 2:-2].double().numpy()
    shifted = np.std(np.log(np.clip(inner + 3, 1e-9, 1e9)))
    plain = np.std(np.log(np.maximum(inner, 1e-9)))
    assert sd_log_jacobian(flow).item() == pytest.approx(shifted)
    assert sd_log_jacobian(flow, "plain").item() == pytest.approx(plain)
    small = 0.01 * torch.randn(1, 3, 12, 12, 12)
    ratio = (sd_log_jacobian(small, "plain") / sd_log_jacobian(small)).item()
    assert ratio == pytest.approx(4, rel=0.01)
