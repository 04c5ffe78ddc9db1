"""Download one file so that it appears under its name only when it is whole and right.

The bytes go to ``NAME.part`` beside the target. A cut download leaves that file, and the next try
asks the server for the rest of it (HTTP Range). Only a file with the right checksum is renamed into
place; a wrong one is deleted, so that the next try starts afresh.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.catalogue import File
from data.errors import DataError

TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces
PIECE = 2**14  # bytes; what a cut can lose of those that came


def download(file: File, folder: Path) -> None:
    """Fetch ``file.url`` into ``folder``; the caller holds the folder's lock.

    Raises:
        DataError: if the server cannot be reached, answers with an error or a web page, stops
            early, or sends other bytes than the catalogue's.
        OSError: if the folder cannot be written or the disk is full.
    """
    import pooch
    import requests

    target = folder / file.path
    part = target.with_name(f"{target.name}.part")

    def resume(url: str, temporary: str, _: object) -> None:
        Path(temporary).unlink()  # made by pooch; a killed process would leave it behind
        _stream(url, part, file.bytes)
        part.replace(temporary)

    try:
        pooch.retrieve(
            file.url, f"sha256:{file.sha256}", target.name, target.parent, downloader=resume
        )
    except DataError as error:
        raise DataError(f"{file.url}: {error}") from None
    except requests.RequestException as error:
        raise DataError(f"{file.url}: {_reason(error)}") from None
    except ValueError as error:  # pooch's own check
        raise DataError(f"{file.url}: {str(error).partition(' Deleted')[0]}") from None


def _stream(url: str, part: Path, size: int | None) -> None:
    """Write ``url`` to ``part``, going on where an earlier try was cut.

    Raises:
        DataError: if the server sends an error, a web page, or more or fewer bytes than ``size``.
        requests.RequestException: if the connection fails.
    """
    import requests

    start = part.stat().st_size if part.exists() else 0
    if size is not None and start == size:
        return
    if size is not None and start > size:
        part.unlink()
        start = 0
    headers = {"Accept-Encoding": "identity"}  # else Content-Range counts compressed bytes
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink(missing_ok=True)
            raise DataError("the part downloaded before does not fit; it is deleted, try again")
        if not answer.ok:
            raise DataError(f"the server answered {answer.status_code} {answer.reason}")
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise DataError("the server sent a web page in place of the file")
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server sends the whole file
        with (
            part.open("ab" if start else "wb") as out,
            _progress(part.stem, start, size) as advance,
        ):
            for piece in answer.iter_content(PIECE):
                out.write(piece)
                advance(len(piece))
                if size is not None and out.tell() > size:
                    break
            out.flush()
            os.fsync(out.fileno())
    got = part.stat().st_size
    if size is not None and got != size:
        part.unlink()
        raise DataError(f"the server sent {got:,} bytes, not {size:,}")


@contextmanager
def _progress(name: str, done: int, size: int | None) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr, where that is a terminal; gives what moves it on by some bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield functools.partial(bar.advance, bar.add_task(name, total=size, completed=done))


def _reason(error: Exception) -> str:
    """Say in a few words why a connection failed."""
    import requests

    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return " ".join(str(error).split())
