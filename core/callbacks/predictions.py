"""``predictions.parquet``: one row a test item, written as the test goes: memory stays flat."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class Predictions(Callback):
    """Write what ``Task.items(step, batch)`` gives for each test batch.

    With several processes each writes its share, and the first puts them together in the order of
    ``id``.

    Args:
        path: the parquet file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writer: pq.ParquetWriter | None = None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write one batch."""
        items = getattr(pl_module, "items", None)
        columns: Mapping[str, Any] = items(outputs["step"], batch) if items else {}
        if not columns:
            return
        table = pa.table({name: _array(value) for name, value in columns.items()})
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._part(trainer.global_rank), table.schema, compression="zstd"
            )
        self._writer.write_table(table)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the file and give it its name."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        trainer.strategy.barrier("predictions")
        if trainer.is_global_zero:
            self._finish(trainer.world_size)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Drop an unfinished file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._part(trainer.global_rank).unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.{rank}.part")

    def _finish(self, world_size: int) -> None:
        parts = [p for p in map(self._part, range(world_size)) if p.exists()]
        if len(parts) > 1:
            table = pa.concat_tables([pq.read_table(p) for p in parts]).sort_by("id")
            pq.write_table(table, parts[0], compression="zstd")
        for extra in parts[1:]:
            extra.unlink()
        if parts:
            parts[0].replace(self.path)


def _array(value: Any) -> pa.Array:
    """Turn a tensor or sequence of n items into an arrow column; more dimensions become lists."""
    if not isinstance(value, Tensor):
        return pa.array(value)
    values = value.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:  # numpy and arrow know no such type
        values = values.float()
    flat = pa.array(values.reshape(-1).numpy())
    if values.ndim == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, values[0].numel())
