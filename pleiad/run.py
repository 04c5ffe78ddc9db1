"""The life of a run: build, fit, test the best checkpoint once, write all that it holds."""

import hashlib
import importlib
import importlib.metadata
import json
import platform
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
import torch
from filelock import FileLock, Timeout
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
)
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import nn
from torchmetrics import MetricCollection

from core.callbacks.checkpoints import Checkpoints, pointed
from core.callbacks.exact_resume import ExactResume
from core.callbacks.nonfinite import NonFiniteGuard
from core.callbacks.predictions import Predictions
from core.callbacks.signals import Signals
from core.checkpoint_io import SafeCheckpointIO, read_checkpoint
from core.data_module import DataModule
from core.errors import UserError
from core.metrics_csv import MetricsCSV, MetricsPosition
from core.openers import read_json, write_atomic
from core.precision import faster_precision
from core.pretrained import check_fit, class_path, save_pretrained, transformed
from core.task import Step, Task
from pleiad import registry, report, weights
from pleiad.experiments import (
    HARMLESS,
    OPEN,
    Experiment,
    changed,
    is_run,
    load,
    names,
    pairs,
    resolve,
)
from pleiad.fit_bar import FitBar
from pleiad.index import ALLOWED, index
from pleiad.runs import claim, is_finished, is_first_process, newest

REFUSALS = (jsonargparse.ArgumentError, MisconfigurationException, ValueError, TypeError, OSError)
CARRIES_ON = re.compile(r"trainer\.(max|min)_(epochs|steps|time)")
"""Keys that may change when a run goes on, besides those that change no result."""


class Options(NamedTuple):
    """The command's own keys of a run."""

    run: Path | None = None
    ckpt_path: str | None = None
    precision: str | None = None
    trust: tuple[str, ...] = ()
    checkpoint: str | None = None


class Built(NamedTuple):
    """What a configuration describes, made but for the trainer, which needs the run's folder."""

    task: LightningModule
    data: LightningDataModule
    trainer_args: dict[str, Any]
    checkpoints: Checkpoints
    network_args: dict[str, Any]
    yaml: str
    seed: int
    transforms: list[dict[str, Any]]


class _CLI(LightningCLI):
    """LightningCLI with the suite's links; it builds task and data, the run builds the trainer."""

    linked: tuple[str, ...] = ()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--experiment", type=str, default="")
        parser.add_argument("--checkpoint", type=str | None, default=None)
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        for name in self.linked:
            parser.link_arguments(
                "data",
                f"model.init_args.network.init_args.{name}",
                compute_fn=lambda config, name=name: _sizes(config)[name],
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_object(args)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


def _sizes(config: Any) -> dict[str, int]:
    """Ask the data module that ``config`` names for its sizes."""
    return _stated(config["class_path"], json.dumps(config["init_args"].as_dict(), default=str))


@cache
def _stated(class_path: str, init_args: str) -> dict[str, int]:
    """Ask once for all of them: a data module may have to read its files."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    sizes: dict[str, int] = cls.sizes(json.loads(init_args))
    return sizes


def build(experiment: Experiment, precision: str | None = None, trust: Sequence[str] = ()) -> Built:
    """Make task and data; whatever does not fit its class ends here.

    Raises:
        UserError: naming what does not fit.
    """
    _stated.cache_clear()
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[*ALLOWED, *trust]
    )
    config = json.loads(json.dumps(experiment.config, default=str))
    defaults = {"enable_model_summary": False, "log_every_n_steps": 10}
    config["trainer"] = defaults | (config.get("trainer") or {})
    if precision is not None:
        config["trainer"]["precision"] = precision
    linked = index()["classes"].get(config["data"]["class_path"], {}).get("linked", ())
    try:
        cli = type("_LinkedCLI", (_CLI,), {"linked": tuple(linked)})(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False},
            args=config,
        )
    except Exception as error:  # a constructor may raise anything
        raise _user_error(error, experiment.source) from error
    if str(config["trainer"].get("precision")) in ("64", "64-true"):
        cli.model.double()  # Lightning would restore a checkpoint in single precision
    transforms = _transform(cli.model, cli.datamodule, experiment.source)
    network = cli.config["model"].get("init_args", {}).get("network")
    given = network.get("init_args") if isinstance(network, jsonargparse.Namespace) else None
    trainer_args = cli.config_init["trainer"].as_dict()
    return Built(
        cli.model,
        cli.datamodule,
        trainer_args,
        cli.config_init["checkpoints"],
        given.as_dict() if given is not None else {},
        _whole_numbers(cli, config["trainer"], trainer_args),
        int(cli.config["seed_everything"] or 0),
        transforms,
    )


def _whole_numbers(cli: LightningCLI, given: Mapping[str, Any], parsed: dict[str, Any]) -> str:
    """Take whole numbers as they were given, in ``parsed`` and in the text of the configuration.

    Which of ``int`` and ``float`` comes first in an annotation that takes both depends on what was
    imported before (``typing`` keeps the first of two equal unions); ``limit_test_batches`` of 1
    and 1.0 are one batch and all of them.
    """
    text: str = cli.parser.dump(cli.config, skip_link_targets=True, skip_none=False)
    wrong = [key for key, value in given.items() if type(value) is int]
    wrong = [key for key in wrong if type(parsed.get(key)) is float]
    for key in wrong:
        parsed[key] = given[key]
        pattern = re.compile(rf"^(  {key}: )\S+$", re.MULTILINE)
        text = pattern.sub(rf"\g<1>{given[key]}", text, count=1)
    return text


def _transform(task: Any, data: LightningDataModule, source: str) -> list[dict[str, Any]]:
    """Wrap the task's network in what the data ask for, and say in what."""
    if not isinstance(data, DataModule) or not isinstance(task, Task):
        return []
    try:
        found = data.transforms()
        task.network = transformed(task.network, found, Path(source))
    except Exception as error:  # a data module may raise anything
        raise _user_error(error, source) from error
    return found


def print_config(name: str, overrides: Sequence[str], options: Options) -> str:
    """Give the whole resolved configuration as YAML."""
    experiment = resolved(name, overrides, options)
    return build(experiment, options.precision, options.trust).yaml


def prepare(
    experiment: Experiment,
    options: Options,
    checkpoint: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Built, dict[str, Any]]:
    """Build and check all that a fit needs; give it, and what its weights begin from.

    Raises:
        UserError: naming what does not fit.
    """
    built = build(experiment, _precision(options.precision), options.trust)
    _check_data(built, experiment.source)
    if isinstance(built.data, DataModule) and is_first_process():
        for line in built.data.summary():
            tell(line)
    origin: dict[str, Any] = {}
    if checkpoint is not None:
        _check_checkpoint(built, checkpoint)
        origin = weights.origin_of(checkpoint)
    elif given := experiment.config.get("checkpoint"):
        network = getattr(built.task, "network", built.task)
        read = weights.read(Path(given), options.trust)
        origin, lines = weights.load_matching(network, read)
        for line in lines if is_first_process() else ():
            tell(f"{given}: {line}")
    _checked_trainer(built, Path(), experiment.source, logging=False)
    return built, origin


def fit(
    name: str,
    overrides: Sequence[str],
    options: Options,
    tell: Callable[[str], None] = lambda line: None,
) -> Path | None:
    """Run an experiment, or go on with an interrupted run; give its folder, None after a dry run.

    Args:
        name: an experiment, a YAML file or a run folder.
        overrides: ``--key=value`` arguments.
        options: the command's own keys.
        tell: takes lines on what was read, and on what given weights fit.

    Raises:
        UserError: before anything costly has run.
    """
    name, checkpoint, going_on = _start(name, options)
    experiment = resolved(name, overrides, options)
    if going_on:
        _check_going_on(overrides)
    built, origin = prepare(experiment, options, checkpoint, tell)
    if built.trainer_args.get("fast_dev_run"):
        with tempfile.TemporaryDirectory() as scratch:
            trainer = make_trainer(built, Path(scratch), [], logging=False)
            with readable_errors(experiment.source, trainer):
                trainer.fit(built.task, built.data)
        return None
    folder = Path(name) if going_on else claim(experiment.name, options.run)
    with _locked(folder):
        if going_on and (is_finished(folder) or not (checkpoint and checkpoint.is_file())):
            raise UserError(f"{folder}: another process has gone on with this run meanwhile")
        if is_first_process():
            write_atomic(folder / "config.yaml", built.yaml)
            if isinstance(built.data, DataModule):
                built.data.keep(folder)
            if origin and not going_on:
                _write_json(folder / weights.ORIGIN, origin)
        clock = _Clock()
        trainer = make_trainer(built, folder, [clock])
        with readable_errors(experiment.source, trainer):
            trainer.fit(built.task, built.data, ckpt_path=str(checkpoint) if checkpoint else None)
        _finish(built, trainer, folder, experiment, clock.seconds, options.trust)
    return folder


def evaluate(name: str, overrides: Sequence[str], options: Options, split: str) -> dict[str, float]:
    """Validate or test a finished run's best checkpoint, or given weights; give the metrics.

    Args:
        name: a run, an experiment (its newest finished run) or a ``model/`` folder; with
            ``options.checkpoint`` the experiment whose data judge these weights.
        overrides: ``--key=value`` arguments.
        options: the command's own keys; with ``run`` the test of given weights leaves a run folder.
        split: ``test`` or ``validate``.

    Raises:
        UserError: if the weights do not fit.
    """
    given = options.checkpoint or (name if weights.is_model(name) else None)
    if given is not None:
        return _evaluate_given(name, given, overrides, options, split)
    if options.run is not None:
        raise UserError(f"--run {options.run}: only a test of given weights leaves a run folder")
    folder = finished_run(name)
    if not (folder / "checkpoints").is_dir():  # left by a test of given weights
        model = str(folder / "model")
        return _evaluate_given(model, model, overrides, options, split)
    experiment = resolve(str(folder), overrides, options.trust)
    built = build(experiment, _precision(options.precision), options.trust)
    _check_data(built, experiment.source)
    path = _checkpoint(folder, options.ckpt_path or "best")
    _load(built.task, path)
    trainer = _checked_trainer(built, folder, experiment.source, logging=False)
    run = trainer.test if split == "test" else trainer.validate
    return _merged(run(built.task, built.data, verbose=False))


def _evaluate_given(
    name: str, given: str, overrides: Sequence[str], options: Options, split: str
) -> dict[str, float]:
    if options.ckpt_path is not None:
        raise UserError("--ckpt_path is a run's own checkpoint; leave it out beside given weights")
    if options.run is not None and split != "test":
        raise UserError(f"--run {options.run}: only `pleiad test` leaves a run folder")
    for key, _ in pairs(overrides):
        if key.startswith("model.network."):
            raise UserError(f"--{key}: the network is that of {given}, in its size")
    read = weights.read(Path(given), options.trust)
    named = name if options.checkpoint else weights.experiment_of(Path(given), read)
    experiment = weights.adopt(resolve(named, overrides, options.trust), read)
    experiment = _with_checkpoint(experiment, given)
    built = build(experiment, _precision(options.precision), options.trust)
    _check_data(built, experiment.source)
    weights.check_sizes(experiment, read, built.network_args)
    origin = weights.load(getattr(built.task, "network", built.task), read)
    trainer = _checked_trainer(built, Path(), experiment.source, logging=False)
    if options.run is None:
        run = trainer.test if split == "test" else trainer.validate
        return _merged(run(built.task, built.data, verbose=False))
    folder = claim(experiment.name, options.run)
    if is_first_process():
        write_atomic(folder / "config.yaml", built.yaml)
        _write_json(folder / weights.ORIGIN, origin)
    trainer = make_trainer(built, folder, [])
    return _conclude(built, trainer, folder, experiment, 0.0, options.trust)


def finished_run(name: str) -> Path:
    """Find the finished run that ``name`` means: a folder, or an experiment's newest.

    Raises:
        UserError: if there is none.
    """
    if is_run(name):
        return Path(name)
    experiment = load(name).name
    folder = newest(experiment, finished=True)
    if folder is None:
        raise UserError(
            f"{name}: no finished run in runs/{experiment}; `pleiad fit {name}` makes one"
        )
    return folder


def resolved(name: str, overrides: Sequence[str], options: Options) -> Experiment:
    """Resolve an experiment, with the weights that it begins from."""
    experiment = resolve(name, overrides, options.trust)
    return _with_checkpoint(experiment, options.checkpoint) if options.checkpoint else experiment


def _with_checkpoint(experiment: Experiment, checkpoint: str) -> Experiment:
    return experiment._replace(config={**experiment.config, "checkpoint": checkpoint})


def _start(name: str, options: Options) -> tuple[str, Path | None, bool]:
    """Decide what a fit starts from: (name, checkpoint, whether it goes on in the run's folder)."""
    wish = options.ckpt_path
    if wish is None:
        return name, None, False
    if options.checkpoint is not None:
        raise UserError(
            "--checkpoint begins a new run from given weights, and --ckpt_path goes on with a run;"
            " give one of them"
        )
    if wish not in ("last", "best"):
        return name, Path(wish), False
    if not is_run(name):
        experiment = load(name).name
        folder = newest(experiment, finished=False)
        if folder is None:
            raise UserError(
                f"--ckpt_path {wish}: no unfinished run in runs/{experiment} to go on with"
            )
        name = str(folder)
    if is_finished(Path(name)):
        raise UserError(f"{name}: is finished already; `pleiad test {name}` repeats its test")
    return name, _checkpoint(Path(name), wish), True


def _checkpoint(folder: Path, wish: str) -> Path:
    """Find a checkpoint of a run; a run without validation has no best one but its last."""
    checkpoints = folder / "checkpoints"
    if wish == "best" and not (checkpoints / "best").exists():
        wish = "last"
    return pointed(checkpoints, wish) if wish in ("last", "best") else Path(wish)


def _check_data(built: Built, source: str) -> None:
    try:
        built.data.prepare_data()
        built.data.setup("fit")
        if isinstance(built.data, DataModule):
            built.data.plan()
    except Exception as error:  # a data module may raise anything
        raise _user_error(error, source) from error


def _check_going_on(overrides: Sequence[str]) -> None:
    """Refuse what a checkpoint would silently overrule, or what would make it another run."""
    for key, _ in pairs(overrides):
        if key == "seed_everything" or not (CARRIES_ON.fullmatch(key) or HARMLESS.fullmatch(key)):
            raise UserError(
                f"--{key} cannot change when a run goes on; start a new run"
                " (only its length, devices and what never changes a result may)"
            )


def _check_checkpoint(built: Built, path: Path) -> None:
    content = read_checkpoint(path)
    needed = {"pytorch-lightning_version", "loops", "optimizer_states", "lr_schedulers"}
    if missing := sorted(needed - set(content)):
        raise UserError(
            f"{path}: holds weights, but not the state of training that a run goes on from"
            f" (no {', '.join(missing)})"
        )
    check_fit(built.task, content["state_dict"], str(path))


def _checked_trainer(built: Built, folder: Path, source: str, logging: bool = True) -> Trainer:
    """Make a trainer; what Lightning refuses is the user's mistake."""
    try:
        return make_trainer(built, folder, [], logging)
    except Exception as error:  # Lightning raises many types
        raise _user_error(error, source) from error


def make_trainer(
    built: Built, folder: Path, extra: Sequence[Callback], logging: bool = True
) -> Trainer:
    """Make the trainer of a run: the configuration's, with the suite's callbacks and files."""
    own = dict(built.trainer_args)
    plugins = own.get("plugins") or []
    loggers: list[Logger] = []
    if logging:
        loggers = [MetricsCSV(folder), TensorBoardLogger(folder, name="", version="tensorboard")]
    callbacks = [
        *(own.pop("callbacks", None) or []),
        ExactResume(built.seed),
        NonFiniteGuard(),
        MetricsPosition(),
        *extra,
        Signals(),
    ]
    if logging:  # the test of a finished run is repeated without a change to its files
        callbacks += [Predictions(folder / "predictions.parquet"), built.checkpoints]
    if own.get("enable_progress_bar") is not False:
        callbacks.append(FitBar())
    own |= {
        "callbacks": callbacks,
        "logger": loggers or False,
        "default_root_dir": folder,
        "plugins": [*(plugins if isinstance(plugins, list) else [plugins]), SafeCheckpointIO()],
        "use_distributed_sampler": False,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
    }
    return Trainer(**own)


def _finish(
    built: Built,
    trainer: Trainer,
    folder: Path,
    experiment: Experiment,
    fit_seconds: float,
    trust: Sequence[str],
) -> None:
    """Test the best checkpoint once and write all that a finished run holds."""
    _load(built.task, _checkpoint(folder, "best"))
    _conclude(built, trainer, folder, experiment, fit_seconds, trust)


def _conclude(
    built: Built,
    trainer: Trainer,
    folder: Path,
    experiment: Experiment,
    fit_seconds: float,
    trust: Sequence[str],
) -> dict[str, float]:
    """Test once, write all that a finished run holds, give the metrics."""
    task, data = built.task, built.data
    began = time.perf_counter()
    found = trainer.test(task, data, verbose=False)
    seconds = {"fit": fit_seconds, "test": time.perf_counter() - began}
    metrics = _merged(found)
    if not trainer.is_global_zero:
        return metrics
    origin = read_json(folder / weights.ORIGIN) if (folder / weights.ORIGIN).is_file() else {}
    network = getattr(task, "network", task)
    facts = data.facts if isinstance(data, DataModule) else {}
    inner = network
    for _ in built.transforms:
        inner = inner.network
    system = registry.system_of(type(inner).__module__)
    partial = sum(trainer.num_test_batches) < len(data.test_dataloader())
    baselines = {} if partial else _judge_baselines(task, data)
    content = {
        "experiment": experiment.name,
        "system": system or type(inner).__name__,
        "task": type(task).__name__,
        "dataset": facts.get("dataset", type(data).__name__),
        "setting": facts.get("setting", {}),
        "seed": built.seed,
        "metrics": metrics,
        "baselines": baselines,
        "published": None if partial else _published(system, facts, experiment),
        "parameters": {
            "total": sum(p.numel() for p in network.parameters()),
            "trainable": sum(p.numel() for p in network.parameters() if p.requires_grad),
        },
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "techniques": _techniques(trainer),
        "checkpoint": origin or None,
        "versions": _versions(),
        "device": _device(trainer),
        "config_hash": hashlib.sha256(built.yaml.encode()).hexdigest(),
        "command": f"pleiad fit {folder}",
        "git": _revision(),
        "units": {"data": facts.get("unit", ""), "scaled": "standardised"}.get(
            getattr(task, "units", ""), ""
        ),
        "notes": facts.get("notes", []),
        "licence": facts.get("licence"),
        "citation": facts.get("citation"),
    }
    content["warnings"] = report.warnings(content) + _other_recipe(experiment)
    content["warnings"] += weights.restriction(origin)
    if partial:
        content["warnings"].append("tested on a part of the test split only: not comparable")
    if isinstance(network, nn.Module) and _rebuildable(inner, trust):
        save_pretrained(
            network,
            folder / "model",
            init_args=built.network_args,
            transforms=built.transforms,
            preprocessing=data.preprocessing if isinstance(data, DataModule) else None,
            extra={
                **{key: origin[key] for key in weights.RIGHTS if key in origin},
                **{"experiment": experiment.name, "system": content["system"]},
            },
        )
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    if isinstance(data, DataModule):
        data.pictures(folder / "predictions.parquet", pictures)
    _write_json(folder / "results.json", content)
    report.write_report([folder], folder / "report.html")
    return metrics


def _merged(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: value for result in found for key, value in result.items()}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(content, indent=2, default=str) + "\n")


def _rebuildable(network: nn.Module, trust: Sequence[str]) -> bool:
    """Say whether ``model/`` may name the network's class: ours, or one of a trusted module."""
    return class_path(type(network)).split(".")[0] in ("core", "domains", *trust)


def _judge_baselines(task: LightningModule, data: LightningDataModule) -> dict[str, Any]:
    """Judge the data's baselines by the task's own test metrics."""
    if not isinstance(task, Task) or not isinstance(data, DataModule):
        return {}
    fitted = data.baselines()
    collection = task.metrics["test"]
    assert isinstance(collection, MetricCollection)
    judged = {name: collection.clone().cpu() for name in fitted}
    for metrics in judged.values():
        metrics.reset()
        for metric in metrics.values():
            metric.distributed_available_fn = lambda: False  # one process judges them
    for batch in data.every_item(data.test_set):
        for name, baseline in fitted.items():
            prediction, target = baseline(batch)
            task.update_metrics(judged[name], Step(torch.zeros(()), prediction, target), batch)
    return {
        name: {key: float(value) for key, value in metrics.compute().items()}
        for name, metrics in judged.items()
    }


def _load(task: LightningModule, path: Path) -> None:
    state = read_checkpoint(path)["state_dict"]
    check_fit(task, state, str(path))
    task.load_state_dict(state)


def _precision(wish: str | None) -> str | None:
    return faster_precision() if wish == "auto" else wish


def _published(
    system: str | None, facts: Mapping[str, Any], experiment: Experiment
) -> dict[str, Any] | None:
    """Give what was published for this system, data set and setting, in the published size only."""
    if system is None or not facts.get("setting"):
        return None
    for name in registry.system(system).experiments:
        if load(name).config["data"]["init_args"].get("dataset") == facts["dataset"]:
            if any(key.startswith("model.network") for key in changed(experiment.config, name)):
                return None
            break
    return registry.published(system, facts["dataset"], facts["setting"])


def _other_recipe(experiment: Experiment) -> list[str]:
    """Warn where a run departs from the recipe of the experiment whose name it bears."""
    if experiment.name not in names() or experiment.name in OPEN.values():
        return []
    found = changed(experiment.config, experiment.name)
    if not found:
        return []
    told = ", ".join(f"{key}={value}" for key, value in list(found.items())[:6])
    return [f"not the recipe of {experiment.name}: {told}{', ...' if len(found) > 6 else ''}"]


def _locked(folder: Path) -> AbstractContextManager[Any]:
    """Hold the run's folder against a second process that would go on with the same run."""
    if not is_first_process():
        return nullcontext()
    try:
        return FileLock(folder / ".lock").acquire(timeout=0)  # released at the end of its `with`
    except Timeout:
        raise UserError(f"{folder}: another process is training this run") from None


class readable_errors(AbstractContextManager[None]):  # noqa: N801 - reads as a verb
    """Tell of a lack of memory what to do about it, and of a setting that was refused."""

    def __init__(self, source: str, trainer: Trainer) -> None:
        self.source = source
        self.trainer = trainer

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Turn what the user can mend into an error of theirs."""
        if isinstance(error, torch.OutOfMemoryError):
            raise UserError(
                f"{self.source}: out of memory; try a smaller --data.batch_size with"
                " --trainer.accumulate_grad_batches, --precision bf16-mixed, or a smaller network"
            ) from error
        begun = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if isinstance(error, OSError) or begun:
            return
        if isinstance(error, Exception):  # refused before the first batch
            raise _user_error(error, self.source) from error


class _Clock(Callback):
    """Seconds of training over all parts of an interrupted run."""

    def __init__(self) -> None:
        self._before = 0.0
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["seconds"]


def _techniques(trainer: Trainer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if str(trainer.precision) != "32-true":
        found.append({"name": "precision", "value": str(trainer.precision)})
    if trainer.gradient_clip_val:
        found.append({"name": "gradient_clipping", "value": trainer.gradient_clip_val})
    if trainer.accumulate_grad_batches > 1:
        found.append({"name": "gradient_accumulation", "value": trainer.accumulate_grad_batches})
    return found


def _versions() -> dict[str, str]:
    names = ("pleiad", "torch", "lightning", "torchmetrics", "numpy", "jsonargparse")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} x {trainer.world_size}"
    return f"{device.type}, {torch.get_num_threads()} threads"


def peak_memory() -> int:
    """Give the most bytes held so far: of the GPU where one is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _revision() -> str | None:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    asked = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or None


def _user_error(error: Exception, source: str) -> Exception:
    """Find the user's mistake in an error raised while building; a bug of ours stays as it is."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError) or type(seen).__name__ == "DataError":
            return seen  # type: ignore[return-value]
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, REFUSALS):
        return UserError(f"{source}: {_reason(str(error))}")
    return error


def _reason(text: str) -> str:
    """Find the reason in jsonargparse's account of every type that it has tried."""
    noise = re.compile(
        r"(- )?(Does not validate|Subtypes:|Errors:|Given value|Problem with given class_path"
        r"|Expected a <class 'NoneType'>)"
    )
    lines = [line.strip() for line in text.splitlines()]
    told = [line.removeprefix("- ") for line in lines if line and not noise.match(line)]
    return " ".join(told or lines)[:300]
