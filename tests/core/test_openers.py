import os

import pytest

from core.errors import UserError
from core.openers import parse_yaml, read_json, read_text, read_yaml, write_atomic


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3", 0.001),
        ("a: 1.5", 1.5),
        ("a: -2E5", -2e5),
        ("a: [1, x]", [1, "x"]),
        ("a:", None),
        ("a: .5", 0.5),
        ("a: 12", 12),
        ("a: 1-2", "1-2"),
        ("a: e5", "e5"),
    ],
)
def test_values(text, value):
    assert parse_yaml(text, "x")["a"] == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &x 1\nb: *x", "f.yaml:2: YAML aliases"),
        ("a: 1\na: 2", "f.yaml:2: the key 'a' is given twice"),
        ("!!python/object/apply:os.system ['touch x']", "f.yaml:1: could not determine"),
        ("a: [", "f.yaml:"),
        ("a: b: c", "f.yaml:1"),
        ("[" * 5000, "f.yaml"),
        ("x: &a [1]\ny: &b [*a,*a]", "aliases"),
    ],
)
def test_faults_name_the_line(text, told):
    with pytest.raises(UserError, match=told.replace("[", r"\[")):
        parse_yaml(text, "f.yaml")


def test_files(tmp_path):
    path = tmp_path / "a.yaml"
    with pytest.raises(UserError, match="no such file"):
        read_yaml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_yaml(path)
    path.write_text("{1")
    with pytest.raises(UserError, match=r"a.yaml:1: not valid JSON"):
        read_json(path)
    path.write_text("long")
    with pytest.raises(UserError, match="more than the 2 allowed"):
        read_text(path, limit=2)


def test_write_atomic_keeps_the_old_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomic(path, "old")

    def fail(fd):
        raise OSError(28, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
