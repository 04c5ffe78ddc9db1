"""Units of freezing: which parameters are frozen together, in any network."""

import pytest
import torch
from torch import nn

from core.adapters import LoRA
from core.errors import UserError
from core.freezing.units import pattern_unit, stage_units, tensor_units


class Encoder(nn.Module):
    """A network that states nothing."""

    def __init__(self, depth=3):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, 10)


class Stated(Encoder):
    @property
    def stages(self):
        return [self.embed, *self.layers]

    @property
    def head(self):
        return self.out


def names(layout):
    return [unit.name for unit in layout.units]


def test_a_weight_each_as_slimfit_counts_them():
    found = tensor_units(Encoder())
    assert len(found.units) == 1 + 3 * 2 + 1 + 1  # embedding, layers, norm, output; no bias
    assert not any("bias" in name for name in names(found))


@pytest.mark.parametrize(("classifier", "count"), [(False, 102), (True, 101)])
def test_bert_base_has_the_published_number_of_units(classifier, count):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(  # the published depth, in small
        vocab_size=20, hidden_size=12, intermediate_size=12, num_attention_heads=12
    )
    model = transformers.BertForSequenceClassification(config)
    assert len(tensor_units(model, exclude="classifier" if classifier else None).units) == count


def test_tied_weights_are_one_unit():
    network = Encoder()
    network.out.weight = network.embed.weight
    found = tensor_units(network)
    assert names(found)[0] == "embed.weight"
    assert "out.weight" not in names(found)
    assert len(found.units) == 8
    staged = stage_units(network, apart=True)
    assert sum(unit.size for unit in staged.units) == sum(
        p.numel() for n, p in network.named_parameters() if not n.startswith(("norm", "out"))
    )


def test_patterns_choose_weights():
    found = tensor_units(Encoder(), include=["layers"], exclude=r"\.1\.", always_train="layers.0")
    assert names(found) == ["layers.2.0.weight"]  # layers.1 and all norms are .1.
    with pytest.raises(UserError, match="exclude='nothing' finds no trained parameter"):
        tensor_units(Encoder(), exclude="nothing")
    with pytest.raises(UserError, match="is no regular expression"):
        tensor_units(Encoder(), include="(")
    with pytest.raises(UserError, match="no weight is left"):
        tensor_units(Encoder(), exclude=".")


def test_frozen_parameters_and_adapters():
    network = Encoder()
    adapted = LoRA(network, rank=2, target="0").network
    found = tensor_units(adapted)
    assert all("lora" in name or name.startswith("out") for name in names(found))
    staged = stage_units(adapted)
    assert len(staged.units) == 3
    assert [len(unit.parameters) for unit in staged.units] == [2, 2, 2]
    assert all(p.requires_grad for unit in staged.units for p in unit.parameters)


def test_stated_stages_and_head():
    network = Stated()
    found = stage_units(nn.ModuleDict({"network": network}))
    assert names(found) == ["network.embed", *(f"network.layers.{i}" for i in range(3))]
    assert found.notes == []
    assert found.units[0].embeds
    assert not found.units[1].embeds
    assert found.units[1].modules == (network.layers[0],)


def test_the_longest_list_stands_in_for_stages():
    found = stage_units(Encoder())
    assert names(found) == ["layers.0", "layers.1", "layers.2"]
    assert found.units[0].names[0] == "embed.weight"  # registered before: with the first
    assert "states no stages: the 3 items of layers" in found.notes[0]
    apart = stage_units(Encoder(), apart=True)
    assert names(apart) == ["before", "layers.0", "layers.1", "layers.2"]
    with pytest.raises(UserError, match="nothing to freeze was found"):
        stage_units(nn.Linear(2, 2))


def test_stages_by_pattern():
    found = stage_units(Encoder(), [r"layers\.0|layers\.1", r"layers"], always_train=r"norm|out")
    assert [len(unit.parameters) for unit in found.units] == [1 + 8, 4]
    with pytest.raises(UserError, match="stages='blocks' finds no trained parameter"):
        stage_units(Encoder(), ["blocks"])


def test_parts_without_parameters_belong_to_the_layer_before():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.ReLU())
    found = stage_units(network)
    assert names(found) == ["0", "2"]
    assert network[1] in found.units[0].modules


def test_one_unit_by_pattern():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
    (unit,) = pattern_unit(network, r"^[01]\.", "freeze").units
    assert set(unit.modules) == {network[0], network[1]}
    (unit,) = pattern_unit(network, r"^2\.", "train", other=True).units
    assert unit.names == ("0.weight", "0.bias", "1.weight", "1.bias")


def test_a_norm_whose_weight_alone_is_a_unit_is_held_with_it():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))
    held = {unit.name: unit.modules for unit in tensor_units(network).units}
    assert held == {"0.weight": (), "1.weight": (network[1],), "2.weight": ()}
    assert torch.equal(network[1].running_mean, torch.zeros(2))
