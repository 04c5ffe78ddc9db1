"""TEDDY beside torch's own encoder; what may and what may not change an answer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.network_parts import head, stages
from core.pretrained import from_pretrained, save_pretrained
from domains.biology.networks.teddy import (
    Teddy,
    masked_mean,
    teddy_70m,
    teddy_160m,
    teddy_400m,
    teddy_tiny,
)

SMALL = {"width": 32, "depth": 3, "attention_heads": 4, "inner": 48, "positions": 20}
HEADS = [
    {"name": "type", "kind": "single", "labels": ["B", "T", "NK"]},
    {"name": "sex", "kind": "single", "labels": ["f", "m"]},
]
CONFIG = {
    "ntoken": 50,
    "d_model": 32,
    "nlayers": 3,
    "nheads": 4,
    "d_hid": 48,
    "max_position_embeddings": 20,
    "dropout": 0.1,
    "pre_norm": False,
    "layer_activation": "gelu",
    "add_cls": False,
    "cls_token_id": 47,
}


def build(heads=(), **arguments) -> Teddy:
    torch.manual_seed(0)
    network = Teddy(50, heads, **SMALL | arguments).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    return network


def cells(genes=12):
    """Three cells, of 12, 7 and 1 genes, and the bins of their genes."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 50, (3, genes), generator=draw)
    mask = torch.arange(genes) < torch.tensor([[12], [7], [1]])
    return ids, mask, torch.randint(1, 6, (3, genes), generator=draw)


def official(depth=3):
    """Weights under the official names, as torch's own modules draw them."""
    torch.manual_seed(2)
    state = {
        "embeddings.weight": torch.randn(50, 32),
        "position_embeddings.weight": torch.randn(20, 32),
        "decoder_head.weight": torch.randn(50, 32),
        "decoder_bias": torch.randn(50),
    }
    for number in range(depth):
        layer = nn.TransformerEncoderLayer(32, 4, 48)
        for name, tensor in layer.state_dict().items():
            state[f"encoder.layers.{number}.{name}"] = tensor + 0.1 * torch.randn(tensor.shape)
    return state


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("training", [False, True])
def test_is_torchs_own_encoder_with_a_mask_that_is_a_mask(pre_norm, activation, training):
    config = CONFIG | {"pre_norm": pre_norm, "layer_activation": activation, "dropout": 0.0}
    state = official()
    network = Teddy.from_published(config, state).train(training)
    layer = nn.TransformerEncoderLayer(
        32, 4, 48, 0.0, activation, batch_first=True, norm_first=pre_norm
    )
    theirs = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).train(training)
    theirs.load_state_dict(
        {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder")}
    )
    ids, mask, _ = cells()
    with torch.no_grad():
        x = state["embeddings.weight"][ids] + state["position_embeddings.weight"][:12]
        want = theirs(x, src_key_padding_mask=~mask)
        output = network(ids, mask, masked=mask)
    logits = want[mask] @ state["decoder_head.weight"].T + state["decoder_bias"]
    torch.testing.assert_close(output.genes, logits, atol=1e-4, rtol=1e-5)
    means = [row[keep].mean(0) for row, keep in zip(want, mask, strict=True)]
    torch.testing.assert_close(output.cell, torch.stack(means), atol=1e-5, rtol=1e-5)
    assert output.annotations.shape == (3, 0)


def test_official_weights_survive_a_save_and_a_load(tmp_path):
    network = Teddy.from_published(CONFIG, official()).eval()
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    ids, mask, _ = cells()
    with torch.no_grad():
        one, other = network(ids, mask, masked=mask), loaded(ids, mask, masked=mask)
    assert torch.equal(one.genes, other.genes)
    assert torch.equal(one.cell, other.cell)


def test_faults_of_published_weights_are_all_told():
    state = official()
    del state["decoder_bias"]
    state["encoder.layers.1.self_attn.in_proj_weight"] = torch.zeros(95, 32)
    state["cls_head.weight"] = torch.zeros(2, 32)
    with pytest.raises(ValueError, match="weights do not fit") as caught:
        Teddy.from_published(CONFIG, state)
    assert "missing decoder_bias" in str(caught.value)
    assert "layers.1.self_attn.in_proj_weight is (95, 32), needed (96, 32)" in str(caught.value)
    assert "unexpected cls_head.weight" in str(caught.value)
    wrong = {k: v for k, v in CONFIG.items() if k != "d_hid"} | {"d_hidden": 3, "n_cls": 4}
    with pytest.raises(ValueError, match="missing d_hid; unknown d_hidden; n_cls=4, needed 0"):
        Teddy.from_published(wrong, state)


def test_has_the_parameters_of_the_published_sizes():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in size(43_816).parameters())
            for size in (teddy_70m, teddy_160m, teddy_400m)
        ]
    assert counts[0] == 2 * 43_816 * 512 + 43_816 + 2048 * 512 + 12 * 2_102_784
    assert abs(counts[0] - 71.2e6) < 0.1e6
    assert 150e6 < counts[1] < 170e6
    assert 380e6 < counts[2] < 420e6


@pytest.mark.parametrize("bins", [None, 6])
@pytest.mark.parametrize("heads", [(), HEADS])
def test_padding_changes_nothing(bins, heads):
    network = build(heads, bins=bins)
    ids, mask, values = cells()
    longer = [F.pad(part, (0, 8), value=1) for part in (ids, values)]
    with torch.no_grad():
        one = network(ids, mask, values, mask)
        more = F.pad(mask, (0, 8))
        other = network(longer[0], more, longer[1], more)
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_order_tells_in_one_form_and_values_in_the_other():
    ids, mask, values = cells()
    mask = torch.ones_like(mask)
    turn = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_rank, by_value = build(), build(bins=6)
        one, other = by_rank(ids, mask).cell, by_rank(ids[:, turn], mask).cell
        assert (one - other).abs().max() > 1e-2
        one = by_value(ids, mask, values).cell
        torch.testing.assert_close(
            by_value(ids[:, turn], mask, values[:, turn]).cell, one, atol=1e-5, rtol=0
        )
        assert (by_value(ids, mask, values % 5 + 1).cell - one).abs().max() > 1e-2


def test_questions_change_neither_the_cell_nor_one_another():
    plain, asked = build(), build(HEADS)
    asked.load_state_dict(plain.state_dict(), strict=False)
    ids, mask, _ = cells()
    with torch.no_grad():
        torch.testing.assert_close(asked(ids, mask).cell, plain(ids, mask).cell, atol=1e-6, rtol=0)
        before = asked(ids, mask).annotations
        asked.annotations.questions[1] *= -1
        after = asked(ids, mask).annotations
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=1e-6, rtol=0)
    assert (before[:, 3:] - after[:, 3:]).abs().min() > 1e-3


def test_a_question_reads_its_own_labels_alone():
    network = build(HEADS)
    states = torch.randn(4, 2, 32)
    with torch.no_grad():
        logits = network.annotations(states)
        score = network.annotations.score
        torch.testing.assert_close(logits[:, :3], score(states[:, 0])[:, :3])
        torch.testing.assert_close(logits[:, 3:], score(states[:, 1])[:, 3:])


def test_a_probe_is_a_linear_map_of_the_cell():
    network = build(HEADS, annotate_from="cell", decoder=False)
    ids, mask, _ = cells()
    with torch.no_grad():
        output = network(ids, mask)
        torch.testing.assert_close(output.annotations, network.annotations.score(output.cell))
    assert sum(p.numel() for part in head(network) for p in part.parameters()) == 33 * 5
    assert not any(name.startswith("decode") for name in network.state_dict())


def test_only_the_genes_asked_for_are_told_row_by_row():
    network = build()
    ids, mask, _ = cells()
    masked = torch.zeros_like(mask)
    masked[0, 3] = masked[1, 2] = masked[1, 5] = True
    with torch.no_grad():
        every = network(ids, mask, masked=mask).genes
        some = network(ids, mask, masked=masked).genes
    assert some.shape == (3, 50)
    torch.testing.assert_close(some, every[masked[mask]])
    assert network(ids, mask).genes.shape == (0, 50)
    assert build(bins=6)(*cells()).genes.shape == (0, 6)


@pytest.mark.parametrize("bins", [None, 6])
def test_every_parameter_gets_a_gradient(bins):
    network = build(HEADS, bins=bins)
    ids, mask, values = cells()
    values[0, 0] = 6 if bins else 0  # the bin of what is masked
    output = network(ids, mask, values, mask)
    (output.genes.square().mean() + output.annotations.square().mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_cell_without_genes_is_zero_and_spoils_no_other():
    network = build(HEADS)
    ids, mask, _ = cells()
    mask[2] = False
    with torch.no_grad():
        output, alone = network(ids, mask), network(ids[:2], mask[:2])
    assert torch.equal(output.cell[2], torch.zeros(32))
    assert torch.isfinite(output.annotations).all()
    torch.testing.assert_close(output.cell[:2], alone.cell, atol=1e-6, rtol=0)


def test_the_mean_keeps_its_digits_in_bfloat16():
    states = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    assert masked_mean(states, torch.ones(1, 1000, dtype=torch.bool)).tolist() == [[1.0, 1.0]]


def test_states_its_parts_for_freezing_and_exits():
    network = build(HEADS)
    assert stages(network) == [[network.genes], *([layer] for layer in network.layers)]
    assert head(network) == [network.annotations]
    assert head(build()) == []


def test_questions_survive_a_save_and_a_load(tmp_path):
    network = build(HEADS, bins=6)
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    assert loaded.heads == HEADS
    with torch.no_grad():
        assert torch.equal(loaded(*cells()).annotations, network(*cells()).annotations)


def test_refuses_what_does_not_go_together():
    with pytest.raises(ValueError, match="depth=0"):
        build(depth=0)
    with pytest.raises(ValueError, match="width=30 must be a multiple of attention_heads=4"):
        build(width=30)
    with pytest.raises(ValueError, match="annotate_from='head'"):
        build(annotate_from="head")
    ids, mask, _ = cells()
    with pytest.raises(ValueError, match="values"):
        build(bins=6)(ids, mask)
    with pytest.raises(ValueError, match="decoder=False"):
        build(decoder=False)(ids, mask, masked=mask)
    with pytest.raises(ValueError, match="24 genes are more than positions=20"):
        build()(ids.repeat(1, 2), mask.repeat(1, 2))
    assert teddy_tiny(60, HEADS, bins=51).bins == 51
