"""``predictions.parquet``: one row a test item, written as the test goes: memory stays flat."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from core.early_exit.transform import EarlyExits, exits_of

SORTED_AT_ONCE = 256 * 2**20
"""Bytes of rows that are put into order at a time."""


class Predictions(Callback):
    """Write what ``Task.items(step, batch)`` gives for each test batch.

    Of a network with early exits the column ``exit`` tells the depth at which an item left, a mean
    where it took several passes (windows, scales); it is empty where passes belong to no one item.
    The rows end up in the order of ``id``, in whatever order they were judged and by however many
    processes.

    Args:
        path: the parquet file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writer: pq.ParquetWriter | None = None
        self._exits: EarlyExits | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for early exits."""
        self._exits = exits_of(pl_module)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Begin to note where samples leave."""
        if self._exits is not None:
            self._exits.control.passes = []

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
        passes: list[Tensor] = []
        if self._exits is not None:
            passes, self._exits.control.passes = self._exits.control.passes or [], None
        if not columns:
            return
        arrays = {name: _array(value) for name, value in columns.items()}
        if self._exits is not None:
            arrays["exit"] = exit_by_item(passes, len(next(iter(arrays.values()))))
        table = pa.table(arrays)
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
        if not parts:
            return
        if len(parts) > 1 or not _in_order(parts[0]):
            whole = self.path.with_name(f".{self.path.name}.sorted.part")
            _sort(parts, whole)
            whole.replace(self.path)
        else:
            parts[0].replace(self.path)
        for part in parts:
            part.unlink(missing_ok=True)


def exit_by_item(passes: Sequence[Tensor], count: int) -> pa.Array:
    """Give the mean depth of each of ``count`` items over the passes (S,) of their batch."""
    if count == 1 and passes:
        means = torch.cat(list(passes)).double().mean()[None]
    elif passes and all(len(depths) == count for depths in passes):
        means = torch.stack(list(passes)).double().mean(0)
    else:
        return pa.nulls(count, pa.float64())
    return pa.array(means.tolist(), pa.float64())


def _in_order(path: Path) -> bool:
    if "id" not in pq.read_schema(path).names:
        return True
    ids = pq.read_table(path, columns=["id"])["id"].combine_chunks()
    return pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py() is not False


def _sort(parts: Sequence[Path], target: Path) -> None:
    """Write the rows of all parts in the order of ``id``, a stretch of it at a time."""
    rows = ds.dataset([str(part) for part in parts])
    ids = rows.to_table(columns=["id"]).sort_by("id")["id"]
    size = sum(_bytes(part) for part in parts)
    stretches = max(1, -(-size // SORTED_AT_ONCE)) if not ids.null_count else 1
    starts = sorted({ids[len(ids) * k // stretches].as_py() for k in range(1, stretches)})
    with pq.ParquetWriter(target, rows.schema, compression="zstd") as writer:
        for low, high in zip([None, *starts], [*starts, None], strict=True):
            above = None if low is None else ds.field("id") >= low
            below = None if high is None else ds.field("id") < high
            both = above & below if above is not None and below is not None else above
            table = rows.to_table(filter=below if both is None else both)
            writer.write_table(table.sort_by("id"))


def _bytes(path: Path) -> int:
    found = pq.read_metadata(path)
    return sum(found.row_group(i).total_byte_size for i in range(found.num_row_groups))


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
