import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from core.layers import selective_scan as scan_module
from core.layers.selective_scan import selective_scan


def scan_inputs(batch, channels, tokens, states, dtype=torch.float64, channels_last=False):
    """Arguments of a scan in the order of its signature, each requiring a gradient."""
    draw = torch.Generator().manual_seed(batch + 10 * channels + 100 * tokens + 1000 * states)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype)

    def sequence(width):
        if channels_last:
            return normal(batch, tokens, width).mT
        return normal(batch, width, tokens)

    rates = -torch.arange(1, states + 1, dtype=dtype) * torch.rand(
        channels, 1, generator=draw, dtype=dtype
    )
    arguments = (
        sequence(channels),
        sequence(channels) - 1,
        rates,
        sequence(states),
        sequence(states),
        normal(channels),
        sequence(channels),
        normal(channels) / 5,
    )
    return [tensor.detach().requires_grad_() for tensor in arguments]


def plain_scan(u, delta, a, b, c, d=None, z=None, bias=None, softplus=True):
    """The recurrence as it is written, token by token, left to autograd."""
    step = delta if bias is None else delta + bias[:, None]
    step = F.softplus(step) if softplus else step
    state = u.new_zeros(len(u), *a.shape)
    outputs = []
    for t in range(u.shape[2]):
        drive = step[:, :, t, None] * u[:, :, t, None] * b[:, None, :, t]
        state = torch.exp(step[:, :, t, None] * a) * state + drive
        outputs.append((state * c[:, None, :, t]).sum(2))
    y = torch.stack(outputs, 2)
    y = y if d is None else y + u * d[:, None]
    return (y if z is None else y * F.silu(z)), state


def value_and_gradients(scan, arguments, **options):
    y, last = scan(*arguments, **options)
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t) for t in (y, last)]
    loss = (y * weights[0]).sum() + (last * weights[1]).sum()
    return y, last, *torch.autograd.grad(loss, [t for t in arguments if t is not None])


def kept_bytes(call):
    """Bytes that ``call`` keeps for its backward pass, each storage once, and its result."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    return sum(kept.values()), result


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of a few tokens and of one sequence, so that small inputs take many."""
    monkeypatch.setattr(scan_module, "_WORK", 1)
    monkeypatch.setattr(scan_module, "_SHORTEST_BLOCK", 5)


@pytest.fixture(params=["one block", "many blocks"])
def _blocks(request):
    if request.param == "many blocks":
        request.getfixturevalue("short_blocks")


SHAPES = {
    "many tokens": (2, 3, 23, 4),
    "a whole number of blocks": (2, 3, 20, 4),
    "one token": (3, 4, 1, 2),
    "one state": (2, 3, 11, 1),
    "one channel": (2, 1, 7, 3),
    "one sequence": (1, 3, 12, 2),
    "one of each": (1, 1, 1, 1),
    "more states than tokens": (2, 2, 6, 9),
}


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_the_recurrence(shape, channels_last):
    arguments = scan_inputs(*shape, channels_last=channels_last)
    before = [tensor.detach().clone() for tensor in arguments]
    ours = value_and_gradients(selective_scan, arguments)
    torch.testing.assert_close(ours, value_and_gradients(plain_scan, arguments))
    assert all(torch.equal(*pair) for pair in zip(arguments, before, strict=True))  # untouched


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("without", [(5,), (6,), (7,), (5, 6, 7)])
@pytest.mark.parametrize("softplus", [True, False])
def test_optional_arguments(without, softplus):
    arguments = scan_inputs(2, 3, 13, 4)
    if not softplus:
        arguments[1] = (arguments[1].detach().abs() / 3).requires_grad_()
    for position in without:
        arguments[position] = None
    ours = value_and_gradients(selective_scan, arguments, softplus=softplus)
    torch.testing.assert_close(ours, value_and_gradients(plain_scan, arguments, softplus=softplus))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("shape", [(2, 2, 12, 2), (1, 2, 7, 3), (2, 2, 1, 1)])
def test_gradients_equal_finite_differences(shape):
    assert torch.autograd.gradcheck(selective_scan, scan_inputs(*shape))


@pytest.mark.parametrize("gated", [True, False])
def test_the_gradient_handed_in_is_left_as_it_is(gated):
    arguments = scan_inputs(1, 3, 6, 2, channels_last=True)
    arguments[6] = arguments[6] if gated else None
    inputs = [tensor for tensor in arguments if tensor is not None]
    handed = torch.randn(1, 6, 3, dtype=torch.float64).mT
    for cotangent in (handed, torch.ones((), dtype=torch.float64).expand(1, 3, 6)):
        before = cotangent.clone()
        ours = torch.autograd.grad(selective_scan(*arguments)[0], inputs, cotangent)
        plain = torch.autograd.grad(plain_scan(*arguments)[0], inputs, cotangent)
        torch.testing.assert_close(ours, plain)
        assert torch.equal(cotangent, before)


def test_second_derivatives_are_refused():
    arguments = scan_inputs(1, 2, 3, 2)
    (gradient,) = torch.autograd.grad(
        selective_scan(*arguments)[0].square().sum(), arguments[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_single_precision_is_within_1e_5_over_a_thousand_tokens():
    arguments = scan_inputs(2, 8, 1000, 16, channels_last=True)
    exact = selective_scan(*arguments)
    single = selective_scan(*[tensor.detach().float() for tensor in arguments])
    for ours, reference in zip(single, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_state_stays_in_single_precision(dtype):
    arguments = [tensor.detach().to(dtype) for tensor in scan_inputs(2, 4, 300, 8)]
    exact, exact_last = selective_scan(*[tensor.double() for tensor in arguments])
    ours = [tensor.requires_grad_() for tensor in arguments]
    y, last = selective_scan(*ours)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(last.double(), exact_last, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y.double(), exact, atol=1e-6, rtol=torch.finfo(dtype).eps)
    y.float().square().mean().backward()
    assert all(t.grad.dtype == dtype and t.grad.isfinite().all() for t in ours)


def test_autocast_does_not_touch_the_scan():
    arguments = scan_inputs(2, 4, 9, 3, torch.float32)
    plain = value_and_gradients(selective_scan, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        cast = value_and_gradients(selective_scan, arguments)
    torch.testing.assert_close(cast, plain, atol=0, rtol=0)


def test_long_and_fast_decay_neither_overflows_nor_divides():
    u = torch.ones(1, 2, 2000)
    y, last = selective_scan(
        u, u * 50, torch.tensor([[-30.0], [-1e-6]]), u[:, :1], u[:, :1], None, softplus=False
    )
    assert y.isfinite().all()
    assert last[0, 0].item() == 50.0  # forgets all but the last token
    expected = 50 * sum(math.exp(-5e-5 * age) for age in range(2000))  # forgets almost nothing
    assert last[0, 1].item() == pytest.approx(expected, rel=1e-5)


def test_keeps_an_eighth_of_what_the_loop_keeps():
    arguments = scan_inputs(1, 256, 2048, 16, torch.float32)[:5]
    loop, _ = kept_bytes(lambda: plain_scan(*arguments))
    ours, (y, _) = kept_bytes(lambda: selective_scan(*arguments, None))
    assert y.numel() * 4 < ours <= loop / 8


def test_no_tensor_of_the_whole_sequence_times_the_states():
    class Largest(torch.overrides.TorchFunctionMode):
        numbers = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numbers = max(self.numbers, result.untyped_storage().nbytes() // 4)
            return result

    batch, channels, tokens, states = 1, 64, 8192, 16
    arguments = scan_inputs(batch, channels, tokens, states, torch.float32)
    with Largest() as largest:
        selective_scan(*arguments)[0].sum().backward()
    assert 0 < largest.numbers <= scan_module._WORK < batch * channels * tokens * states / 8


@pytest.mark.parametrize(
    ("position", "name", "value", "says"),
    [
        (0, "u", torch.zeros(2, 3), r"u is \(2, 3\), needed \(batch, channels, tokens\)"),
        (0, "u", torch.zeros(2, 3, 0), r"u is \(2, 3, 0\)"),
        (0, "u", torch.zeros(0, 3, 5), r"u is \(0, 3, 5\)"),
        (0, "u", torch.zeros(2, 3, 5, dtype=torch.long), r"u is torch.int64"),
        (1, "delta", torch.zeros(2, 1, 5), r"delta is \(2, 1, 5\), needed \(2, 3, 5\)"),
        (1, "delta", torch.zeros(2, 5, 3), r"delta is \(2, 5, 3\)"),
        (2, "A", torch.zeros(4, 4), r"A is \(4, 4\), needed \(3, states\)"),
        (2, "A", torch.zeros(3, 0), r"A is \(3, 0\)"),
        (2, "A", torch.zeros(3), r"A is \(3,\)"),
        (2, "A", torch.zeros(3, 4, dtype=torch.complex64), r"A is torch.complex64"),
        (3, "B", torch.zeros(2, 5, 4), r"B is \(2, 5, 4\), needed \(2, 4, 5\)"),
        (3, "B", torch.zeros(3, 4), r"B is \(3, 4\)"),
        (4, "C", torch.zeros(1, 4, 5), r"C is \(1, 4, 5\), needed \(2, 4, 5\)"),
        (5, "D", torch.zeros(1), r"D is \(1,\), needed \(3,\)"),
        (6, "z", torch.zeros(2, 3, 1), r"z is \(2, 3, 1\)"),
        (7, "delta_bias", torch.zeros(3, 1), r"delta_bias is \(3, 1\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(position, name, value, says):
    arguments = scan_inputs(2, 3, 5, 4, torch.float32)
    arguments[position] = value
    with pytest.raises(ValueError, match=says):
        selective_scan(*arguments)


def test_equals_the_published_scan(golden):
    file = golden("mamba_scan")["scan"]
    inputs = {name: tensor.requires_grad_() for name, tensor in file["inputs"].items()}
    y, last = selective_scan(*inputs.values())
    assert list(inputs) == ["u", "delta", "A", "Bm", "Cm", "D", "z", "delta_bias"]
    torch.testing.assert_close(y, file["out"], atol=3e-6, rtol=0)
    torch.testing.assert_close(last, file["last_state"], atol=3e-6, rtol=0)
    y.square().mean().backward()
    for name, tensor in inputs.items():
        torch.testing.assert_close(tensor.grad, file["grads"][name], atol=5e-8, rtol=5e-5)
    step = 0.3 * inputs["delta"].abs()
    plain, _ = selective_scan(
        inputs["u"], step, inputs["A"], inputs["Bm"], inputs["Cm"], None, softplus=False
    )
    torch.testing.assert_close(plain, file["out_plain"], atol=3e-6, rtol=0)


def test_a_perturbation_decays_at_the_rate_of_the_state():
    arguments = scan_inputs(1, 4, 30, 3)
    with torch.no_grad():
        states = []
        for first in (0.0, 1e-3):
            u = arguments[0].clone()
            u[..., 0] += first
            states.append(selective_scan(u, *arguments[1:])[1])
        u, delta, a, b, *_, bias = arguments
        step = F.softplus(delta + bias[:, None])
        decay = torch.exp(step[..., 1:].sum(2).unsqueeze(2) * a)
        expected = 1e-3 * step[..., :1] * b[:, None, :, 0] * decay
    torch.testing.assert_close(states[1] - states[0], expected, atol=1e-15, rtol=1e-8)


@pytest.mark.usefixtures("_blocks")
def test_scans_whose_backward_passes_wait_do_not_disturb_each_other():
    pairs = [scan_inputs(2, 3, 12, 2), [1.1 * t.detach() for t in scan_inputs(2, 3, 12, 2)]]
    pairs[1] = [tensor.requires_grad_() for tensor in pairs[1]]
    alone = [value_and_gradients(selective_scan, arguments) for arguments in pairs]
    outputs = [selective_scan(*arguments)[0] for arguments in pairs]
    before = [y.detach().clone() for y in outputs]
    gradients = [
        torch.autograd.grad(y.sum(), arguments, retain_graph=True)
        for y, arguments in zip(outputs, pairs, strict=True)
    ]
    for y, kept, arguments, expected in zip(outputs, before, pairs, gradients, strict=True):
        again = torch.autograd.grad(y.sum(), arguments)
        torch.testing.assert_close(again, expected, atol=0, rtol=0)
        torch.testing.assert_close(
            expected, torch.autograd.grad(plain_scan(*arguments)[0].sum(), arguments)
        )
        assert torch.equal(y, kept)
    for arguments, expected in zip(pairs, alone, strict=True):
        torch.testing.assert_close(value_and_gradients(selective_scan, arguments), expected)


def test_trains_after_inference_and_in_other_threads():
    arguments = scan_inputs(2, 3, 9, 2)
    expected = value_and_gradients(plain_scan, arguments)
    with torch.inference_mode():
        selective_scan(*arguments)
    torch.testing.assert_close(value_and_gradients(selective_scan, arguments), expected)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(
            lambda _: value_and_gradients(selective_scan, arguments), range(20)
        ):
            torch.testing.assert_close(found, expected)


def test_few_work_spaces_wait_for_their_next_use():
    arguments = scan_inputs(2, 64, 32, 4, torch.float32)
    outputs = [selective_scan(*arguments)[0] for _ in range(300)]  # each holds two until it is done
    torch.stack(outputs).sum().backward()
    numbers = sum(space.block.numel() for space in scan_module._kept.spaces)
    assert 0 < numbers <= scan_module._MOST_KEPT
    with torch.no_grad():
        selective_scan(*scan_inputs(1, 2, 3, 2))  # of another size
    assert sum(space.block.numel() for space in scan_module._kept.spaces) == 2 * 2 * 3 * 2
