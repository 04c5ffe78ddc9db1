import pytest
import timm
import torch

from core.network_parts import head, stages
from core.pretrained import from_pretrained, save_pretrained
from core.warm_start import warm_start
from domains.vision.networks.feature_pyramid import FeaturePyramid, Pyramid, Rise


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FeaturePyramid(5, width=32, branch=32)


def parameters(channels, width, branch, classes):
    lateral = sum(count * width + width for count in channels)
    smooth = len(channels) * (9 * width * width + width)
    blocks = [(width, branch)] * 4 + [(branch, branch)] * 3  # 1, 1, 2 and 3 convolutions
    rise = sum(9 * before * after + 2 * after for before, after in blocks)
    return lateral + smooth + rise + branch * classes + classes


def test_has_the_parameters_of_the_paper():
    with torch.device("meta"):
        network = FeaturePyramid(11)
    encoder = 11_176_512  # ResNet-18 without its last layer
    own = parameters((64, 128, 256, 512), 256, 128, 11)
    assert sum(p.numel() for p in network.parameters()) == encoder + own


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (64, 32), (45, 71)])
def test_takes_any_height_and_width(network, size):
    output = network(torch.randn(2, 3, *size))
    assert output.logits.shape == (2, 5, *size)
    assert output.auxiliary == ()


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "pvt_v2_b0"])
def test_takes_backbones_by_name(name):
    network = FeaturePyramid(3, name, width=16, branch=32).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 50, 70)).logits.shape == (1, 3, 50, 70)
    own = {id(p) for stage in stages(network) for part in stage for p in part.parameters()}
    assert own == {id(p) for p in network.encoder.parameters()}
    assert head(network) == [network.classify]


def test_what_is_filled_up_is_cut_off(network):
    images = torch.randn(1, 3, 50, 70)
    filled = torch.zeros(1, 3, 64, 96)
    filled[..., :50, :70] = images
    with torch.no_grad():
        whole = network.eval()(filled).logits[..., :50, :70]
        torch.testing.assert_close(network(images).logits, whole)


def test_coarse_maps_reach_the_finer_ones():
    pyramid = Pyramid([4, 4, 4], 8)
    maps = [torch.zeros(1, 4, size, size, requires_grad=True) for size in (8, 4, 2)]
    fine, _, coarse = pyramid(maps)
    assert (fine.shape, coarse.shape) == ((1, 8, 8, 8), (1, 8, 2, 2))
    grads = torch.autograd.grad(fine[0, :, 0, 0].sum(), maps)
    assert all(grad.abs().sum() > 0 for grad in grads)
    assert grads[2][0, :, 1, 1].abs().sum() == 0  # of another place
    assert Rise(8, 32, 0)(fine).shape == (1, 32, 8, 8)
    assert Rise(8, 32, 2)(coarse).shape == (1, 32, 8, 8)


def test_every_parameter_gets_a_gradient(network):
    network(torch.randn(2, 3, 64, 96)).logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
    assert network.encoder.conv1.weight.grad.abs().sum() > 0


def test_is_the_same_after_a_save_and_a_load(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    images = torch.randn(1, 3, 50, 66)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, network.eval()(images).logits)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_begins_from_weights_of_the_backbone(name):
    network = FeaturePyramid(3, name, width=16, branch=32)
    weights = timm.create_model(name).state_dict()
    started = warm_start(network, weights, name)
    known = [each for each in network.state_dict() if each.startswith("encoder.")]
    assert sorted(started.matched) == sorted(known)
    last = list(network.encoder.parameters())[-1]
    assert any(torch.equal(last, each) for each in weights.values())


@pytest.mark.slow
def test_an_exported_program_gives_the_same_for_another_batch(network):
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(
        network.eval(), (torch.zeros(2, 3, 48, 70),), dynamic_shapes={"images": {0: batch}}
    ).module()
    images = torch.randn(3, 3, 48, 70)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), network(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": 0}, "classes=0"),
        ({"branch": 40}, "branch=40 a multiple of 32"),
        ({"backbone": "resnet19"}, "backbone='resnet19'"),
        ({"backbone": "vit_tiny_patch16_224"}, "maps of the strides"),
    ],
)
def test_refuses_what_does_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        FeaturePyramid(**{"classes": 3} | given)
