import json

import pytest

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


def test_a_damaged_cache_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "pleiad").mkdir()
    (tmp_path / "pleiad" / "precision.json").write_text("{")
    assert precision.faster_precision() in ("bf16-mixed", "32-true")
