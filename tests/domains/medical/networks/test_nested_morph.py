import pytest
import torch

from core.pretrained import from_pretrained, save_pretrained
from domains.medical.networks import nested_morph
from domains.medical.networks.nested_morph import Expand, Level, NestedMorph

TOTAL, LIVE = 21_958_433, 11_221_402


@pytest.fixture(scope="module")
def weights(recipe):
    released = NestedMorph("official", released=True)
    return recipe(released, nested_morph._RULES, pointwise=nested_morph._POINTWISE)


@pytest.fixture(scope="module")
def network(weights):
    return NestedMorph.from_published({}, weights).eval()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-5)])
def test_equals_published_outputs(stored, volumes, weights, dtype, bound):
    told = stored("nestedmorph_32_eval.npz")
    network = NestedMorph.from_published({}, weights).eval().to(dtype)
    seen = {}
    for number, stage in enumerate(network.encoder, 1):
        stage.register_forward_hook(lambda *a, n=number: seen.update({f"enc{n}": a[2]}))
    network.flow.register_forward_pre_hook(lambda _, given: seen.update(scalar_map=given[0]))
    with torch.no_grad():
        output = network(*volumes(32, 32, 32, dtype=dtype))
    found = {name: x.movedim(-1, 1) if "enc" in name else x for name, x in seen.items()}
    found |= {"flow": output.flow, "warped": output.warped}
    for name, want in told.items():
        atol = bound if name in ("flow", "scalar_map") else 1e-4
        torch.testing.assert_close(found[name].to(want), want, atol=atol, rtol=0)


def test_has_the_published_numbers_of_parameters():
    with torch.device("meta"):
        released = NestedMorph("official", released=True)
        counts = [sum(p.numel() for p in n.parameters()) for n in (released, NestedMorph())]
    assert counts == [TOTAL, LIVE]
    assert len(released.state_dict()) == 628


def test_the_parameters_without_gradient_are_those_that_are_left_out(weights):
    released = NestedMorph.from_published({}, weights).train()
    output = released(*torch.rand(2, 1, 1, 32, 32, 32))
    (output.flow.square().mean() + output.warped.square().mean()).backward()
    assert sum(p.numel() for p in released.parameters() if p.grad is not None) == LIVE


def test_training_normalises_by_the_batch(network, volumes, weights):
    trained = NestedMorph.from_published({}, weights).train()
    with torch.no_grad():
        train, judged = trained(*volumes(32, 32, 32)), network(*volumes(32, 32, 32))
    assert (train.flow - judged.flow).abs().max() > 1e-3
    moved = trained.level0.gate.out_norm.running_mean - network.level0.gate.out_norm.running_mean
    assert moved.abs().max() > 1e-4


def test_entries_that_no_output_depends_on_may_be_missing(network, volumes, weights, recipe):
    live = recipe(NestedMorph("official"), nested_morph._RULES, pointwise=nested_morph._POINTWISE)
    assert 0 < len(weights) - len(live) == len(weights.keys() - live.keys())
    again = NestedMorph.from_published({}, live).eval()
    with torch.no_grad():
        pair = volumes(32, 32, 32)
        assert torch.equal(again(*pair).flow, network(*pair).flow)


def test_the_official_layout_mixes_places_with_channels_and_the_fixed_one_does_not():
    torch.manual_seed(0)
    x, skip = torch.randn(2, 1, 4, 4, 4, 48)
    x.requires_grad_()
    reached = {}
    for layout in ("fixed", "official"):
        level = Level(48, 48, 2, True, layout).eval()
        for block in level.blocks:  # they reach over places by themselves
            block.layer_scale_1.data.zero_()
            block.layer_scale_2.data.zero_()
        level.gate.selection.weight.data.zero_()
        (grad,) = torch.autograd.grad(level(x, skip)[0, 1, 2, 3].sum(), x)
        reached[layout] = (grad.abs().sum(-1)[0] > 0).nonzero().tolist()
    assert reached["fixed"] == [[1, 2, 3]]
    assert len(reached["official"]) > 1


def test_an_expanded_token_stands_where_it_was():
    up = Expand(8, 4, 2)
    x = torch.randn(1, 2, 3, 2, 8)
    tokens = up(x)
    dense = up.spread(tokens)
    assert dense.shape == (1, 4, 6, 4, 4)
    for number in range(8):
        i, j, k = number // 4, number // 2 % 2, number % 2
        assert torch.equal(dense[:, i::2, j::2, k::2], tokens[..., number, :])


def test_a_released_network_is_the_same_after_a_save_and_a_load(network, volumes, tmp_path):
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    with torch.no_grad():
        pair = volumes(32, 32, 32)
        assert torch.equal(loaded(*pair).flow, network(*pair).flow)


def test_takes_a_wider_map_under_the_official_names(recipe):
    wide = NestedMorph("official", feature_channels=16, released=True)
    weights = recipe(wide, nested_morph._RULES, pointwise=nested_morph._POINTWISE)
    assert weights["unet.decoder_0.last_layer.weight"].shape == (16, 48, 1, 1, 1)
    given = {"layout": "fixed", "feature_channels": 16, "img_size": (32, 32, 32)}
    network = NestedMorph.from_published(given, weights)
    assert network.flow.weight.shape == (3, 16, 3, 3, 3)
    assert network.layout == "fixed"


@pytest.mark.slow
def test_a_forward_pass_at_64_takes_the_published_parameters_and_gives_that_size():
    volume = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        output = NestedMorph().eval()(volume, volume)
    assert output.flow.shape == (1, 3, 64, 64, 64)
    assert output.flow.abs().max() < 0.1  # almost zero before training
    torch.testing.assert_close(output.warped, volume, atol=0.1, rtol=0)
