"""``pleiad import``: published weights, by their published names, into a ``model/`` folder."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.checkpoint_io import read_torch
from core.errors import UserError
from core.openers import read_json, read_yaml
from core.pretrained import save_pretrained
from pleiad import registry
from pleiad.index import index
from pleiad.weights import commercial_use, restriction

NAMES = ("model.safetensors", "pytorch_model.bin")
"""The weights of a folder, where it has these files; else the one file with such an ending."""
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def import_weights(
    system: str,
    checkpoint: Path,
    output: Path,
    config: Path | None = None,
    licence: str | None = None,
) -> list[str]:
    """Load published weights into our network and save it; give the lines that tell of it.

    Args:
        system: a name of the registry.
        checkpoint: a safetensors file, a torch file, or a folder with ``config.json`` and weights.
        output: the ``model/`` folder to write.
        config: the published options, JSON or YAML, where the checkpoint does not hold them.
        licence: of the weights, where the registry does not know it.

    Raises:
        UserError: if the network, the configuration and the weights do not go together.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: exists already and is not empty; name a new folder")
    entry = registry.system(system)
    cls = _network(entry)
    options, state = read(checkpoint, config)
    try:
        network: nn.Module = cls.from_published(options, state)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{checkpoint}: {error}") from None
    known = next(
        (c for c in entry.checkpoints if c.name in (checkpoint.name, checkpoint.stem)), None
    )
    licence = licence or (known.licence if known else None)
    facts = {
        "system": entry.name,
        "source": known.source if known else checkpoint.name,
        "licence": licence,
        "commercial_use": known.commercial_use if known else commercial_use(licence),
    }
    save_pretrained(network, output, extra=facts)
    count = sum(parameter.numel() for parameter in network.parameters())
    experiment = next(iter(entry.experiments), "EXPERIMENT")
    return [
        f"{output}: {cls.__name__}, {count:,} parameters, licence {licence or 'not stated'}",
        *restriction(facts),
        f"judge it: pleiad test {experiment} --checkpoint {output}",
    ]


def read(checkpoint: Path, config: Path | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read published options and weights; nothing in the files is executed.

    Raises:
        UserError: if a file is missing or of another kind, or no options are there.
    """
    options: Any = None
    if checkpoint.is_dir():
        if (checkpoint / "config.json").is_file():
            options = read_json(checkpoint / "config.json")
        checkpoint = _in_folder(checkpoint)
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such file")
    if checkpoint.suffix == ".safetensors":
        try:
            content: Any = load_file(checkpoint)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{checkpoint}: not a readable safetensors file ({error})") from None
    else:
        content = read_torch(checkpoint)
    state = content
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        state, options = content["state_dict"], content.get("config", options)
    if config is not None:
        options = read_json(config) if config.suffix == ".json" else read_yaml(config)
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{checkpoint}: holds neither `state_dict` nor tensors by name alone")
    if not isinstance(options, Mapping):
        raise UserError(
            f"{config or checkpoint}: holds no options of the published network; give them by"
            " --config FILE (a JSON or YAML mapping, by their published names)"
        )
    if state and all(name.startswith("module.") for name in state):  # saved from several GPUs
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(options), dict(state)


def _network(entry: registry.System) -> Any:
    """Import the network of a system.

    Raises:
        UserError: if it is not built, or has no way to take published weights.
    """
    paths = [
        path
        for path, known in index()["classes"].items()
        if known["role"] == "network" and path.rpartition(".")[0] == entry.module
    ]
    if not paths:
        raise UserError(f"{entry.name}: no network is built; see `pleiad list systems`")
    module, _, name = paths[0].rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    if not hasattr(cls, "from_published"):
        raise UserError(f"{entry.name}: {name} takes no published weights")
    return cls


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
