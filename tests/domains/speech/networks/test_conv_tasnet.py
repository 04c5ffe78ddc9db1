"""torchaudio's Conv-TasNet in the form of the task."""

import pytest
import torch
import torchaudio

from core.pretrained import from_pretrained, save_pretrained
from domains.speech.networks.conv_tasnet import ConvTasNet


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ConvTasNet(3, features=16, width=8, inner=16, depth=2, stacks=2).eval()


def test_is_the_one_of_torchaudio():
    with torch.device("meta"):
        ours, theirs = ConvTasNet(), torchaudio.models.conv_tasnet_base()
    shapes = {name: tensor.shape for name, tensor in ours.model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("length", [1, 7, 16, 17, 1001])
def test_keeps_the_length(network, length):
    with torch.no_grad():
        voices = network(torch.randn(2, length))
    assert voices.shape == (2, 3, length)
    assert voices.isfinite().all()


def test_states_its_blocks(network):
    assert len(network.stages) == 4
    assert network.head.out_channels == 3 * 16


def test_is_the_same_after_a_save_and_a_load(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    mixture = torch.randn(2, 1000)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "model").network(mixture), network(mixture))


def test_refuses_what_cannot_be(network):
    with pytest.raises(ValueError, match="speakers=0"):
        ConvTasNet(0)
    with pytest.raises(ValueError, match=r"mixture \(100,\) must be \(mixtures, samples\)"):
        network(torch.zeros(100))
