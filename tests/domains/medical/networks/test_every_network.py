"""What holds for every network of registration."""

import copy

import pytest
import torch

from core.network_parts import head, stages
from core.pretrained import from_pretrained, save_pretrained
from domains.medical.networks.cyclemorph import CycleMorph
from domains.medical.networks.midir import MIDIR
from domains.medical.networks.nested_morph import NestedMorph
from domains.medical.networks.transmorph import TransMorph
from domains.medical.networks.vit_vnet import ViTVNet
from domains.medical.networks.voxelmorph import VoxelMorph, voxelmorph_nm

SIZE = (32, 32, 64)
NETWORKS = {
    "nested_morph": lambda: NestedMorph(),
    "nested_morph_official": lambda: NestedMorph("official", feature_channels=3),
    "voxelmorph": lambda: VoxelMorph((4, 8), (8, 8, 4)),
    "voxelmorph_both_ways": lambda: VoxelMorph((4, 8), (8, 8, 4), bidir=True, half_res=True),
    "voxelmorph_strided": lambda: voxelmorph_nm(),
    "transmorph": lambda: TransMorph(6, heads=(2, 2, 4, 4), window=(1, 1, 2)),
    "transmorph_shifted": lambda: TransMorph(6, heads=(2, 2, 4, 4), window=(2, 3, 4)),
    "midir": lambda: MIDIR(5),
    "midir_official": lambda: MIDIR((2, 3, 4), sampling="official"),
    "vit_vnet": lambda: ViTVNet(SIZE, width=24, depth=2, heads=3, inner=32),
    "cyclemorph": lambda: CycleMorph((4, 4, 4, 4, 4), (4, 4, 4, 4, 4, 3)),
}


@pytest.fixture(params=NETWORKS, scope="module")
def built(request):
    torch.manual_seed(0)
    network = NETWORKS[request.param]()
    for layer in head(network):  # a flow of about a voxel, so that gradients reach every part
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def network(built):
    return copy.deepcopy(built)


def batch(count=2):
    torch.manual_seed(1)
    return torch.rand(2, count, 1, *SIZE).unbind()


def test_gives_the_same_fields_in_training_and_evaluation(network):
    trained = network.train()(*batch())
    judged = network.eval()(*batch())
    for one, other in zip(trained, judged, strict=True):
        assert (one is None) == (other is None)
        assert one is None or one.shape == other.shape
    assert judged.warped.shape == (2, 1, *SIZE)
    assert judged.flow.shape == (2, 3, *SIZE)
    assert all(part is None or part.isfinite().all() for part in judged)


def test_every_parameter_gets_a_gradient(network):
    torch.manual_seed(2)
    output = network.train()(*batch())
    sum(part.square().mean() for part in output if part is not None).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert not without


def test_each_pair_is_registered_by_itself(network):
    moving, fixed = batch()
    with torch.no_grad():
        both = network.eval()(moving, fixed).flow
        alone = network(moving[1:], fixed[1:]).flow
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


def test_float64_gives_what_float32_gives(network):
    pair = batch(1)
    with torch.no_grad():
        single = network.eval()(*pair)
        double = network.double()(*(part.double() for part in pair))
    for one, other in zip(single, double, strict=True):
        if one is not None:
            torch.testing.assert_close(one.double(), other, atol=1e-3, rtol=1e-3)


def test_is_the_same_after_a_save_and_a_load(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    with torch.no_grad():
        assert torch.equal(loaded(*batch(1)).flow, network.eval()(*batch(1)).flow)


def test_refuses_sides_that_do_not_divide(network):
    short = torch.zeros(1, 1, 32, 32, 63)
    with pytest.raises(ValueError, match=rf"32 x 32 x 63 .* multiples of {network.divisor}: pad"):
        network(short, short)
    with pytest.raises(ValueError, match="must both be"):
        network(torch.zeros(1, 1, *SIZE), torch.zeros(1, 2, *SIZE))


def test_states_its_stages_and_its_head(network):
    told = [part for stage in stages(network) for part in stage]
    assert len(stages(network)) > 2
    assert len({id(part) for part in told}) == len(told)
    covered = {id(p) for part in [*told, *head(network)] for p in part.parameters()}
    loose = [name for name, p in network.named_parameters() if id(p) not in covered]
    assert all(name.split(".")[0] in LOOSE for name in loose), loose


LOOSE = {"norms", "half_skip", "full_skip", "positions", "norm"}
"""What belongs to no single layer of a stack."""


@pytest.mark.slow
def test_an_exported_program_gives_the_same(network):
    exported = torch.export.export(network.eval(), batch(1)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(*batch(1)).flow, network(*batch(1)).flow)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NestedMorph("other"), "layout='other' must be fixed or official"),
        (lambda: NestedMorph(feature_channels=0), "feature_channels=0 at least 1"),
        (lambda: VoxelMorph((4, 4), (4,)), "must have the 2 levels"),
        (lambda: VoxelMorph(int_steps=-1), "int_steps=-1 must be at least 0"),
        (lambda: VoxelMorph(half_res=True, int_steps=0), "half_res=True needs int_downsize=2"),
        (lambda: TransMorph(depths=(2, 2)), "must name four stages"),
        (lambda: TransMorph(96, heads=(5, 4, 8, 8)), "must divide the channels"),
        (lambda: MIDIR(1), "spacing=1 must lie from 2 to 8"),
        (lambda: MIDIR(sampling="faces"), "sampling='faces' must be corners or official"),
        (lambda: ViTVNet(40), "size=40 must be three multiples of 32"),
        (lambda: ViTVNet(32, heads=5), "heads=5 must divide width=252"),
        (lambda: CycleMorph(decoder=(1, 2, 3)), "must name five levels"),
    ],
)
def test_refuses_sizes_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("network", "config"),
    [
        (NestedMorph, {"layout": "official"}),
        (VoxelMorph, {"int_steps": 7}),
        (TransMorph, {"embed_dim": 6, "num_heads": (2, 2, 4, 4)}),
        (MIDIR, {"cps": 3}),
        (ViTVNet, {"img_size": (32, 32, 32), "num_layers": 1}),
        (CycleMorph, {}),
    ],
)
def test_lists_what_is_published_otherwise(network, config):
    with pytest.raises(ValueError, match="config: unknown wodth"):
        network.from_published({**config, "wodth": 3}, {})
    with pytest.raises(ValueError, match=r"weights do not fit: .*missing .*unexpected other"):
        network.from_published(config, {"other.weight": torch.zeros(1)})
