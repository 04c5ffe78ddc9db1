"""The end of a run: test once, judge the baselines, write all that a finished run holds."""

import hashlib
import importlib
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import (
    LightningDataModule,
    LightningModule,
    Trainer,
)
from torch import nn
from torchmetrics import Metric

from core.callbacks.memory import MemoryMeter
from core.data_module import DataModule
from core.early_exit.transform import exits_of
from core.memory import peak_bytes
from core.openers import read_json, write_atomic
from core.pretrained import class_path, innermost, save_pretrained
from core.task import Step, Task
from pleiad import exit_pictures, registry, report, trust, weights
from pleiad.building import Built, plain
from pleiad.experiments import (
    OPEN,
    Experiment,
    changed,
    load,
    names,
)


def conclude(
    built: Built,
    trainer: Trainer,
    folder: Path,
    experiment: Experiment,
    fit_seconds: float,
    trusted: Sequence[str],
) -> dict[str, float]:
    """Test once, write all that a finished run holds, give the metrics."""
    task, data = built.task, built.data
    exits = exits_of(task)
    if exits is not None:
        exits.curve_wished = True
    began = time.perf_counter()
    found = trainer.test(task, data, verbose=False)
    seconds = {"fit": fit_seconds, "test": time.perf_counter() - began}
    metrics = merged(found)
    if not trainer.is_global_zero:
        return metrics
    origin = read_json(folder / weights.ORIGIN) if (folder / weights.ORIGIN).is_file() else {}
    network = getattr(task, "network", task)
    facts = data.facts if isinstance(data, DataModule) else {}
    inner = innermost(network, built.transforms)
    system = registry.system_of(type(inner).__module__)
    partial = sum(trainer.num_test_batches) < len(data.test_dataloader())
    baselines = {} if partial else _judge_baselines(task, data)
    content = {
        "experiment": experiment.name,
        "system": _system(inner, origin),
        "task": type(task).__name__,
        "dataset": facts.get("dataset", type(data).__name__),
        "setting": facts.get("setting", {}),
        "seed": built.seed,
        "metrics": {
            **{name: value for name, value in metrics.items() if not is_detail(name)},
            **(_under_test(task.figures()) if isinstance(task, Task) else {}),
        },
        "details": {name: value for name, value in metrics.items() if is_detail(name)},
        "baselines": baselines,
        "published": None if partial else _published(system, facts, experiment),
        "parameters": {
            "total": sum(p.numel() for p in network.parameters()),
            "trainable": sum(p.numel() for p in network.parameters() if p.requires_grad),
        },
        "steps": trainer.global_step,
        "seconds": seconds,
        "peak_memory_bytes": peak_bytes(),
        "memory": _memory(trainer),
        "techniques": [*_transforms(built), *_techniques(trainer, task)],
        "checkpoint": origin or None,
        "versions": _versions(),
        "device": _device(trainer),
        "trusted": trust.kept(folder),
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
    content["warnings"] += weights.restriction(origin) + frozen_at_random(built, origin)
    if partial:
        content["warnings"].append("tested on a part of the test split only: not comparable")
    if isinstance(network, nn.Module) and _rebuildable(inner, trusted):
        save_model(built, experiment, folder / "model", origin)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    if isinstance(data, DataModule):
        data.pictures(folder / "predictions.parquet", pictures)
    if exits is not None and exits.curve:
        exit_pictures.draw(exits, pictures)
    write_json(folder / "results.json", content)
    report.write_report([folder], folder / "report.html")
    return metrics


def save_model(
    built: Built, experiment: Experiment, folder: Path, origin: Mapping[str, Any]
) -> None:
    """Write the network of a task as it stands, with all that answers on files.

    Args:
        built: holds task and data.
        experiment: whose it is.
        folder: to be filled.
        origin: what the weights began from.
    """
    inner = innermost(getattr(built.task, "network", built.task), built.transforms)
    save_pretrained(
        plain(built, experiment),
        folder,
        init_args=built.network_args,
        transforms=built.transforms,
        preprocessing=_preprocessing(built.task, built.data),
        extra={
            **{key: origin[key] for key in weights.RIGHTS if key in origin},
            **{"experiment": experiment.name, "system": _system(inner, origin)},
        },
    )


def merged(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Put the metrics of several loaders into one mapping."""
    return {key: value for result in found for key, value in result.items()}


def is_detail(name: str) -> bool:
    """Say whether a metric tells of a part, such as a class (``test/iou/car``): no table has it."""
    return name.count("/") > 1


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as a JSON file that is whole or absent."""
    write_atomic(path, json.dumps(content, indent=2, default=str) + "\n")


def _system(network: nn.Module, origin: Mapping[str, Any]) -> str:
    """Name the system of a network, or else what it began from."""
    known = registry.system_of(type(network).__module__)
    return known or _begun_from(origin) or type(network).__name__


def _begun_from(origin: Mapping[str, Any]) -> str | None:
    """Name the pretrained model by the last part of its name."""
    return Path(str(origin["path"])).name if origin.get("path") else None


def _preprocessing(task: LightningModule, data: LightningDataModule) -> Any:
    found = data.preprocessing if isinstance(data, DataModule) else None
    return task.complete(found) if isinstance(task, Task) and found is not None else found


def frozen_at_random(built: Built, origin: Mapping[str, Any]) -> list[str]:
    """Warn where a transform froze a network that began from no trained weights."""
    if origin or not any(technique["share"] < 1 for technique in built.techniques):
        return []
    return ["the frozen part of the network holds random values; give weights by --checkpoint"]


def _rebuildable(network: nn.Module, trusted: Sequence[str]) -> bool:
    """Say whether ``model/`` may name the network's class: ours, or one of a trusted module."""
    return class_path(type(network)).split(".")[0] in ("core", "domains", *trusted)


def _judge_baselines(task: LightningModule, data: LightningDataModule) -> dict[str, Any]:
    """Judge the data's baselines by the task's own test metrics."""
    if not isinstance(task, Task) or not isinstance(data, DataModule):
        return {}
    fitted = data.baselines()
    judged = {name: task.metrics_for(baseline).cpu() for name, baseline in fitted.items()}
    for metrics in judged.values():
        metrics.reset()
        for metric in metrics.modules():
            if isinstance(metric, Metric):
                metric.distributed_available_fn = lambda: False  # one process judges them
    for batch in data.every_item(data.test_set):
        for name, baseline in fitted.items():
            prediction, target = baseline(batch)
            task.update_metrics(judged[name], Step(torch.zeros(()), prediction, target), batch)
    return {
        name: {
            **{k: float(value) for k, value in metrics.compute().items() if not is_detail(k)},
            **_under_test(getattr(fitted[name], "figures", {})),
        }
        for name, metrics in judged.items()
    }


def _under_test(figures: Mapping[str, float]) -> dict[str, float]:
    return {f"test/{name}": value for name, value in figures.items()}


def _published(
    system: str | None, facts: Mapping[str, Any], experiment: Experiment
) -> dict[str, Any] | None:
    """Give what was published for this system, data set and setting, in the published size only."""
    if system is None or not facts.get("setting"):
        return None
    for name in registry.system(system).experiments:
        described = load(name).config["data"].get("init_args") or {}
        if described.get("dataset") == facts["dataset"]:
            if any(
                key.startswith("model.network")
                for key in changed(experiment.config, name, weights.equip)
            ):
                return None
            break
    return registry.published(system, facts["dataset"], facts["setting"])


def _other_recipe(experiment: Experiment) -> list[str]:
    """Warn where a run departs from the recipe of the experiment whose name it bears."""
    if experiment.name not in names() or experiment.name in OPEN:
        return []
    found = changed(experiment.config, experiment.name, weights.equip)
    if not found:
        return []
    told = ", ".join(f"{key}={value}" for key, value in list(found.items())[:6])
    return [f"not the recipe of {experiment.name}: {told}{', ...' if len(found) > 6 else ''}"]


def _memory(trainer: Trainer) -> dict[str, Any] | None:
    """Give what the meter of a fit has found."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, MemoryMeter) and callback.measured_steps:
            return callback.figures()
    return None


def _transforms(built: Built) -> list[dict[str, Any]]:
    """Tell of each transform what it did, and what it met in training."""
    pairs = zip(built.techniques, built.reports, strict=True)
    return [{**told, **report()} for told, report in pairs]


def _techniques(trainer: Trainer, task: LightningModule) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if getattr(task, "layer_decay", None) is not None:
        found.append({"name": "layer_decay", "value": task.layer_decay})
    found += [
        {"name": type(callback).__name__, **callback.report()}
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if callable(getattr(callback, "report", None))
    ]
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
