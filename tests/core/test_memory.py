"""Kept bytes are those computed by hand: sizes are B rows of D numbers of 4 bytes."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from core.memory import (
    countable,
    gradient_bytes,
    held_bytes,
    optimizer_bytes,
    saved_bytes,
    weight_bytes,
)

B, D = 6, 8
H = 4 * B * D  # bytes of one tensor (B, D)
ROW = 4 * B


class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Entropy(nn.Module):
    def forward(self, x):
        return F.cross_entropy(x, torch.zeros(len(x), dtype=torch.long))


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    ("layer", "size", "frozen_size"),
    [
        (nn.Linear(D, 5), H, 0),
        (nn.LayerNorm(D), H + 2 * ROW, H + 2 * ROW),
        (nn.GELU(), H, H),
        (nn.Dropout(), H, H),
        (nn.Softmax(-1), H, H),
        (Entropy(), H + 8 * B + 4, H + 8 * B + 4),  # log-probabilities, targets, their weight
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_one_layer_keeps_what_the_hand_computes(layer, size, frozen_size, frozen):
    layer.requires_grad_(not frozen)
    x = torch.randn(B, D, requires_grad=True)
    with saved_bytes(layer) as kept:
        output = layer(x)
    expected = frozen_size if frozen else size
    assert kept.total == expected
    assert kept.by_class == ({type(layer).__name__: expected} if expected else {})
    assert output.grad_fn is not None


def test_attention_keeps_its_operands_its_answer_and_a_number_a_row():
    heads, length, width = 2, 16, 8
    q, k, v = (torch.randn(B, heads, length, width, requires_grad=True) for _ in range(3))
    layer = Attention()
    with saved_bytes(layer) as kept:
        output = layer(q, k, v)
    numbers = B * heads * length
    assert kept.total == 4 * (4 * numbers * width + numbers)
    assert output.grad_fn is not None


def test_a_storage_counts_once_and_a_view_as_what_it_holds():
    x = torch.randn(B, D, requires_grad=True)
    two = nn.ModuleList([nn.Linear(D, 3), nn.Linear(D, 4)])
    with saved_bytes(two) as kept:
        outputs = [layer(x) for layer in two], two[0](x[:1].t().t())
    assert kept.total == H
    assert len(outputs) == 2


def test_tied_weights_and_buffers_are_not_counted():
    network = nn.Sequential(nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False))
    network[1].weight = network[0].weight
    network.register_buffer("scale", torch.ones(D))
    x = torch.randn(B, D)
    with saved_bytes(network) as kept:
        output = network(x) * network.scale
    assert kept.by_class == {"Linear": 2 * H}
    assert weight_bytes(network) == 4 * D * D
    assert output.grad_fn is not None


def test_what_no_module_keeps_is_before_or_after_them():
    network = nn.Sequential(nn.Linear(D, 1))
    x, y = torch.randn(B, D, requires_grad=True), torch.randn(B, 1)
    with saved_bytes(network) as kept:
        F.mse_loss(network(x.exp()), y)
    assert kept.by_class["outside"] == H  # the exponential, which the layer keeps too
    assert kept.by_class["loss"] == 2 * ROW
    assert kept.total == H + 2 * ROW


def test_the_innermost_module_is_named_and_a_failure_leaves_no_trace():
    class Breaks(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    network = nn.Sequential(nn.Sequential(nn.GELU()), nn.Tanh())
    x = torch.randn(B, D, requires_grad=True)
    with saved_bytes(network) as kept:
        with pytest.raises(ValueError, match="no"):
            Breaks()(x)
        network(x)
    assert kept.by_class == {"GELU": H, "Tanh": H}
    with saved_bytes(network) as after:
        pass
    network(x)
    assert after.total == 0


class Halved(torch.autograd.Function):
    """Keeps one tensor as autograd has it done, and another as an attribute."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.half())
        ctx.rest = {"more": [x.to(torch.int8)]}
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def test_custom_functions_count_with_their_attributes():
    x = torch.randn(B, D, requires_grad=True)
    with saved_bytes(nn.Identity()) as kept:
        loss = Halved.apply(x).sum()
        assert kept.total == H // 2
        kept.add_attributes(loss)
    assert kept.by_class == {"outside": H // 2, "Halved": H // 4}


def test_what_was_freed_can_be_dropped():
    x = torch.randn(B, D, requires_grad=True)
    with saved_bytes(nn.Identity()) as kept:
        x.exp()
        held = x.sin().exp()
    assert kept.total == 3 * H  # two exponentials, x
    kept.drop_freed()
    assert kept.total == 2 * H
    held.sum().backward()
    del held
    kept.drop_freed()
    assert kept.total == H  # x is held by this test


def test_a_checkpointed_part_keeps_its_input_alone():
    network = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D), nn.GELU())
    x = torch.randn(B, D, requires_grad=True)
    for reentrant in (False, True):
        with saved_bytes(network) as kept:
            loss = checkpoint(network, x, use_reentrant=reentrant).sum()
        assert kept.total == H
        loss.backward()


def test_hooks_of_others_stay_in_force():
    network = nn.Sequential(nn.Linear(D, D), nn.GELU())
    x = torch.randn(B, D, requires_grad=True)
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.detach().half()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t.float()):
        with saved_bytes(network) as kept:
            loss = network(x).sum()
        assert len(packed) == 3  # the input and the weight of the layer, its output
    assert kept.total == 2 * H // 2 + 2 * D * D
    loss.backward()
    with saved_bytes(network) as kept, save_on_cpu():
        network(x).sum().backward()
    assert kept.total == 0  # not seen


def test_functional_transforms_work_inside():
    x = torch.randn(B, D, requires_grad=True)
    network = nn.Linear(D, 1)
    with saved_bytes(network) as outer, saved_bytes(network) as kept:
        with torch.no_grad():
            slope = torch.func.jacrev(lambda row: network(row).squeeze())(x[0])
            doubled = torch.vmap(lambda row: row * 2)(x)
        network(x)
    torch.testing.assert_close(slope, network.weight[0])
    assert doubled.shape == x.shape
    assert kept.total == outer.total == H
    with (
        pytest.raises(RuntimeError, match="mine"),
        save_on_cpu(),
        torch.autograd.graph.disable_saved_tensors_hooks("mine"),
    ):
        pass


def test_devices_and_sparse_tensors():
    with saved_bytes(nn.Identity()) as kept:
        here = torch.randn(B, D, requires_grad=True).exp()
        there = torch.randn(B, 2 * D, requires_grad=True, device="meta").exp()
    assert kept.by_device == {"meta": 2 * H, "cpu": H}
    assert here.grad_fn is not None
    assert there.grad_fn is not None
    assert held_bytes([torch.eye(3).to_sparse()]) == 3 * 4 + 2 * 3 * 8


def test_gradients_and_optimizer_of_a_part_that_is_frozen_later():
    network = nn.Sequential(nn.Linear(D, D, bias=False), nn.Linear(D, 1, bias=False))
    optimizer = torch.optim.Adam(network.parameters())
    x, weights = torch.randn(B, D), 4 * (D * D + D)
    for trained in (True, False):
        network[0].requires_grad_(trained)
        optimizer.zero_grad()
        network(x).sum().backward()
        optimizer.step()
        assert gradient_bytes(network) == (weights if trained else 4 * D)
        assert optimizer_bytes(optimizer) == 2 * weights + 2 * 4  # and a count of steps each


@pytest.mark.slow
def test_compiled_code_is_not_counted():
    network = nn.Linear(D, D)
    assert countable(network)
    assert not countable(torch.compile(network))
    network.compile()
    assert not countable(network)
