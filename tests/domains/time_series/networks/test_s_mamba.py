"""S-Mamba beside its equations, written a second time token by token; sizes, published weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from core.pretrained import from_pretrained, save_pretrained
from domains.time_series.networks.s_mamba import (
    SMamba,
    s_mamba_etth1,
    s_mamba_exchange,
    s_mamba_traffic,
    s_mamba_weather,
)

CONFIG = {
    "seq_len": 24,
    "pred_len": 12,
    "output_attention": False,
    "use_norm": 1,
    "d_model": 32,
    "embed": "timeF",
    "freq": "h",
    "dropout": 0.0,
    "class_strategy": "projection",
    "d_state": 4,
    "d_ff": 48,
    "activation": "gelu",
    "e_layers": 2,
}


def mamba_shapes(block, width, state, conv):
    rank = math.ceil(width / 16)
    return {
        f"{block}.in_proj.weight": (2 * width, width),
        f"{block}.conv1d.weight": (width, 1, conv),
        f"{block}.conv1d.bias": (width,),
        f"{block}.x_proj.weight": (rank + 2 * state, width),
        f"{block}.dt_proj.weight": (width, rank),
        f"{block}.dt_proj.bias": (width,),
        f"{block}.A_log": (width, state),
        f"{block}.D": (width,),
        f"{block}.out_proj.weight": (width, width),
    }


def published_shapes(config):
    lookback, horizon, width, inner = (
        config[k] for k in ("seq_len", "pred_len", "d_model", "d_ff")
    )
    shapes = {
        "enc_embedding.value_embedding.weight": (width, lookback),
        "enc_embedding.value_embedding.bias": (width,),
        "projector.weight": (horizon, width),
        "projector.bias": (horizon,),
        "encoder.norm.weight": (width,),
        "encoder.norm.bias": (width,),
    }
    for i in range(config["e_layers"]):
        layer = f"encoder.attn_layers.{i}"
        for block in ("attention", "attention_r"):
            shapes |= mamba_shapes(f"{layer}.{block}", width, config["d_state"], 2)
        shapes[f"{layer}.conv1.weight"] = (inner, width, 1)
        shapes[f"{layer}.conv1.bias"] = (inner,)
        shapes[f"{layer}.conv2.weight"] = (width, inner, 1)
        shapes[f"{layer}.conv2.bias"] = (width,)
        for norm in ("norm1", "norm2"):
            shapes[f"{layer}.{norm}.weight"] = (width,)
            shapes[f"{layer}.{norm}.bias"] = (width,)
    return shapes


def draw(shapes):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        * (0.3 if len(shape) == 1 or name.endswith("A_log") else math.prod(shape[1:]) ** -0.5)
        + float("norm" in name and name.endswith("weight"))
        for name, shape in shapes.items()
    }


def inputs(batch=3, channels=5):
    generator = torch.Generator().manual_seed(1)
    past = 3 * torch.randn(batch, 24, channels, generator=generator) + 2
    return past, torch.rand(batch, 24, 4, generator=generator) - 0.5


def scan(state, block, x):
    """One Mamba block: the published equations, token after token."""
    width = x.shape[2]
    rank, size = math.ceil(width / 16), state[f"{block}.A_log"].shape[1]
    rates = -state[f"{block}.A_log"].exp()
    kernel, bias = state[f"{block}.conv1d.weight"][:, 0], state[f"{block}.conv1d.bias"]
    before = x.new_zeros(len(x), width)
    hidden = x.new_zeros(len(x), width, size)
    outputs = []
    for token in x.unbind(1):
        now, gate = (token @ state[f"{block}.in_proj.weight"].T).chunk(2, 1)
        a = F.silu(kernel[:, 0] * before + kernel[:, 1] * now + bias)
        before = now
        d, b, c = (a @ state[f"{block}.x_proj.weight"].T).split([rank, size, size], 1)
        step = F.softplus(d @ state[f"{block}.dt_proj.weight"].T + state[f"{block}.dt_proj.bias"])
        hidden = (step[..., None] * rates).exp() * hidden + (step * a)[..., None] * b[:, None]
        y = (hidden * c[:, None]).sum(2) + state[f"{block}.D"] * a
        outputs.append((y * F.silu(gate)) @ state[f"{block}.out_proj.weight"].T)
    return torch.stack(outputs, 1)


def reference(config, state, past, marks):
    def linear(name, x):
        weight = state[f"{name}.weight"]
        return x @ weight.reshape(weight.shape[:2]).T + state[f"{name}.bias"]

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    mean, spread = torch.zeros_like(past[:, :1]), torch.ones_like(past[:, :1])
    if config["use_norm"]:
        mean = past.mean(1, keepdim=True)
        spread = ((past - mean).square().mean(1, keepdim=True) + 1e-5).sqrt()
    series = (past - mean) / spread
    series = series if marks is None else torch.cat([series, marks], 2)
    x = linear("enc_embedding.value_embedding", series.transpose(1, 2))
    for i in range(config["e_layers"]):
        layer = f"encoder.attn_layers.{i}"
        mixed = scan(state, f"{layer}.attention", x)
        mixed = mixed + scan(state, f"{layer}.attention_r", x.flip(1)).flip(1)
        x = norm(f"{layer}.norm1", x + mixed)
        hidden = F.gelu(linear(f"{layer}.conv1", x))
        x = norm(f"{layer}.norm2", x + linear(f"{layer}.conv2", hidden))
    forecast = linear("projector", norm("encoder.norm", x)).transpose(1, 2)
    return forecast[..., : past.shape[2]] * spread + mean


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SMamba(24, 12, 5, width=32, inner=48, state=4, dropout=0.0)


@pytest.mark.parametrize("normalise", [0, 1])
@pytest.mark.parametrize("marked", [False, True])
def test_equals_the_equations(normalise, marked):
    config = CONFIG | {"use_norm": normalise}
    state = draw(published_shapes(config))
    past, marks = (tensor.double() for tensor in inputs())
    network = SMamba.from_published(config, state).double().eval()
    state = {name: tensor.double() for name, tensor in state.items()}
    with torch.no_grad():
        expected = reference(config, state, past, marks if marked else None)
        forecast = network(past, marks) if marked else network(past)
    torch.testing.assert_close(forecast, expected, atol=1e-10, rtol=1e-10)


def test_equals_published_outputs(golden):
    file = golden("smamba_norm_marks")
    network = SMamba.from_published(file["config"], file["state_dict"]).eval()
    with torch.no_grad():
        forecast = network(file["inputs"]["x_enc"], file["inputs"]["x_mark_enc"])
    torch.testing.assert_close(forecast, file["outputs"]["eval"], atol=2e-6, rtol=0)


PUBLISHED_PARAMETERS = {
    "etth1": (lambda: s_mamba_etth1(96, 96), 1_145_696),
    "ettm1, 192 ahead": (lambda: SMamba(96, 192, width=128, inner=128), 314_944),
    "weather": (lambda: s_mamba_weather(96, 96), 6_631_008),
    "electricity": (lambda: SMamba(96, 96, width=512, inner=512, depth=3, state=16), 6_760_032),
    "electricity, 192 ahead": (
        lambda: SMamba(96, 192, width=512, inner=512, depth=3, state=32),
        6_956_736,
    ),
    "exchange": (lambda: s_mamba_exchange(96, 96), 348_640),
    "traffic": (lambda: s_mamba_traffic(96, 96), 9_176_672),
    "solar": (lambda: SMamba(96, 96, width=512, inner=512, state=32), 4_638_304),
    "pems08": (lambda: SMamba(96, 12, width=512, inner=512, state=32), 4_595_212),
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_has_the_published_number_of_live_parameters(name):
    build, published = PUBLISHED_PARAMETERS[name]
    assert sum(p.numel() for p in build().parameters()) == published


def test_parameters_follow_the_closed_form():
    s, p, d, f, n, e = 24, 12, 40, 48, 5, 3
    r = math.ceil(d / 16)
    mamba = 3 * d * d + 5 * d + 2 * r * d + 3 * n * d
    layer = 2 * mamba + 2 * d * f + f + d + 4 * d
    network = SMamba(s, p, width=d, inner=f, state=n, depth=e)
    expected = s * d + d + e * layer + 2 * d + d * p + p
    assert sum(x.numel() for x in network.parameters()) == expected


def test_reversed_variates_and_swapped_scans_reverse_the_forecast():
    state = draw(published_shapes(CONFIG))
    swapped = {
        name.replace(".attention_r.", ".x.")
        .replace(".attention.", ".attention_r.")
        .replace(".x.", ".attention."): tensor
        for name, tensor in state.items()
    }
    past, _ = inputs()
    network, other = (SMamba.from_published(CONFIG, each).eval() for each in (state, swapped))
    with torch.no_grad():
        torch.testing.assert_close(other(past.flip(2)).flip(2), network(past), atol=1e-5, rtol=0)
        assert (network(past.flip(2)).flip(2) - network(past)).abs().max() > 1e-2


def test_marks_come_after_the_variates(network):
    past, marks = inputs()
    with torch.no_grad():
        network.eval()
        forecast = network(past, marks)
        assert torch.equal(network(past, marks, torch.randn(3, 12, 4)), forecast)
        assert not torch.allclose(network(past, -marks), forecast)
        network.normalise = False
        whole = SMamba(24, 12, 9, width=32, inner=48, state=4, dropout=0.0, normalise=False).eval()
        whole.load_state_dict(network.state_dict())
        joined = whole(torch.cat([past, marks], 2))[..., :5]
        torch.testing.assert_close(network(past, marks), joined)


def test_follows_level_and_scale_of_each_window(network):
    past, marks = inputs()
    with torch.no_grad():
        network.eval()
        torch.testing.assert_close(
            network(10 * past + 7, marks), 10 * network(past, marks) + 7, atol=1e-3, rtol=1e-4
        )


def test_every_parameter_gets_a_gradient(network):
    network(*inputs()).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_stages_are_the_layers(network):
    assert list(network.stages) == list(network.layers)


def test_is_the_same_after_a_save_and_a_load(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    with torch.no_grad():
        assert torch.equal(loaded(*inputs()), network.eval()(*inputs()))


@pytest.mark.parametrize(
    "size", ["lookback", "horizon", "channels", "width", "inner", "depth", "state"]
)
def test_refuses_a_size_below_one(size):
    with pytest.raises(ValueError, match=f"{size}=0"):
        SMamba(**{"lookback": 24, "horizon": 12, "channels": 3} | {size: 0})


def test_dead_blocks_of_published_weights_are_skipped_and_faults_told():
    state = draw(published_shapes(CONFIG))
    past, marks = inputs()
    with torch.no_grad():
        expected = SMamba.from_published(CONFIG, state).eval()(past, marks)
        dead = dict(state)
        for block in ("man", "man2"):
            shapes = mamba_shapes(f"encoder.attn_layers.0.{block}", 11, 16, 2)
            dead |= {name: torch.ones(shape) for name, shape in shapes.items()}
        dead["encoder.attn_layers.1.a.query_projection.weight"] = torch.ones(11, 11)
        assert torch.equal(SMamba.from_published(CONFIG, dead).eval()(past, marks), expected)
    del dead["encoder.attn_layers.1.attention_r.A_log"]
    dead["encoder.attn_layers.0.attention.conv1d.weight"] = torch.zeros(32, 1, 4)
    dead["encoder.attn_layers.0.mamba.D"] = torch.zeros(32)
    with pytest.raises(ValueError, match="weights do not fit") as caught:
        SMamba.from_published(CONFIG, dead)
    told = str(caught.value)
    assert "missing encoder.attn_layers.1.attention_r.A_log" in told
    assert "attention.conv1d.weight is (32, 1, 4), needed (32, 1, 2)" in told
    assert "unexpected encoder.attn_layers.0.mamba.D" in told
    assert "man2" not in told


def test_published_options_that_change_nothing_are_accepted():
    state = draw(published_shapes(CONFIG))
    unused = {"enc_in": 21, "label_len": 48, "factor": 1, "n_heads": 8, "learning_rate": 1e-4}
    assert SMamba.from_published(CONFIG | unused, state).channels is None
    with pytest.raises(ValueError, match="unknown d_modle"):
        SMamba.from_published(CONFIG | {"d_modle": 32}, state)
