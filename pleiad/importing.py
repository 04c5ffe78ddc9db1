"""``pleiad import``: published weights, by their published names, into a ``model/`` folder."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.errors import UserError
from core.openers import read_json, read_yaml
from core.pretrained import save_pretrained
from core.tensor_files import read_tensors
from pleiad import registry
from pleiad.index import index
from pleiad.weights import commercial_use, restriction


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
    if checkpoint.is_dir() and (checkpoint / "config.json").is_file():
        options = read_json(checkpoint / "config.json")
    state, whole = read_tensors(checkpoint)
    if whole is not None:
        options = whole.get("config", options)
    if config is not None:
        options = read_json(config) if config.suffix == ".json" else read_yaml(config)
    if not isinstance(options, Mapping):
        raise UserError(
            f"{config or checkpoint}: holds no options of the published network; give them by"
            " --config FILE (a JSON or YAML mapping, by their published names)"
        )
    return dict(options), state


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
