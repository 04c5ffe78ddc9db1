import hashlib
import time

import pytest
import torch
from torch import nn

from core.early_exit.derived import Derived
from core.early_exit.gate import Gate, gate_loss, train_gate

DEPTHS = (2, 3, 4, 5, 6)
BETAS = (0, 0.0005, 0.003, 0.01, 0.02)


def visible(count, seed, width=16, depths=DEPTHS):
    """A feature tells from which exit on an example is right; the others are noise."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator)
    need = torch.randint(0, len(depths), (count,), generator=generator)
    features[:, 0] = 50 + 3 * need + 0.3 * torch.randn(count, generator=generator)
    short = (need[:, None] - torch.arange(len(depths))).clamp(min=0)
    return Derived(tuple(map(str, range(count))), depths, 0.8 - 0.1 * short, features)


def faint(count=400, seed=0):
    """Depth hardly matters, and no feature tells where it does."""
    generator = torch.Generator().manual_seed(seed)
    quality = 0.8 + 0.01 * torch.randn(count, 5, generator=generator)
    features = torch.randn(count, 16, generator=generator)
    return Derived(tuple(map(str, range(count))), DEPTHS, quality, features)


def mixed(exits=5, width=16):
    """A gate that sends samples everywhere, and such samples."""
    torch.manual_seed(0)
    return Gate(width, tuple(range(2, exits + 2))), torch.randn(32, 9, width)


def test_a_gate_is_the_mean_token_and_a_linear_map():
    gate, tokens = mixed()
    assert sum(p.numel() for p in Gate(256, DEPTHS).parameters()) == 1285
    assert gate.linear.bias.tolist() == [0] * 5
    torch.testing.assert_close(gate(tokens), gate.linear(tokens.mean(1)))
    assert torch.equal(gate(tokens), gate(tokens.mean(1)))


def test_each_sample_of_a_batch_has_an_exit_of_its_own():
    """A flat argmax gives exits that do not exist from the second sample on."""
    gate, tokens = mixed()
    chosen = gate.choose(tokens)
    assert chosen.shape == (32,)
    assert set(chosen.tolist()) == set(DEPTHS)


def test_exits_and_logits_do_not_depend_on_the_batch():
    gate, tokens = mixed()
    logits, chosen = gate(tokens), gate.choose(tokens)
    for at in range(len(tokens)):
        assert torch.equal(gate(tokens[at : at + 1])[0], logits[at])
        assert gate.choose(tokens[at : at + 1]).item() == chosen[at]
    order = torch.randperm(32)
    assert torch.equal(gate(tokens[order]), logits[order])
    assert torch.equal(gate(tokens[5:8]), logits[5:8])


def test_padding_is_not_seen():
    gate, tokens = mixed()
    kept = torch.arange(9) < torch.arange(32)[:, None] % 9 + 1
    padded = torch.where(kept[..., None], tokens, torch.nan)
    chosen = gate.choose(padded, kept)
    for at, own in enumerate(kept):
        assert gate.choose(tokens[at : at + 1, own]).item() == chosen[at]


def test_logits_are_of_single_precision_under_autocast_and_in_half_precision():
    gate, tokens = mixed()
    plain = gate(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gate(tokens), plain)
    half = Gate(16, DEPTHS).bfloat16()
    assert half(tokens.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("depths", [(6,), (1, 2), (2, 4, 8), tuple(range(1, 13))])
def test_any_number_of_exits(depths):
    found = train_gate(visible(300, 0, depths=depths), 0.005)
    assert found.gate.linear.out_features == len(found.histogram) == len(depths)
    assert found.histogram.sum() == 300
    assert set(found.gate.choose(torch.randn(200, 3, 16) * 30 + 50).tolist()) <= set(depths)


def test_the_loss_weighs_every_exit_alike():
    """The released loss is multiplied by an exit that counts its offset twice."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 4, 2, 2, 1, 3])
    each = -logits.log_softmax(1)[torch.arange(6), targets]
    torch.testing.assert_close(gate_loss(logits, targets), each.mean())
    shares = targets[:, None] == torch.arange(5)
    wrong = ((logits.softmax(1) - shares.float()) ** 2).sum(1).mean()
    torch.testing.assert_close(gate_loss(logits, shares.float()), wrong)
    low = visible(200, 1)
    high = Derived(low.ids, (12, 13, 14, 15, 16), low.quality, low.features)
    one, other = train_gate(low, 0.005), train_gate(high, 0.005)
    assert torch.equal(one.gate.linear.weight, other.gate.linear.weight)
    assert torch.equal(one.gate.choose(low.features) + 10, other.gate.choose(low.features))


def test_depth_that_a_feature_tells_is_found_on_unseen_examples():
    training, unseen = visible(600, 0), visible(1000, 1)
    figures = train_gate(training, 0.005, held_out=unseen).figures
    assert figures["accuracy"] >= 0.9
    assert figures["majority"] < 0.3
    assert figures["quality"] > figures["quality_last"] - 0.01
    assert figures["mean_depth"] < 4.3
    assert figures["utility"] > figures["utility_fixed"] + 0.005


def test_soft_targets_lower_the_depth_as_well():
    made = visible(400, 0)
    depth = [train_gate(made, beta, soft=True).figures["mean_depth"] for beta in (0, 0.02, 0.2)]
    assert depth[0] > depth[1] > depth[2] == 2


def test_a_higher_price_never_buys_more_layers():
    for made, scale in ((faint(), 1), (visible(400, 0), 10)):
        depths = [train_gate(made, scale * beta).figures["mean_depth"] for beta in BETAS]
        assert depths == sorted(depths, reverse=True)
        assert depths[0] > depths[-1]
    assert train_gate(faint(), 0.02).figures["mean_depth"] < 2.4
    assert train_gate(faint(), 1.0).histogram.tolist() == [400, 0, 0, 0, 0]


def test_figures_are_those_of_the_chosen_exits():
    made = faint(50)
    found = train_gate(made, 0.003)
    chosen = found.gate.choose(made.features) - 2
    assert found.figures["accuracy"] == (chosen == made.targets(0.003)).double().mean()
    assert found.figures["majority"] == made.histogram(0.003).max() / 50
    assert found.figures["mean_depth"] == pytest.approx(float(chosen.double().mean()) + 2)
    assert found.figures["quality"] == pytest.approx(
        float(made.quality[torch.arange(50), chosen].mean())
    )
    assert found.histogram.tolist() == torch.bincount(chosen, minlength=5).tolist()


def test_it_is_the_same_each_time_whatever_the_random_state():
    torch.manual_seed(1)
    one = train_gate(faint(), 0.003).gate
    torch.manual_seed(2)
    other = train_gate(faint(), 0.003).gate
    assert torch.equal(one.linear.weight, other.linear.weight)
    assert torch.equal(one.linear.bias, other.linear.bias)


def test_features_of_any_scale_and_constant_ones_do_no_harm():
    plain = visible(300, 0)
    features = plain.features * torch.logspace(-4, 4, 16) + 7
    features[:, 5] = 0.1
    scaled = train_gate(Derived(plain.ids, DEPTHS, plain.quality, features), 0.005)
    assert scaled.figures["accuracy"] >= 0.9
    assert scaled.gate.linear.weight.isfinite().all()
    assert not scaled.gate.linear.weight[:, 5].any()


def test_another_price_touches_neither_parent_nor_derived_set():
    torch.manual_seed(0)
    parent = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 16))

    def content(module):
        state = b"".join(t.numpy().tobytes() for t in module.state_dict().values())
        grads = [p.grad is None and p.requires_grad for p in module.parameters()]
        return hashlib.sha256(state).hexdigest(), grads

    before = content(parent)
    seen = parent.eval()(torch.randn(200, 8))  # still bound to the parent's graph
    made = Derived(tuple(map(str, range(200))), DEPTHS, faint(200).quality, seen)
    kept = made.quality.clone(), made.features.clone()
    for beta in BETAS:
        train_gate(made, beta)
    assert content(parent) == before
    assert torch.equal(made.quality, kept[0])
    assert torch.equal(made.features, kept[1])


def test_it_works_where_gradients_are_off():
    with torch.inference_mode():
        made = faint(60)
    with torch.no_grad():
        assert train_gate(made, 0.003).figures["accuracy"] > 0.3


@pytest.mark.slow
def test_another_price_takes_less_than_a_minute_on_cached_features():
    generator = torch.Generator().manual_seed(0)
    quality = 0.8 + 0.03 * torch.randn(3000, 5, generator=generator)
    features = torch.randn(3000, 256, generator=generator)
    made = Derived(tuple(map(str, range(3000))), DEPTHS, quality, features)
    began = time.perf_counter()
    train_gate(made, 0.003)
    assert time.perf_counter() - began < 60


def test_arguments_out_of_range_are_refused():
    made = faint(20)
    for width, depths in ((0, (1, 2)), (4, ()), (4, (2, 2)), (4, (3, 2)), (4, (0, 1))):
        with pytest.raises(ValueError, match="must rise"):
            Gate(width, depths)
    with pytest.raises(ValueError, match="decay=-1"):
        train_gate(made, 0.0, decay=-1)
    with pytest.raises(ValueError, match="steps=0"):
        train_gate(made, 0.0, steps=0)
    with pytest.raises(ValueError, match="other exits"):
        train_gate(made, 0.0, held_out=visible(20, 0, depths=(1, 2)))
    assert train_gate(faint(1), 0.0).figures["accuracy"] == 1
