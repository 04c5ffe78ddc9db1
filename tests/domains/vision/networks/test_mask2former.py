"""Mask2Former beside its published outputs, beside transformers' own, and with early exits."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)

from core.early_exit.stages import ExitController
from core.early_exit.transform import EarlyExit
from core.pretrained import from_pretrained, save_pretrained
from core.warm_start import warm_start
from domains.vision.networks import deformable
from domains.vision.networks.deformable import Maps, middles, read_points, read_rows
from domains.vision.networks.mask2former import Mask2Former, reach
from pleiad.importing import read

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 4,
    "drop_path_rate": 0.0,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 2],
}


def small(backbone=SWIN, **changed):
    torch.manual_seed(0)
    sizes = {"width": 32, "queries": 5, "heads": 2, "encoder_layers": 6, "decoder_layers": 3}
    inner = {"encoder_feedforward": 48, "decoder_feedforward": 40}
    network = Mask2Former(**{"classes": 3, "backbone": backbone, **sizes, **inner, **changed})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network.eval()


def whole(output):
    pairs = (*output.auxiliary, (output.class_logits, output.mask_logits))
    return [tensor for pair in pairs for tensor in pair]


def assert_equal(outputs, others, atol):
    for own, other in zip(whole(outputs), whole(others), strict=True):
        torch.testing.assert_close(own, other, atol=atol, rtol=0)


def published(golden):
    file = golden("mask2former_tiny")
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in file["state_dict_half"].items()
    }
    return file, Mask2Former.from_published(file["config"], state).eval()


@pytest.mark.parametrize("rows", [False, True])
def test_equals_published_outputs(golden, rows, monkeypatch):
    file, network = published(golden)
    monkeypatch.setattr(deformable, "WIDE_HEAD", 1 if rows else 99)
    with torch.no_grad():
        output = network(file["inputs"]["pixel_values"].float())
    wanted = file["outputs"]
    torch.testing.assert_close(output.class_logits, wanted["class_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.mask_logits, wanted["mask_logits"], atol=1e-4, rtol=0)
    pairs = zip(wanted["aux_class_logits"], wanted["aux_mask_logits"], strict=True)
    for (classes, masks), (classes_wanted, masks_wanted) in zip(
        output.auxiliary, pairs, strict=True
    ):
        torch.testing.assert_close(classes, classes_wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(masks, masks_wanted, atol=1e-4, rtol=0)


def library(kind):
    config = SwinConfig if kind["model_type"] == "swin" else ResNetConfig
    rest = {key: value for key, value in kind.items() if key != "model_type"}
    torch.manual_seed(0)
    network = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=config(**rest, out_features=STAGES),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=48,
            dim_feedforward=40,
            encoder_layers=2,
            decoder_layers=5,
            num_attention_heads=2,
            num_queries=6,
            num_labels=4,
        )
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves a network of transformers as its users do."""
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def save(kind):
        network = library(kind)
        network.save_pretrained(tmp_path / "theirs")
        return network, tmp_path / "theirs"

    return save


@pytest.mark.parametrize("kind", [SWIN, RESNET], ids=["swin", "resnet"])
def test_equals_transformers_from_its_folder_at_any_size(saved, kind):
    theirs, folder = saved(kind)
    ours = Mask2Former.from_published(*read(Path(folder))).eval()
    for size in ((64, 96), (50, 75), (1, 1), (33, 130)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            wanted, output = theirs(images), ours(images)
        torch.testing.assert_close(
            output.class_logits, wanted.class_queries_logits, atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            output.mask_logits, wanted.masks_queries_logits, atol=1e-5, rtol=0
        )
        assert output.mask_logits.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))


def test_a_published_folder_starts_a_network_of_other_classes(saved):
    theirs, folder = saved(SWIN)
    ours = small(encoder_layers=2, decoder_layers=4, queries=6, classes=7)
    before = ours.decoder.class_embed.weight.clone()
    told = warm_start(ours, read(folder)[1], str(folder))
    assert not told.missing
    assert not told.unexpected
    assert [line.split()[0] for line in told.reshaped] == [
        "decoder.class_embed.weight",
        "decoder.class_embed.bias",
    ]
    wanted = theirs.model.transformer_module.queries_features.weight
    assert torch.equal(ours.decoder.query_features.weight, wanted)
    assert torch.equal(ours.decoder.class_embed.weight, before)


def test_what_does_not_fit_is_listed(saved):
    config, state = read(saved(SWIN)[1])
    with pytest.raises(ValueError, match=r"pre_norm=True must be False; mask_feature_size=64"):
        Mask2Former.from_published({**config, "pre_norm": True, "mask_feature_size": 64}, state)
    state.pop("class_predictor.bias")
    with pytest.raises(ValueError, match=r"missing decoder.class_embed.bias"):
        Mask2Former.from_published(config, state)
    with pytest.raises(ValueError, match=r"missing Q; .*unknown colour"):
        Mask2Former.from_published({"colour": 1, "d": 32}, state)
    with pytest.raises(ValueError, match="model_type='maskformer'"):
        Mask2Former.from_published({**config, "model_type": "maskformer"}, state)


def test_published_sizes():
    with torch.device("meta"):
        network = Mask2Former(19)
    counts = [
        sum(p.numel() for p in part.parameters())
        for part in (network, network.pixel_decoder, network.pixel_decoder.layers[0])
    ]
    assert counts == [47_405_966, 5_421_504, 732_192]
    assert sum(p.numel() for p in network.decoder.parameters()) == 14_458_624 + 5_140
    with pytest.raises(ValueError, match="backbone='swin' must be one of swin_tiny"):
        Mask2Former(19, "swin")
    with pytest.raises(ValueError, match="width=48 must be a multiple of 32"):
        Mask2Former(19, width=48)
    with pytest.raises(ValueError, match=r"classes=0, queries=0 must be at least 1"):
        Mask2Former(0, queries=0)


@pytest.mark.parametrize("kind", [SWIN, RESNET], ids=["swin", "resnet"])
def test_stages_and_head_hold_every_parameter_once(kind):
    network = small(kind)
    found = [
        id(parameter)
        for part in (*network.stages, *network.head)
        for module in (part if isinstance(part, list) else [part])
        for parameter in module.parameters()
    ]
    assert sorted(found) == sorted(id(p) for p in network.parameters())


def test_every_parameter_learns():
    network = small().train()
    output = network(torch.randn(2, 3, 64, 64))
    sum(tensor.square().sum() for tensor in whole(output)).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in still if "k_proj.bias" not in name] == []


@pytest.mark.parametrize("backbone", [SWIN, RESNET], ids=["swin", "resnet"])
def test_saved_and_loaded(tmp_path, backbone):
    network = small(backbone)
    save_pretrained(network, tmp_path)
    images = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        assert_equal(network(images), from_pretrained(tmp_path).network(images), 0)


def test_exit_k_is_the_network_of_k_layers():
    """Alone, and in a batch whose images leave at different depths."""
    network, images = small().double(), torch.randn(3, 3, 64, 96).double()
    exits = ExitController(network)
    assert exits.layers == list(network.pixel_decoder.layers)
    depths = torch.tensor([4, 2, 6])
    with torch.no_grad(), exits.depth(depths):
        mixed = network(images)
    for at, depth in enumerate(depths.tolist()):
        short = small(encoder_layers=depth).double()
        short.load_state_dict(network.state_dict(), strict=False)
        with torch.no_grad():
            plain = short(images[at : at + 1])
            with exits.depth(depth):
                alone = network(images[at : at + 1])
        assert_equal(alone, plain, 1e-6)
        for own, other in zip(whole(mixed), whole(plain), strict=True):
            torch.testing.assert_close(own[at : at + 1], other, atol=1e-6, rtol=0)
    assert exits.depths.tolist() == [6]


@torch.no_grad()
def test_a_gate_sees_the_map_at_1_32_and_each_image_leaves_for_itself():
    network, images = small(), torch.randn(4, 3, 72, 97)  # maps of 3x4, 5x7 and 9x13
    exits = EarlyExit(network, beta=0.02, min_exit=2).exits
    network(images)
    assert exits.control.depths.tolist() == [6] * 4  # not fitted yet
    judged = SimpleNamespace(quality=lambda: torch.ones(4))
    quality, features = exits.gate.examine(lambda: network(images) and judged)
    assert quality.shape == (4, 5)
    coarse = network.pixel_decoder.projections[0](network.body(images)[-1])
    assert coarse.shape[-2:] == (3, 4)
    torch.testing.assert_close(features, coarse.mean((2, 3)), atol=1e-6, rtol=1e-5)
    weight = torch.randn(5, 32) / features.std(0)
    exits.gate.linear.weight.copy_(weight)
    exits.gate.linear.bias.copy_(-weight @ features.mean(0))
    mixed, depths = network(images), exits.control.depths.tolist()
    assert len(set(depths)) > 1
    assert min(depths) >= 2
    for at, depth in enumerate(depths):
        alone = network(images[at : at + 1])
        assert exits.control.depths.tolist() == [depth]
        for own, other in zip(whole(mixed), whole(alone), strict=True):
            torch.testing.assert_close(own[at : at + 1], other, atol=1e-4, rtol=0)


def test_rows_show_what_points_show():
    torch.manual_seed(0)
    sizes = ((1, 1), (2, 3), (5, 4))
    tokens = sum(h * w for h, w in sizes)
    extent = torch.tensor([[[w, h]] for h, w in sizes]).float()
    like = torch.empty(0)
    maps = Maps(sizes, extent, middles(sizes, like), torch.zeros(tokens, 8))
    table = torch.randn(2, tokens, 2, 4)
    offsets = torch.randn(2, tokens, 2, 3, 4, 2) * 3  # many points lie outside
    weights = torch.rand(2, tokens, 2, 3, 4)
    one, other = (read(table, offsets, weights, maps) for read in (read_points, read_rows))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_query_without_a_mask_looks_everywhere():
    masks = torch.full((1, 2, 4, 4), -1.0)
    masks[0, 1, :2] = 3.0
    allowed = reach(masks, (2, 2))
    assert allowed[0, 0].tolist() == [[True] * 4, [True, True, False, False]]
