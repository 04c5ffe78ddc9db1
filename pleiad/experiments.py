"""Find an experiment and merge the user's overrides into it, without a heavy import.

Everything a user can get wrong in a name or key is answered here: unknown experiments, misspelt
keys with the nearest right ones, sizes that the data states, classes that may not be named.
"""

import copy
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import UserError
from core.openers import parse_yaml, read_yaml
from pleiad.index import ALLOWED, index

COMMAND_KEYS = {
    "run": "folder of this run; default runs/EXPERIMENT/N",
    "ckpt_path": "`last`, `best` or a checkpoint file to resume from",
    "checkpoint": "weights to begin from: a folder or file, a run, minilm, or an id of the hub",
    "precision": "32-true, bf16-mixed, 16-mixed, ... or auto, which measures what is faster",
    "trust": "a module of your own, in the current folder, that the configuration may name",
}
CONFIG_KEYS = (
    *("experiment", "checkpoint", "checkpoint_names", "seed_everything", "model", "data"),
    *("transforms", "trainer", "checkpoints"),
)
LISTS = {"transforms": "transform", "trainer.callbacks": "callback"}
"""Keys that hold a list of classes, and the role of each; ``KEY.0`` is the first of them."""
MENDED = {"lightning.pytorch.callbacks.EMAWeightAveraging": "core.callbacks.ema.EMAWeightAveraging"}
"""Classes of the libraries in place of which ours are taken."""
STUDIES = "studies"
"""The folder of configs that holds studies, not experiments."""
OPEN = (
    *("time_series/forecast", "nlp/classify", "nlp/tag", "nlp/answer", "nlp/retrieve"),
    *("vision/segment", "speech/separate", "security/detect", "medical/register"),
)
"""The experiments that take a user's own files, one a task."""


class Experiment(NamedTuple):
    """A named configuration: nested plain values.

    ``settings`` holds what a recipe sets otherwise where a key has a certain value: from the key to
    its values to what is set there, all by dotted keys.
    """

    name: str
    config: dict[str, Any]
    source: str
    settings: Mapping[str, Mapping[Any, Mapping[str, Any]]] = {}


def names() -> list[str]:
    """List the experiments that come with the suite."""
    root = files("configs")
    return sorted(
        f"{domain.name}/{file.name.removesuffix('.yaml')}"
        for domain in root.iterdir()
        if domain.is_dir() and domain.name != STUDIES
        for file in domain.iterdir()
        if file.name.endswith(".yaml")
    )


def is_run(name: str) -> bool:
    """Say whether ``name`` is a run folder."""
    return (Path(name) / "config.yaml").is_file()


def load(name: str) -> Experiment:
    """Load an experiment by name, by YAML path, or from a run folder.

    Raises:
        UserError: if there is none of that name, listing the nearest.
    """
    if is_run(name):
        path = Path(name) / "config.yaml"
        config = _mapping(read_yaml(path), str(path))
        known = str(config.get("experiment", Path(name).name))
        if not re.fullmatch(r"[^/\\.][^/\\]*(/[^/\\.][^/\\]*)*", known):
            raise UserError(
                f"{path}: experiment: {known!r} is not a name such as domain/system_set"
            )
        return _experiment(known, config, str(path))
    if name.endswith((".yaml", ".yml")):
        config = _mapping(read_yaml(Path(name)), name)
        return _experiment(Path(name).stem, config, name)
    if name in names():
        domain, _, stem = name.partition("/")
        text = files("configs").joinpath(domain, f"{stem}.yaml").read_text("utf-8")
        source = f"configs/{name}.yaml"
        return _experiment(name, _mapping(parse_yaml(text, source), source), source)
    close = nearest(name, names()) or [n for n in names() if name.split("/")[-1] in n]
    hint = f"; did you mean {' or '.join(close[:3])}?" if close else ""
    if not hint and name.split("/")[0] not in {known.split("/")[0] for known in names()}:
        hint = hub_hint(name)
    raise UserError(f"no experiment {name!r}{hint} (see `pleiad list experiments`)")


def hub_hint(name: str) -> str:
    """Say of what looks like an id of the Hugging Face hub where it belongs."""
    if not re.fullmatch(r"[\w-]+/[\w.-]+", name):
        return ""
    return f"; a model of the Hugging Face hub is given by --checkpoint {name}, with an experiment"


def resolve(name: str, overrides: Sequence[str], trust: Sequence[str] = ()) -> Experiment:
    """Load an experiment, merge ``--key=value`` overrides and check every key and class.

    What the recipe sets otherwise at the values that are asked for comes before the overrides.

    Raises:
        UserError: naming the key and the nearest right one.
    """
    experiment = load(name)
    config = {**experiment.config, "experiment": experiment.name}
    expand(config)
    given = pairs(overrides)
    if experiment.settings:
        asked = copy.deepcopy(config)
        for key, text in given:
            _set(asked, key, text, experiment.name)
        specialise(config, experiment, asked)
    for key, text in given:
        _set(config, key, text, experiment.name)
    expand(config)
    check(config, experiment.source, trust)
    return experiment._replace(config=config)


def specialise(
    config: dict[str, Any], experiment: Experiment, asked: Mapping[str, Any]
) -> list[str]:
    """Set in ``config`` what the recipe says for the values in ``asked``, both in long form.

    Returns:
        The keys whose value the recipe provides for.

    Raises:
        UserError: if the recipe sets a key that there is not.
    """
    values = dict(flat(asked))
    provided = []
    for key, blocks in experiment.settings.items():
        about = describe(asked, key)
        if key not in values and not about:
            _unknown(key, "", tuple(keys(config)), f"{experiment.source}: settings")
        value = values.get(key, about.get("default"))
        block = {str(known): block for known, block in blocks.items()}.get(str(value))
        if block is None:
            continue
        provided.append(key)
        for inner, new in block.items():
            _put(config, inner, new, experiment.name, f"{experiment.source}: settings: {inner}")
    return provided


def pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Split ``--key=value`` and ``--key value`` arguments.

    Raises:
        UserError: for an argument that is neither.
    """
    found = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise UserError(f"{argument!r} is not an option; write --key=value")
        key, equals, value = argument[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and not _is_number(rest[0])):
                raise UserError(f"--{key} needs a value: --{key}=VALUE")
            value = rest.pop(0)
        found.append((key, value))
    return found


def nearest(word: str, known: Sequence[str], count: int = 3) -> list[str]:
    """Find the names most like ``word``."""
    return difflib.get_close_matches(word, known, count, 0.6)


def expand(config: dict[str, Any]) -> None:
    """Write every class in its long form, ``{class_path, init_args}``, in place."""
    classes = index()["classes"]
    for key in ("model", "data"):
        if isinstance(config.get(key), str):
            config[key] = {"class_path": config[key]}
    for key in ("trainer", "checkpoints"):
        if config.get(key) is None:
            config.pop(key, None)
    for key in LISTS:
        section, _, name = key.rpartition(".")
        node = config.get(section) if section else config
        if isinstance(node, dict) and node.get(name):
            node[name] = _classes(node[name], key, config)
    for node, parent_class in _class_nodes(config):
        node.setdefault("init_args", {})
        if node["init_args"] is None:
            node["init_args"] = {}
        if not isinstance(node["init_args"], dict):
            raise UserError(f"{node['class_path']}: init_args must be a mapping of keys to values")
        arguments = classes.get(node["class_path"], {}).get("arguments", {})
        for name, value in list(node["init_args"].items()):
            if isinstance(value, str) and _takes_class(arguments.get(name, {})):
                node["init_args"][name] = {"class_path": _full_name(value, name, parent_class)}
            if (
                isinstance(node["init_args"][name], dict)
                and "class_path" in node["init_args"][name]
            ):
                node["init_args"][name].setdefault("init_args", {})


def check(config: Mapping[str, Any], source: str, trust: Sequence[str] = ()) -> None:
    """Check all keys and class paths of a configuration in its long form.

    Raises:
        UserError: naming the key, and the nearest right one or what sets it.
    """
    for key in config:
        if key not in CONFIG_KEYS:
            _unknown(str(key), "", CONFIG_KEYS, source)
    for key in ("model", "data"):
        if not isinstance(config.get(key), dict) or "class_path" not in config[key]:
            raise UserError(f"{source}: `{key}` must name a class (class_path)")
    seed = config.get("seed_everything")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**32):
        raise UserError(f"{source}: seed_everything={seed!r} must be a whole number from 0 on")
    for number, node in enumerate(config.get("transforms") or ()):
        if not isinstance(node, Mapping) or "class_path" not in node:
            raise UserError(f"{source}: transforms.{number}={node!r} must name a class")
        role = index()["classes"].get(node["class_path"], {}).get("role", "transform")
        if role != "transform":
            raise UserError(
                f"{source}: transforms.{number}: {node['class_path']} is a {role}, not a transform"
            )
    if not isinstance(config.get("checkpoint"), str | None):
        raise UserError(f"{source}: checkpoint must name a folder or a file")
    renamed = config.get("checkpoint_names")
    if not isinstance(renamed, Mapping | None) or not all(
        isinstance(word, str) for pair in (renamed or {}).items() for word in pair
    ):
        raise UserError(
            f"{source}: checkpoint_names must map regular expressions to what replaces them"
        )
    for section in ("trainer", "checkpoints"):
        if not isinstance(config.get(section, {}), Mapping):
            raise UserError(f"{source}: `{section}` must be a mapping of keys to values")
        for key, value in config.get(section, {}).items():
            if key not in index()[section]:
                _unknown(str(key), f"{section}.", tuple(index()[section]), source)
            if f"{section}.{key}" in OF_THE_RUN:
                _check_of_the_run(section, key, value, source)
            if f"{section}.{key}" in POSITIVE and value == 0:
                raise UserError(f"{source}: {section}.{key}=0 must be at least 1")
            _check_type(f"{section}.{key}", value, index()[section][key]["type"], source)
    _check_classes(config, "", source, trust)
    _check_linked(config, source)
    linked = index()["classes"].get(config["data"]["class_path"], {}).get("linked", ())
    _check_needed("data", config["data"])
    _check_needed("model", config["model"])
    network = (config["model"].get("init_args") or {}).get("network")
    if isinstance(network, Mapping):
        _check_needed("model.network", network, linked)


def _check_classes(node: Any, where: str, source: str, trust: Sequence[str]) -> None:
    if isinstance(node, list):
        for number, value in enumerate(node):
            _check_classes(value, f"{where}.{number}", source, trust)
    if not isinstance(node, Mapping):
        return
    if "class_path" in node:
        _check_class(node, where, source, trust)
    for key, value in node.items():
        inner = where if key == "init_args" else f"{where}.{key}" if where else str(key)
        _check_classes(value, inner, source, trust)


def _check_class(node: Mapping[str, Any], where: str, source: str, trust: Sequence[str]) -> None:
    path = node["class_path"]
    allowed = (*ALLOWED, *trust)
    if not isinstance(path, str) or not any(path.startswith(f"{name}.") for name in allowed):
        raise UserError(
            f"{source}: {where}: {path!r} may not be named in a configuration"
            f" (allowed: {', '.join(ALLOWED)});"
            " allow a module of your own by --trust MODULE"
        )
    for key in node:
        if key not in ("class_path", "init_args"):
            _unknown(str(key), f"{where}.", ("class_path", "init_args"), source)
    known = index()["classes"].get(path)
    if known is None:
        if path.startswith(("core.", "domains.")):
            close = nearest(path, list(index()["classes"]))
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"{source}: {where}: there is no class {path}{hint}")
        return
    given = node.get("init_args") or {}
    for key, value in given.items():
        if key not in known["arguments"]:
            _unknown(str(key), f"{where}.", tuple(known["arguments"]), source)
        _check_type(f"{where}.{key}", value, known["arguments"][key]["type"], source)
    if known["role"] in ("optimizer", "scheduler", "callback", "transform", "criterion"):
        _check_needed(where, node, ("params", "optimizer"))


def _check_linked(config: Mapping[str, Any], source: str) -> None:
    data_args = config["data"].get("init_args") or {}
    known = index()["classes"].get(config["data"]["class_path"], {})
    network = (config["model"].get("init_args") or {}).get("network")
    given = (network.get("init_args") or {}) if isinstance(network, Mapping) else {}
    for name in known.get("linked", ()):
        if name in given:
            now = data_args.get(name, known["arguments"].get(name, {}).get("default"))
            fix = (
                f"set --data.{name} instead (now {now})"
                if name in known["arguments"]
                else "it is read from the data"
            )
            raise UserError(f"{source}: model.network.{name} is set by the data; {fix}")


def _check_needed(where: str, node: Mapping[str, Any], filled: Sequence[str] = ()) -> None:
    """Ask for what a class takes without a default; ``filled`` is given to it later."""
    given = node.get("init_args") or {}
    for name, argument in (
        index()["classes"].get(node["class_path"], {}).get("arguments", {}).items()
    ):
        if given.get(name) is None and "default" not in argument and name not in filled:
            told = f" ({argument['help']})" if "help" in argument else ""
            raise UserError(f"--{where}.{name} is needed{told}")


OF_THE_RUN = {
    "trainer.logger": "a run always writes metrics.csv and TensorBoard files in its folder",
    "trainer.default_root_dir": "give the folder by --run",
    "trainer.enable_checkpointing": "a run always keeps its last and best checkpoint",
    "trainer.use_distributed_sampler": "the batch plan shares the batches out",
    "trainer.barebones": "a run needs its files",
    "checkpoints.folder": "checkpoints lie in the folder of the run; give it by --run",
}
"""Keys of Lightning that the run itself sets, and what to do instead."""

POSITIVE = (
    "trainer.max_epochs",
    "trainer.limit_train_batches",
    "trainer.accumulate_grad_batches",
    "trainer.check_val_every_n_epoch",
    "trainer.log_every_n_steps",
)


def _check_of_the_run(section: str, key: str, value: Any, source: str) -> None:
    if value is not None and str(value) != index()[section][key].get("default"):
        fix = OF_THE_RUN[f"{section}.{key}"]
        raise UserError(f"{source}: {section}.{key}={value!r} is set by the run; {fix}")


PLAIN: dict[str, tuple[type, ...]] = {
    **{"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)},
    **{"NoneType": (), "None": (), "torch.Tensor": ()},
}


def _check_type(where: str, value: Any, kind: str, source: str) -> None:
    """Refuse a value that is not of its argument's type, where that is a plain one."""
    if value is None or not kind:
        return
    optional = re.fullmatch(r"Optional\[(.*)\]|Union\[(.*)\]", kind)
    inside = (optional[1] or optional[2]) if optional else kind
    literal = re.fullmatch(r"Literal\[([^\[\]]*)\]", inside)
    if literal:
        choices = [choice.strip(" '") for choice in literal[1].split(",")]
        if str(value) not in choices:
            raise UserError(f"{source}: {where}={value!r} must be one of {', '.join(choices)}")
        return
    names = [name.strip() for name in re.split(r"[|,]", inside)]
    if not all(name in PLAIN for name in names):
        return
    types = tuple(each for name in names for each in PLAIN[name])
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        wanted = " or ".join(name for name in names if PLAIN[name])
        raise UserError(f"{source}: {where}={value!r} must be {wanted}")


def _set(config: dict[str, Any], key: str, text: str, experiment: str) -> None:
    """Set one dotted key, with or without ``init_args`` in it, from the command line."""
    key = _numbered(config, key)
    parts = key.split(".")
    value = text if _is_text(config, parts, text) else parse_yaml(text, f"--{key}")
    _put(config, key, value, experiment, f"--{key}")


def _numbered(config: Mapping[str, Any], key: str) -> str:
    """Put in the number of the item of a list, where just one of its classes takes the argument."""
    for name in LISTS:
        listed = _at(config, name)
        part, _, rest = key.removeprefix(f"{name}.").partition(".")
        if not key.startswith(f"{name}.") or part.isdecimal() or not isinstance(listed, list):
            continue
        paths = [f"{name}.{number}" for number in range(len(listed))]
        taking = [path for path in paths if part in (known_keys(config, path) or ())]
        if len(taking) == 1:
            return ".".join(filter(None, (taking[0], part, rest)))
    return key


def _put(config: dict[str, Any], key: str, value: Any, experiment: str, source: str) -> None:
    """Set one dotted key, with or without ``init_args`` in it."""
    parts = [part for part in key.split(".") if part]
    if not parts or parts[0] not in CONFIG_KEYS or parts[0] in ("experiment", "checkpoint"):
        _unknown(key, "", (*COMMAND_KEYS, *keys(config)), source)
    node: Any = config
    for depth, part in enumerate(parts[:-1]):
        where = ".".join(p for p in parts[: depth + 1] if p != "init_args")
        if isinstance(node, list):
            child = node[_position(node, part, parts[:depth], source)]
        else:
            child = node.get(part)
        if child is None:
            _require(parts, depth, config, experiment, source)
            child = node[part] = [] if where in LISTS else {}
        if not isinstance(child, dict) and where not in LISTS:
            raise UserError(f"{source}: {where} is {child!r} and has no keys")
        node = _inside(child, parts[depth + 1])
    last = parts[-1]
    if isinstance(node, list):
        _put_class(node, parts, value, config, source)
        return
    if node is not config and last not in ("class_path",):
        _require(parts, len(parts) - 1, config, experiment, source)
    if key in LISTS and value:
        value = _classes(value, key, config)
    old = node.get(last)
    if isinstance(old, dict) and "class_path" in old and isinstance(value, str):
        path = _full_name(value, last, config["model"]["class_path"])
        node[last] = _exchanged(old, path)
    elif isinstance(old, dict) and isinstance(value, dict) and "class_path" not in value:
        node[last] = {**old, **value}
    elif isinstance(value, str) and _takes_class(describe(config, _plain_key(parts))):
        path = _full_name(value, last, config["model"]["class_path"])
        node[last] = {"class_path": path, "init_args": {}}
    else:
        node[last] = value


def _exchanged(old: dict[str, Any], path: str) -> dict[str, Any]:
    """Name another class; an optimizer or scheduler keeps the settings that both take."""
    if old["class_path"] == path:
        return old
    known = index()["classes"].get(path, {})
    kept = known["arguments"] if known.get("role") in ("optimizer", "scheduler") else ()
    given = old.get("init_args") or {}
    return {"class_path": path, "init_args": {k: v for k, v in given.items() if k in kept}}


def _put_class(
    node: list[Any], parts: Sequence[str], value: Any, config: Mapping[str, Any], source: str
) -> None:
    """Set one class of a list, or add one at its end; the same class keeps its arguments."""
    key = ".".join(parts[:-1])
    position = _position(node, parts[-1], parts[:-1], source, len(node) + 1)
    (given,) = _classes([value], key, config)
    if not isinstance(given, dict) or "class_path" not in given:
        raise UserError(f"{source}: {value!r} must name a {LISTS[key]}")
    if position == len(node):
        node.append(given)
    elif isinstance(value, dict) or node[position].get("class_path") != given["class_path"]:
        node[position] = given
    node[position].setdefault("init_args", {})


def _position(
    node: Sequence[Any], part: str, where: Sequence[str], source: str, most: int | None = None
) -> int:
    """Take a part of a key as the position in a list."""
    key = ".".join(where)
    most = len(node) if most is None else most
    if part.isdecimal() and int(part) < most:
        return int(part)
    names = [
        str(item.get("class_path") if isinstance(item, Mapping) else item).rpartition(".")[2]
        for item in node
    ]
    there = ", ".join(f"{key}.{number} ({name})" for number, name in enumerate(names))
    raise UserError(
        f"{source}: there is no {key}.{part}; there is {there or 'none'};"
        f" add one by --{key}.{len(node)}=NAME"
    )


def _is_text(config: Mapping[str, Any], parts: Sequence[str], text: str) -> bool:
    """Say whether an override is to be taken as it is: names of files and columns, times."""
    kind = describe(config, _plain_key(parts)).get("type", "")
    plain = kind == "str" or (kind in ("str | None", "Optional[str]") and text != "null")
    return not text or plain or re.fullmatch(r"\d+(:\d+)+", text) is not None


def _plain_key(parts: Sequence[str]) -> str:
    return ".".join(part for part in parts if part != "init_args")


def _inside(child: Any, following: str) -> Any:
    if (
        isinstance(child, dict)
        and "class_path" in child
        and following not in ("class_path", "init_args")
    ):
        inner: dict[str, Any] = child.setdefault("init_args", {})
        return inner
    return child


def _require(
    parts: Sequence[str], depth: int, config: Mapping[str, Any], experiment: str, source: str
) -> None:
    """Refuse a key that its class does not take."""
    part = parts[depth]
    path = ".".join(p for p in parts[:depth] if p != "init_args")
    known = known_keys(config, path)
    if known is None or part in known or part == "init_args":
        return
    domain = experiment.split("/")[0]
    own = next((name for name in OPEN if name.startswith(f"{domain}/")), None)
    wanted = part in ("train", "val", "test", "target")
    if path == "data" and own and experiment not in OPEN and wanted:
        raise UserError(
            f"--data.{part}: {experiment} is bound to its benchmark set;"
            f" for your own files use {own}"
        )
    _unknown(part, f"{path}." if path else "", tuple(known), source)


def known_keys(config: Mapping[str, Any], path: str) -> list[str] | None:
    """List the keys that may stand below a dotted path; None where that is not known."""
    if path in ("trainer", "checkpoints"):
        return list(index()[path])
    node: Any = config
    for part in path.split(".") if path else ():
        node = _below(node, part)
    if isinstance(node, Mapping) and "class_path" in node:
        known = index()["classes"].get(node["class_path"])
        return list(known["arguments"]) if known else None
    return None


def keys(config: Mapping[str, Any]) -> Iterator[str]:
    """List every dotted key that may be set for a configuration in its long form."""
    yield "seed_everything"
    for section in ("trainer", "checkpoints"):
        yield from (f"{section}.{name}" for name in index()[section])
    linked = index()["classes"].get(config.get("data", {}).get("class_path"), {}).get("linked", ())

    def below(node: Mapping[str, Any], where: str) -> Iterator[str]:
        known = index()["classes"].get(node.get("class_path"), {}).get("arguments", {})
        given = node.get("init_args") or {}
        for name in known:
            if where == "model.network" and name in linked:
                continue
            if name == "params" or (name == "optimizer" and where.endswith("scheduler")):
                continue  # filled in by the task
            yield f"{where}.{name}"
            if isinstance(given.get(name), Mapping) and "class_path" in given[name]:
                yield from below(given[name], f"{where}.{name}")

    for section in ("model", "data"):
        if isinstance(config.get(section), Mapping):
            yield from below(config[section], section)
    yield "transforms"
    for key in LISTS:
        listed = _at(config, key)
        for number, node in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(node, Mapping):
                yield from below(node, f"{key}.{number}")


def describe(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Give type, default and help of a dotted key."""
    section, _, rest = key.partition(".")
    if section in ("trainer", "checkpoints") and "." not in rest:
        found: dict[str, Any] = index()[section].get(rest, {})
        return found
    if key == "transforms":
        return {"help": "changes of the network before training, such as LoRA"}
    path, _, name = key.rpartition(".")
    node = _at(config, path)
    known = index()["classes"].get(node.get("class_path"), {}) if isinstance(node, Mapping) else {}
    described: dict[str, Any] = known.get("arguments", {}).get(name, {})
    return described


def _at(config: Mapping[str, Any], path: str) -> Any:
    """Give what stands at a dotted path, None where nothing does."""
    node: Any = config
    for part in path.split("."):
        node = _below(node, part)
    return node


def _below(node: Any, part: str) -> Any:
    """Go one step down: to a key, to an argument of a class, or to a place in a list."""
    if isinstance(node, Mapping) and "class_path" in node:
        node = node.get("init_args") or {}
    if isinstance(node, Mapping):
        return node.get(part)
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    return None


HARMLESS = re.compile(
    r"experiment|seed_everything|checkpoints\..*|data\.(train|num_workers|eval_batch_size)"
    r"|trainer\.(enable_|log_|accelerator|devices|strategy|num_nodes|default_|use_dist).*"
)
"""Keys that are no part of a recipe."""


def changed(
    config: Mapping[str, Any],
    name: str,
    complete: Callable[[Experiment], Experiment] = lambda experiment: experiment,
) -> dict[str, Any]:
    """Say in which keys a configuration, in its long form, leaves a named recipe.

    A value that the recipe provides for, such as another horizon with its own rate, does not count.

    Args:
        config: the configuration.
        name: of the recipe.
        complete: fills in what the weights that the recipe begins from bring along.
    """
    experiment = load(name)
    expand(experiment.config)
    experiment = complete(experiment)
    own = experiment.config
    provided = specialise(own, experiment, config)
    expand(own)
    ours, theirs = dict(flat(config)), dict(flat(own))

    def value(values: Mapping[str, Any], tree: Mapping[str, Any], key: str) -> str:
        found = values[key] if key in values else describe(tree, key).get("default")
        text = str(found).replace("(", "[").replace(")", "]")
        return str(float(text)) if _is_number(text) else text

    return {
        key: ours.get(key)
        for key in {**theirs, **ours}
        if key not in provided
        and not HARMLESS.fullmatch(key)
        and value(ours, config, key) != value(theirs, own, key)
    }


def flat(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """List a configuration's values by their dotted keys, without ``init_args``."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            inner = where if key == "init_args" else f"{where}.{key}" if where else str(key)
            yield from flat(value, inner)
    elif where in LISTS and isinstance(node, list) and node:
        for number, item in enumerate(node):
            yield from flat(item, f"{where}.{number}")
    elif not isinstance(node, Mapping):
        yield where, node


def _experiment(name: str, config: dict[str, Any], source: str) -> Experiment:
    """Take the settings apart from what a run starts from."""
    settings = config.pop("settings", None) or {}
    form = f"{source}: settings: write KEY: {{VALUE: {{KEY: VALUE, ...}}, ...}} with dotted keys"
    if not isinstance(settings, dict):
        raise UserError(form)
    for key, blocks in settings.items():
        if not isinstance(blocks, dict) or not all(isinstance(b, dict) for b in blocks.values()):
            raise UserError(f"{form}; {key} holds {blocks!r}")
    return Experiment(name, config, source, settings)


def _classes(given: Any, key: str, config: Mapping[str, Any]) -> list[Any]:
    """Write the classes of a list as ``{class_path, ...}`` with full names."""
    model = config.get("model")
    task = str(model.get("class_path", "")) if isinstance(model, Mapping) else ""
    nodes = []
    for item in given if isinstance(given, list) else [given]:
        node = {"class_path": item} if isinstance(item, str) else item
        if isinstance(node, dict) and isinstance(node.get("class_path"), str):
            path = _full_name(node["class_path"], LISTS[key], task)
            node = {**node, "class_path": MENDED.get(path, path)}
        nodes.append(node)
    return nodes


def _class_nodes(node: Any, parent: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    if isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield node, node["class_path"]
        for value in list(node.values()):
            yield from _class_nodes(value, parent)
    elif isinstance(node, list):
        for value in node:
            yield from _class_nodes(value, parent)


def _takes_class(argument: Mapping[str, str]) -> bool:
    kind = argument.get("type", "")
    return any(word in kind for word in ("Module", "Callable", "Criterion"))


def _full_name(value: str, role: str, task: str) -> str:
    """Find the class that a short name means; a dotted path is taken as it is."""
    if "." in value:
        return value
    wanted = re.sub(r"[^a-z0-9]", "", value.lower())
    domain = task.split(".")[1] if task.startswith("domains.") else ""
    candidates: dict[str, str] = {
        path: path.rsplit(".", 1)[1]
        for path, known in index()["classes"].items()
        if known["role"] == role and known["domain"] in ("", domain)
    }
    for path, name in candidates.items():
        if name.lower() == wanted:
            return path
    like = nearest(wanted, [name.lower() for name in candidates.values()])
    close = [name for name in candidates.values() if name.lower() in like]
    listed = ", ".join(close or sorted(candidates.values()))
    raise UserError(f"no {role} {value!r}; there is {listed}")


def _unknown(key: str, prefix: str, known: Sequence[str], source: str) -> None:
    close = nearest(key, known) or [k for k in known if key.split(".")[-1] == k.split(".")[-1]][:3]
    if close:
        hint = f"did you mean {' or '.join(prefix + name for name in close)}?"
    else:
        hint = f"there is {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
    raise UserError(f"{source}: unknown key {prefix}{key}; {hint}")


def _mapping(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f"{source}: not an experiment (a mapping with `model` and `data` is needed)"
        )
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
