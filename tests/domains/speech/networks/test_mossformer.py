"""MossFormer beside its published outputs and counts, and what follows from its equations."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from core import published
from core.early_exit.stages import ExitController
from core.pretrained import from_pretrained, save_pretrained
from domains.speech.networks.mossformer import (
    _RULES,
    DepthwiseConv,
    MossFormer,
    MossFormerBlock,
    mossformer_l,
    mossformer_m,
    mossformer_s,
)

CONFIG = {"N": 16, "R": 2, "d": 40, "P": 8, "C": 3}
COUNTS = {
    (mossformer_s, 2): 10_808_135,
    (mossformer_m, 2): 25_195_341,
    (mossformer_l, 2): 42_101_834,
    (mossformer_l, 3): 42_364_490,
}


def shuffled(network):
    """Draw every parameter, so that none is trivial."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return shuffled(MossFormer(speakers=3, width=16, depth=2, key=40, chunk=8))


def released(network):
    """The network's weights as ModelScope names them."""
    pointwise = ("conv1d_encoder", "conv1d_out", "conv1_decoder", "output.0", "output_gate.0")
    state = {}
    for name, tensor in network.state_dict().items():
        theirs = published.renamed(name, _RULES)
        flat = theirs.endswith(tuple(f"{part}.weight" for part in pointwise))
        state[theirs] = tensor.unsqueeze(2) if flat else tensor
    table = torch.ones(16)  # one module that all blocks share, stored with each
    for block in range(len(network.layers)):
        state[f"mask_net.mdl.att_mdl.mossformerM.layers.{block}.rotary_pos_emb.freqs"] = table
    return state | {"mask_net.pos_enc.inv_freq": torch.ones(network.width // 2)}


def clearer_voice(name):
    """The same entry's name in ClearerVoice."""
    for theirs, other in {
        "encoder.conv1d": "enc.conv1d",
        "decoder": "dec",
        "mdl.att_mdl.norm.norm": "mdl.intra_mdl.norm",
        "mdl.att_mdl": "mdl.intra_mdl",
        "mdl.att_norm": "mdl.intra_norm",
    }.items():
        if name.startswith(f"{theirs}.") or f".{theirs}." in name:
            return f"model.{name.replace(theirs, other, 1)}"
    return f"model.{name}"


@pytest.mark.parametrize(
    ("name", "bounds"),
    [("mossformer_a", {"1000": 2e-5, "3001": 1e-4}), ("mossformer_b_3spk", {"801": 1e-5})],
)
def test_equals_published_outputs(golden, name, bounds):
    file = golden(name)
    network = MossFormer.from_published(file["config"], file["state_dict"]).eval()
    for key, bound in bounds.items():
        with torch.no_grad():
            voices = network(file["inputs"][key])
        torch.testing.assert_close(voices.mT, file["outputs"][key], atol=bound, rtol=0)
        with torch.no_grad():
            exact = network.double()(file["inputs"][key].double())
        network.float()
        gap = float((exact.mT - file["outputs"][key]).abs().max())  # rounding alone
        assert gap == pytest.approx(file["f64_maxdiff"][key]["same_tables"], rel=1e-3)


def test_equals_published_gradients(golden):
    file = golden("mossformer_a")
    network = MossFormer.from_published(file["config"], file["state_dict"]).eval()
    mixture = file["inputs"][str(file["grad_length"])].clone().requires_grad_()
    network(mixture).square().mean().backward()
    pairs = {"input": (mixture.grad, file["grad_input"])}
    for name, parameter in network.named_parameters():
        theirs = published.renamed(name, _RULES)
        told = file["grad_l2"][theirs]
        assert float(parameter.grad.norm()) == pytest.approx(told, rel=5e-5, abs=1e-7), theirs
        if theirs in file["grads"]:
            pairs[theirs] = (parameter.grad, file["grads"][theirs].view_as(parameter))
    assert len(pairs) == 1 + len(file["grads"])
    for name, (found, told) in pairs.items():
        assert float((found - told).norm() / told.norm()) <= 5e-5, name


@pytest.mark.parametrize(("build", "speakers"), COUNTS)
def test_has_the_published_number_of_parameters(build, speakers):
    with torch.device("meta"):
        network = build(speakers)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[build, speakers]


@pytest.mark.parametrize(
    ("n", "r", "d", "p", "c", "told"), [(128, 4, 128, 256, 2, 621_838), (20, 3, 34, 8, 3, None)]
)
def test_parameters_follow_the_closed_form(n, r, d, p, c, told):
    with torch.device("meta"):
        network = MossFormer(speakers=c, width=n, depth=r, key=d, chunk=p)
    block = 6 * n**2 + n * d + 90 * n + 26 * d + 3
    around = (4 + c) * n**2 + (8 + c) * n + 2 * 16 * n + 2
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == r * block + around
    assert told in (None, count)


@pytest.mark.parametrize("length", [1, 7, 15, 16, 17, 23, 24, 100, 1001])
def test_keeps_the_length_and_leaves_what_fills_no_frame_silent(network, length):
    with torch.no_grad():
        voices = network(torch.randn(2, length))
    assert voices.shape == (2, 3, length)
    assert voices.isfinite().all()
    tail = (length - 16) % 8 if length >= 16 else 0
    assert voices.abs().amax((0, 1)).count_nonzero() == length - tail


def test_refuses_what_is_no_batch_of_mixtures(network):
    with pytest.raises(ValueError, match=r"mixture \(100,\) must be \(mixtures, samples\)"):
        network(torch.zeros(100))
    with pytest.raises(ValueError, match=r"mixture \(2, 0\) must be"):
        network(torch.zeros(2, 0))


@given(st.integers(2, 3), st.integers(16, 700))
@settings(max_examples=10, deadline=None)
def test_mixtures_of_a_batch_do_not_touch_each_other(batch, length):
    torch.manual_seed(0)
    network = shuffled(MossFormer(width=8, depth=2, key=8, chunk=16))
    mixture = torch.randn(batch, length)
    with torch.no_grad():
        each = torch.cat([network(own) for own in mixture.split(1)])
        torch.testing.assert_close(network(mixture), each, atol=1e-5, rtol=1e-4)


def test_a_louder_mixture_gives_louder_voices(network):
    network = network.double()
    mixture = torch.randn(2, 1000, dtype=torch.float64)
    with torch.no_grad():
        voices = network(mixture)
        gap = (network(3 * mixture) - 3 * voices).abs().max()
    assert gap <= 3e-6 * voices.abs().max()


def test_a_part_filled_chunk_is_one_filled_up_with_zeros():
    torch.manual_seed(0)
    block = shuffled(MossFormerBlock(16, 40, 8, dropout=0.1))
    widths = (40, 40, 40, 64)
    q, k, g, hidden = parts = [torch.randn(2, 5, width) for width in widths]
    summary = torch.randn(2, 40, 64)
    filled = [F.pad(part, (0, 0, 0, 3)) for part in parts]
    with torch.no_grad():
        whole = block._gated(*filled, summary)[:, :5]
        torch.testing.assert_close(block._gated(q, k, g, hidden, summary), whole)


def switched_off(network, row):
    with torch.no_grad():
        for layer in network.layers:
            layer.gamma[row] = 0
            layer.beta[row] = 0
    return network


@pytest.mark.parametrize(("query", "key", "touched"), [(0, 2, False), (1, 3, True)])
def test_a_query_without_scale_switches_its_attention_off(network, query, key, touched):
    mixture = torch.randn(2, 1000)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        both = network(mixture)
        off = switched_off(network, query)(mixture)
        assert (off - both).abs().max() > 1e-4
        network.chunk = 64
        for layer in network.layers:
            layer.chunk = 64
        # only exact attention looks at chunks
        assert torch.allclose(network(mixture), off, atol=1e-6) != touched
        for layer in network.layers:
            layer.chunk = 8
        network.load_state_dict(state)
        torch.testing.assert_close(switched_off(network, key)(mixture), off, atol=1e-6, rtol=0)


@given(st.integers(1, 2), st.integers(1, 40), st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_the_convolution_is_the_plain_one_with_its_gradients(batch, frames, width):
    torch.manual_seed(0)
    conv = DepthwiseConv(width).double()
    x = torch.randn(batch, frames, width, dtype=torch.float64, requires_grad=True)
    plain = x + F.conv1d(x.mT, conv.weight, padding=8, groups=width).mT
    g = torch.randn_like(plain)
    sources = [x, conv.weight]
    torch.testing.assert_close(conv(x), plain)
    found, told = (torch.autograd.grad(y, sources, g) for y in (conv(x), plain))
    torch.testing.assert_close(found, told)


def test_every_parameter_gets_a_gradient_also_with_checkpointing(network):
    mixture = torch.randn(2, 1000)
    network.train()
    gradients = []
    for network.gradient_checkpointing in (False, True):
        torch.manual_seed(1)  # the same dropout
        network.zero_grad()
        network(mixture).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, gradients[1][name]), name


def test_computes_in_bfloat16_where_asked(network):
    mixture = torch.randn(2, 1000)
    with torch.no_grad():
        exact = network(mixture)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(mixture).float()
    assert (mixed - exact).norm() <= 0.1 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network.train()(mixture).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_stages_are_the_blocks_and_may_be_left_early(network):
    assert list(network.stages) == list(network.layers)
    mixture = torch.randn(2, 1000)
    with torch.no_grad():
        exits = ExitController(network)
        with exits.depth(torch.tensor([1, 2])):
            left = network(mixture)
        exits.remove()
        whole = network(mixture)
        torch.testing.assert_close(left[1], whole[1], atol=1e-5, rtol=1e-4)
        del network.layers[1]
        torch.testing.assert_close(left[0], network(mixture)[0], atol=1e-5, rtol=1e-4)


def test_is_the_same_after_a_save_and_a_load(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    mixture = torch.randn(2, 1000)
    with torch.no_grad():
        assert torch.equal(loaded(mixture), network(mixture))


@pytest.mark.parametrize("form", ["one state", "three files", "clearer voice"])
def test_loads_published_names(network, form):
    state = released(network)
    if form == "three files":
        parts = {"encoder": "encoder.", "decoder": "decoder.", "masknet": "mask_net."}
        state = {
            part: {n.removeprefix(p): t for n, t in state.items() if n.startswith(p)}
            for part, p in parts.items()
        }
    if form == "clearer voice":
        state = {clearer_voice(name): tensor for name, tensor in state.items()}
        assert "model.mask_net.mdl.intra_mdl.norm.weight" in state
        assert "model.enc.conv1d.weight" in state
        assert "model.dec.weight" in state
    loaded = MossFormer.from_published(CONFIG, state).eval()
    mixture = torch.randn(2, 500)
    with torch.no_grad():
        assert torch.equal(loaded(mixture), network(mixture))


def test_lists_all_faults_of_published_weights(network):
    state = released(network)
    del state["mask_net.prelu.weight"]
    state["mask_net.norm.weight"] = torch.zeros(3)
    state["mask_net.mdl.att_mdl.mossformerM.fsmn.0.x"] = torch.zeros(1)
    with pytest.raises(ValueError, match="MossFormer weights do not fit") as caught:
        MossFormer.from_published(CONFIG, state)
    for fault in ("missing mask_net.prelu.weight", "norm.weight is (3,), needed (16,)", "fsmn.0.x"):
        assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"N": 16, "R": 2, "d": 40, "P": 8}, "missing C"),
        (CONFIG | {"expansion_factor": 2.0}, "expansion_factor=2.0 must be 4.0"),
        (CONFIG | {"causal": True}, "causal=True must be False"),
        (CONFIG | {"d_model": 17}, "d_model=17 is not 16"),
        (CONFIG | {"heads": 8}, "unknown heads"),
    ],
)
def test_refuses_published_options_that_are_not_the_released_ones(network, config, told):
    with pytest.raises(ValueError, match=told):
        MossFormer.from_published(config, released(network))


def test_takes_the_official_keywords(network):
    config = {"kernel_size": 16, "stride": 8, "in_channels": 16, "out_channels": 16, "bias": False}
    config |= {"num_blocks": 2, "d_model": 16, "attn_dropout": 0.2, "group_size": 8, "norm": "ln"}
    config |= {"query_key_dim": 40, "expansion_factor": 4.0, "causal": False, "num_spks": 3}
    loaded = MossFormer.from_published(config, released(network))
    assert (loaded.speakers, loaded.dropout) == (3, 0.2)


@pytest.mark.parametrize(
    ("size", "value"),
    [("speakers", 0), ("width", 7), ("depth", 0), ("key", 33), ("chunk", 0), ("width", 0)],
)
def test_refuses_a_size_that_cannot_be(size, value):
    with pytest.raises(ValueError, match=f"{size}={value}"):
        MossFormer(**{size: value})
