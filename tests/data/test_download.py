"""Whatever the server, the network or another process does, no half or wrong file gets its name."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import data
from data import catalogue
from data.download import PIECE

FETCH = """
import sys
from pathlib import Path
import data
from data import catalogue
catalogue.PATH = Path(sys.argv[1])
print(data.fetch("tiny"))
"""


def names(folder: Path) -> set[str]:
    """What a user sees in ``folder``."""
    return {path.name for path in folder.iterdir() if path.name != ".lock"}


def start_fetch() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(catalogue.PATH)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_good(tiny, server):
    assert data.fetch("tiny") == tiny
    assert tiny.read_bytes() == server.content
    assert names(tiny.parent) == {tiny.name}
    assert data.fetch("tiny") == tiny
    assert server.asked == [None]


def test_file_is_as_readable_as_any_other(tiny):
    mode = data.fetch("tiny").stat().st_mode
    other = tiny.with_name("other")
    other.touch()
    assert mode == other.stat().st_mode


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("404", "answered 404"),
        ("html", "web page"),
        ("wrong", "does not match the known hash: expected"),
        ("long", "not 300,000"),
        ("short", "sent 8 bytes, not 300,000"),
    ],
)
def test_bad_answer_leaves_nothing_and_can_be_repaired(tiny, server, mode, reason):
    server.mode = mode
    with pytest.raises(data.DataError, match=reason) as caught:
        data.fetch("tiny")
    message = str(caught.value)
    assert message.startswith(f"tiny: {server.url}")
    assert "pleiad data fetch tiny" in message
    assert str(tiny.parent) in message
    assert "\n" not in message
    assert names(tiny.parent) == set()
    server.mode = "good"
    assert data.fetch("tiny").read_bytes() == server.content
    assert server.asked == [None, None]


@pytest.mark.parametrize("cut_at", [1, 150_000, 299_999])
def test_cut_then_resumed(tiny, server, cut_at):
    server.mode, server.cut_at = "cut", cut_at
    with pytest.raises(data.DataError, match="connection was cut"):
        data.fetch("tiny")
    assert names(tiny.parent) == {"a file.bin.part"}
    kept = tiny.with_name("a file.bin.part").stat().st_size
    assert cut_at - PIECE < kept <= cut_at
    server.mode = "good"
    assert data.fetch("tiny").read_bytes() == server.content
    assert names(tiny.parent) == {tiny.name}
    assert server.asked == [None, f"bytes={kept}-" if kept else None]


def test_cut_again_while_resuming(tiny, server):
    server.mode, server.cut_at = "cut", 100_000
    for _ in range(2):
        with pytest.raises(data.DataError, match="cut"):
            data.fetch("tiny")
    server.mode = "good"
    assert data.fetch("tiny").read_bytes() == server.content
    first, second, third = server.asked
    assert first is None
    assert 0 < int(second[6:-1]) < int(third[6:-1])


def test_error_while_resuming_keeps_the_part(tiny, server):
    server.mode = "cut"
    with pytest.raises(data.DataError, match="cut"):
        data.fetch("tiny")
    for server.mode in ("404", "html"):
        with pytest.raises(data.DataError, match="the server"):
            data.fetch("tiny")
        assert names(tiny.parent) == {"a file.bin.part"}
    server.mode = "good"
    assert data.fetch("tiny").read_bytes() == server.content


def test_server_without_range_sends_all_of_it(tiny, server):
    server.mode = "cut"
    with pytest.raises(data.DataError, match="cut"):
        data.fetch("tiny")
    server.mode = "whole"
    assert data.fetch("tiny").read_bytes() == server.content


@pytest.mark.parametrize("junk", [b"x" * 1000, b"x" * 300_000, b"x" * 400_000])
def test_foreign_part_never_gets_the_name(tiny, server, junk):
    part = tiny.with_name(f"{tiny.name}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(junk)
    if len(junk) <= 300_000:
        with pytest.raises(data.DataError, match="known hash"):
            data.fetch("tiny")
        assert names(tiny.parent) == set()
    assert data.fetch("tiny").read_bytes() == server.content


def test_part_beyond_the_end_is_deleted(tiny, server):
    """Where the size is not declared, only the server knows that the part is too long."""
    raw = yaml.safe_load(catalogue.PATH.read_text())
    raw["tiny"]["files"][tiny.name]["bytes"] = None
    catalogue.PATH.write_text(yaml.safe_dump(raw))
    catalogue.entries.cache_clear()
    tiny.parent.mkdir(parents=True)
    tiny.with_name(f"{tiny.name}.part").write_bytes(bytes(400_000))
    with pytest.raises(data.DataError, match="deleted, try again"):
        data.fetch("tiny")
    assert data.fetch("tiny").read_bytes() == server.content


def test_no_connection(tiny, server, declare):
    sha256 = "0" * 64
    url = "http://127.0.0.1:9/x"  # the discard port: nobody listens
    declare(files={"x": {"bytes": 1, "sha256": sha256, "url": url}})
    with pytest.raises(data.DataError, match="no connection") as caught:
        data.locate("tiny")
    assert all(part in str(caught.value) for part in (url, str(tiny.parent), "pleiad data fetch"))
    assert names(tiny.parent) == set()


def test_two_processes_download_once(tiny, server):
    server.mode = "slow"
    fetches = [start_fetch(), start_fetch()]
    results = [fetch.communicate(timeout=60) for fetch in fetches]
    assert [fetch.returncode for fetch in fetches] == [0, 0], results
    assert {Path(out.strip()) for out, _ in results} == {tiny}
    assert tiny.read_bytes() == server.content
    assert server.asked == [None]


def test_killed_process_leaves_a_part_and_no_lock(tiny, server):
    server.mode = "slow"
    part = tiny.with_name(f"{tiny.name}.part")
    fetch = start_fetch()
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    fetch.send_signal(signal.SIGKILL)
    fetch.communicate()
    assert names(tiny.parent) == {part.name}
    server.mode = "good"
    assert data.fetch("tiny").read_bytes() == server.content
    assert server.asked[1].startswith("bytes=")
