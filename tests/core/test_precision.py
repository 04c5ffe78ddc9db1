import json

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.accelerators import CPUAccelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from core import precision
from core.errors import UserError


@pytest.mark.parametrize(("speedup", "choice"), [(1.8, "bf16-mixed"), (0.7, "32-true")])
def test_measured_once_a_machine(tmp_path, monkeypatch, speedup, choice):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(precision, "_speedup", lambda device: asked.append(device) or speedup)
    assert [precision.faster_precision() for _ in range(3)] == [choice] * 3
    assert len(asked) == 1
    (kept,) = json.loads((tmp_path / "pleiad" / "precision.json").read_text()).values()
    assert kept == choice


def test_measured_again_for_another_processor_threads_or_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = []
    monkeypatch.setattr(precision, "_speedup", lambda device: asked.append(device) or 1.8)
    precision.faster_precision()
    for target, name, value in (
        (precision, "processor", lambda: "another"),
        (torch, "get_num_threads", lambda: 77),
        (torch, "__version__", "99.0"),
    ):
        monkeypatch.setattr(target, name, value)
        before = len(asked)
        precision.faster_precision()
        precision.faster_precision()
        assert len(asked) == before + 1
    kept = json.loads((tmp_path / "pleiad" / "precision.json").read_text())
    assert "another, 77 threads, torch 99.0" in kept
    assert len(kept) == 4


def test_the_probe_times_both_types(monkeypatch):
    cost = {torch.float32: 3.0, torch.bfloat16: 1.0}
    now = [0.0]
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])

    def multiply(left, right):
        now[0] += cost[left.dtype]
        return left

    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    assert precision._speedup(torch.device("cpu"), size=2) == 3.0


def test_the_processor_has_a_name():
    assert precision.processor().strip()


@pytest.mark.parametrize("content", ["{", "[1]", '{"x": 3}'])
def test_a_damaged_cache_is_measured_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "pleiad").mkdir()
    (tmp_path / "pleiad" / "precision.json").write_text(content)
    assert precision.faster_precision() in ("bf16-mixed", "32-true")


@pytest.mark.parametrize("wish", [16, "16-mixed", "16-true"])
def test_float16_on_a_processor_is_refused(wish, monkeypatch):
    for accelerator in ("cpu", CPUAccelerator()):
        with pytest.raises(UserError, match=rf"precision={wish}: .*take bf16-(mixed|true), or 32"):
            precision.check_precision(wish, accelerator)
    precision.check_precision(wish, "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    precision.check_precision(wish)


@pytest.mark.parametrize("wish", [None, 32, "32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_pass(wish):
    assert precision.resolve_precision(wish, "cpu") == wish


def test_auto_is_what_was_measured(monkeypatch):
    monkeypatch.setattr(precision, "faster_precision", lambda: "bf16-mixed")
    assert precision.resolve_precision("auto", "cpu") == "bf16-mixed"


TABLE = {  # what Lightning makes of a precision on a CPU: the types of what the key says
    "bf16-mixed": {
        **{"weight": "float32", "linear": "bfloat16", "layer_norm": "bfloat16"},
        **{"batch_norm": "bfloat16", "softmax": "bfloat16", "gradient": "float32"},
        **{"moment": "float32", "running_mean": "float32", "new": "float32", "loss": "float32"},
        **{"cumsum": "bfloat16", "logsumexp": "bfloat16", "norm": "bfloat16", "exp": "bfloat16"},
        **{"softplus": "bfloat16", "log_softmax": "bfloat16", "sdpa": "bfloat16"},
        "matmul": "bfloat16",
    },
    "bf16-true": {
        **{"weight": "bfloat16", "linear": "bfloat16", "layer_norm": "bfloat16"},
        **{"batch_norm": "bfloat16", "softmax": "bfloat16", "gradient": "bfloat16"},
        **{"moment": "bfloat16", "running_mean": "bfloat16", "new": "bfloat16"},
        "matmul": "bfloat16",
    },
}


class Typed(pl.LightningModule):
    """Notes the type of everything that the card's table has a column for."""

    def __init__(self):
        super().__init__()
        self.linear, self.normed = nn.Linear(8, 8), nn.LayerNorm(8)
        self.batch_normed = nn.BatchNorm1d(8)
        self.seen = {}

    def note(self, **tensors):
        self.seen |= {key: str(t.dtype).removeprefix("torch.") for key, t in tensors.items()}

    def training_step(self, batch, index):
        y = self.linear(batch[0])
        self.note(weight=self.linear.weight, linear=y, layer_norm=self.normed(y))
        self.note(batch_norm=self.batch_normed(y), running_mean=self.batch_normed.running_mean)
        self.note(softmax=y.softmax(-1), log_softmax=y.log_softmax(-1), exp=y.exp())
        self.note(cumsum=y.cumsum(0), logsumexp=y.logsumexp(-1), norm=y.norm())
        self.note(softplus=F.softplus(y), new=torch.zeros(1))
        x = batch[0].float() if self.linear.weight.dtype == torch.float32 else batch[0]
        self.note(matmul=x @ x.mT, sdpa=F.scaled_dot_product_attention(*[x[None]] * 3))
        loss = F.cross_entropy(self.batch_normed(self.normed(y)), torch.zeros(4, dtype=torch.long))
        self.note(loss=loss)
        return loss

    def on_train_batch_end(self, *_):
        self.note(gradient=self.linear.weight.grad)
        self.note(moment=self.trainer.optimizers[0].state[self.linear.weight]["exp_avg"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


def plain_trainer(tmp_path, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "default_root_dir": tmp_path, "max_epochs": 1}
    return pl.Trainer(accelerator="cpu", **quiet | settings)


@pytest.mark.parametrize("kind", TABLE)
def test_the_table_of_types(kind, tmp_path):
    model = Typed()
    data = DataLoader(TensorDataset(torch.randn(4, 8)), 4)
    plain_trainer(tmp_path, precision=kind).fit(model, data)
    assert {key: model.seen[key] for key in TABLE[kind]} == TABLE[kind]


def test_lightning_takes_mixed_float16_for_bfloat16(tmp_path):
    with pytest.warns(UserWarning, match="AMP with fp16 is not supported"):
        trainer = plain_trainer(tmp_path, precision="16-mixed")
    assert trainer.precision == "bf16-mixed"
