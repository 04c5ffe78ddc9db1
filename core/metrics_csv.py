"""``metrics.csv``: every logged value, one row a step, kept whole across a crash and a resume."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from core.openers import write_atomic


class MetricsCSV(Logger):
    """Append rows to ``FOLDER/metrics.csv``; a row is on disk as soon as it is logged.

    Lightning's own CSV logger deletes the file of the run it continues; this one is cut back to
    the steps that the checkpoint knew (see :class:`MetricsPosition`) and goes on.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.path = self.folder / "metrics.csv"
        self._columns: list[str] = []
        if self.path.exists():
            self._write(self._read())

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.folder.name

    @property
    def version(self) -> str:
        """Nothing: a run folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {"step": step, **metrics}
        names = dict.fromkeys(("step", "epoch", *sorted(metrics)))
        new = [name for name in names if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += new
            self._write([*rows, {name: str(value) for name, value in row.items()}])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerow(row)

    def go_back(self, step: int, pending: Mapping[str, float]) -> None:
        """Keep the rows before ``step``; add the one that was not yet written when it was saved."""
        rows = [row for row in self._read() if row["step"] and int(row["step"]) < step]
        self._write(rows)
        written = any(
            int(row["step"]) == step - 1 and row.get(next(iter(pending), "")) for row in rows
        )
        if pending and not written:
            self.log_metrics(pending, step - 1)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a row cut by a crash has no end of line
        reader = csv.DictReader(io.StringIO(whole))
        rows = list(reader)
        self._columns = list(reader.fieldnames or [])
        return rows

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, text.getvalue())


class MetricsPosition(Callback):
    """On a resume, cut ``metrics.csv`` back to the steps that the checkpoint knew.

    Lightning writes a step's row after the hook in which checkpoints are saved, so the row is kept
    in the checkpoint as well.
    """

    def __init__(self) -> None:
        self._known: tuple[int, dict[str, float]] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the step, and its row where one is still to be written."""
        step, pending = trainer.global_step, {}
        if not trainer.is_last_batch and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            logged = trainer.logged_metrics.items()
            pending = {name: float(x) for name, x in logged if name.startswith("train")}
            pending["epoch"] = trainer.current_epoch
        checkpoint["metrics_csv"] = {"step": step, "pending": pending}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember what the checkpoint knew."""
        known = checkpoint.get("metrics_csv")
        self._known = (known["step"], known["pending"]) if known else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back, once."""
        logger = _logger(trainer)
        if logger is not None and self._known is not None and trainer.is_global_zero:
            logger.go_back(*self._known)
        self._known = None


def _logger(trainer: Trainer) -> MetricsCSV | None:
    return next((x for x in trainer.loggers if isinstance(x, MetricsCSV)), None)
