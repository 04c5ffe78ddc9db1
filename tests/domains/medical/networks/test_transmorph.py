import pytest
import torch

from domains.medical.networks import transmorph
from domains.medical.networks.transmorph import (
    Block,
    TransMorph,
    WindowAttention,
    partition,
    restored,
    shift_mask,
    transmorph_large,
    transmorph_small,
    transmorph_tiny,
)


@pytest.mark.slow
def test_equals_published_outputs(stored, volumes, recipe):
    told = stored("transmorph_64_win567.npz")
    with torch.device("meta"):
        shapes = TransMorph()
    weights = recipe(shapes, transmorph._RULES)
    weights["spatial_trans.grid"] = torch.zeros(1, 3, 64, 64, 64)
    config = {"window_size": (5, 6, 7), "embed_dim": 96, "img_size": (64, 64, 64), "ape": False}
    network, found = TransMorph.from_published(config, weights).eval(), {}
    for number, norm in enumerate(network.norms):
        norm.register_forward_hook(lambda *a, n=number: found.update({f"enc{n}": a[2]}))
    with torch.no_grad():
        output = network(*volumes(64, 64, 64))
    found = {name: tokens.movedim(-1, 1) for name, tokens in found.items()}
    found |= {"flow": output.flow, "warped": output.warped}
    for name, want in told.items():
        bound = 1e-4 if name == "warped" else 1e-3
        torch.testing.assert_close(found[name][..., ::4, ::4, ::4], want, atol=bound, rtol=0)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (TransMorph, 46_771_251),
        (transmorph_large, 108_343_907),
        (transmorph_small, 11_757_195),
        (transmorph_tiny, 244_527),
        (lambda: TransMorph(window=2), 46_690_611),
        (lambda: TransMorph(trans_skip=False), 41_545_779),
        # the released network keeps two convolutions of 3456 weights that it does not call
        (lambda: TransMorph(conv_skip=False), 46_702_131 - 3456),
        (lambda: TransMorph(conv_skip=False, trans_skip=False), 41_476_659 - 3456),
    ],
)
def test_has_the_published_number_of_parameters(build, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


def test_the_released_size_without_convolutions_is_taken(recipe):
    given = {"embed_dim": 6, "num_heads": (2, 2, 4, 4), "if_convskip": False}
    weights = recipe(TransMorph(6, heads=(2, 2, 4, 4), conv_skip=False), transmorph._RULES)
    weights |= {"c1.0.weight": torch.zeros(3, 2, 3, 3, 3), "c2.0.weight": torch.zeros(1)}
    assert TransMorph.from_published(given, weights).conv_skip is False
    with pytest.raises(ValueError, match=r"missing c1\.0\.weight"):
        TransMorph.from_published({**given, "if_convskip": True}, {})


@pytest.mark.parametrize(("name", "value"), [("ape", True), ("drop_rate", 0.1), ("patch_size", 2)])
def test_refuses_what_this_network_has_not(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be"):
        TransMorph.from_published({name: value}, {})


def test_attention_equals_its_formula():
    torch.manual_seed(0)
    window, heads = (2, 3, 2), 2
    attention, x = WindowAttention(8, heads, window, False), torch.randn(4, 12, 8)
    mask = torch.randn(2, 12, 12)
    q, k, v = attention.qkv(x).view(4, 12, 3, heads, 4).permute(2, 0, 3, 1, 4)
    places = [(i, j, k) for i in range(2) for j in range(3) for k in range(2)]
    bias = torch.empty(heads, 12, 12)
    for a, (i, j, h) in enumerate(places):
        for b, (p, q_, r) in enumerate(places):
            row = ((i - p + 1) * 5 + (j - q_ + 2)) * 3 + (h - r + 1)
            bias[:, a, b] = attention.table[row]
    scores = q @ k.mT / 2 + bias + mask.repeat(2, 1, 1)[:, None]
    want = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(4, 12, 8))
    torch.testing.assert_close(attention(x, mask), want)


def test_windows_are_put_together_again():
    x = torch.randn(2, 4, 6, 3, 5)
    windows = partition(x, (2, 3, 3))
    assert windows.shape == (2 * 2 * 2, 18, 5)
    assert torch.equal(windows[0].view(2, 3, 3, 5), x[0, :2, :3, :3])
    assert torch.equal(restored(windows, (2, 3, 3), x.shape), x)


def test_a_shift_keeps_apart_what_it_brings_together():
    mask = shift_mask((4, 2, 2), (2, 2, 2), (1, 1, 1))
    assert mask.shape == (2, 8, 8)
    place = torch.arange(2)
    i, j, k = torch.meshgrid(place, place, place, indexing="ij")
    own = (j * 2 + k).flatten()  # the first window is whole along the first axis
    assert torch.equal(mask[0] == 0, own[:, None] == own)
    own = (i * 4 + j * 2 + k).flatten()
    assert torch.equal(mask[1] == 0, own[:, None] == own)


@pytest.mark.parametrize("window", [(2, 2, 2), (3, 2, 4)])
def test_a_block_pads_what_its_windows_do_not_fill(window):
    torch.manual_seed(0)
    shift = tuple(side // 2 for side in window)
    block = Block(4, 2, window, shift, 4.0, False, 0.0).eval()
    x = torch.randn(1, 4, 5, 3, 4)
    assert block(x).shape == x.shape


def test_drop_path_leaves_parts_out_in_training_alone():
    torch.manual_seed(0)
    block = Block(4, 2, (2, 2, 2), (0, 0, 0), 4.0, False, 0.5)
    x = torch.randn(64, 2, 2, 2, 4)
    same = (block.train()(x) == x).flatten(1).all(1).float().mean()
    assert 0.1 < same < 0.45  # a quarter skips both parts
    assert not (block.eval()(x) == x).flatten(1).all(1).any()
    rates = [each.drop_path for layer in transmorph_tiny().layers for each in layer]
    assert rates == pytest.approx([0.3 * number / 9 for number in range(10)])
