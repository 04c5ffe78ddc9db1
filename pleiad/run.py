"""The life of a run: start or go on, check, fit, test the best checkpoint once."""

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import (
    Callback,
    LightningModule,
    Trainer,
)
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import nn

from core.callbacks.checkpoints import pointed
from core.callbacks.exact_resume import ExactResume
from core.callbacks.memory import MemoryMeter
from core.callbacks.nonfinite import NonFiniteGuard
from core.callbacks.predictions import Predictions
from core.callbacks.signals import Signals
from core.checkpoint_io import SafeCheckpointIO, read_checkpoint
from core.data_module import DataModule
from core.errors import UserError
from core.half_precision import NetworkInHalf
from core.metrics_csv import MetricsCSV, MetricsPosition
from core.openers import write_atomic
from core.task import Task
from core.warm_start import check_fit
from pleiad import trust, weights
from pleiad.building import Built, build, transform, user_error
from pleiad.conclusion import conclude, frozen_at_random, merged, write_json
from pleiad.experiments import (
    HARMLESS,
    Experiment,
    is_run,
    load,
    pairs,
    resolve,
)
from pleiad.fit_bar import FitBar
from pleiad.runs import claim, is_finished, is_first_process, newest

CARRIES_ON = re.compile(r"trainer\.(max|min)_(epochs|steps|time)")
"""Keys that may change when a run goes on, besides those that change no result."""

PLAIN = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
"""Strategies that leave the types of weights to the precision; others have ways of their own."""


class Options(NamedTuple):
    """The command's own keys of a run."""

    run: Path | None = None
    ckpt_path: str | None = None
    precision: str | None = None
    trust: tuple[str, ...] = ()
    checkpoint: str | None = None


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
    built = build(experiment, options.precision, options.trust)
    _check_data(built, experiment.source)
    if isinstance(built.data, DataModule) and is_first_process():
        for line in built.data.summary():
            tell(line)
    origin: dict[str, Any] = {}
    if checkpoint is not None:
        built = transform(built, experiment)
        _check_checkpoint(built, checkpoint)
        origin = weights.origin_of(checkpoint)
    elif given := experiment.config.get("checkpoint"):
        network = getattr(built.task, "network", built.task)
        read = weights.read(given, options.trust)
        origin, lines = weights.load_matching(
            network, read, experiment.config.get("checkpoint_names")
        )
        for line in lines if is_first_process() else ():
            tell(f"{given}: {line}")
    if checkpoint is None:
        built = transform(built, experiment)
    if is_first_process():
        for technique in built.techniques:
            tell(_told(technique))
        for line in frozen_at_random(built, origin):
            tell(f"warning: {line}")
    _check_network(built, experiment.source)
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
            trust.keep(folder, options.trust)
            if isinstance(built.data, DataModule):
                built.data.keep(folder)
            if origin and not going_on:
                write_json(folder / weights.ORIGIN, origin)
        clock = _Clock()
        trainer = make_trainer(built, folder, [clock])
        with readable_errors(experiment.source, trainer):
            trainer.fit(built.task, built.data, ckpt_path=str(checkpoint) if checkpoint else None)
        _finish(built, trainer, folder, experiment, clock.seconds, options.trust)
    return folder


def evaluate(name: str, overrides: Sequence[str], options: Options, split: str) -> dict[str, float]:
    """Validate or test a finished run's best checkpoint, or given weights; give the metrics.

    Args:
        name: a run, an experiment (its newest finished run, or the weights that it begins from
            where it has none) or a ``model/`` folder; with ``options.checkpoint`` the experiment
            whose data judge these weights.
        overrides: ``--key=value`` arguments.
        options: the command's own keys; with ``run`` the test of given weights leaves a run folder.
        split: ``test`` or ``validate``.

    Raises:
        UserError: if the weights do not fit.
    """
    given = options.checkpoint or (name if weights.is_model(name) else None)
    if given is None and (begun := _untrained(name, options)):
        given, options = begun, options._replace(checkpoint=begun)
    if given is not None:
        return _evaluate_given(name, given, overrides, options, split)
    if options.run is not None:
        raise UserError(f"--run {options.run}: only a test of given weights leaves a run folder")
    folder = finished_run(name)
    if not (folder / "checkpoints").is_dir():  # left by a test of given weights
        model = str(folder / "model")
        return _evaluate_given(model, model, overrides, options, split)
    built, trainer = reopen(folder, resolve(str(folder), overrides, options.trust), options)
    run = trainer.test if split == "test" else trainer.validate
    return merged(run(built.task, built.data, verbose=False))


def reopen(
    folder: Path, experiment: Experiment, options: Options, anew: Sequence[str] = ()
) -> tuple[Built, Trainer]:
    """Build a finished run anew with its best checkpoint; and a trainer that leaves it as it is.

    Args:
        folder: of the run.
        experiment: its configuration.
        options: the command's own keys.
        anew: parts of names of tensors that are not taken from the checkpoint.

    Raises:
        UserError: if the weights do not fit.
    """
    built = build(experiment, options.precision, options.trust)
    built = transform(built, experiment)
    _check_data(built, experiment.source)
    _load(built.task, _checkpoint(folder, options.ckpt_path or "best"), anew)
    return built, _checked_trainer(built, folder, experiment.source, logging=False)


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
    read = weights.read(given, options.trust)
    named = name if options.checkpoint else weights.experiment_of(Path(given), read)
    experiment = weights.adopt(resolve(named, overrides, options.trust), read)
    experiment = weights.equip(_with_checkpoint(experiment, given))
    experiment.config.pop("transforms", None)  # the weights are judged as they are
    built = build(experiment, options.precision, options.trust)
    _check_data(built, experiment.source)
    weights.check_sizes(experiment, read, built.network_args)
    origin = weights.load(getattr(built.task, "network", built.task), read)
    if isinstance(built.task, Task):
        built.task.begin_from(read.preprocessing)
    _check_network(built, experiment.source)
    trainer = _checked_trainer(built, Path(), experiment.source, logging=False)
    if options.run is None:
        run = trainer.test if split == "test" else trainer.validate
        return merged(run(built.task, built.data, verbose=False))
    folder = claim(experiment.name, options.run)
    if is_first_process():
        write_atomic(folder / "config.yaml", built.yaml)
        trust.keep(folder, options.trust)
        write_json(folder / weights.ORIGIN, origin)
    trainer = make_trainer(built, folder, [])
    return conclude(built, trainer, folder, experiment, 0.0, options.trust)


def _untrained(name: str, options: Options) -> str | None:
    """Name the weights that an experiment begins from, where they are what is to be judged."""
    if is_run(name):
        return None
    experiment = load(name)
    given: str | None = experiment.config.get("checkpoint")
    trained = options.run is None and newest(experiment.name, finished=True) is not None
    return None if trained else given


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
    if options.checkpoint:
        experiment = _with_checkpoint(experiment, options.checkpoint)
    return weights.equip(experiment)


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
        raise user_error(error, source) from error


def _check_network(built: Built, source: str) -> None:
    network = getattr(built.task, "network", None)
    if isinstance(built.data, DataModule) and isinstance(network, nn.Module):
        try:
            built.data.check(network)
        except Exception as error:  # a data module may raise anything
            raise user_error(error, source) from error


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
        raise user_error(error, source) from error


def make_trainer(
    built: Built, folder: Path, extra: Sequence[Callback], logging: bool = True
) -> Trainer:
    """Make the trainer of a run: the configuration's, with the suite's callbacks and files."""
    own = dict(built.trainer_args)
    given = own.get("plugins") or []
    plugins = given if isinstance(given, list) else [given]
    if own.get("precision") in ("bf16-true", "16-true") and own.get("strategy") in PLAIN:
        plugins = [*plugins, NetworkInHalf(own.pop("precision"))]
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
        if not any(isinstance(callback, MemoryMeter) for callback in callbacks):
            callbacks.append(MemoryMeter())
        callbacks += [Predictions(folder / "predictions.parquet"), built.checkpoints]
    if own.get("enable_progress_bar") is not False:
        callbacks.append(FitBar())
    own |= {
        "callbacks": callbacks,
        "logger": loggers or False,
        "default_root_dir": folder,
        "plugins": [*plugins, SafeCheckpointIO()],
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
    trusted: Sequence[str],
) -> None:
    """Test the best checkpoint once and write all that a finished run holds."""
    _load(built.task, _checkpoint(folder, "best"))
    conclude(built, trainer, folder, experiment, fit_seconds, trusted)


def _load(task: LightningModule, path: Path, anew: Sequence[str] = ()) -> None:
    state = read_checkpoint(path)["state_dict"]
    state = {name: tensor for name, tensor in state.items() if not any(p in name for p in anew)}
    own = task.state_dict()
    state |= {name: tensor for name, tensor in own.items() if any(p in name for p in anew)}
    check_fit(task, state, str(path))
    task.load_state_dict(state)


def _told(technique: Mapping[str, Any]) -> str:
    """Tell what a transform did to the network."""
    count, share = technique["trainable"], technique["share"]
    notes = "".join(f"; {note}" for note in technique.get("notes", ()))
    layers = f"{technique['layers']} layers, " if "layers" in technique else ""
    return f"{technique['name']}: {layers}{count:,} parameters trained ({share:.2%}){notes}"


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
            raise user_error(error, self.source) from error


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
