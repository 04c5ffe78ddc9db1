import pytest
import torch
from torch import nn

from domains.time_series.networks.patchtst import PatchTST, patchtst_base, patchtst_small

SIZES = {"patch": 8, "stride": 4, "width": 16, "depth": 2, "heads": 4, "inner": 32, "dropout": 0.0}


def network(**kwargs) -> PatchTST:
    torch.manual_seed(0)
    return PatchTST(24, 6, 3, **{**SIZES, **kwargs})


def count(lookback, horizon, channels, patch, stride, width, depth, inner):
    patches = (lookback - patch) // stride + 2
    attention = 4 * (width * width + width)
    layer = attention + 2 * width * inner + inner + width + 2 * 2 * width
    embed = patch * width + width + patches * width
    return embed + depth * layer + patches * width * horizon + horizon


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("residual", [True, False])
def test_shape_parameters_and_gradients(norm, residual):
    net = network(norm=norm, residual_attention=residual)
    out = net(torch.randn(5, 24, 3))
    assert out.shape == (5, 6, 3)
    assert sum(p.numel() for p in net.parameters()) == count(24, 6, 3, 8, 4, 16, 2, 32)
    out.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "key.bias" not in n)


def test_paper_sizes():
    small, base = patchtst_small(336, 96, 7), patchtst_base(336, 96, 7)
    assert small.patches == base.patches == 42  # the paper's 42 patches
    assert sum(p.numel() for p in small.parameters()) == count(336, 96, 7, 16, 8, 16, 3, 128)
    assert sum(p.numel() for p in base.parameters()) == count(336, 96, 7, 16, 8, 128, 3, 256)


def test_channels_are_independent():
    net = network().eval()
    past = torch.randn(2, 24, 3)
    changed = past.clone()
    changed[..., 1] = torch.randn(2, 24)
    same = torch.isclose(net(past), net(changed)).all(0).all(0)
    assert same.tolist() == [True, False, True]


def test_shift_and_scale_of_the_past_carry_over():
    net = network().eval().double()
    past = torch.randn(2, 24, 3, dtype=torch.float64)
    torch.testing.assert_close(net(past * 7 + 100), net(past) * 7 + 100, rtol=1e-4, atol=1e-2)


def test_residual_attention_is_what_the_formula_says():
    """Two layers by hand: the second softmax is over the sum of both layers' scores."""
    net = network(reversible=False).eval()
    past = torch.randn(1, 24, 3)
    x = torch.cat([past.mT.flatten(0, 1), past.mT.flatten(0, 1)[:, -1:].expand(-1, 4)], 1)
    x = net.embed(x.unfold(1, 8, 4)) + net.position
    carried = 0
    for layer in net.layers:
        a = layer.attention
        q, k, v = (f(x).view(3, 6, 4, 4).transpose(1, 2) for f in (a.query, a.key, a.value))
        carried = carried + torch.einsum("bhnd,bhmd->bhnm", q, k) / 2
        mixed = (carried.softmax(-1) @ v).transpose(1, 2).reshape(3, 6, 16)
        x = layer.norm_attention(x + a.out(mixed))
        x = layer.norm_inner(x + layer.contract(nn.functional.gelu(layer.expand(x))))
    want = net.head[1](x.transpose(1, 2).flatten(1)).view(1, 3, 6).mT
    torch.testing.assert_close(net(past), want, rtol=1e-4, atol=1e-5)


def test_one_layer_is_torchs_own_encoder_layer():
    net = network(depth=1, reversible=False, norm="layer").eval()
    layer = net.layers[0]
    theirs = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True).eval()
    a = layer.attention
    theirs.self_attn.in_proj_weight.data = torch.cat([a.query.weight, a.key.weight, a.value.weight])
    theirs.self_attn.in_proj_bias.data = torch.cat([a.query.bias, a.key.bias, a.value.bias])
    for ours, other in (
        (a.out, theirs.self_attn.out_proj),
        (layer.expand, theirs.linear1),
        (layer.contract, theirs.linear2),
        (layer.norm_attention.norm, theirs.norm1),
        (layer.norm_inner.norm, theirs.norm2),
    ):
        other.load_state_dict(ours.state_dict())
    x = torch.randn(3, 6, 16)
    torch.testing.assert_close(layer(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


def official(net: PatchTST) -> dict[str, torch.Tensor]:
    """Name a state dict as the authors do."""
    names = {
        "embed.": "model.backbone.W_P.",
        "position": "model.backbone.W_pos",
        "head.1.": "model.head.linear.",
        "revin.": "model.revin_layer.affine_",
        "layers.": "model.backbone.encoder.layers.",
    }
    inside = {
        "attention.query": "self_attn.W_Q",
        "attention.key": "self_attn.W_K",
        "attention.value": "self_attn.W_V",
        "attention.out": "self_attn.to_out.0",
        "norm_attention.norm": "norm_attn.1",
        "norm_inner.norm": "norm_ffn.1",
        "expand": "ff.0",
        "contract": "ff.3",
    }
    renamed = {}
    for name, tensor in net.state_dict().items():
        theirs = name
        for part in inside.items():
            theirs = theirs.replace(*part)
        start = next(s for s in names if name.startswith(s))
        renamed[names[start] + theirs.removeprefix(start)] = tensor
    return renamed


def test_from_published():
    net = network(depth=1).eval()
    weights = official(net)
    weights["model.backbone.encoder.layers.0.self_attn.sdp_attn.scale"] = torch.tensor(0.5)
    config = {"seq_len": 24, "pred_len": 6, "enc_in": 3, "patch_len": 8, "stride": 4, "d_model": 16}
    config |= {"e_layers": 1, "n_heads": 4, "d_ff": 32, "dropout": 0.0}
    again = PatchTST.from_published(config, weights).eval()
    past = torch.randn(2, 24, 3)
    assert torch.equal(again(past), net(past))
    weights["surprise"] = torch.zeros(1)
    with pytest.raises(ValueError, match="surprise"):
        PatchTST.from_published(config, weights)
    with pytest.raises(ValueError, match="missing"):
        PatchTST.from_published({"seq_len": 24}, weights)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"width": 18}, "width=18 must be a multiple of heads=4"),
        ({"patch": 25}, "patch=25 is longer than lookback=24"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"norm": "group"}, "norm='group'"),
    ],
)
def test_mistakes(change, told):
    with pytest.raises(ValueError, match=told):
        network(**change)


def test_a_wrong_shape_is_told():
    with pytest.raises(ValueError, match=r"needed \(B, 24, 3\)"):
        network()(torch.zeros(2, 24, 4))
