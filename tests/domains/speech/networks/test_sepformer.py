"""SepFormer's published count and names, and what follows from its equations."""

import re

import pytest
import torch

from core import published
from core.pretrained import from_pretrained, save_pretrained
from domains.speech.networks.sepformer import _POINTWISE, _RULES, SepFormer

CONFIG = {"encoder_out_nchannels": 16, "masknet_chunksize": 20, "masknet_numspks": 3}
CONFIG |= {"intra_numlayers": 1, "inter_numlayers": 1, "intra_nhead": 2, "inter_nhead": 2}
CONFIG |= {"intra_dffn": 24, "inter_dffn": 24}


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = SepFormer(3, width=16, chunk=20, depth=1, heads=2, inner=24)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def test_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = SepFormer()
    assert sum(p.numel() for p in network.parameters()) == 25_679_361


@pytest.mark.parametrize("length", [1, 15, 16, 17, 160, 1001])
def test_keeps_the_length(network, length):
    with torch.no_grad():
        voices = network(torch.randn(2, length))
    assert voices.shape == (2, 3, length)
    assert voices.isfinite().all()


def test_every_frame_lies_in_two_chunks(network):
    x = torch.randn(2, 37, 16)
    with torch.no_grad():
        for layer in network.layers:  # what is left is what happens to each frame
            layer.forward = lambda y: y
        found = network.features_by_voice(x)
        each = 2 * network.by_voice(network.act(x))
    torch.testing.assert_close(found, each.view(2, 37, 3, 16))


def test_every_parameter_gets_a_gradient(network):
    network.train()(torch.randn(2, 1000)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_stages_are_the_blocks(network):
    assert list(network.stages) == list(network.layers)


def test_is_the_same_after_a_save_and_a_load(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    mixture = torch.randn(2, 1000)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "model").network(mixture), network(mixture))


def test_loads_published_names_and_lists_all_faults(network):
    state = {}
    for name, tensor in network.state_dict().items():
        theirs = published.renamed(name, _RULES)
        state[theirs] = tensor.unsqueeze(2) if re.search(_POINTWISE, theirs) else tensor
    state["masknet.conv2d.weight"] = state["masknet.conv2d.weight"].unsqueeze(3)
    state["masknet.dual_mdl.0.intra_mdl.pos_enc.pe"] = torch.zeros(1, 2500, 16)
    layer = "masknet.dual_mdl.1.inter_mdl.mdl.layers.0"
    assert state[f"{layer}.self_att.att.in_proj_weight"].shape == (48, 16)
    assert state[f"{layer}.norm1.norm.bias"].shape == (16,)
    mixture = torch.randn(2, 500)
    with torch.no_grad():
        loaded = SepFormer.from_published(CONFIG, state).eval()
        assert torch.equal(loaded(mixture), network(mixture))
    del state["masknet.dual_mdl.0.intra_norm.weight"]
    with pytest.raises(ValueError, match=r"missing masknet\.dual_mdl\.0\.intra_norm\.weight"):
        SepFormer.from_published(CONFIG, state)
    with pytest.raises(ValueError, match="masknet_norm='gln' must be 'ln'"):
        SepFormer.from_published(CONFIG | {"masknet_norm": "gln"}, state)


@pytest.mark.parametrize(
    ("size", "value"), [("chunk", 25), ("heads", 3), ("depth", 0), ("speakers", 0)]
)
def test_refuses_a_size_that_cannot_be(size, value):
    with pytest.raises(ValueError, match=f"{size}={value}"):
        SepFormer(**{size: value})
