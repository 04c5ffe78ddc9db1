import pytest
import torch

from domains.medical.networks import voxelmorph
from domains.medical.networks.voxelmorph import VoxelMorph, voxelmorph_1, voxelmorph_nm
from domains.medical.warping import integrate, resize, warp


def close(found, want):
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)


def test_equals_published_outputs(stored, volumes, recipe):
    told = stored("vxm_official_int7_32.npz")
    weights = recipe(VoxelMorph(), voxelmorph._RULES, gain=0.4)
    weights["transformer.grid"] = torch.zeros(1, 3, 32, 32, 32)
    config = {"inshape": (32, 32, 32), "int_steps": 7, "int_downsize": 2}
    with torch.no_grad():
        output = VoxelMorph.from_published(config, weights)(*volumes(32, 32, 32))
    close(output.flow, told["flow_full"])
    close(output.warped, told["warped"])
    close(output.velocity, told["preint_half"])


def test_equals_published_outputs_of_the_strided_size(stored, volumes, recipe):
    told = stored("nmrepo_voxelmorph_strided_32.npz")
    weights = recipe(voxelmorph_nm(), voxelmorph._STRIDED_RULES, gain=0.4)
    with torch.no_grad():
        output = VoxelMorph.from_published({}, weights)(*volumes(32, 32, 32))
    close(output.flow, told["flow"])
    close(output.warped, told["warped"])
    assert output.velocity is None


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (VoxelMorph, 327_331),
        (lambda: VoxelMorph(int_steps=0), 327_331),
        (voxelmorph_1, 276_523),
        (voxelmorph_nm, 274_387),
    ],
)
def test_has_the_published_number_of_parameters(build, count):
    assert sum(p.numel() for p in build().parameters()) == count


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.rand(2, 1, 1, 16, 16, 32).unbind()


def loud(**given):
    """A small network whose flow is about a voxel."""
    torch.manual_seed(0)
    network = VoxelMorph((4, 8), (8, 8, 4), **given).eval()
    torch.nn.init.normal_(network.flow.weight, std=0.3)
    return network


def test_both_ways_are_inverse(pair):
    with torch.no_grad():
        output = loud(bidir=True)(*pair)
    torch.testing.assert_close(output.warped_fixed, warp(pair[1], output.inverse_flow))
    velocity = output.velocity
    want = resize(integrate(-velocity, 7), pair[0].shape[2:])
    torch.testing.assert_close(output.inverse_flow, want)
    assert output.flow.abs().max() > 0.1


def test_without_integration_the_flow_is_the_last_layer(pair):
    network, seen = loud(int_steps=0, bidir=True), []
    network.flow.register_forward_hook(lambda *given: seen.append(given[2]))
    output = network(*pair)
    assert torch.equal(output.flow, seen[0])
    assert torch.equal(output.inverse_flow, -seen[0])
    assert output.velocity is None
    assert network.divisor == 4


def test_a_coarser_integration_needs_sides_that_it_divides(pair):
    network = loud(int_downsize=3)
    assert network.divisor == 12
    with pytest.raises(ValueError, match="multiples of 12"):
        network(*pair)
    volume = torch.rand(1, 1, 12, 12, 24)
    assert network(volume, volume).velocity.shape == (1, 3, 4, 4, 8)


def test_half_resolution_predicts_on_the_grid_of_the_integration(pair):
    output = loud(half_res=True)(*pair)
    assert output.velocity.shape == (1, 3, 8, 8, 16)
    assert output.flow.shape == (1, 3, 16, 16, 32)


def test_widths_come_from_the_published_configuration(recipe):
    small = VoxelMorph((4, 8), (8, 8, 4))
    weights = recipe(small, voxelmorph._RULES)
    config = {"nb_unet_features": [[4, 8], [8, 8, 4]], "int_steps": 5, "bidir": True}
    network = VoxelMorph.from_published(config, weights)
    assert (network.encoder, network.decoder) == ((4, 8), (8, 8, 4))
    assert (network.int_steps, network.bidir) == (5, True)
    with pytest.raises(ValueError, match=r"encoder.0.0.main.weight is \(4, 2, 3, 3, 3\), needed"):
        VoxelMorph.from_published({}, weights)
