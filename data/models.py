"""Find a pretrained model: a folder, a name of the catalogue, or an id of the Hugging Face hub."""

import re
import textwrap
from pathlib import Path

from data import catalogue, store
from data.errors import DataError

WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "tokenizer*", "vocab*", "merges*")
"""The files that are taken from the hub: weights as safetensors, and what else is plain text."""
BIN = ("pytorch_model*.bin",)
"""Weights of older models, taken where there are no safetensors."""


def find_model(name: str) -> Path:
    """Give the folder (or the file) of a pretrained model.

    Args:
        name: a path, a name of the catalogue, or ``owner/name`` on the hub, whose files are taken
            from the hub's cache or downloaded.

    Raises:
        DataError: if there is none of that name; the message tells what was tried.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name in catalogue.entries():
        if catalogue.entry(name).facts.get("kind") != "model":
            raise DataError(f"{name} is a data set, not a model")
        found = store.locate(name)
        return found if found.is_dir() else found.parent
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return _from_hub(name)
    models = sorted(e.name for e in catalogue.entries().values() if e.facts.get("kind") == "model")
    raise DataError(
        f"{name}: no such file or folder, and no model of that name; known are"
        f" {', '.join(models)}, folders, and ids of the Hugging Face hub (owner/name)"
    )


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DataError(
            f"{name}: the Hugging Face hub needs the package huggingface_hub;"
            " run: pip install 'pleiad[nlp]'"
        ) from None
    try:  # what is there needs no network
        path = Path(snapshot_download(name, local_files_only=True, allow_patterns=[*WANTED]))
        if any(found for pattern in ("*.safetensors", *BIN) for found in path.glob(pattern)):
            return path
    except Exception:
        pass
    try:
        path = Path(snapshot_download(name, allow_patterns=[*WANTED]))
        if not any(path.glob("*.safetensors")):
            path = Path(snapshot_download(name, allow_patterns=[*WANTED, *BIN]))
    except Exception as error:  # the hub's client raises many types
        first = textwrap.shorten(str(error), 90, placeholder=" ...")
        raise DataError(
            f"{name}: no such file or folder, and not to be had from the Hugging Face hub"
            f" ({type(error).__name__}: {first}); give a local folder"
        ) from None
    return path
