import math
import zlib

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from core.pretrained import from_pretrained, save_pretrained
from core.warm_start import warm_start
from domains.vision.networks.p2at import P2AT, GlobalContext, attend

COUNTS = {
    "s": (12_735_499, 12_811_169),
    "m": (22_843_659, 22_919_329),
    "l": (25_275_915, 25_351_585),
}


def mixed(name, count, salt):
    """Numbers in [-1, 1) that depend on name and salt alone: splitmix64, seeded by a CRC."""
    wrap, gap = 2**64, 0x9E3779B97F4A7C15
    start = (zlib.crc32(name.encode()) << 32) + salt * 0x100000000000
    with np.errstate(over="ignore"):
        z = np.uint64(start % wrap) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(gap)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def drawn(name, shape, salt, last_norm):
    """The weight of that published name, as the stored outputs were made with."""
    count, last = math.prod(shape), name.rsplit(".", 1)[-1]
    noise = mixed(name, count, salt)
    unit = noise * math.sqrt(3 * shape[0] / count)  # variance of one over the fan-in
    norm = len(shape) == 1 and last == "weight"
    deep, residual = "deep_feature_processor" in name, name.startswith("layer")
    if last == "gamma":
        value = 0.5 + 0.5 * noise
    elif "pos_embed" in name:
        value = noise
    elif deep and ".mlp." in name and len(shape) == 4:
        value = 0.7 * unit
    elif deep and norm and "act" not in name:
        value = 0.7 + 0.3 * noise
    elif ("to_q" in name or "to_k" in name) and len(shape) > 1:
        value = 1.8 * unit
    elif norm and "act" in name:
        value = 0.25 + 0.2 * noise
    elif residual and norm and name.split(".")[2] == last_norm:
        value = 0.35 + 0.15 * noise
    elif len(shape) == 4 and (residual or name.startswith("conv1_x")):
        value = 1.3 * unit
    elif last == "bias":
        value = 0.2 * noise
    elif len(shape) > 1:
        value = unit
    else:
        value = 1 + 0.3 * noise
    return torch.from_numpy(value.reshape(shape)).float()


def published(file):
    last_norm = "bn3" if file["config"]["backbone"] == "resnet50" else "bn2"
    state = {
        name: file["bn_stats"][name]
        if name in file["bn_stats"]
        else drawn(name, tuple(shape), file["config"]["salt"], last_norm)
        for name, shape in file["shapes"].items()
    }
    for name, told in file["weight_checks"].items():
        assert float(state[name].double().sum()) == pytest.approx(told["sum_f64"], abs=1e-4)
    return state


@pytest.fixture
def network():
    torch.manual_seed(0)
    return P2AT(5)


@pytest.mark.parametrize(
    ("name", "main", "other"), [("p2at_s", 1.5e-3, 2e-4), ("p2at_l", 3e-3, 5e-4)]
)
def test_equals_published_outputs(golden, name, main, other):
    file = golden(name)
    network = P2AT.from_published(file["config"], published(file)).eval()
    for key, image in file["inputs"].items():
        with torch.no_grad():
            output = network(image.float())
        step, told = file["strides"][key], file["outputs"][key]
        found = dict(zip(("main", "aux1", "aux2"), (output.logits, *output.auxiliary), strict=True))
        for head, logits in found.items():
            assert logits.shape[2:] == image.shape[2:]
            bound = main if head == "main" else other
            torch.testing.assert_close(logits[..., ::step, ::step], told[head], atol=bound, rtol=0)


@pytest.mark.parametrize("size", COUNTS)
@pytest.mark.parametrize("auxiliary", [False, True])
def test_has_the_published_number_of_parameters(size, auxiliary):
    with torch.device("meta"):
        network = P2AT(11, size, auxiliary=auxiliary)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[size][auxiliary]


@pytest.mark.parametrize(
    ("size", "height", "width", "published"),
    [
        ("s", 360, 480, 10.56),
        ("s", 720, 960, 41.86),
        ("m", 720, 960, 67.41),
        ("l", 720, 960, 74.53),
    ],
)
def test_multiplies_and_adds_as_often_as_published(size, height, width, published):
    with torch.device("meta"):
        network = P2AT(11, size, auxiliary=False).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, height, width))
    assert counter.get_total_flops() / 2e9 == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (33, 32), (45, 71)])
def test_takes_any_height_and_width(network, size):
    output = network.train()(torch.randn(2, 3, *size))
    assert [part.shape for part in (output.logits, *output.auxiliary)] == [(2, 5, *size)] * 3


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    network = P2AT(3, layer_scale=0.01)
    output = network(torch.randn(2, 3, 64, 96))
    sum(part.square().mean() for part in (output.logits, *output.auxiliary)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_batch_of_one_can_be_trained(network):
    context = network.context4
    output = network.train()(torch.randn(1, 3, 70, 90))
    assert output.logits.isfinite().all()
    assert context.norm.running_mean.abs().sum() == 0  # not moved by a single value
    output.logits.square().mean().backward()
    assert context.conv2.weight.grad.abs().sum() > 0


def test_the_context_sees_the_mean_alone():
    torch.manual_seed(0)
    context, x = GlobalContext().eval(), torch.randn(2, 64, 5, 4)
    mean = x.mean((2, 3))
    inner = mean @ context.conv1.weight[:, :, 1, 1].T
    want = context.act(context.norm((inner @ context.conv2.weight[:, :, 3, 3].T)[..., None, None]))
    torch.testing.assert_close(context(x) - x, want.expand_as(x), atol=1e-5, rtol=1e-5)


def test_positions_are_added_as_they_are_to_an_axis_of_sixteen():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 128, 16), torch.randn(2, 128, 16), torch.randn(2, 256, 16)
    places = torch.randn(2, 1, 128, 16)
    heads = [(part + add).view(2, 8, 16, 16) for part, add in zip((q, k), places, strict=True)]
    shares = (torch.einsum("bhci,bhcj->bhij", *heads) / 4).softmax(-1)
    want = torch.einsum("bhij,bhcj->bhci", shares, v.view(2, 8, 32, 16)).reshape(2, 256, 16)
    torch.testing.assert_close(attend(q, k, v, *places), want)


def test_without_attention_and_without_auxiliary_heads():
    network = P2AT(5, depth=0, auxiliary=False)
    assert network(torch.zeros(2, 3, 32, 40)).auxiliary == ()
    assert len(network.stages) == 5
    assert sum(p.numel() for p in network.parameters()) == COUNTS["s"][0] - 544_256 - 6 * 65


def test_is_the_same_after_a_save_and_a_load(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    images = torch.randn(1, 3, 50, 66)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, network.eval()(images).logits)


def test_begins_from_official_weights(golden):
    network, official = P2AT(11), published(golden("p2at_s"))
    started = warm_start(network, official, "official")
    assert all(name.endswith("num_batches_tracked") for name in started.missing)
    assert not started.unexpected
    assert len(started.matched) == len(official)


def test_begins_from_weights_of_a_resnet(network):
    weights = resnet18().state_dict()
    started = warm_start(network, weights, "resnet18")
    assert {name.split(".")[-2] for name in started.unexpected} == {"fc"}
    assert torch.equal(network.encoder.conv1.weight, weights["conv1.weight"])
    assert torch.equal(network.encoder.layer4[0].conv1.weight, weights["layer4.0.conv1.weight"])


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
        ({"depth": -1}, "depth=-1"),
        ({"size": "xl"}, "size='xl' must be one of s, m, l"),
    ],
)
def test_refuses_sizes_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        P2AT(**{"classes": 3} | given)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_classes": 5}, "missing backbone"),
        ({"backbone": "resnet18", "num_classes": 5, "width": 3}, "unknown width"),
        ({"backbone": "resnet101", "num_classes": 5}, "'resnet101' must be one of resnet18"),
        ({"backbone": "resnet18", "num_classes": 5}, "missing conv1_x.weight"),
    ],
)
def test_refuses_what_is_published_otherwise(config, message):
    with pytest.raises(ValueError, match=message):
        P2AT.from_published(config, {})
