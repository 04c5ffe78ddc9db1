import pytest
import torch

from domains.medical.networks.midir import MIDIR


@pytest.fixture(scope="module")
def weights(recipe):
    return recipe(MIDIR(3, (32, 32)))


def test_equals_published_outputs(stored, volumes, weights):
    told = stored("nmrepo_midir_cps3_32.npz")
    network = MIDIR.from_published({"cps": (3, 3, 3), "img_size": (32, 32, 32)}, weights)
    with torch.no_grad():
        output = network(*volumes(32, 32, 32))
    for name, found in (("velocity", output.velocity), ("disp", output.flow)):
        torch.testing.assert_close(found, told[name], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.warped, told["warped"], atol=1e-4, rtol=0)


def test_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in MIDIR(3, (32, 32)).parameters()) == 266_387


@pytest.mark.parametrize(
    ("spacing", "levels"), [(2, 3), (3, 2), (4, 2), (5, 1), (8, 1), ((8, 2, 8), 3)]
)
def test_the_decoder_ends_about_at_the_control_points(spacing, levels):
    network = MIDIR(spacing)
    assert len(network.dec) == levels
    volume = torch.rand(1, 1, 16, 32, 16)
    assert network(volume, volume).velocity.shape == (1, 3, 16, 32, 16)


def test_the_official_sampling_moves_what_does_not_move(volumes, weights):
    still = {name: tensor * (not name.startswith("out")) for name, tensor in weights.items()}
    moving, fixed = volumes(32, 32, 32)
    with torch.no_grad():
        official = MIDIR.from_published({}, still)(moving, fixed)
        corners = MIDIR.from_published({"sampling": "corners"}, still)(moving, fixed)
    assert official.flow.abs().max() == 0
    assert (official.warped - moving)[..., 2:-2, 2:-2, 2:-2].abs().max() > 0.01
    torch.testing.assert_close(corners.warped, moving, atol=1e-5, rtol=0)
