import os
import pickle
from pathlib import Path

import pytest
import torch

from core import checkpoint_io
from core.checkpoint_io import SafeCheckpointIO, hash_file, is_good, read_checkpoint, remove_orphans
from core.errors import UserError

STATE = {"state_dict": {"weight": torch.arange(6.0)}, "epoch": 3}


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "a.ckpt"
    SafeCheckpointIO().save_checkpoint(STATE, path)
    return path


def test_round_trip(saved):
    assert is_good(saved)
    found = SafeCheckpointIO().load_checkpoint(saved)
    assert torch.equal(found["state_dict"]["weight"], STATE["state_dict"]["weight"])
    assert sorted(p.name for p in saved.parent.iterdir()) == ["a.ckpt", "a.ckpt.sha256"]


def test_every_flipped_byte_is_refused(saved):
    content = saved.read_bytes()
    for position in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[position] ^= 1
        saved.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(saved)


@pytest.mark.parametrize("hashed", [True, False])
def test_every_cut_is_refused(saved, hashed):
    content = saved.read_bytes()
    if not hashed:
        hash_file(saved).unlink()
    for length in range(0, len(content), 101):
        saved.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"damaged|not a readable checkpoint"):
            read_checkpoint(saved)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not a readable"),
        (b"hello", "not a readable"),
        (pickle.dumps({"state_dict": {}, "x": os.system}), "refused|not a readable"),
    ],
)
def test_foreign_files(tmp_path, content, told):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_checkpoint(path)


def test_code_is_not_run(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "payload": Evil()}, path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match="could run code"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_state_dict_is_no_training_checkpoint(tmp_path):
    path = tmp_path / "weights.ckpt"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="has no `state_dict`"):
        read_checkpoint(path)


@pytest.mark.parametrize("moment", ["torch.save", "replace", "hash"])
def test_a_failed_write_keeps_the_old_file(saved, monkeypatch, moment):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if moment == "torch.save":
        monkeypatch.setattr(torch, "save", fail)
    elif moment == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(checkpoint_io, "write_atomic", fail)
    with pytest.raises(OSError, match="No space"):
        SafeCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.ones(9)}}, saved)
    monkeypatch.undo()
    assert torch.equal(read_checkpoint(saved)["state_dict"]["weight"], torch.arange(6.0))
    assert not list(saved.parent.glob("*.part"))


def test_a_crash_between_hash_and_rename_leaves_a_good_file(saved, monkeypatch):
    class Crash(BaseException):
        pass

    def crash(self, target):
        if str(target).endswith(".ckpt"):
            raise Crash
        return rename(self, target)

    rename = Path.replace
    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(Crash):
        SafeCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.ones(9)}}, saved)
    monkeypatch.undo()
    assert is_good(saved)  # the hash file names the old content and the new


def test_orphans(saved):
    (saved.parent / ".b.ckpt.xyz.part").touch()
    (saved.parent / "gone.ckpt.sha256").touch()
    assert len(remove_orphans(saved.parent)) == 2
    assert is_good(saved)
