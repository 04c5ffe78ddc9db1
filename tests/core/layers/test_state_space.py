import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from core.layers import state_space
from core.layers.state_space import DepthwiseConv, Mamba, selective_scan


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


@pytest.mark.parametrize("conv", [1, 2, 4])
@pytest.mark.parametrize(("bias", "tokens"), [(True, 9), (False, 9), (True, 2), (False, 1)])
def test_the_convolution_equals_that_of_torch(conv, bias, tokens):
    torch.manual_seed(0)
    plain = torch.nn.Conv1d(6, 6, conv, groups=6, bias=bias, padding=conv - 1).double()
    ours = DepthwiseConv(6, 6, conv, groups=6, bias=bias).double()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(3, 6, tokens, dtype=torch.float64, requires_grad=True)
    expected, y = plain(x)[..., :tokens], ours(x.permute(2, 0, 1)).permute(1, 2, 0)
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    gradients = [
        torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()])
        for out, layer in ((y, ours), (expected, plain))
    ]
    torch.testing.assert_close(*gradients)
    half = ours.bfloat16()(x.permute(2, 0, 1).bfloat16()).permute(1, 2, 0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, atol=0.02, rtol=0.02)


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
