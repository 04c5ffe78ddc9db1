import pytest
import torch
import torch.nn.functional as F
import transformers

from core.errors import UserError
from core.network_parts import head, stages
from core.pretrained import from_pretrained, save_pretrained
from core.tensor_files import read_tensors
from core.warm_start import warm_start
from domains.vision.networks.segformer import SegFormer

SMALL = {
    "hidden_sizes": [8, 16, 20, 32],
    "num_attention_heads": [1, 2, 5, 8],
    "depths": [1, 1, 2, 1],
    "decoder_hidden_size": 24,
}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SegFormer(5, SMALL)


def test_has_the_parameters_of_the_smallest_size():
    with torch.device("meta"):
        network = SegFormer(150)
    # 3.752694 million, as transformers counts nvidia/segformer-b0-finetuned-ade-512-512
    assert sum(p.numel() for p in network.parameters()) == 3_714_658 + 148 * 257


def test_is_what_transformers_gives(network):
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        scores = network.eval().model(pixel_values=images).logits
        want = F.interpolate(scores, (64, 96), mode="bilinear", align_corners=False)
        assert torch.equal(network(images).logits, want)


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (45, 71)])
def test_takes_any_height_and_width(network, size):
    output = network(torch.randn(2, 3, *size))
    assert output.logits.shape == (2, 5, *size)
    assert output.auxiliary == ()


def test_stages_and_head_hold_every_parameter_once(network):
    parts = [part for stage in stages(network) for part in stage] + head(network)
    own = [id(p) for part in parts for p in part.parameters()]
    assert sorted(own) == sorted(id(p) for p in network.parameters())


def test_every_parameter_gets_a_gradient(network):
    network(torch.randn(2, 3, 64, 96)).logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_the_folder_of_a_model_is_one_of_transformers(network, tmp_path):
    save_pretrained(network, tmp_path / "model")
    images = torch.randn(1, 3, 64, 64)
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    with torch.no_grad():
        want = network.eval()(images).logits
        assert torch.equal(loaded(images).logits, want)
        scores = theirs.eval()(pixel_values=images).logits
    torch.testing.assert_close(F.interpolate(scores, (64, 64), mode="bilinear"), want)


def test_begins_from_a_folder_with_published_names(network, tmp_path):
    theirs = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(**SMALL, num_labels=3)
    )
    theirs.save_pretrained(tmp_path)
    state, _ = read_tensors(tmp_path)
    started = warm_start(network, state, "folder")
    assert not started.missing
    assert not started.unexpected
    assert [told.split()[0] for told in started.reshaped] == [
        "model.decode_head.classifier.weight",
        "model.decode_head.classifier.bias",
    ]
    for ours, other in zip(
        network.model.segformer.parameters(), theirs.segformer.parameters(), strict=True
    ):
        assert torch.equal(ours, other)


@pytest.mark.slow
def test_an_exported_program_gives_the_same_for_another_batch(network):
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(
        network.eval(), (torch.zeros(2, 3, 48, 70),), dynamic_shapes={"images": {0: batch}}
    ).module()
    images = torch.randn(3, 3, 48, 70)
    with torch.no_grad():
        torch.testing.assert_close(exported(images), network(images), atol=1e-5, rtol=1e-5)


def test_refuses_what_is_no_segformer():
    with pytest.raises(ValueError, match="classes=0"):
        SegFormer(0)
    with pytest.raises(UserError, match="'bert' cannot be built as SegFormer"):
        SegFormer(3, {"model_type": "bert"})
    with pytest.raises(UserError, match="cannot be built"):
        SegFormer(3, {"depths": "many"})
