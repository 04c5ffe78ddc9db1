"""A loopback server that misbehaves on demand, and a catalogue of one tiny set."""

import hashlib
import http.server
import random
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from data import catalogue

CONTENT = random.Random(0).randbytes(300_000)


@dataclass
class Server:
    """What the server does next, and the Range header of each GET it was asked."""

    url: str = ""
    mode: str = "good"
    cut_at: int = 150_000
    content: bytes = CONTENT
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch):
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.asked.append(self.headers.get("Range"))
            if state.mode == "404":
                return self.send_error(404)
            if state.mode == "html":
                return self.answer(200, b"<html>please log in</html>", "text/html; charset=utf-8")
            if state.mode == "wrong":
                return self.answer(200, bytes(len(CONTENT)))
            if state.mode == "short":
                return self.answer(200, b"an error")
            if state.mode == "long":
                return self.answer(200, state.content + b"more")
            start = 0
            if state.mode != "whole" and self.headers.get("Range"):
                start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
                if start >= len(state.content):
                    return self.send_error(416)
            return self.answer(206 if start else 200, state.content[start:], start=start)

        def answer(self, status, body, kind="application/octet-stream", start=0):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if status == 206:
                end = start + len(body)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
            self.end_headers()
            if state.mode == "cut":
                body = body[: state.cut_at]
            for piece in range(0, len(body), 30_000):
                self.wfile.write(body[piece : piece + 30_000])
                if state.mode == "slow":
                    self.wfile.flush()
                    time.sleep(0.05)
            self.close_connection = True

        def log_message(self, *_):
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # a client that was killed
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Quiet(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Put a catalogue of one set, ``tiny``, in the place of the real one; returns its file."""

    def write(**keys) -> Path:
        entry = {
            "title": "a tiny set",
            "domain": "vision",
            "folder": "tiny-set",
            "source": "url",
            "licence": "none",
            "citation": "none",
            "splits": {},
            "facts": {},
        }
        path = tmp_path / "catalogue.yaml"
        path.write_text(yaml.safe_dump({"tiny": entry | keys}))
        monkeypatch.setattr(catalogue, "PATH", path)
        catalogue.entries.cache_clear()
        return path

    yield write
    catalogue.entries.cache_clear()


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty data folder and an empty cache folder of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def tiny(server, declare, root) -> Path:
    """Declare ``tiny``, one file on the server; returns where that file belongs."""
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    url = f"{server.url}/a%20file.bin"
    declare(files={"a file.bin": {"bytes": len(CONTENT), "sha256": sha256, "url": url}})
    return root / "vision" / "tiny-set" / "a file.bin"
