"""iTransformer beside its equations, written a second time; shapes, sizes, published weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from core.pretrained import from_pretrained, save_pretrained
from domains.time_series.networks.itransformer import ITransformer, itransformer_etth1

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
    "factor": 1,
    "n_heads": 4,
    "d_ff": 48,
    "activation": "gelu",
    "e_layers": 2,
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
        for part in ("query", "key", "value", "out"):
            shapes[f"{layer}.attention.{part}_projection.weight"] = (width, width)
            shapes[f"{layer}.attention.{part}_projection.bias"] = (width,)
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
        name: 0.5 * torch.randn(shape, generator=generator) + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def inputs(batch=3, channels=5):
    generator = torch.Generator().manual_seed(1)
    past = 3 * torch.randn(batch, 24, channels, generator=generator) + 2
    return past, torch.rand(batch, 24, 4, generator=generator) - 0.5


def reference(config, state, past, marks):
    """The published equations, one head after the other."""

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
    size = config["d_model"] // config["n_heads"]
    for i in range(config["e_layers"]):
        layer = f"encoder.attn_layers.{i}"
        q, k, v = (
            linear(f"{layer}.attention.{p}_projection", x) for p in ("query", "key", "value")
        )
        heads = []
        for h in range(config["n_heads"]):
            part = slice(h * size, (h + 1) * size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
            heads.append(scores.softmax(2) @ v[..., part])
        mixed = linear(f"{layer}.attention.out_projection", torch.cat(heads, 2))
        x = norm(f"{layer}.norm1", x + mixed)
        hidden = F.gelu(linear(f"{layer}.conv1", x))
        x = norm(f"{layer}.norm2", x + linear(f"{layer}.conv2", hidden))
    forecast = linear("projector", norm("encoder.norm", x)).transpose(1, 2)
    return forecast[..., : past.shape[2]] * spread + mean


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ITransformer(24, 12, 5, width=32, inner=48, heads=4, dropout=0.0)


@pytest.mark.parametrize("normalise", [0, 1])
@pytest.mark.parametrize("marked", [False, True])
def test_equals_the_equations(normalise, marked):
    config = CONFIG | {"use_norm": normalise}
    state = draw(published_shapes(config))
    past, marks = (tensor.double() for tensor in inputs())
    network = ITransformer.from_published(config, state).double().eval()
    state = {name: tensor.double() for name, tensor in state.items()}
    with torch.no_grad():
        expected = reference(config, state, past, marks if marked else None)
        forecast = network(past, marks) if marked else network(past)
    torch.testing.assert_close(forecast, expected, atol=1e-10, rtol=1e-10)


def test_parameters_follow_the_closed_form():
    s = p = 96
    d = f = 256
    layer = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    expected = s * d + d + 2 * layer + 2 * d + d * p + p
    network = itransformer_etth1(s, p, 7)
    assert sum(x.numel() for x in network.parameters()) == expected == 841_568


def test_the_order_of_the_variates_does_not_matter(network):
    past, marks = inputs()
    with torch.no_grad():
        network.eval()
        torch.testing.assert_close(network(past.flip(2), marks).flip(2), network(past, marks))


def test_follows_level_and_scale_of_each_window(network):
    past, marks = inputs()
    with torch.no_grad():
        network.eval()
        torch.testing.assert_close(
            network(10 * past + 7, marks), 10 * network(past, marks) + 7, atol=1e-3, rtol=1e-4
        )


def test_does_not_look_at_future_marks_but_at_past_ones(network):
    past, marks = inputs()
    with torch.no_grad():
        network.eval()
        forecast = network(past, marks)
        assert torch.equal(network(past, marks, torch.randn(3, 12, 4)), forecast)
        assert not torch.allclose(network(past, -marks), forecast)


def test_dropout_acts_in_training_only():
    network = ITransformer(24, 12, 5, width=32, inner=48, heads=4, dropout=0.5)
    with torch.no_grad():
        assert not torch.equal(network(*inputs()), network(*inputs()))
        network.eval()
        assert torch.equal(network(*inputs()), network(*inputs()))


def test_every_parameter_gets_a_gradient(network):
    network(*inputs()).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("key.bias"):  # raises all scores of a query alike
            assert parameter.grad.abs().sum() > 0, name


def test_stages_are_the_layers(network):
    assert list(network.stages) == list(network.layers)


def test_is_the_same_after_a_save_and_a_load(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    with torch.no_grad():
        assert torch.equal(loaded(*inputs()), network.eval()(*inputs()))


@pytest.mark.parametrize("size", ["lookback", "horizon", "channels", "width", "inner", "depth"])
def test_refuses_a_size_below_one(size):
    with pytest.raises(ValueError, match=f"{size}=0"):
        ITransformer(**{"lookback": 24, "horizon": 12, "channels": 3} | {size: 0})


def test_refuses_what_does_not_fit(network):
    with pytest.raises(ValueError, match="width=30 must be a multiple of heads=4"):
        ITransformer(24, 12, 3, width=30, heads=4)
    with pytest.raises(ValueError, match="activation='tanh'"):
        ITransformer(24, 12, 3, activation="tanh")
    past, marks = inputs()
    with pytest.raises(ValueError, match=r"past is \(3, 23, 5\), needed \(B, 24, 5\)"):
        network(past[:, 1:], marks)
    with pytest.raises(ValueError, match=r"past_marks is \(3, 23, 4\), needed \(3, 24, M\)"):
        network(past, marks[:, 1:])


def test_tells_all_that_does_not_fit_of_published_weights():
    state = draw(published_shapes(CONFIG))
    del state["projector.bias"]
    state["encoder.attn_layers.0.conv1.weight"] = torch.zeros(48, 32)
    state["encoder.attn_layers.2.conv1.bias"] = torch.zeros(48)
    with pytest.raises(ValueError, match="weights do not fit") as caught:
        ITransformer.from_published(CONFIG, state)
    told = str(caught.value)
    assert "missing projector.bias" in told
    assert "encoder.attn_layers.0.conv1.weight is (48, 32), needed (48, 32, 1)" in told
    assert "unexpected encoder.attn_layers.2.conv1.bias" in told


def test_tells_all_that_does_not_fit_of_a_published_configuration():
    config = {k: v for k, v in CONFIG.items() if k != "n_heads"} | {"d_modle": 32, "enc_in": 21}
    with pytest.raises(ValueError, match=r"missing n_heads; unknown d_modle$"):
        ITransformer.from_published(config, draw(published_shapes(CONFIG)))


def test_published_weights_serve_any_number_of_channels():
    network = ITransformer.from_published(CONFIG, draw(published_shapes(CONFIG)))
    for channels in (1, 9):
        assert network(inputs(channels=channels)[0]).shape == (3, 12, channels)
