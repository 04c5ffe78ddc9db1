"""Weights that a user gives a run: where they come from, what they fit, under which licence."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from core.callbacks.checkpoints import pointed
from core.early_exit.transform import without_exits
from core.errors import UserError
from core.networks.hugging_face import HuggingFace, architecture, label_names
from core.openers import file_digest, read_json, read_yaml
from core.pretrained import find_class, fingerprint, from_pretrained, model_folder
from core.tensor_files import read_tensors
from core.warm_start import check_fit, warm_start
from data import DataError, find_model
from pleiad.experiments import Experiment, is_run, names
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
    ``labels`` are those of the outputs, and ``preprocessing`` that of a ``model/`` folder; None
    where they are not known.
    """

    source: str
    state: dict[str, Tensor]
    sha256: str
    network: Mapping[str, Any] | None
    facts: dict[str, Any]
    labels: tuple[str, ...] | None = None
    preprocessing: Any = None


def read(name: str, trust: tuple[str, ...] = ()) -> Weights:
    """Read weights.

    Args:
        name: a ``model/`` folder, a run folder, a folder as Hugging Face writes it, a file of
            weights, a name of the catalogue or an id of the hub. Early exits stay behind: the
            weights are those of the whole network.
        trust: modules of the user's that the folder may name.

    Raises:
        UserError: if they are missing, damaged or of another kind.
    """
    path = _find(name)
    if path.is_dir() and (model_folder(path) / "manifest.json").is_file():
        loaded = from_pretrained(path, trust=trust)
        facts = {key: loaded.config[key] for key in FACTS if loaded.config.get(key)}
        state = without_exits(loaded.network.state_dict())
        network = loaded.config["network"]
        heads = loaded.network.heads if isinstance(loaded.network, HuggingFace) else ()
        labels = tuple(label_names(heads)) if heads else None
        return Weights(name, state, fingerprint(path), network, facts, labels, loaded.preprocessing)
    if path.is_dir() and is_run(str(path)):  # a run that is not finished
        checkpoints = path / "checkpoints"
        path = pointed(checkpoints, "best" if (checkpoints / "best").is_file() else "last")
    if path.is_dir():
        outline = _outline(path)
        state, _ = read_tensors(path)
        return Weights(name, state, _digest(path), None, {}, _labels(outline))
    state = without_exits(read_tensors(path)[0])
    inner = {
        key.removeprefix("network."): tensor
        for key, tensor in state.items()
        if key.startswith("network.")
    }
    if any(".base_layer." in name for name in state):
        raise UserError(
            f"--checkpoint {path}: holds adapters beside the network; take the model/ folder of its"
            " run, where they are merged"
        )
    origin = origin_of(path)
    facts = {key: origin[key] for key in RIGHTS if origin.get(key)}
    return Weights(name, inner or state, file_digest(path), None, facts)


def equip(experiment: Experiment) -> Experiment:
    """Give an experiment the architecture and the tokenizer of the weights that it begins from.

    What the configuration sets itself stays.

    Raises:
        UserError: if the weights have no architecture that the network could take.
    """
    given = experiment.config.get("checkpoint")
    config = json.loads(json.dumps(experiment.config, default=str))
    network = (config["model"].get("init_args") or {}).get("network")
    if not given or not isinstance(network, dict) or "config" not in _arguments(network):
        return experiment
    own = network["init_args"].get("config") or {}
    data_args = config["data"]["init_args"]
    tokenizer = "tokenizer" in _arguments(config["data"])
    if "model_type" not in own:
        path = _find(str(given))
        found = _architecture(path)
        cls = find_class(network["class_path"], Path(experiment.source))
        if found is None and not issubclass(cls, HuggingFace):  # it has layers of its own
            return experiment
        if found is None:
            raise UserError(
                f"{given}: holds no architecture that {cls.__name__} could take (a config.json with"
                " model_type)"
            )
        network["init_args"]["config"] = {**found, **own}
    if tokenizer and not data_args.get("tokenizer"):
        data_args["tokenizer"] = _tokenizer_of(str(given))
    return experiment._replace(config=config)


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
    """Load weights that must fit exactly; give the record for ``results.json``.

    Raises:
        UserError: listing what does not fit.
    """
    if weights.network is not None:
        check_fit(network, weights.state, weights.source)
        network.load_state_dict(weights.state)
        return _record(weights)
    started = warm_start(network, weights.state, weights.source, labels=weights.labels)
    if lacking := [*started.missing, *started.reshaped, *started.notes]:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise UserError(
            f"{weights.source}: cannot be judged as it is, it lacks {'; '.join(lacking[:5])}{more};"
            " train it first: pleiad fit EXPERIMENT --checkpoint"
        )
    return _record(weights)


def load_matching(
    network: nn.Module, weights: Weights, names: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Load what fits of weights; give the record for ``results.json``, and the report's lines."""
    started = warm_start(network, weights.state, weights.source, names=names, labels=weights.labels)
    found = {kind: list(told) for kind, told in started._asdict().items() if kind != "matched"}
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


def _find(name: str) -> Path:
    try:
        return find_model(name)
    except DataError as error:
        raise UserError(f"--checkpoint {error}") from None


def _arguments(node: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = index()["classes"].get(node["class_path"], {}).get("arguments", {})
    return found


def _outline(path: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a folder, where there is one."""
    found = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    return found if isinstance(found, dict) else {}


def _architecture(path: Path) -> dict[str, Any] | None:
    """Find the architecture of weights: that of their folder, or of the run that they lie in."""
    if path.is_dir() and "model_type" in (found := _outline(model_folder(path))):
        return architecture(found)
    if path.is_dir() and "network" in found:
        inner = found["network"]["init_args"].get("config")
        return dict(inner) if inner else None
    run = path if path.is_dir() else path.resolve().parent.parent
    if is_run(str(run)):
        network = read_yaml(run / "config.yaml")["model"]["init_args"].get("network") or {}
        config = (network.get("init_args") or {}).get("config")
        return dict(config) if config else None
    return None


def _tokenizer_of(given: str) -> str:
    """Name what the tokenizer of weights is loaded from."""
    path = _find(given)
    if not path.is_dir():
        path = path.resolve().parent.parent
    if (model_folder(path) / "manifest.json").is_file():
        return str(model_folder(path))
    if is_run(str(path)):
        known = read_yaml(path / "config.yaml")["data"]["init_args"].get("tokenizer")
        return str(known or given)
    return given


def _labels(outline: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Read the labels of a published configuration, where it names any."""
    named = outline.get("id2label")
    if not isinstance(named, Mapping):
        return None
    try:
        found = [str(named[key]) for key in sorted(named, key=int)]
    except ValueError:
        return None
    return tuple(found)


def _digest(folder: Path) -> str:
    """Identify the weights of a folder of another project."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    return file_digest(files[0]) if files else ""
