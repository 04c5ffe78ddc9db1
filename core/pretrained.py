"""A network on disk: safetensors and JSON, every file hashed, nothing executed on loading.

The folder holds ``config.json`` (which class, which arguments, which transforms),
``model.safetensors``, ``preprocessing.json`` and ``manifest.json`` (format and SHA-256 of each
file). Of a network that transformers knows, ``config.json`` and the names of the tensors are as
transformers writes them, and what is ours lies below the key ``pleiad``.
"""

import importlib
import inspect
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from core.errors import UserError
from core.networks.hugging_face import PREFIX, HuggingFace
from core.openers import file_digest, read_json, write_atomic
from core.transform import change
from core.warm_start import check_finite, check_fit
from core.warm_start import warm_start as warm_start

FORMAT = 1
KEY = "pleiad"
"""The key of ours in a ``config.json`` of transformers."""
ALLOWED = ("core.", "domains.")


class Pretrained(NamedTuple):
    """What a ``model/`` folder holds: the rebuilt network, in eval mode, and its configuration."""

    network: nn.Module
    config: dict[str, Any]
    preprocessing: Any


def save_pretrained(
    network: nn.Module,
    folder: Path,
    *,
    init_args: Mapping[str, Any] | None = None,
    preprocessing: Any = None,
    transforms: Iterable[Mapping[str, Any]] = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a network so that :func:`from_pretrained` rebuilds it.

    Args:
        network: the network.
        folder: the folder to fill; made if absent.
        init_args: its constructor's arguments; None reads them from attributes of the same names.
        transforms: what changed the network or wraps it, in this order, as ``{class_path,
            init_args}``; ``init_args`` above are then those of the innermost network.
        preprocessing: an object with ``to_json``, rebuilt by its class's ``from_json``; its
            ``files()``, if it has such, are written beside, and ``attach(folder)`` reads them.
        extra: more to keep in ``config.json``, such as the experiment's name.

    Raises:
        UserError: if arguments are not known, or the weights hold a value that is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = list(transforms)
    inner = innermost(network, described)
    arguments = dict(init_args) if init_args is not None else arguments_of(inner)
    config = {
        **(extra or {}),
        "format": FORMAT,
        "network": {"class_path": class_path(type(inner)), "init_args": arguments},
        "preprocessing": class_path(type(preprocessing)) if preprocessing is not None else None,
        "transforms": described,
    }
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    check_finite(state, "the network")
    if isinstance(network, HuggingFace):
        state = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
        config = {**network.published_config(), KEY: config}
    files = {
        "config.json": _json(config).encode(),
        "model.safetensors": save(state, {"format": "pt"}),
    }
    if preprocessing is not None:
        files["preprocessing.json"] = _json(preprocessing.to_json()).encode()
        files |= getattr(preprocessing, "files", dict)()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomic(folder / name, content)
    manifest = {"format": FORMAT, "sha256": {name: file_digest(folder / name) for name in files}}
    write_atomic(folder / "manifest.json", _json(manifest))


def from_pretrained(folder: str | Path, *, trust: Iterable[str] = ()) -> Pretrained:
    """Rebuild a network from a folder.

    Args:
        folder: a ``model/`` folder, or a run folder that holds one.
        trust: further top-level modules whose classes may be named; ours need no mention.

    Raises:
        UserError: if a file is missing, damaged or foreign, names a class that is not allowed, or
            if the weights do not fit the network.
    """
    folder = model_folder(folder)
    verify(folder)
    config = read_json(folder / "config.json")
    config = config.get(KEY, config)
    try:
        described = config["network"]
        cls = find_class(described["class_path"], folder / "config.json", trust)
        if not issubclass(cls, nn.Module):
            raise TypeError(f"{described['class_path']} is no network")
        network = transformed(
            cls(**described["init_args"]),
            config.get("transforms", []),
            folder / "config.json",
            trust,
        )
    except (KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder / 'config.json'}: the network cannot be rebuilt ({error})"
        ) from None
    load_weights(network, folder / "model.safetensors")
    preprocessing = None
    if config.get("preprocessing"):
        reader = find_class(config["preprocessing"], folder / "config.json", trust)
        if not hasattr(reader, "from_json"):
            raise UserError(f"{folder / 'config.json'}: {config['preprocessing']} reads no files")
        try:
            preprocessing = reader.from_json(read_json(folder / "preprocessing.json"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{folder / 'preprocessing.json'}: cannot be read ({error})") from None
        if hasattr(preprocessing, "attach"):
            preprocessing = preprocessing.attach(folder)
    return Pretrained(network.eval(), config, preprocessing)


def transformed(
    network: nn.Module,
    transforms: Iterable[Mapping[str, Any]],
    source: Path,
    trust: Iterable[str] = (),
) -> nn.Module:
    """Change a network by the classes that are described, each as ``cls(network, **init_args)``.

    Raises:
        UserError: if a class may not be named or is not there.
    """
    for described in transforms:
        cls = find_class(described["class_path"], source, trust)
        for value in described["init_args"].values():
            if isinstance(value, Mapping) and "class_path" in value:
                find_class(value["class_path"], source, trust)
        network = change(network, cls, described["init_args"]).network
    return network


def innermost(network: nn.Module, transforms: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Give the network inside the modules that the transforms wrapped it in."""
    for described in reversed(list(transforms)):
        if class_path(type(network)) == described["class_path"]:
            network = network.network  # type: ignore[assignment]
    return network


def model_folder(folder: str | Path) -> Path:
    """Give the ``model/`` folder that a run folder holds, or the folder itself."""
    inner = Path(folder) / "model"
    return inner if (inner / "manifest.json").is_file() else Path(folder)


def fingerprint(folder: str | Path) -> str:
    """Identify a model: the SHA-256 of its manifest, which has that of every file."""
    return file_digest(model_folder(folder) / "manifest.json")


def verify(folder: Path) -> None:
    """Check the manifest's hashes.

    Raises:
        UserError: naming the first file that is missing or changed.
    """
    if not (folder / "manifest.json").is_file():
        if (folder / "config.json").is_file():
            raise UserError(
                f"{folder}: holds weights of another project (config.json without manifest.json);"
                f" begin from them by `pleiad fit EXPERIMENT --checkpoint {folder}`, judge them by"
                f" `pleiad test EXPERIMENT --checkpoint {folder}`, or bring them in by `pleiad"
                " import`"
            )
        raise UserError(f"{folder}: not a model folder (it has no manifest.json)")
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{folder / 'manifest.json'}: not a manifest of format {FORMAT}")
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or not {"config.json", "model.safetensors"} <= set(hashes):
        raise UserError(f"{folder / 'manifest.json'}: names no config.json and model.safetensors")
    for name, expected in hashes.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / 'manifest.json'}: {name!r} is outside the folder")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing")
        if file_digest(folder / name) != expected:
            raise UserError(
                f"{folder / name}: changed or damaged (its SHA-256 is not the manifest's)"
            )


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file into a network that must have exactly its tensors.

    Raises:
        UserError: listing what is missing, unexpected or of another shape, or not finite.
    """
    try:
        state = load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    if isinstance(network, HuggingFace):
        state = {PREFIX + name: tensor for name, tensor in state.items()}
    check_fit(network, state, str(path))
    check_finite(state, str(path))
    network.load_state_dict(state)


def class_path(cls: type) -> str:
    """Name a class by its import path."""
    return f"{cls.__module__}.{cls.__qualname__}"


def find_class(path: Any, source: Path, trust: Iterable[str] = ()) -> Any:
    """Import a class that a file names, if its module may be named there.

    Raises:
        UserError: if the module is not allowed (nothing is imported then) or has no such class.
    """
    allowed = (*ALLOWED, *(f"{module}." for module in trust))
    if not isinstance(path, str) or not path.startswith(allowed):
        raise UserError(
            f"{source}: {path!r} is not a class of the suite; allow your own by --trust MODULE"
        )
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise UserError(f"{source}: there is no {path}") from None
    if not inspect.isclass(cls) or cls.__module__ != module:
        raise UserError(f"{source}: {path} is not a class defined there")
    return cls


def arguments_of(network: nn.Module) -> dict[str, Any]:
    """Read a network's constructor arguments from its attributes of the same names.

    Raises:
        UserError: naming an argument that is not kept as an attribute.
    """
    arguments = {}
    for name in inspect.signature(type(network)).parameters:
        value = getattr(network, name, self_missing := object())
        if value is self_missing or isinstance(value, (nn.Module, Tensor)):
            raise UserError(
                f"{type(network).__name__} keeps no plain attribute {name!r};"
                " pass init_args to save_pretrained"
            )
        arguments[name] = value
    return arguments


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    raise TypeError(f"{value!r} cannot be written as JSON")
