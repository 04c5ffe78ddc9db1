import pytest
import torch

from domains.medical.networks import cyclemorph
from domains.medical.networks.cyclemorph import CycleMorph


@pytest.mark.parametrize("before", ["", "model."])
def test_equals_published_outputs(stored, volumes, recipe, before):
    told = stored("cyclemorph_G_32.npz")
    weights = recipe(CycleMorph(), cyclemorph._RULES)
    weights = {before + name: tensor for name, tensor in weights.items()}
    config = {"input_nc": 2, "encoder_nc": (16, 32, 32, 32, 32)}
    with torch.no_grad():
        output = CycleMorph.from_published(config, weights)(*volumes(32, 32, 32))
    torch.testing.assert_close(output.flow, told["flow"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.warped, told["warped"], atol=1e-4, rtol=0)


def test_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in CycleMorph().parameters()) == 361_299
