import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from core.layers import state_space
from core.layers.state_space import Mamba, selective_scan


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
    monkeypatch.setattr(state_space, "_WORK", 1)
    monkeypatch.setattr(state_space, "_SHORTEST_BLOCK", 5)


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
    assert 0 < largest.numbers <= state_space._WORK < batch * channels * tokens * states / 8


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


def test_the_block_equals_the_published_one(golden):
    file = golden("mamba_block")
    network = Mamba.from_published(file["config"], file["state_dict"])
    x, outputs = file["inputs"]["x"], file["outputs"]
    y = network(x)
    torch.testing.assert_close(y, outputs["y"], atol=5e-6, rtol=0)
    y.square().mean().backward()
    for name, expected in file["grad_l2"].items():
        gradient = network.get_parameter(name.replace("dt_proj.bias", "dt_bias")).grad
        assert gradient.norm().item() == pytest.approx(expected, rel=1e-5)
    state = None
    for t in range(x.shape[1]):
        y, state = network.step(x[:, t], state)
        torch.testing.assert_close(y, outputs["y_step"][:, t], atol=5e-6, rtol=0)
    torch.testing.assert_close(state.conv, outputs["conv_state"], atol=5e-6, rtol=0)
    torch.testing.assert_close(state.ssm, outputs["ssm_state"], atol=5e-6, rtol=0)
    assert sum(p.numel() for p in network.parameters()) == file["num_parameters_official"]


@pytest.mark.parametrize(("conv_bias", "bias"), [(True, False), (False, True)])
def test_equals_the_mixer_of_transformers(conv_bias, bias):
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    config = mamba.MambaConfig(
        hidden_size=24,
        state_size=5,
        conv_kernel=3,
        expand=2,
        num_hidden_layers=1,
        use_conv_bias=conv_bias,
        use_bias=bias,
    )
    torch.manual_seed(0)
    mixer = mamba.MambaMixer(config, 0).eval()
    for parameter in mixer.parameters():
        parameter.data += torch.randn_like(parameter) / 10
    sizes = {"d_model": 24, "d_state": 5, "d_conv": 3, "dt_rank": "auto"}
    network = Mamba.from_published(
        {**sizes, "conv_bias": conv_bias, "bias": bias}, mixer.state_dict()
    )
    x = torch.randn(3, 21, 24)
    y, expected = network(x), mixer(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)
    y.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in mixer.named_parameters():
        ours = network.get_parameter(name.replace("dt_proj.bias", "dt_bias")).grad
        torch.testing.assert_close(ours, parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "sizes", [{}, {"conv": 1, "state": 1}, {"conv": 2, "expand": 1, "rank": 3}]
)
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_token_by_token_equals_all_at_once(sizes, tokens):
    torch.manual_seed(0)
    network = Mamba(12, **sizes).double()
    x = torch.randn(3, tokens, 12, dtype=torch.float64)
    state = network.initial_state(3)
    assert not any(part.any() for part in state)
    outputs = []
    for t in range(tokens):
        y, state = network.step(x[:, t : t + 1] if t % 2 else x[:, t], state)
        outputs.append(y.view(3, 12))
    torch.testing.assert_close(torch.stack(outputs, 1), network(x))


def test_no_token_sees_a_later_one():
    torch.manual_seed(0)
    network = Mamba(8)
    x = torch.randn(2, 15, 8)
    changed = x.clone()
    changed[:, 9:] += 1
    before, after = network(x), network(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(2).all()


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


def test_starts_as_published():
    torch.manual_seed(0)
    network = Mamba(64)
    torch.testing.assert_close(
        network.A_log.exp(), torch.arange(1.0, 17.0).expand(128, 16), atol=1e-5, rtol=0
    )
    assert (network.D == 1).all()
    step = F.softplus(network.dt_bias)
    assert 1e-3 <= step.min() < 2e-3
    assert 5e-2 < step.max() <= 1e-1 + 1e-7
    assert step.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.4)
    assert network.rank == 4
    assert 0.45 < network.dt_proj.weight.abs().max() <= 0.5
    assert network.in_proj.bias is network.out_proj.bias is None
    assert network.conv1d.bias is not None


def test_has_the_published_number_of_parameters():
    with torch.device("meta"):
        block = sum(p.numel() for p in Mamba(768).parameters())
    # mamba-130m: 24 blocks, each with a norm, a last norm and 50280 tied embeddings.
    assert 24 * (block + 768) + 768 + 50_280 * 768 == 129_135_360
    d, n, r = 48, 7, 3
    small = sum(p.numel() for p in Mamba(d, state=n, conv=2, expand=1).parameters())
    assert small == 3 * d * d + 5 * d + 2 * r * d + 3 * n * d


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    network = Mamba(16, bias=True)
    network(torch.randn(2, 9, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


class Adapted(torch.nn.Module):
    """A layer with a low-rank detour beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_adapters_are_called_and_trained(name):
    torch.manual_seed(0)
    network = Mamba(16)
    x = torch.randn(2, 9, 16)
    plain = network(x), network.step(x[:, 0])[0]
    layer = getattr(network, name)
    adapted = Adapted(layer)
    setattr(network, name, adapted)
    y = network(x)
    y.square().sum().backward()
    assert adapted.down.weight.grad.any()
    assert adapted.up.weight.grad.any()
    assert not torch.allclose(y, plain[0])
    assert not torch.allclose(network.step(x[:, 0])[0], plain[1])
    merged = Mamba(16)
    setattr(network, name, layer)
    merged.load_state_dict(network.state_dict())
    getattr(merged, name).weight.data += adapted.up.weight @ adapted.down.weight
    torch.testing.assert_close(merged(x), y, atol=1e-5, rtol=0)


def test_half_precision():
    torch.manual_seed(0)
    network = Mamba(16)
    x = torch.randn(2, 50, 16)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = network(x)
        step, state = network.step(x[:, 0])
    assert cast.dtype == torch.bfloat16
    assert state.ssm.dtype == torch.float32
    torch.testing.assert_close(cast.float(), exact, atol=0.01, rtol=0)
    torch.testing.assert_close(step.float(), exact[:, 0], atol=0.01, rtol=0)
    network.bfloat16()
    whole = network(x.bfloat16())
    step, state = network.step(x[:, 0].bfloat16())
    assert (whole.dtype, step.dtype) == (torch.bfloat16, torch.bfloat16)
    assert state.ssm.dtype == torch.float32
    torch.testing.assert_close(whole.float(), exact, atol=0.02, rtol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_gradients_equal_eager_ones(backend):
    torch.manual_seed(0)
    network = Mamba(8)
    x = torch.randn(2, 7, 8)
    network(x).square().sum().backward()
    eager = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    torch.compile(network, backend=backend)(x).square().sum().backward()
    torch.testing.assert_close([p.grad for p in network.parameters()], eager)


def test_a_cpu_never_looks_for_the_compiled_scan(monkeypatch):
    monkeypatch.setattr(state_space, "_fastest_scan", lambda: pytest.fail("looked"))
    Mamba(8)(torch.zeros(1, 3, 8))


def test_the_compiled_scan_is_taken_only_where_it_is_whole(monkeypatch):
    find = state_space._fastest_scan.__wrapped__
    interface = types.SimpleNamespace(selective_scan_fn=lambda *given, **options: (given, options))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    assert find() is selective_scan
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("compiled"))
    assert find()(1, 2) == ((1, 2), {"delta_softplus": True, "return_last_state": True})


@pytest.mark.gpu
def test_the_compiled_scan_equals_ours(monkeypatch):
    if not torch.cuda.is_available() or state_space._fastest_scan() is selective_scan:
        pytest.skip("needs a GPU and mamba_ssm with its CUDA scan")
    torch.manual_seed(0)
    network = Mamba(32).cuda()
    x = torch.randn(2, 100, 32, device="cuda")
    compiled = network(x)
    compiled.square().mean().backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    monkeypatch.setattr(state_space, "_fastest_scan", lambda: selective_scan)
    ours = network(x)
    ours.square().mean().backward()
    torch.testing.assert_close(compiled, ours, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        gradients, [p.grad for p in network.parameters()], atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 8), (2, 0, 8), (2, 1, 3, 8)])
def test_inputs_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"x is .*, needed \(B, L, 8\)"):
        Mamba(8)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 7), (2, 2, 8), (8,)])
def test_steps_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"x is .*, needed \(B, 8\)"):
        Mamba(8).step(torch.zeros(shape))


@pytest.mark.parametrize("name", ["width", "state", "conv", "expand", "rank"])
def test_sizes_below_one(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        Mamba(**{"width": 8, name: 0})


def published(width=8):
    names = {"dt_bias": "dt_proj.bias"}
    return {names.get(k, k): v for k, v in Mamba(width).state_dict().items()}


def test_official_options_that_build_nothing_are_accepted():
    config = {"d_model": 8, "dt_rank": 1, "dt_init": "random", "use_fast_path": False, "B": 2}
    network = Mamba.from_published(config, published())
    assert (network.width, network.rank, network.state) == (8, 1, 16)


def test_unknown_and_missing_options_are_listed():
    with pytest.raises(
        ValueError, match="missing d_model; unknown d_sate; unknown heads; known are d_model"
    ):
        Mamba.from_published({"d_sate": 4, "heads": 2}, published())


def test_faults_of_weights_are_listed():
    weights = published()
    del weights["dt_proj.bias"], weights["A_log"]
    weights["man.D"] = torch.zeros(8)
    weights["D"] = torch.zeros(8)
    with pytest.raises(ValueError, match="do not fit") as caught:
        Mamba.from_published({"d_model": 8}, weights)
    for fault in (
        "missing dt_proj.bias",
        "missing A_log",
        "unknown man.D",
        "D is (8,), needed (16,)",
    ):
        assert fault in str(caught.value)
