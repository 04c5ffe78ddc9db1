"""Checkpoints that are whole or absent, and that are checked before they are used.

Lightning writes through the system's temporary folder and does not check what it reads: a crash can
leave a torn file under its final name, and a flipped bit loads silently. Here a checkpoint is
written beside its final name, flushed, hashed and renamed; reading compares the hash and never
unpickles code.
"""

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from core.errors import UserError
from core.openers import file_digest, sync_folder, write_atomic

PART = ".part"


class SafeCheckpointIO(CheckpointIO):
    """Write atomically with a SHA-256 beside the file; verify on reading."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write ``checkpoint``; afterwards ``path`` is the old file or the whole new one.

        While the rename is under way the hash file names both contents, so that either is found
        good.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        part = Path(name)
        try:
            with os.fdopen(handle, "w+b") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            digest = file_digest(part)
            beside = hash_file(path)
            known = beside.read_text().split() if path.exists() and beside.exists() else []
            write_atomic(beside, "\n".join([digest, *known]) + "\n")
            part.replace(path)
            sync_folder(path.parent)
            if known:
                write_atomic(beside, digest + "\n")
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error.__context__, OSError):  # torch hides why it could not write
                raise error.__context__ from None
            raise

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Verify and read a checkpoint; only tensors and plain values are accepted."""
        return read_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its hash."""
        path = Path(path)
        path.unlink(missing_ok=True)
        hash_file(path).unlink(missing_ok=True)


def hash_file(path: Path) -> Path:
    """Name the file that holds the SHA-256 of ``path``."""
    return path.with_name(path.name + ".sha256")


def is_good(path: Path) -> bool:
    """Say whether ``path`` exists and matches the hash beside it."""
    beside = hash_file(path)
    return path.is_file() and beside.is_file() and file_digest(path) in beside.read_text().split()


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint written by Lightning or by :class:`SafeCheckpointIO`.

    A file without a hash beside it (made by another tool) is read as it is, without running code.

    Raises:
        UserError: if it is missing, damaged, not a checkpoint, or holds more than tensors and plain
            values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    content = path.read_bytes()
    beside = hash_file(path)
    if beside.is_file() and hashlib.sha256(content).hexdigest() not in beside.read_text().split():
        raise UserError(
            f"{path}: damaged (its SHA-256 is not the one in {beside.name}); use another checkpoint"
        )
    checkpoint = _loaded(content, path, map_location)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a training checkpoint (it has no `state_dict`)")
    return checkpoint


def read_torch(path: Path, map_location: Any = "cpu") -> Any:
    """Read any file that ``torch.save`` wrote, without running code.

    Raises:
        UserError: if it is missing or damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return _loaded(path.read_bytes(), path, map_location)


def _loaded(content: bytes, path: Path, map_location: Any) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "weights_only" in str(error).lower() or "Unsupported" in first:
            raise UserError(
                f"{path}: refused, it holds Python objects that could run code;"
                " keep tensors and plain values only"
            ) from None
        raise UserError(
            f"{path}: not a readable checkpoint, cut short or of another kind ({first[:120]})"
        ) from None


def remove_orphans(folder: Path) -> list[Path]:
    """Remove what an interrupted write left behind: parts, and hashes without their file."""
    orphans = [*folder.glob(f".*{PART}")]
    orphans += [p for p in folder.glob("*.ckpt.sha256") if not p.with_suffix("").exists()]
    for orphan in orphans:
        orphan.unlink(missing_ok=True)
    return orphans
