import json

import pytest
import torch

from core import precision


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
