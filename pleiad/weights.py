"""Weights that a user gives a run: where they come from, what they fit, under which licence."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from core.callbacks.checkpoints import pointed
from core.checkpoint_io import read_checkpoint
from core.errors import UserError
from core.openers import file_digest, read_json
from core.pretrained import check_fit, fingerprint, from_pretrained, model_folder, warm_start
from pleiad.experiments import Experiment, hub_hint, is_run, names
from pleiad.index import index

ORIGIN = "origin.json"
"""The file of a run folder that keeps what its weights began from."""
RIGHTS = ("source", "licence", "commercial_use")
"""What a model hands down to every model that began from it."""
FACTS = ("experiment", "system", *RIGHTS)
"""What a model's ``config.json`` may tell of its origin."""
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?\s?commercial|research (use )?only", re.IGNORECASE)


class Weights(NamedTuple):
    """A network's tensors by name, and what is known of them.

    ``network`` has the keys ``class_path`` and ``init_args``; None where only tensors are known.
    """

    source: str
    state: dict[str, Tensor]
    sha256: str
    network: Mapping[str, Any] | None
    facts: dict[str, Any]


def read(path: Path, trust: tuple[str, ...] = ()) -> Weights:
    """Read weights: a ``model/`` folder, a run folder or a ``.ckpt`` file.

    Raises:
        UserError: if they are missing, damaged or of another kind.
    """
    if path.is_dir() and not (is_run(str(path)) and model_folder(path) == path):
        loaded = from_pretrained(path, trust=trust)
        facts = {key: loaded.config[key] for key in FACTS if loaded.config.get(key)}
        state = loaded.network.state_dict()
        return Weights(str(path), state, fingerprint(path), loaded.config["network"], facts)
    if path.is_dir():  # a run that is not finished
        checkpoints = path / "checkpoints"
        path = pointed(checkpoints, "best" if (checkpoints / "best").is_file() else "last")
    if not path.is_file():
        raise UserError(f"--checkpoint {path}: no such file or folder{hub_hint(str(path))}")
    state = read_checkpoint(path)["state_dict"]
    inner = {
        name.removeprefix("network."): tensor
        for name, tensor in state.items()
        if name.startswith("network.")
    }
    origin = origin_of(path)
    facts = {key: origin[key] for key in RIGHTS if origin.get(key)}
    return Weights(str(path), inner or state, file_digest(path), None, facts)


def is_model(name: str) -> bool:
    """Say whether ``name`` is a folder, but not a run's."""
    return Path(name).is_dir() and not is_run(name)


def experiment_of(folder: Path, weights: Weights) -> str:
    """Name the experiment of a ``model/`` folder: its run's, or the one that it records.

    Raises:
        UserError: if it records none that there is.
    """
    if folder.resolve().name == "model" and is_run(str(folder.resolve().parent)):
        return str(folder.resolve().parent)
    recorded = str(weights.facts.get("experiment", ""))
    if recorded not in names():
        told = f"an experiment {recorded!r} that is not here" if recorded else "no experiment"
        raise UserError(
            f"{folder}: records {told}; name one: pleiad test EXPERIMENT --checkpoint {folder}"
        )
    return recorded


def origin_of(checkpoint: Path) -> dict[str, Any]:
    """Read what the run began from that a checkpoint lies in; empty where that is nothing."""
    known = checkpoint.resolve().parent.parent / ORIGIN
    origin: dict[str, Any] = read_json(known) if known.is_file() else {}
    return origin


def adopt(experiment: Experiment, weights: Weights) -> Experiment:
    """Give an experiment the network of ``weights``, in its size, where that is known.

    Raises:
        UserError: if the experiment's network is of another class.
    """
    if weights.network is None:
        return experiment
    config = json.loads(json.dumps(experiment.config, default=str))
    network = (config["model"].get("init_args") or {}).get("network")
    path = weights.network["class_path"]
    if not isinstance(network, dict) or network.get("class_path") != path:
        theirs = network.get("class_path") if isinstance(network, dict) else "none"
        raise UserError(
            f"{weights.source}: holds a {path.rpartition('.')[2]}, and the network of"
            f" {experiment.name} is {theirs}; add --model.network={path.rpartition('.')[2]}, or"
            " take an experiment of that network"
        )
    linked = _linked(config)
    init_args = weights.network["init_args"]
    network["init_args"] = {key: value for key, value in init_args.items() if key not in linked}
    return Experiment(experiment.name, config, experiment.source)


def check_sizes(experiment: Experiment, weights: Weights, network_args: Mapping[str, Any]) -> None:
    """Check the sizes that the data state against those of the weights.

    Raises:
        UserError: naming what differs, and the key that sets it.
    """
    if weights.network is None:
        return
    theirs = weights.network["init_args"]
    settable = index()["classes"].get(experiment.config["data"]["class_path"], {})["arguments"]
    for name in _linked(experiment.config):
        if name in theirs and theirs[name] != network_args.get(name):
            fix = f"add --data.{name}={theirs[name]}" if name in settable else "take other data"
            raise UserError(
                f"{weights.source}: was made for {name}={theirs[name]}, and the data of"
                f" {experiment.name} have {name}={network_args.get(name)}; {fix}"
            )


def load(network: nn.Module, weights: Weights) -> dict[str, Any]:
    """Load weights that must fit exactly; give the record for ``results.json``."""
    check_fit(network, weights.state, weights.source)
    network.load_state_dict(weights.state)
    return _record(weights)


def load_matching(network: nn.Module, weights: Weights) -> tuple[dict[str, Any], list[str]]:
    """Load what fits of weights; give the record for ``results.json``, and the report's lines."""
    started = warm_start(network, weights.state, weights.source)
    found = {kind: list(names) for kind, names in started._asdict().items() if kind != "matched"}
    record = {**_record(weights), "matched": len(started.matched), **found}
    return record, started.lines()


def restriction(record: Mapping[str, Any]) -> list[str]:
    """Warn where the licence of the weights forbids commercial use."""
    if record.get("commercial_use") != "no":
        return []
    told = f"the licence of the weights ({record.get('licence', 'not named')})"
    return [f"{told} forbids commercial use, of this model too"]


def commercial_use(licence: str | None) -> str:
    """Say whether a licence allows commercial use: ``no`` where it says so, else ``unknown``."""
    free = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc0-1.0")
    if licence and NON_COMMERCIAL.search(licence):
        return "no"
    return "yes" if licence and licence.lower().replace(" ", "-") in free else "unknown"


def _record(weights: Weights) -> dict[str, Any]:
    return {"path": weights.source, "sha256": weights.sha256, **weights.facts}


def _linked(config: Mapping[str, Any]) -> list[str]:
    known = index()["classes"].get(config["data"]["class_path"], {})
    linked: list[str] = known.get("linked", [])
    return linked
