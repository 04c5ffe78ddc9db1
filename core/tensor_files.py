"""Read the tensors of a file or folder by name, whoever wrote it; nothing is executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.checkpoint_io import read_checkpoint, read_torch
from core.errors import UserError
from core.openers import read_json

NAMES = ("model.safetensors", "pytorch_model.bin")
"""The weights of a folder, where it has these files; else the one file with such an ending."""
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read tensors, and what else the file holds.

    Args:
        path: a safetensors file, a torch file of tensors by name, a checkpoint with ``state_dict``,
            or a folder with one of them, in one part or in several.

    Returns:
        The tensors by name, and the whole content of a checkpoint (None of other files).

    Raises:
        UserError: if there is none, or it is damaged or of another kind.
    """
    if path.is_dir():
        parts = [each for name in NAMES if (each := path / f"{name}.index.json").is_file()]
        if parts and not any((path / name).is_file() for name in NAMES):
            return _of_parts(parts[0]), None
        path = _in_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    content: Any
    if path.suffix == ".safetensors":
        try:
            content = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    else:
        content = read_checkpoint(path) if path.suffix == ".ckpt" else read_torch(path)
    whole = None
    state = content
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        state, whole = content["state_dict"], content
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path}: holds neither `state_dict` nor tensors by name alone")
    if state and all(name.startswith("module.") for name in state):  # saved from several GPUs
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(state), whole


def _of_parts(index: Path) -> dict[str, Tensor]:
    """Read weights that an index says to lie in several files of its folder."""
    described = read_json(index)
    places = described.get("weight_map") if isinstance(described, Mapping) else None
    if not isinstance(places, Mapping) or not all(isinstance(n, str) for n in places.values()):
        raise UserError(f"{index}: names no files (weight_map)")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{index}: {name!r} is outside the folder")
        state |= read_tensors(index.parent / name)[0]
    if missing := [name for name in places if name not in state]:
        raise UserError(f"{index}: {missing[0]} is not in {places[missing[0]]}")
    return state


def _in_folder(folder: Path) -> Path:
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS)
    if len(found) != 1:
        told = (
            ", ".join(path.name for path in found) or f"no file that ends in {', '.join(ENDINGS)}"
        )
        raise UserError(f"{folder}: there is {told}; name the file of the weights")
    return found[0]
