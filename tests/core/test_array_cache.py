import errno
import multiprocessing
import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from core import array_cache
from core.array_cache import cached


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pleiad" / "arrays"


def entries(folder):
    return [path for path in folder.iterdir() if path.is_dir()]


class Maker:
    """Makes the same arrays again and counts how often."""

    def __init__(self, size=1000):
        self.times = 0
        self.size = size

    def __call__(self):
        self.times += 1
        draw = np.random.default_rng(self.size)
        return {
            "ids": draw.integers(0, 30_000, self.size).astype(np.int32),
            "offsets": np.arange(self.size + 1),
            "vectors": draw.normal(size=(3, self.size)).astype(np.float32).T,
            "empty": np.zeros((0, 4), np.float16),
        }


def assert_same(found, want):
    assert list(found) == list(want)
    for name in want:
        assert found[name].dtype == want[name].dtype
        np.testing.assert_array_equal(found[name], want[name])


def test_made_once_then_mapped(folder):
    make = Maker()
    for _ in range(3):
        assert_same(cached(["minilm", 128, b"\x01", None, {"a": [1.5]}], make), Maker()())
    assert make.times == 1
    assert len(entries(folder)) == 1


@pytest.mark.parametrize("other", [["a", 2], ["a", "1"], ["a1"], [["a", 1]], ["a", 1, None]])
def test_another_key_is_another_entry(folder, other):
    cached(["a", 1], Maker(5))
    assert len(cached(other, Maker(6))["ids"]) == 6


def test_a_change_stays_in_the_process(folder):
    want = Maker()()["ids"]
    ids = cached(["key"], Maker())["ids"]
    torch.from_numpy(ids)[:] = 7
    np.testing.assert_array_equal(cached(["key"], Maker())["ids"], want)


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def clear(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, clear, Path.unlink])
@pytest.mark.parametrize("name", ["ids.npy", "index.json"])
def test_what_is_damaged_is_made_anew(folder, harm, name):
    make = Maker()
    cached(["key"], make)
    (entry,) = entries(folder)
    harm(entry / name)
    for _ in range(2):
        assert_same(cached(["key"], make), Maker()())
    assert make.times == 2
    assert entries(folder) == [entry]


def test_an_index_of_another_kind_is_no_index(folder):
    cached(["key"], Maker())
    for text in ("[]", "3", '{"../../x": 1}', "{", '{"ids": null}'):
        (entries(folder)[0] / "index.json").write_text(text)
        make = Maker()
        assert_same(cached(["key"], make), Maker()())
        assert make.times == 1


def test_a_folder_that_cannot_be_used_only_costs_time(folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    make = Maker()
    for _ in range(2):
        assert_same(cached(["key"], make), Maker()())
    assert make.times == 2


def test_a_read_only_folder_still_gives_what_it_holds(folder, monkeypatch):
    cached(["old"], Maker())

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    for module, name in ((os, "utime"), (Path, "mkdir"), (Path, "rename")):
        monkeypatch.setattr(module, name, refuse)
    old, new = Maker(), Maker()
    assert_same(cached(["old"], old), Maker()())
    assert_same(cached(["new"], new), Maker()())
    assert (old.times, new.times) == (0, 1)


def test_a_full_disk_only_costs_time(folder, monkeypatch):
    def full(file, *args, **kwargs):
        file.write_bytes(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        assert_same(cached(["key"], Maker()), Maker()())
    assert entries(folder) == []
    make = Maker()
    cached(["key"], make)
    assert make.times == 1


def test_least_recently_used_goes_first(folder):
    limit = 60_000  # an entry takes 24,000 and some
    cached([0], Maker(), limit=limit)
    (first,) = entries(folder)
    cached([1], Maker(), limit=limit)
    (second,) = set(entries(folder)) - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    cached([0], Maker(), limit=limit)  # used again
    cached([2], Maker(), limit=limit)
    assert first in entries(folder)
    assert second not in entries(folder)
    assert len(entries(folder)) == 2
    assert len(list(folder.iterdir())) == 4  # with their locks


def test_what_is_larger_than_the_limit_is_not_kept(folder):
    cached([0], Maker(), limit=60_000)
    make = Maker()
    for _ in range(2):
        cached([1], make, limit=1000)
    assert make.times == 2
    assert len(entries(folder)) == 1


@pytest.mark.parametrize("name", ["../up", "a/b", ""])
def test_a_name_must_be_a_plain_word(folder, name):
    with pytest.raises(ValueError, match="plain word"):
        cached(["key"], lambda: {name: np.zeros(3)})


def test_what_cannot_be_kept_is_refused(folder):
    with pytest.raises(ValueError, match="holds objects"):
        cached(["key"], lambda: {"x": np.array([{}])})
    with pytest.raises(TypeError, match="cannot hold a set"):
        cached([{1, 2}], Maker())


def test_a_failure_to_make_is_passed_on(folder):
    def fail():
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        cached(["key"], fail)
    assert cached(["key"], Maker()).keys() == Maker()().keys()


def start(target, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        process = multiprocessing.get_context("fork").Process(target=target, args=args)
        process.start()
    return process


def _slowly(told):
    def make():
        with told.open("a") as file:
            file.write("made\n")
        time.sleep(0.2)
        return Maker()()

    assert_same(cached(["key"], make), Maker()())


def test_processes_at_once_make_it_once(folder, tmp_path):
    told = tmp_path / "told"
    processes = [start(_slowly, told) for _ in range(4)]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert told.read_text() == "made\n"


def _again_and_again():
    for number in range(10_000):
        cached([number % 3], Maker(20_000), limit=1_200_000)


def test_killed_at_any_moment(folder):
    draw = np.random.default_rng(0)
    for _ in range(8):
        process = start(_again_and_again)
        time.sleep(0.05 + 0.1 * draw.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        for entry in entries(folder):
            if not entry.name.startswith("."):
                assert array_cache._read(entry) is not None
    for number in range(3):
        assert_same(cached([number], Maker(20_000)), Maker(20_000)())
