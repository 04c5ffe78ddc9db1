"""GP-MoLFormer: its three forms of attention are one, and published weights give their outputs."""

import pytest
import torch

from core.network_parts import stages
from core.pretrained import from_pretrained, save_pretrained
from core.sampling import sample
from domains.biology.linear_attention import causal_sums, orthogonal_features
from domains.biology.networks.gp_molformer import GPMoLFormer, gp_molformer_small

SMALL = {"width": 48, "depth": 3, "heads": 4, "inner": 40, "features": 16, "positions": 300}
HUGGING_FACE = {
    "architectures": ["MolformerForCausalLM"],
    "vocab_size": 30,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "num_random_features": 16,
    "max_position_embeddings": 300,
    "hidden_dropout_prob": 0.1,
    "embedding_dropout_prob": 0.2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "deterministic_eval": False,
    "pad_token_id": 2,
}


def build(**arguments) -> GPMoLFormer:
    """A small network whose weights are large enough for attention to matter."""
    torch.manual_seed(0)
    network = GPMoLFormer(30, **SMALL | arguments).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    return network


def draw(batch=3, length=40):
    return torch.randint(3, 30, (batch, length), generator=torch.Generator().manual_seed(1))


def hugging_face_names(network):
    """The state of a network under the names of its Hugging Face form, written out."""
    layer = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.out": "attention.output.dense",
        "norm_attention": "attention.output.LayerNorm",
        "expand": "intermediate.dense",
        "contract": "output.dense",
        "norm_inner": "output.LayerNorm",
    }
    names = {
        "tokens.weight": "molformer.embeddings.word_embeddings.weight",
        "head.score.weight": "lm_head.decoder.weight",
    }
    for end in ("weight", "bias"):
        names[f"norm.{end}"] = f"molformer.LayerNorm.{end}"
        names[f"head.dense.{end}"] = f"lm_head.transform.dense.{end}"
        names[f"head.norm.{end}"] = f"lm_head.transform.LayerNorm.{end}"
        for number in range(network.depth):
            for ours, theirs in layer.items():
                published = f"molformer.encoder.layer.{number}.{theirs}.{end}"
                names[f"layers.{number}.{ours}.{end}"] = published
    for number in range(network.depth):
        published = f"molformer.encoder.layer.{number}.attention.self.feature_map.weight"
        names[f"layers.{number}.attention.directions"] = published
    return {names[name]: tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", ["molformer_causal", "molformer_encoder"])
def test_equals_published_outputs(golden, name):
    file = golden(name)
    network = GPMoLFormer.from_published(file["config"], file["state_dict"]).eval()
    ids, lengths = file["inputs"]["ids"], file["inputs"]["lengths"]
    with torch.no_grad():
        free, padded = network(ids), network(ids, lengths=lengths)
        hidden = network.encode(network.embed(ids), lengths)
    torch.testing.assert_close(free, file["outputs"]["logits_nomask"], atol=2e-5, rtol=0)
    torch.testing.assert_close(padded, file["outputs"]["logits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(hidden, file["outputs"]["hidden"], atol=2e-5, rtol=0)


def test_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network, small = GPMoLFormer(), gp_molformer_small()
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()
    }
    assert count["tokens"] == 2362 * 768
    assert count["layers"] == 12 * (6 * (768**2 + 768) + 2 * 1536)
    assert count["head"] == 592_128 + 2362 * 768
    assert sum(count.values()) == 46_781_184
    assert sum(p.numel() for p in small.parameters()) == 3_650_816


def test_hugging_face_names_load():
    network = build()
    state = hugging_face_names(network)
    state["molformer.encoder.layer.0.attention.self.rotary_embeddings.inv_freq"] = torch.zeros(6)
    loaded = GPMoLFormer.from_published(HUGGING_FACE, state).eval()
    assert not loaded.shifted
    with torch.no_grad():
        assert torch.equal(loaded(draw()), network(draw()))
    encoder = HUGGING_FACE | {"architectures": ["MolformerForMaskedLM"]}
    assert not GPMoLFormer.from_published(encoder, state).causal


def test_faults_of_published_weights_are_all_told():
    state = hugging_face_names(build())
    del state["molformer.LayerNorm.bias"]
    state["lm_head.decoder.weight"] = torch.zeros(31, 48)
    state["lm_head.bias"] = torch.zeros(30)
    with pytest.raises(ValueError, match="weights do not fit") as caught:
        GPMoLFormer.from_published(HUGGING_FACE, state)
    assert "missing molformer.LayerNorm.bias" in str(caught.value)
    assert "lm_head.decoder.weight is (31, 48), needed (30, 48)" in str(caught.value)
    assert "unexpected lm_head.bias" in str(caught.value)
    wrong = {k: v for k, v in HUGGING_FACE.items() if k != "vocab_size"}
    wrong |= {"hidden_act": "relu", "hidden_sizes": 3}
    with pytest.raises(ValueError, match="missing vocab_size; unknown hidden_sizes; hidden_act="):
        GPMoLFormer.from_published(wrong, state)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_and_the_whole_square_give_the_same(block):
    network, ids, lengths = build(), draw(3, 200), torch.tensor([200, 131, 7])
    with torch.no_grad():
        whole = network(ids, lengths)
        for layer in network.layers:
            layer.attention.block = block
        torch.testing.assert_close(network(ids, lengths), whole, atol=1e-4, rtol=0)


def test_one_token_after_the_other_gives_the_same_in_constant_memory():
    network, ids = build(), draw(2, 200)
    with torch.no_grad():
        whole = network(ids)
        state, kept = None, set()
        for place, token in enumerate(ids.unbind(1)):
            logits, state = network.step(token, state)
            torch.testing.assert_close(logits, whole[:, place], atol=1e-4, rtol=0)
            kept.add(sum(part.numel() for part in state.sums))
    assert kept == {3 * 2 * 4 * 16 * 13}
    assert state.position.tolist() == [200, 200]


def test_prompts_of_several_lengths_are_read_at_once():
    network, ids, lengths = build(), draw(3, 20), torch.tensor([20, 3, 11])
    nexts = draw(3, 5)
    with torch.no_grad():
        logits, state = network.step(ids, lengths=lengths)
        for token in nexts.unbind(1):
            last, state = network.step(token, state)
        for row, length in enumerate(lengths.tolist()):
            alone = network(torch.cat([ids[row, :length], nexts[row]])[None])[0]
            torch.testing.assert_close(logits[row, :length], alone[:length], atol=1e-4, rtol=0)
            torch.testing.assert_close(last[row], alone[-1], atol=1e-4, rtol=0)


def test_steps_draw_what_reading_all_again_draws(monkeypatch):
    network = build()
    prompts = [torch.tensor([0]), torch.tensor([0, 5, 7, 4]), torch.tensor([0, 9])] * 3
    stepped = sample(network, prompts, end=1, longest=30, seed=4)
    monkeypatch.delattr(GPMoLFormer, "step")
    reread = sample(network, prompts, end=1, longest=30, seed=4)
    assert [row.tolist() for row in stepped.tokens] == [row.tolist() for row in reread.tokens]


def test_the_sums_are_those_of_the_formula():
    """Every output by its own loop, in double precision."""
    torch.manual_seed(0)
    query, key = (torch.rand(2, 3, 9, 5).double() for _ in range(2))
    value = torch.randn(2, 3, 9, 4).double()
    found, state = causal_sums(query, key, value, None, 4)
    for t in range(9):
        weights = (query[:, :, t, None] * key[:, :, : t + 1]).sum(-1)
        want = (weights[..., None] * value[:, :, : t + 1]).sum(2)
        torch.testing.assert_close(found[:, :, t], want)
    torch.testing.assert_close(state, torch.einsum("bhlf,bhle->bhfe", key, value))


def test_a_token_changes_nothing_before_it_and_padding_nothing_at_all():
    network, ids = build(), draw()
    changed = ids.clone()
    changed[:, 25] = (ids[:, 25] - 3 + 1) % 27 + 3
    with torch.no_grad():
        before, after = network(ids), network(changed)
        assert torch.equal(before[:, :25], after[:, :25])
        assert (before[:, 25:] - after[:, 25:]).abs().amax(2).min() > 1e-3
        lengths = torch.tensor([30, 40, 12])
        filled = ids.masked_fill(torch.arange(40) >= lengths[:, None], 2)
        for row, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(
                network(filled, lengths)[row, :length], before[row, :length], atol=1e-5, rtol=0
            )


def test_an_encoder_sees_all_but_padding():
    network, ids = build(causal=False), draw()
    with torch.no_grad():
        alone = network(ids[:, :25])
        padded = network(ids, torch.full((3,), 25))[:, :25]
        torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
        assert (network(ids)[:, :25] - alone).abs().max() > 1e-2
    with pytest.raises(ValueError, match="causal=False"):
        network.step(ids[:, 0])


def test_directions_are_orthogonal_in_blocks():
    torch.manual_seed(0)
    directions = orthogonal_features(12, 30)
    assert directions.shape == (12, 30)
    for part in directions.split(12, 1):
        unit = part / part.norm(dim=0)
        torch.testing.assert_close(unit.T @ unit, torch.eye(part.shape[1]), atol=1e-5, rtol=0)
    lengths = orthogonal_features(64, 6400).norm(dim=0)
    assert abs(lengths.square().mean() - 64) < 1  # those of Gaussian vectors
    assert lengths.std() > 0.5


def test_features_are_fixed_unless_a_redraw_is_asked_for():
    network, ids = build(dropout=0.0, embedding_dropout=0.0).train(), draw()
    with torch.no_grad():
        first = network(ids)
        assert torch.equal(network(ids), first)
        network.draw_features()
        assert not torch.equal(network(ids), first)
        drawing = build(dropout=0.0, embedding_dropout=0.0, redraw=True)
        assert torch.equal(drawing(ids), drawing(ids))
        drawing.train()
        assert not torch.equal(drawing(ids), drawing(ids))


def test_where_all_features_are_dead_attention_gives_nothing():
    network = build()
    with torch.no_grad():
        for layer in network.layers:
            layer.attention.directions.zero_()
        assert torch.isfinite(network(draw())).all()


def test_every_parameter_gets_a_gradient_and_the_padding_none():
    network = build()
    ids = torch.cat([draw(), torch.full((3, 2), 2)], 1)
    network(ids, torch.full((3,), 40)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert network.tokens.weight.grad[2].abs().sum() == 0


def test_double_precision_is_kept_and_half_is_near():
    network, ids = build(), draw(2, 120)
    with torch.no_grad():
        full = network(ids)
        double = build().double()(ids)
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), full, atol=2e-5, rtol=0)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(ids)
        low = network.bfloat16()(ids)
    for other in (mixed, low):
        assert (other.float() - full).norm() < 0.05 * full.norm()


def test_starts_as_published():
    torch.manual_seed(0)
    network = GPMoLFormer(400, **SMALL)
    assert network.tokens.weight[2].abs().sum() == 0
    assert abs(network.tokens.weight.std() - 0.02) < 1e-3
    assert abs(network.layers[0].expand.weight.std() - 0.02) < 2e-3
    assert network.layers[0].expand.bias.abs().sum() == 0


def test_is_the_same_after_a_save_and_a_load(tmp_path):
    network = build(shifted=True)
    save_pretrained(network, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model").network
    with torch.no_grad():
        assert torch.equal(loaded(draw()), network(draw()))


def test_states_its_layers_for_freezing_and_exits():
    network = build()
    assert stages(network) == [[network.tokens], *([layer] for layer in network.layers)]


def test_refuses_sizes_that_do_not_go_together():
    with pytest.raises(ValueError, match="features=0"):
        GPMoLFormer(30, **SMALL | {"features": 0})
    with pytest.raises(ValueError, match="width=20 must be a multiple of twice heads=4"):
        GPMoLFormer(30, **SMALL | {"width": 20})
    with pytest.raises(ValueError, match="301 tokens are more than positions=300"):
        build()(draw(1, 301))
