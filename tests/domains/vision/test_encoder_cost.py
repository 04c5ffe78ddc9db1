import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from core.early_exit.gate import Gate
from core.early_exit.stages import ExitController
from domains.vision.encoder_cost import encoder_tokens, layer_macs

SWIN_T = {"width": 256, "feedforward": 1024, "heads": 8}
SMALL = {"width": 64, "feedforward": 128, "heads": 4}


def decoder(width, feedforward, heads, layers=6):
    config = Mask2FormerConfig(
        feature_size=width,
        mask_feature_size=width,
        encoder_feedforward_dim=feedforward,
        num_attention_heads=heads,
        encoder_layers=layers,
        dropout=0.0,
    )
    channels = [width // 2 * 2**level for level in range(4)]
    module = Mask2FormerPixelDecoder(config, channels).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # its constructor leaves some unset
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    return module


def maps(width, height, across, batch=1):
    return [
        torch.randn(batch, width // 2 * 2**at, -(-height // s), -(-across // s))
        for at, s in enumerate((4, 8, 16, 32))
    ]


def counted(module, features, depth):
    exits = ExitController(module, list(module.encoder.layers))
    with exits.depth(depth), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(features)
    exits.remove()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("size", [(96, 96), (64, 160), (100, 75)])
@pytest.mark.parametrize("sizes", [SWIN_T, SMALL])
def test_the_formula_is_what_the_counter_counts(sizes, size):
    torch.manual_seed(0)
    features = maps(sizes["width"], *size)
    expected = layer_macs(encoder_tokens(*size), **sizes)
    module = decoder(**sizes)
    totals = [counted(module, features, depth) for depth in (2, 3, 6)]
    assert totals[1] - totals[0] == pytest.approx(expected, rel=0.01)
    assert totals[2] - totals[0] == pytest.approx(4 * expected, rel=0.01)


def test_the_published_size():
    """31.467 G a layer in the paper's counter, which counts norms and softmax too."""
    one = layer_macs(encoder_tokens(1024, 2048))
    assert one == pytest.approx(31.36e9, rel=1e-3)
    assert one == pytest.approx(31.467e9, rel=0.01)
    assert 4 * one == pytest.approx((537.85 - 411.98) * 1e9, rel=0.01)


def refined(output):
    return [*output.multi_scale_features, output.mask_features]


def test_a_gate_gives_each_sample_what_a_network_of_its_depth_gives():
    """In a batch of three too, which is as many as there are maps."""
    torch.manual_seed(0)
    module = decoder(**SMALL)
    project, norm = module.input_projections[0]
    with torch.no_grad():  # tokens differ by the photo alone
        project.bias.zero_()
        norm.weight.fill_(1)
        norm.bias.zero_()
    gate = Gate(64, depths=(2, 3, 4, 5, 6))
    coarse = 2 * 3  # tokens of the map at 1/32
    for batch in (8, 3):
        features = maps(64, 64, 96, batch)
        exits = ExitController(module, list(module.encoder.layers))
        with torch.no_grad(), exits.chosen_by(lambda state: gate.choose(state[:, :coarse])):
            mixed = refined(module(features))
            depths = exits.depths.tolist()
            assert len(set(depths)) > 1
            for at in range(batch):
                alone = refined(module([map[at : at + 1] for map in features]))
                assert exits.depths.tolist() == depths[at : at + 1]
                for whole, own in zip(mixed, alone, strict=True):
                    torch.testing.assert_close(whole[at : at + 1], own, atol=1e-5, rtol=1e-5)
        exits.remove()
        for at, depth in enumerate(depths):
            short = decoder(**SMALL, layers=depth)
            short.load_state_dict(module.state_dict(), strict=False)
            with torch.no_grad():
                plain = refined(short([map[at : at + 1] for map in features]))
            for whole, own in zip(mixed, plain, strict=True):
                torch.testing.assert_close(whole[at : at + 1], own, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_fewer_layers_take_less_time():
    torch.manual_seed(0)
    module = decoder(**SWIN_T)
    features = maps(256, 256, 384, batch=2)
    exits = ExitController(module, list(module.encoder.layers))

    def seconds(depth):
        began = time.perf_counter()
        with torch.no_grad(), exits.depth(depth):
            module(features)
        return time.perf_counter() - began

    seconds(6)
    ratios = sorted(seconds(2) / seconds(6) for _ in range(5))
    assert ratios[2] < 0.7
