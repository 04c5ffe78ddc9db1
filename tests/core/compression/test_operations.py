"""Each operation: equal results, and gradients exact where nothing is rounded, else near."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.activation_compression import compress, report
from core.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
import saved_case


class Call(nn.Module):
    """A function with frozen or trained parameters, as a network would call it."""

    def __init__(self, function, *parameters, trained=()):
        super().__init__()
        self.function = function
        self.parts = nn.ParameterList(parameters)
        for index, parameter in enumerate(self.parts):
            parameter.requires_grad_(index in trained)

    def forward(self, *inputs):
        return self.function(*inputs, *self.parts)


def randn(*shape):
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    )


def attention(**given):
    return lambda q, k, v, *rest: F.scaled_dot_product_attention(q, k, v, *rest, **given)


BOOLEAN = torch.ones(5, 6, dtype=torch.bool).triu(-1)
QKV = [(2, 2, 5, 4), (2, 2, 6, 4), (2, 2, 6, 3)]
# name: kind, function, shapes of inputs, shapes of parameters, which of these train
OPERATIONS = {
    "wide linear": ("linear", F.linear, [(3, 2, 8)], [(4, 8), (4,)], (0, 1)),
    "wide linear without bias": ("linear", F.linear, [(3, 8)], [(2, 8)], (0,)),
    "conv1d": ("convolution", F.conv1d, [(2, 3, 7)], [(4, 3, 3), (4,)], (1,)),
    "conv2d": (
        "convolution",
        lambda x, w: F.conv2d(x, w, None, 2, (1, 0), dilation=2, groups=2),
        [(2, 4, 7, 6)],
        [(4, 2, 2, 2)],
        (),
    ),
    "conv3d": (
        "convolution",
        lambda x, w, b: F.conv3d(x, w, b, padding=1),
        [(1, 2, 3, 4, 3)],
        [(2, 2, 3, 3, 3), (2,)],
        (1,),
    ),
    "conv_transpose1d": (
        "convolution",
        lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1),
        [(2, 3, 5)],
        [(3, 4, 3), (4,)],
        (1,),
    ),
    "conv_transpose2d": (
        "convolution",
        lambda x, w: F.conv_transpose2d(x, w, stride=2, groups=2),
        [(2, 4, 3, 3)],
        [(4, 1, 2, 2)],
        (),
    ),
    "layer_norm": (
        "layer_norm",
        lambda x, w, b: F.layer_norm(x, (5,), w, b),
        [(2, 3, 5)],
        [(5,), (5,)],
        (1,),
    ),
    "layer_norm of two axes": (
        "layer_norm",
        lambda x, w, b: F.layer_norm(x, (3, 5), w, b, 1e-12),
        [(2, 2, 3, 5)],
        [(3, 5), (3, 5)],
        (1,),
    ),
    "layer_norm of all axes": ("layer_norm", lambda x: F.layer_norm(x, (3, 5)), [(3, 5)], [], ()),
    "rms_norm": ("rms_norm", lambda x, w: F.rms_norm(x, (5,), w), [(2, 3, 5)], [(5,)], ()),
    "trained rms_norm": (
        "rms_norm",
        lambda x, w: F.rms_norm(x, (5,), w, 1e-6),
        [(2, 3, 5)],
        [(5,)],
        (0,),
    ),
    "group_norm": (
        "group_norm",
        lambda x, w, b: F.group_norm(x, 2, w, b),
        [(2, 4, 3)],
        [(4,), (4,)],
        (1,),
    ),
    "instance_norm": (
        "instance_norm",
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        [(2, 3, 3, 2)],
        [(3,), (3,)],
        (1,),
    ),
    "batch_norm": (
        "batch_norm",
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        [(3, 4, 2)],
        [(4,), (4,)],
        (1,),
    ),
    "batch_norm of features": (
        "batch_norm",
        lambda x: F.batch_norm(x, None, None, training=True),
        [(6, 4)],
        [],
        (),
    ),
    "batch_norm in eval": (
        "batch_norm",
        lambda x, w, b: F.batch_norm(
            x, torch.zeros(4).double(), torch.full((4,), 2.0).double(), w, b
        ),
        [(3, 4, 2, 2)],
        [(4,), (4,)],
        (1,),
    ),
    "gelu": ("gelu", F.gelu, [(3, 5)], [], ()),
    "gelu by tanh": ("gelu", lambda x: F.gelu(x, approximate="tanh"), [(3, 5)], [], ()),
    "silu": ("silu", F.silu, [(3, 5)], [], ()),
    "relu": ("relu", F.relu, [(3, 5)], [], ()),
    "relu in place": ("relu", lambda x: F.relu(x * 2, inplace=True), [(3, 5)], [], ()),
    "method relu": ("relu", lambda x: x.relu(), [(3, 5)], [], ()),
    "leaky_relu": ("leaky_relu", lambda x: F.leaky_relu(x, 0.2), [(3, 5)], [], ()),
    "prelu": ("prelu", F.prelu, [(3, 5)], [(1,)], ()),
    "softmax": ("softmax", lambda x: F.softmax(x, -1), [(3, 5)], [], ()),
    "softmax of an axis": ("softmax", lambda x: x.softmax(1), [(3, 5, 2)], [], ()),
    "matmul": ("matmul", torch.matmul, [(2, 3, 4), (2, 4, 5)], [], ()),
    "matmul of a transpose": ("matmul", lambda a, b: a @ b.mT, [(2, 3, 4), (2, 5, 4)], [], ()),
    "matmul with broadcasting": ("matmul", torch.matmul, [(2, 3, 4), (4, 5)], [], ()),
    "bmm": ("matmul", torch.bmm, [(2, 3, 4), (2, 4, 5)], [], ()),
    "baddbmm": (
        "matmul",
        lambda a, b: torch.baddbmm(torch.ones(1).double(), a, b),
        [(2, 3, 4), (2, 4, 5)],
        [],
        (),
    ),
    "einsum": (
        "matmul",
        lambda a, b: torch.einsum("bij,bkj->bki", a, b),
        [(2, 3, 4), (2, 5, 4)],
        [],
        (),
    ),
    "attention": ("attention", attention(), QKV, [], ()),
    "attention with a scale": ("attention", attention(scale=0.3), QKV, [], ()),
    "causal attention": ("attention", attention(is_causal=True), QKV, [], ()),
    "masked attention": ("attention", attention(attn_mask=BOOLEAN), QKV, [], ()),
    "biased attention": ("attention", attention(), [*QKV, (2, 1, 5, 6)], [], ()),
    "grouped attention": (
        "attention",
        attention(enable_gqa=True),
        [(2, 4, 5, 4), (2, 2, 6, 4), (2, 2, 6, 3)],
        [],
        (),
    ),
    "attention by hand": (
        "softmax",
        lambda q, k, v: F.dropout((q @ k.mT).softmax(-1), 0.0) @ v,
        QKV,
        [],
        (),
    ),
}


def built(name):
    kind, function, inputs, parameters, trained = OPERATIONS[name]
    parts = [nn.Parameter(randn(*shape)) for shape in parameters]
    given = [randn(*shape).requires_grad_() for shape in inputs]
    return kind, Call(function, *parts, trained=trained), given


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_exact_where_nothing_is_rounded(name):
    kind, call, inputs = built(name)
    want = call(*inputs)
    compress(call, exact=True)
    assert torch.equal(call(*inputs), want)
    assert kind in report(call)["operations"]
    trained = [p for p in call.parameters() if p.requires_grad]

    def run(*values):
        return call(*values[: len(inputs)])

    assert torch.autograd.gradcheck(run, (*inputs, *trained))


@pytest.mark.parametrize("name", OPERATIONS)
def test_rounded_gradients_are_near(name):
    _, call, inputs = built(name)
    trained = [p for p in call.parameters() if p.requires_grad]
    want = call(*inputs)
    g = torch.randn(want.shape, generator=torch.Generator().manual_seed(0), dtype=want.dtype)
    exact = torch.autograd.grad(want, [*inputs, *trained], g)
    compress(call)
    out = call(*inputs)
    assert torch.equal(out, want)
    found = torch.autograd.grad(out, [*inputs, *trained], g)
    for near, right in zip(found, exact, strict=True):
        assert near.shape == right.shape
        assert F.cosine_similarity(near.flatten(), right.flatten(), 0) > 0.97


def test_gradients_through_dropout_are_those_of_the_same_draw():
    x = randn(4, 6).requires_grad_()
    call = compress(Call(lambda x: F.dropout(x.tanh(), 0.4)))

    def run(x):
        torch.manual_seed(3)
        return call(x)

    assert torch.autograd.gradcheck(run, (x,))


def test_dropout_draws_what_torch_draws():
    x = torch.randn(1000, 20, requires_grad=True)
    call = compress(Call(lambda x: F.dropout(x, 0.3)))
    torch.manual_seed(3)
    want = F.dropout(x, 0.3)
    torch.manual_seed(3)
    assert torch.equal(call(x), want)


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("on_values", [False, True])
def test_gradients_of_attention_with_dropout(by_hand, on_values):
    def attend(q, k, v):
        if by_hand:
            return F.dropout((q @ k.mT / 2).softmax(-1), 0.3) @ v
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.3)

    call = compress(Call(attend), exact=True, dropout_on_values=on_values)
    inputs = [randn(*shape).requires_grad_() for shape in QKV]

    def run(*values):
        torch.manual_seed(1)
        return call(*values)

    assert torch.autograd.gradcheck(run, inputs)
    torch.manual_seed(1)
    plain = attend(*inputs)
    assert torch.allclose(run(*inputs), plain) != on_values


def test_dropout_on_values_keeps_the_mean():
    q, k = (torch.randn(1, 8, 16, 4) for _ in range(2))
    v = torch.ones(1, 8, 16, 4, requires_grad=True)
    call = compress(Call(attention(dropout_p=0.5)), dropout_on_values=True)
    mean = torch.stack([call(q, k, v) for _ in range(200)]).mean()
    assert abs(float(mean.detach()) - 1) < 0.03


def test_a_row_that_is_masked_whole_gives_zeros_and_no_nan():
    shut = torch.zeros(5, 6, dtype=torch.bool)
    shut[1:] = True
    call = Call(attention(attn_mask=shut, dropout_p=0.1))
    inputs = [torch.randn(shape, requires_grad=True) for shape in QKV]
    out = compress(call)(*inputs)
    out.sum().backward()
    assert out[:, :, 0].detach().abs().max() == 0
    assert all(x.grad.isfinite().all() for x in inputs)


def test_probabilities_are_kept_once():
    q, k, v = (torch.randn(2, 4, 128, 64, requires_grad=True) for _ in range(3))
    call = compress(Call(lambda q, k, v: F.dropout((q @ k.mT).softmax(-1), 0.1) @ v), range="fixed")
    size, _ = saved_case.kept(call, lambda: call(q, k, v))
    each, square = 2 * 4 * 128 * 64, 2 * 4 * 128 * 128
    assert size == 3 * each + square + square / 8


def test_probabilities_in_another_type_and_shape_are_kept_once():
    def attend(q, k, v):
        p = (q @ k.mT).float().softmax(-1).to(q.dtype)
        return torch.bmm(p.view(8, 128, 128), v.view(8, 128, 64))

    q, k, v = (torch.randn(2, 4, 128, 64).bfloat16().requires_grad_() for _ in range(3))
    call = compress(Call(attend), range="fixed")
    size, out = saved_case.kept(call, lambda: call(q, k, v))
    assert size == 3 * 2 * 4 * 128 * 64 + 2 * 4 * 128 * 128
    out.sum().backward()


def test_a_tensor_that_changed_in_place_is_coded_anew():
    def twice(a, b):
        p = a.softmax(-1) * 1.0
        first = p @ b
        p.mul_(3)
        return first + p @ b

    a, b = (torch.randn(4, 6, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    exact = torch.autograd.grad(
        sum(f * (a.softmax(-1) @ b) for f in (1.0, 3.0)).square().sum(), [a, b]
    )
    found = torch.autograd.grad(compress(Call(twice))(a, b).square().sum(), [a, b])
    for near, right in zip(found, exact, strict=True):
        assert F.cosine_similarity(near.flatten(), right.flatten(), 0) > 0.999


def test_a_wide_input_is_kept_once_for_two_layers():
    x = torch.randn(16, 64, requires_grad=True)
    first, second = nn.Parameter(torch.randn(8, 64)), nn.Parameter(torch.randn(8, 64))
    call = Call(lambda x, a, b: F.linear(x, a) + F.linear(x, b), first, second, trained=(0, 1))
    size, _ = saved_case.kept(compress(call), lambda: call(x))
    assert size == 16 * (64 + 4)
    size, _ = saved_case.kept(compress(call, load_balancing=False), lambda: call(x))
    assert size == 16 * 64 * 4


def test_running_statistics_go_on():
    torch.manual_seed(0)
    norm, same = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    for part in (norm, same):
        part.weight.requires_grad_(False)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    assert torch.equal(compress(norm)(x), same(x))
    assert torch.equal(norm.running_mean, same.running_mean)
    assert torch.equal(norm.running_var, same.running_var)
    assert report(norm)["operations"] == {"batch_norm": 1}


def test_a_second_backward_and_a_second_derivative_say_why_not():
    x = torch.randn(4, 8, requires_grad=True)
    call = compress(Call(F.gelu))
    out = call(x).sum()
    out.backward(retain_graph=True)
    once = x.grad.clone()
    out.backward()
    assert torch.equal(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.backward()
    (first,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_unusual_calls_go_to_torch_as_they_are():
    x = torch.randn(4, 6, requires_grad=True)
    weight = nn.Parameter(torch.randn(6, 6))
    call = compress(
        Call(lambda x, w: (x @ w) @ x.detach().mT + F.linear(x[0], w)[:4], weight, trained=(0,))
    )
    call(x).sum().backward()
    same = compress(Call(lambda x, w: F.conv1d(x, w, padding="same"), torch.randn(6, 6, 3)))
    same(torch.randn(2, 6, 9, requires_grad=True)).sum().backward()
    vector = compress(
        Call(lambda x: x[0] @ x[1] + torch.zeros(0, 3, requires_grad=True).relu().sum())
    )
    vector(x).sum().backward()
    mapped = compress(Call(lambda x: torch.vmap(F.gelu)(x)))
    mapped(x).sum().backward()
    for network in (call, same, vector, mapped):
        assert report(network)["operations"] == {}


def test_settings_that_are_unknown_are_refused():
    with pytest.raises(UserError, match="ln_mode='int2' must be one of topk, int8, int4"):
        compress(nn.Linear(2, 2), ln_mode="int2")
