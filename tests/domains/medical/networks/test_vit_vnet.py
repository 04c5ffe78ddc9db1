import pytest
import torch

from domains.medical.networks import vit_vnet
from domains.medical.networks.vit_vnet import ViTVNet
from domains.medical.warping import integrate


@pytest.mark.slow
def test_equals_published_outputs(stored, volumes, recipe):
    told = stored("nmrepo_vitvnet_64.npz")
    with torch.device("meta"):
        shapes = ViTVNet(64)
    weights = recipe(shapes, vit_vnet._RULES, gain=0.4)
    config = {"img_size": (64, 64, 64), "hidden_size": 252, "transformer": {"num_layers": 12}}
    network = ViTVNet.from_published(config, weights).eval()
    with torch.no_grad():
        output = network(*volumes(64, 64, 64))
    for name, want in told.items():
        found = getattr(output, name)[..., ::4, ::4, ::4]
        torch.testing.assert_close(found, want, atol=1e-4, rtol=0)
    assert output.velocity is None


@pytest.mark.parametrize(("size", "count"), [(64, 31_509_175), ((160, 192, 224), 31_560_079)])
def test_has_the_published_number_of_parameters(size, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in ViTVNet(size).parameters()) == count


def test_integrates_where_it_is_asked_to():
    torch.manual_seed(0)
    network = ViTVNet(32, width=24, depth=1, heads=2, inner=32).eval()
    torch.nn.init.normal_(network.flow.weight, std=1)
    output = network(*torch.rand(2, 1, 1, 32, 32, 32))
    assert output.velocity.abs().max() > 0.1
    torch.testing.assert_close(output.flow, integrate(output.velocity, 7))


def test_refuses_volumes_of_another_size():
    network = ViTVNet(32, width=24, depth=1, heads=2, inner=32)
    volume = torch.zeros(1, 1, 32, 32, 64)
    with pytest.raises(ValueError, match=r"\(32, 32, 64\) voxels must be \(32, 32, 32\)"):
        network(volume, volume)


def test_the_size_must_be_given():
    with pytest.raises(ValueError, match="missing img_size"):
        ViTVNet.from_published({}, {})
