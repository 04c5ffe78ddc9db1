"""From a configuration to the task, the data and what a trainer takes."""

import importlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import (
    LightningDataModule,
    LightningModule,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch import nn

from core.callbacks.checkpoints import Checkpoints
from core.data_module import DataModule
from core.errors import UserError
from core.precision import resolve_precision
from core.pretrained import transformed
from core.task import Task
from core.transform import change
from pleiad.experiments import (
    Experiment,
)
from pleiad.index import ALLOWED, index

REFUSALS = (jsonargparse.ArgumentError, MisconfigurationException, ValueError, TypeError, OSError)


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
    techniques: list[dict[str, Any]]
    reports: list[Callable[[], dict[str, Any]]]


class _CLI(LightningCLI):
    """LightningCLI with the suite's links; it builds task and data, the run builds the trainer."""

    linked: tuple[str, ...] = ()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--experiment", type=str, default="")
        parser.add_argument("--checkpoint", type=str | None, default=None)
        parser.add_argument("--checkpoint_names", type=dict | None, default=None)
        parser.add_argument("--transforms", type=list[dict[str, Any]] | None, default=None)
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
        import_path_denylist=["*"],
        import_path_allowlist=[*ALLOWED, *trust],
        instantiate_subclass_spec_in_any=False,  # transforms make their own parts
    )
    config = json.loads(json.dumps(experiment.config, default=str))
    defaults = {"enable_model_summary": False, "log_every_n_steps": 10}
    config["trainer"] = defaults | (config.get("trainer") or {})
    wish = config["trainer"].get("precision") if precision is None else precision
    if wish is not None:
        accelerator = config["trainer"].get("accelerator")
        config["trainer"]["precision"] = resolve_precision(wish, accelerator)
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
        raise user_error(error, experiment.source) from error
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
        [],
        [],
    )


def transform(built: Built, experiment: Experiment) -> Built:
    """Change the network as the configuration's ``transforms`` say, in their order.

    Raises:
        UserError: naming what does not fit the network.
    """
    kept, techniques = list(built.transforms), list(built.techniques)
    reports = list(built.reports)
    for number, node in enumerate(experiment.config.get("transforms") or ()):
        try:
            module, _, name = node["class_path"].rpartition(".")
            cls = getattr(importlib.import_module(module), name)
            init_args = node.get("init_args") or {}
            network, told, report = change(_network(built.task), cls, init_args)
        except Exception as error:  # a transform may raise anything
            raise user_error(error, f"{experiment.source}: transforms.{number}") from error
        if network is not _network(built.task):
            built.task.network = network
        techniques.append(told)
        reports.append(report)
        if not getattr(cls, "merges", False):
            kept.append({"class_path": node["class_path"], "init_args": init_args})
    return built._replace(transforms=kept, techniques=techniques, reports=reports)


def plain(built: Built, experiment: Experiment) -> nn.Module:
    """Give the network as it travels in ``model/``: without what can be merged into it."""
    network = _network(built.task)
    for node in reversed(experiment.config.get("transforms") or []):
        module, _, name = node["class_path"].rpartition(".")
        cls = getattr(importlib.import_module(module), name)
        if getattr(cls, "merges", False):
            network = cls.merge(network)
    return network


def _network(task: LightningModule) -> nn.Module:
    """Give a task's network; a user's own task may be its own."""
    network = getattr(task, "network", task)
    assert isinstance(network, nn.Module)
    return network


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
        raise user_error(error, source) from error
    return found


def user_error(error: Exception, source: str) -> Exception:
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
