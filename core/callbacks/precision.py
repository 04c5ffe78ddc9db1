"""Watch what a lower precision does to each module, and find the one where a fit breaks."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from core.errors import UserError
from core.module_statistics import Found, Search, Statistics, Watch, measure, watched
from core.nested import rows_of
from core.openers import write_atomic
from core.precision_report import advise, divergence, draw, silent, training_step

Action = Literal["warn", "skip", "raise"]
STALLS = 0.5
"""A module stalls in bfloat16 if this share of its weights' changes would be rounded away."""
_SAMPLE = 1 << 14  # numbers of each weight whose change is looked at
KINDS = ("activation", "gradient", "weight")


class PrecisionGuard(Callback):
    """Say of each module whether it would overflow, underflow or stall, and which one breaks first.

    Every so many batches the sizes of activations, gradients and weights are counted, and how many
    weights change by less than 2^-9 of themselves, which bfloat16 rounds away. In between only the
    loss is looked at. Where it is not finite the batch is passed again, module by module, and the
    first module to give a value that is not finite is named, with the batch's ``rows``, and kept in
    the run's folder: ``nonfinite.json`` and ``nonfinite_inputs.pt``.

    Works in any Trainer. In a run, the table is ``precision_modules.csv``.

    Args:
        every_n_steps: batches between two measurements.
        modules: a regular expression for the whole names of the modules to watch.
        action: at a loss that is not finite: ``warn``, ``skip`` the step (all processes together),
            or ``raise``.
        compare: at the end of the fit, compare the last measured batch in bfloat16 and in float32:
            ``precision.csv``, ``pictures/precision.png``, and the modules to keep in float32.

    Attributes:
        found: where the first value that was not finite came from; None if there was none.
        skipped: steps that were left out.
        batch_skipped: whether the batch at hand was.

    Raises:
        UserError: if an argument is out of its range; in the fit by ``action="raise"``.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        modules: str = ".*",
        action: Action = "raise",
        compare: bool = False,
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"PrecisionGuard: every_n_steps={every_n_steps} must be at least 1")
        if action not in get_args(Action):
            raise UserError(f"PrecisionGuard: action={action!r} must be warn, skip or raise")
        try:
            re.compile(modules)
        except re.error as error:
            raise UserError(f"PrecisionGuard: modules={modules!r}: {error}") from None
        self.every_n_steps = every_n_steps
        self.modules = modules
        self.action = action
        self.compare = compare
        self.found: dict[str, Any] | None = None
        self.skipped = 0
        self.batch_skipped = False
        self.advised: list[str] | None = None
        self._count = 0
        self._rows: dict[str, dict[str, Statistics]] = {}
        self._stalls: dict[str, list[float]] = {}
        self._watch: Watch | None = None
        self._owed = False
        self._weights: list[tuple[str, Tensor, Tensor, Tensor]] = []
        self._batch: Any = None
        self._compared: Any = None

    @property
    def table(self) -> pd.DataFrame:
        """A row a module, in the order of the forward pass: sizes, shares and a verdict."""
        rows = []
        for name, kinds in self._rows.items():
            row: dict[str, Any] = {"module": name}
            for kind in KINDS:
                known = kinds.get(kind)
                if known is None:
                    continue
                row[f"{kind}_max"] = known.largest
                for part in ("zeros", "lost", "large"):
                    row[f"{kind}_{part}"] = getattr(known, part) / max(known.values, 1)
                row[f"{kind}_nonfinite"] = known.nonfinite
            if name in self._stalls:
                row["stalled"] = _share(self._stalls[name])
            rows.append({**row, "verdict": ", ".join(self._verdicts(name))})
        return pd.DataFrame(rows)

    def faults(self) -> list[tuple[str, str]]:
        """Name modules and what is wrong, each fault where it arises first.

        What overflows is listed in the order of the forward pass, what underflows in that of the
        backward pass: the first of each is where to look.
        """
        names = list(self._rows)
        told = {name: self._verdicts(name) for name in names}
        backward = ("gradient underflows in float16", "gradient overflows in float16")
        ahead = [(n, v) for n in names for v in told[n] if v not in backward]
        return ahead + [(n, v) for n in reversed(names) for v in told[n] if v in backward]

    def advise(self, module: nn.Module, batch: Any, **settings: Any) -> list[str]:
        """Find the fewest modules to keep in float32: :func:`core.precision_report.advise`."""
        return advise(module, batch, **settings)

    def report(self) -> dict[str, Any]:
        """Say in a few plain values what was found, for ``results.json``."""
        counts: dict[str, list[str]] = {}
        for name, verdict in self.faults():
            counts.setdefault(verdict, []).append(name)
        told = {
            "modules": len(self._rows),
            "faults": {verdict: [len(names), *names[:3]] for verdict, names in counts.items()},
            "skipped": self.skipped,
            "nonfinite": self.found,
        }
        return told if self.advised is None else {**told, "keep_float32": self.advised}

    def state_dict(self) -> dict[str, Any]:
        """Keep what was measured."""
        rows = {
            name: {kind: list(known) for kind, known in kinds.items()}
            for name, kinds in self._rows.items()
        }
        return {
            **{"count": self._count, "skipped": self.skipped, "found": self.found},
            **{"rows": rows, "stalls": {name: list(v) for name, v in self._stalls.items()}},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was measured."""
        self._count, self.skipped = state_dict["count"], state_dict["skipped"]
        self.found = state_dict["found"]
        self._stalls = {name: list(v) for name, v in state_dict["stalls"].items()}
        self._rows = {
            name: {kind: Statistics(*known) for kind, known in kinds.items()}
            for name, kinds in state_dict["rows"].items()
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to watch."""
        if not watched(pl_module, self.modules):
            raise UserError(f"PrecisionGuard: no module's name matches modules={self.modules!r}")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch this batch, if it is its turn."""
        self._batch = (batch, batch_idx)
        self.batch_skipped = False
        if self._count % self.every_n_steps == 0:
            self._watch = Watch(watched(pl_module, self.modules))
            self._owed = True
            if self.compare:
                self._compared = batch
        self._count += 1

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss; find where it broke, and do what is to be done."""
        if self._watch is not None:
            self._watch.close()
            given, self._watch.activations = self._watch.activations, []
            self._take((name, "activation", found) for name, found in given)
        bad = not bool(torch.isfinite(loss.detach()).all())
        if bad:
            self._locate(trainer, pl_module)
        if self.action != "warn" and trainer.world_size > 1:
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad and self.action == "raise":
            raise UserError(self._told())
        if bad and self.action == "warn":
            rank_zero_warn(self._told())
        if bad and self.action == "skip":
            self.skipped += not self.batch_skipped
            self.batch_skipped = True

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Leave a broken step out; else measure gradients and weights, if it is their turn."""
        if self.batch_skipped:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            return
        if not self._owed:
            return
        exact = {
            id(parameter)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if group.get("rounding", "nearest") != "nearest"
        }
        kept = []
        for name, parameter, gradient in _trained(watched(pl_module, self.modules)):
            kept += [(name, "gradient", measure(gradient)), (name, "weight", measure(parameter))]
            if id(parameter) not in exact:
                part = _sample(parameter).clone()
                self._weights.append((name, parameter, part, _sample(gradient) != 0))
        self._take(kept)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take down what was measured."""
        self._batch = None
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.close()
            self._take((name, "gradient", found) for name, found in watch.gradients)
        if not self._weights:
            return
        shares = []
        for _, parameter, before, moves in self._weights:
            change = (_sample(parameter).float() - before.float()).abs()
            lost = (change < before.float().abs() * 2.0**-9) & moves
            shares.append(torch.stack([lost.sum(), moves.sum()]))
        for (name, *_), (lost, moved) in zip(
            self._weights, torch.stack(shares).tolist(), strict=True
        ):
            known = self._stalls.setdefault(name, [0.0, 0.0])
            known[0] += lost
            known[1] += moved
        self._weights, self._owed = [], False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table, and the comparison where it is asked for."""
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        if len(table := self.table):
            folder.mkdir(parents=True, exist_ok=True)
            table.to_csv(folder / "precision_modules.csv", index=False)
        if self._compared is None:
            return
        compared = divergence(pl_module, [self._compared])
        compared.table.to_csv(folder / "precision.csv", index=False)
        draw(compared.table, folder / "pictures" / "precision.png")
        self.advised = advise(pl_module, self._compared)
        self._compared = None

    def _verdicts(self, name: str) -> list[str]:
        kinds = self._rows[name]
        told = []
        if any(known.nonfinite for known in kinds.values()):
            told.append("not finite")
        for kind, known in kinds.items():
            if known.overflows and not known.nonfinite:
                told.append(f"{kind} overflows in float16")
            if kind == "gradient" and known.underflows:
                told.append(f"{kind} underflows in float16")
        if name in self._stalls and _share(self._stalls[name]) > STALLS:
            told.append("stalls in bfloat16")
        return told

    def _take(self, measured: Iterable[tuple[str, str, Tensor]]) -> None:
        """Merge measurements into the table; this waits for the device once."""
        found = list(measured)
        if not found:
            return
        numbers = torch.stack([values for *_, values in found]).tolist()
        for (name, kind, _), values in zip(found, numbers, strict=True):
            kinds = self._rows.setdefault(name, {})
            kinds[kind] = kinds.get(kind, Statistics()).merged(Statistics(*values))

    def _locate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass the batch again, and keep the first module that gives what is not finite."""
        batch, index = self._batch
        search = Search(watched(pl_module, self.modules))
        inputs: list[Tensor] | None = None
        name = "the loss"
        try:
            with torch.no_grad(), silent(pl_module), trainer.precision_plugin.forward_context():
                training_step(pl_module, batch, index)
        except Found as first:
            name, inputs = first.name, first.inputs
        finally:
            search.close()
        found = {
            "module": name,
            "inputs_finite": inputs is None or all(bool(torch.isfinite(x).all()) for x in inputs),
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch": index,
            "rank": trainer.global_rank,
            "rows": _rows(batch),
        }
        if self.found is not None:
            return
        self.found = found
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "nonfinite.json", pd.Series(found).to_json(indent=1) + "\n")
        torch.save(inputs or [], folder / "nonfinite_inputs.pt")

    def _told(self) -> str:
        found = self.found
        if found is None:
            return "the loss is not finite in another process"
        rows = f", rows {found['rows'][:8]}" if found["rows"] else ""
        state = "" if found["inputs_finite"] else ", whose inputs are not finite already"
        return (
            f"the training loss is not finite: first in {found['module']}{state}"
            f" (epoch {found['epoch']}, batch {found['batch']}{rows}); see nonfinite.json in the"
            " run's folder"
        )


def _trained(modules: dict[str, nn.Module]) -> Iterable[tuple[str, Tensor, Tensor]]:
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            if parameter.grad is not None and not parameter.grad.is_sparse and parameter.numel():
                yield name, parameter, parameter.grad


def _sample(tensor: Tensor) -> Tensor:
    """Give evenly spaced numbers of a tensor."""
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-len(flat) // _SAMPLE)]


def _share(counts: list[float]) -> float:
    return counts[0] / counts[1] if counts[1] else 0.0


def _rows(batch: Any) -> list[int] | None:
    """Give the places of a batch's items in their split, where it states them."""
    rows = rows_of(batch)
    if rows is None:
        return None
    return [int(row) for row in torch.as_tensor(rows).reshape(-1).tolist()]
