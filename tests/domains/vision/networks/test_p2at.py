import math
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from core.pretrained import from_pretrained, save_pretrained
from domains.vision.networks.p2at import P2AT, AxialAttention, GlobalContext, PyramidPooling, attend

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


@pytest.mark.parametrize(("name", "bounds"), [("p2at_s", (1.5e-3, 2e-4)), ("p2at_l", (3e-3, 5e-4))])
def test_equals_published_outputs(golden, name, bounds):
    file = golden(name)
    network = P2AT.from_published(file["config"], published(file)).eval()
    for key, image in file["inputs"].items():
        with torch.no_grad():
            output = network(image.float())
        step, told = file["strides"][key], file["outputs"][key]
        for found, head, bound in zip(
            (output.logits, *output.auxiliary),
            ("main", "aux1", "aux2"),
            (bounds[0], *bounds[1:] * 2),
            strict=True,
        ):
            assert found.shape[2:] == image.shape[2:]
            torch.testing.assert_close(found[..., ::step, ::step], told[head], atol=bound, rtol=0)
