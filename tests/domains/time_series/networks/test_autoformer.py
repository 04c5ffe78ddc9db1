"""Autoformer beside its equations, written a second time with Fourier transforms and rolls."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from core.pretrained import from_pretrained, save_pretrained
from domains.time_series.calendar_features import calendar_features
from domains.time_series.forecast_files import ForecastFiles
from domains.time_series.forecasting import Forecasting
from domains.time_series.networks.autoformer import (
    Autoformer,
    SeasonalNorm,
    aggregate,
    autoformer_base,
    correlate,
    decompose,
    weigh,
)
from domains.time_series.windows import Window

CONFIG = {
    "seq_len": 24,
    "label_len": 12,
    "pred_len": 12,
    "output_attention": False,
    "moving_avg": 5,
    "enc_in": 3,
    "dec_in": 3,
    "c_out": 3,
    "d_model": 16,
    "embed": "timeF",
    "freq": "h",
    "dropout": 0.0,
    "factor": 3,
    "n_heads": 4,
    "d_ff": 32,
    "activation": "gelu",
    "e_layers": 2,
    "d_layers": 2,
}


def published_shapes(config):
    """Every official entry that an output depends on."""
    width, inner, channels = config["d_model"], config["d_ff"], config["enc_in"]
    shapes = {}
    for side in ("enc", "dec"):
        shapes[f"{side}_embedding.value_embedding.tokenConv.weight"] = (width, channels, 3)
        shapes[f"{side}_embedding.temporal_embedding.embed.weight"] = (width, 4)
    blocks = [f"encoder.attn_layers.{i}" for i in range(config["e_layers"])]
    decoder = [f"decoder.layers.{i}" for i in range(config["d_layers"])]
    for block in (*blocks, *decoder):
        shapes[f"{block}.conv1.weight"] = (inner, width, 1)
        shapes[f"{block}.conv2.weight"] = (width, inner, 1)
    attentions = [f"{block}.attention" for block in blocks]
    attentions += [f"{block}.{kind}_attention" for block in decoder for kind in ("self", "cross")]
    for attention in attentions:
        for part in ("query", "key", "value", "out"):
            shapes[f"{attention}.{part}_projection.weight"] = (width, width)
            shapes[f"{attention}.{part}_projection.bias"] = (width,)
    for block in decoder:
        shapes[f"{block}.projection.weight"] = (channels, width, 3)
    for side in ("encoder", "decoder"):
        shapes[f"{side}.norm.layernorm.weight"] = (width,)
        shapes[f"{side}.norm.layernorm.bias"] = (width,)
    shapes["decoder.projection.weight"] = (channels, width)
    shapes["decoder.projection.bias"] = (channels,)
    return shapes


def draw(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator)
        * (0.3 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5)
        + (1.0 if name.endswith("layernorm.weight") else 0.0)
        for name, shape in shapes.items()
    }


def inputs(config, batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lookback, steps = config["seq_len"], config["label_len"] + config["pred_len"]
    past = torch.randn(batch, lookback, config["enc_in"], generator=generator).cumsum(1)
    past_marks = torch.rand(batch, lookback, 4, generator=generator) - 0.5
    decoder_marks = torch.rand(batch, steps, 4, generator=generator) - 0.5
    return past, past_marks, decoder_marks


class Reference:
    """The published equations: one Fourier transform a feature, one roll a delay and window."""

    def __init__(self, config, state, training):
        self.config = config
        self.state = {name: tensor.double() for name, tensor in state.items()}
        self.training = training

    def __call__(self, past, past_marks, decoder_marks):
        c = self.config
        season, trend = self.split(past)
        start = c["seq_len"] - c["label_len"]
        ahead = (len(past), c["pred_len"], c["enc_in"])
        trend = torch.cat([trend[:, start:], past.mean(1, keepdim=True).expand(ahead)], 1)
        season = torch.cat([season[:, start:], past.new_zeros(ahead)], 1)
        x = self.embed("enc", past, past_marks)
        for i in range(c["e_layers"]):
            x = self.split(x + self.attend(f"encoder.attn_layers.{i}.attention", x, x))[0]
            x = self.split(x + self.feed(f"encoder.attn_layers.{i}", x))[0]
        memory = self.norm("encoder", x)
        x = self.embed("dec", season, decoder_marks)
        for i in range(c["d_layers"]):
            block = f"decoder.layers.{i}"
            x, first = self.split(x + self.attend(f"{block}.self_attention", x, x))
            x, second = self.split(x + self.attend(f"{block}.cross_attention", x, memory))
            x, third = self.split(x + self.feed(block, x))
            trend = trend + self.convolve(f"{block}.projection.weight", first + second + third)
        return (trend + self.linear("decoder.projection", self.norm("decoder", x)))[
            :, c["label_len"] :
        ]

    def split(self, x):
        reach = (self.config["moving_avg"] - 1) // 2
        steps = torch.arange(x.shape[1])
        near = [x[:, (steps + o).clamp(0, len(steps) - 1)] for o in range(-reach, reach + 1)]
        trend = torch.stack(near).mean(0)
        return x - trend, trend

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def convolve(self, name, x):
        before, here, after = self.state[name].unbind(2)
        return x.roll(1, 1) @ before.T + x @ here.T + x.roll(-1, 1) @ after.T

    def embed(self, side, x, marks):
        embedded = self.convolve(f"{side}_embedding.value_embedding.tokenConv.weight", x)
        return embedded + self.linear(f"{side}_embedding.temporal_embedding.embed", marks)

    def feed(self, block, x):
        first, second = (self.state[f"{block}.conv{i}.weight"].squeeze(2) for i in (1, 2))
        hidden = x @ first.T
        return (0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))) @ second.T

    def norm(self, side, x):
        name = f"{side}.norm.layernorm"
        x = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]
        return x - x.mean(1, keepdim=True)

    def attend(self, name, x, memory):
        length = x.shape[1]
        q = self.linear(f"{name}.query_projection", x)
        k = self.linear(f"{name}.key_projection", memory)
        v = self.linear(f"{name}.value_projection", memory)
        if length > memory.shape[1]:
            k, v = (F.pad(t, (0, 0, 0, length - t.shape[1])) for t in (k, v))
        k, v = k[:, :length], v[:, :length]
        spectrum = torch.fft.rfft(q, dim=1) * torch.fft.rfft(k, dim=1).conj()
        scores = torch.fft.irfft(spectrum, n=length, dim=1).mean(2)
        count = int(self.config["factor"] * math.log(length))
        shared = scores.mean(0).topk(count).indices
        mixed = []
        for score, value in zip(scores, v, strict=True):
            delays = shared if self.training else score.topk(count).indices
            shares = score[delays].softmax(0)
            rolled = [value.roll(-int(delay), 0) for delay in delays]
            mixed.append(sum(s * r for s, r in zip(shares, rolled, strict=True)))
        return self.linear(f"{name}.out_projection", torch.stack(mixed))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Autoformer(24, 12, 3, label=12, width=16, heads=4, inner=32, kernel=5, dropout=0.0)


LENGTHS = {
    "decoder as long": {},
    "decoder longer": {"pred_len": 36},
    "decoder shorter": {"label_len": 4, "pred_len": 8},
    "odd": {"seq_len": 25, "label_len": 7, "pred_len": 10},
    "no label": {"label_len": 0, "pred_len": 24},
    "kernel wider than series": {"seq_len": 12, "moving_avg": 31},
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("changes", LENGTHS.values(), ids=LENGTHS.keys())
def test_equals_the_equations(changes, training):
    config = CONFIG | changes
    state = draw(published_shapes(config))
    batch = [tensor.double() for tensor in inputs(config)]
    network = Autoformer.from_published(config, state).double().train(training)
    with torch.no_grad():
        difference = network(*batch) - Reference(config, state, training)(*batch)
    assert difference.abs().max() < 1e-10


@pytest.mark.parametrize("name", ["autoformer_a", "autoformer_b_longdec"])
@pytest.mark.parametrize("mode", ["eval", "train_mode_dropout0"])
def test_equals_published_outputs(golden, name, mode):
    file = golden(name)
    network = Autoformer.from_published(file["config"], file["state_dict"]).train(mode != "eval")
    given = file["inputs"]
    with torch.no_grad():
        forecast = network(given["x_enc"], given["x_mark_enc"], given["x_mark_dec"])
    torch.testing.assert_close(forecast, file["outputs"][mode], atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("channels", "marks", "published"),
    [
        (7, 4, 10_535_943),
        (7, 5, 10_536_967),
        (8, 4, 10_541_064),
        (21, 4, 10_607_637),
        (321, 4, 12_143_937),
        (862, 4, 14_914_398),
    ],
)
def test_has_the_published_number_of_parameters(channels, marks, published):
    with torch.device("meta"):
        network = autoformer_base(96, 96, channels, marks)
    assert sum(p.numel() for p in network.parameters()) == published


def test_parameters_follow_the_closed_form():
    c, m, d, f, e, layers = 5, 4, 24, 40, 3, 2
    network = Autoformer(
        48, 24, c, m, label=24, width=d, heads=2, inner=f, depth=e, decoder_depth=layers
    )
    expected = 2 * (3 * c * d + m * d) + e * (4 * (d * d + d) + 2 * d * f) + 2 * d
    expected += layers * (8 * (d * d + d) + 2 * d * f + 3 * c * d) + 2 * d + d * c + c
    assert sum(p.numel() for p in network.parameters()) == expected


def test_season_and_trend_add_up():
    x = torch.randn(2, 31, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    season, trend = decompose(x, 7)
    torch.testing.assert_close(season + trend, x)
    torch.testing.assert_close(trend[:, 10], x[:, 7:14].mean(1))
    torch.testing.assert_close(trend[:, 0], (4 * x[:, 0] + x[:, 1:4].sum(1)) / 7)


def test_seasonal_norm_has_no_mean_over_time():
    x = torch.randn(2, 31, 8, generator=torch.Generator().manual_seed(0)) + 3
    assert SeasonalNorm(8)(x).mean(1).abs().max() < 1e-6


def test_the_period_of_a_sine_is_found():
    length, period = 48, 12
    phase = 2 * torch.pi * torch.arange(length, dtype=torch.float64) / period
    wave = torch.stack([phase.sin(), phase.cos()], 1)[None]  # (1, L, 2)
    scores = correlate(wave, wave)
    weights = weigh(scores, int(3 * math.log(length)), shared=False)
    best = set(scores[0].topk(length // period).indices.tolist())
    assert best == {0, 12, 24, 36}
    neighbours = {(delay + o) % length for delay in best for o in (-1, 0, 1)}
    assert set(weights[0].nonzero()[:, 0].tolist()) <= neighbours
    only = torch.zeros_like(scores)
    only[0, sorted(best)] = 0.25  # whole periods alone give the wave back
    torch.testing.assert_close(aggregate(wave, only), wave)


def test_a_window_stands_alone_in_evaluation_but_not_in_training(network):
    past, past_marks, decoder_marks = inputs(CONFIG, batch=8)
    with torch.no_grad():
        network.eval()
        whole = network(past, past_marks, decoder_marks)
        alone = network(past[:1], past_marks[:1], decoder_marks[:1])
        torch.testing.assert_close(whole[:1], alone, atol=1e-5, rtol=0)
        network.train()
        whole = network(past, past_marks, decoder_marks)
        alone = network(past[:1], past_marks[:1], decoder_marks[:1])
        assert (whole[:1] - alone).abs().max() > 1e-3


def test_marks_of_the_horizon_alone_are_led_by_those_of_the_past(network):
    past, past_marks, decoder_marks = inputs(CONFIG)
    decoder_marks[:, :12] = past_marks[:, -12:]
    with torch.no_grad():
        network.eval()
        whole = network(past, past_marks, decoder_marks)
        assert torch.equal(network(past, past_marks, decoder_marks[:, 12:]), whole)
        assert not torch.equal(network(past, past_marks, -decoder_marks), whole)


def test_every_parameter_gets_a_gradient(network):
    network(*inputs(CONFIG)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # A bias of the queries raises all scores alike, which the softmax does not see.
        if not name.endswith(("query.bias", "key.bias")):
            assert parameter.grad.abs().sum() > 0, name


def test_stages_are_the_layers_in_order(network):
    assert list(network.stages) == [*network.encoder, *network.decoder]


def test_is_the_same_after_a_save_and_a_load(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    with torch.no_grad():
        assert torch.equal(loaded(*inputs(CONFIG)), network.eval()(*inputs(CONFIG)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lookback": 0}, "lookback=0"),
        ({"horizon": 0}, "horizon=0"),
        ({"channels": 0}, "channels=0"),
        ({"marks": 0}, "marks=0"),
        ({"kernel": 24}, "kernel=24 must be odd, such as 25"),
        ({"label": 25}, "label=25 must lie between 0 and lookback=24"),
        ({"width": 30, "heads": 4}, "width=30 must be a multiple of heads=4"),
        ({"factor": 0}, "factor=0 keeps 0 of 24 delays"),
        ({"factor": 9}, "factor=9 keeps 28 of 24 delays"),
        ({"activation": "tanh"}, "activation='tanh'"),
    ],
)
def test_refuses_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        Autoformer(**{"lookback": 24, "horizon": 12, "channels": 3, "label": 12} | changes)


def test_refuses_inputs_of_other_shapes(network):
    past, past_marks, decoder_marks = inputs(CONFIG)
    with pytest.raises(ValueError, match=r"past is \(4, 23, 3\), needed \(B, 24, 3\)"):
        network(past[:, 1:], past_marks, decoder_marks)
    with pytest.raises(ValueError, match="past_marks is"):
        network(past, past_marks[:, :, :3], decoder_marks)
    with pytest.raises(ValueError, match=r"needed \(B, 12, 4\) or \(B, 24, 4\)"):
        network(past, past_marks, decoder_marks[:, 1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_modle": 16}, "unknown d_modle"),
        ({"embed": "fixed"}, "embed='fixed'"),
        ({"c_out": 1}, "c_out=1 must equal enc_in=3"),
        ({"freq": "y"}, "freq='y'"),
        ({"moving_avg": 24}, "kernel=24 must be odd"),
    ],
)
def test_refuses_a_published_configuration(changes, message):
    with pytest.raises(ValueError, match=message):
        Autoformer.from_published(CONFIG | changes, draw(published_shapes(CONFIG)))


def test_tells_all_that_does_not_fit_of_published_weights():
    state = draw(published_shapes(CONFIG))
    del state["decoder.projection.bias"]
    state["decoder.layers.7.conv1.weight"] = torch.zeros(32, 16, 1)
    state["encoder.attn_layers.0.conv1.weight"] = torch.zeros(32, 16)
    state["enc_embedding.position_embedding.pe"] = torch.zeros(1, 5000, 16)  # never used
    with pytest.raises(ValueError, match="weights do not fit") as caught:
        Autoformer.from_published(CONFIG, state)
    told = str(caught.value)
    assert "missing decoder.projection.bias" in told
    assert "unexpected decoder.layers.7.conv1.weight" in told
    assert "encoder.attn_layers.0.conv1.weight is (32, 16), needed (32, 16, 1)" in told
    assert "position" not in told
    config = {name: value for name, value in CONFIG.items() if name not in ("d_model", "factor")}
    with pytest.raises(ValueError, match="missing d_model; missing factor"):
        Autoformer.from_published(config, state)


def test_the_task_passes_the_marks(network):
    past, past_marks, decoder_marks = inputs(CONFIG)
    zeros, none = torch.zeros(4, 12, 3), torch.zeros(4, 0)
    marks = (past_marks, decoder_marks[:, 12:])
    rest = (zeros[:, :1],) * 2 + (zeros == 0, zeros[:, :1], none, none, none)
    batch = Window(past, zeros, *marks, torch.arange(4), *rest)
    task = Forecasting(network, torch.optim.Adam).eval()
    with torch.no_grad():
        assert torch.equal(task(batch), network(past, past_marks, decoder_marks[:, 12:]))


def test_forecasts_a_file_with_its_calendar(network, tmp_path):
    time = pd.date_range("2024-02-27 05:00", periods=30, freq="h")
    values = np.random.default_rng(0).normal(size=(30, 3))
    table = pd.DataFrame(values, columns=["a", "b", "c"])
    table.insert(0, "date", time)
    table.to_csv(tmp_path / "in.csv", index=False)
    files = ForecastFiles(("a", "b", "c"), "date", "h", 24, 12, (0.0,) * 3, (1.0,) * 3)
    files.predict_file(network.eval(), tmp_path / "in.csv", tmp_path / "out.csv")
    ahead = pd.date_range(time[-1], periods=13, freq="h")[1:]
    marks = [torch.from_numpy(calendar_features(each))[None] for each in (time[6:], ahead)]
    with torch.no_grad():
        expected = network(torch.tensor(values[None, 6:], dtype=torch.float32), *marks)[0]
    written = pd.read_csv(tmp_path / "out.csv")
    assert list(pd.to_datetime(written["date"])) == list(ahead)
    np.testing.assert_allclose(written[["a", "b", "c"]], expected, rtol=1e-6, atol=1e-6)
