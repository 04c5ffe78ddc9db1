"""The data module that every domain extends: planned batches and a position that survives."""

import os
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from core.batch_plan import BatchPlan, Plan, PlannedBatchSampler, PlannedLoader
from core.errors import UserError
from core.length_plan import LengthPlan, Lengths, longest_first


class Baseline(Protocol):
    """What a table shows beside the networks: a prediction for a batch, without a network.

    It may state ``figures``, numbers beside the metrics such as a speed, as a task's ``figures()``.
    """

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Give the prediction for ``batch`` and its target, as the task's step would."""
        ...


class Preprocessing(Protocol):
    """The fitted preprocessing that travels in ``model/`` and answers on a user's own files.

    It may state attributes more. ``options`` maps the name of each further argument of
    ``predict_file``, all by keyword, to a line of help; the command takes ``--NAME=VALUE`` and
    passes the text on. Those that ``flags`` names may stand alone, for ``true``.
    ``suffixes`` holds the endings of the files that are taken from a folder; else ``.csv``.

    Where results are of another kind than inputs, ``result`` is their ending, or gives it for the
    options: ``/`` where each is a folder, which ``predict_file`` makes and fills. ``beside`` holds
    the endings of further files that ``predict_file`` writes as ``output.with_suffix(ending)``, and
    ``totals()`` says a word about all files together. Where an answer depends on the files before,
    ``passed(input)`` is told of those that an earlier call has answered, in the order of the files.
    """

    def to_json(self) -> dict[str, Any]:
        """Return all that was fitted."""
        ...

    def predict_file(
        self, network: nn.Module, input: Path, output: Path, plot: Path | None = None
    ) -> str:
        """Read ``input``, write the network's answer to ``output``; return one line about it."""
        ...


class DataModule(LightningDataModule):
    """Turn data sets into planned batches.

    A subclass sets ``train_set``, ``val_set`` and ``test_set`` (map-style data sets) in ``setup``.
    A data set that defines ``__getitems__`` may return a whole batch, with :func:`whole_batch` as
    ``collate``.

    Args:
        batch_size: items in a training batch, over all processes together.
        eval_batch_size: items in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes the order of training; None takes the run's ``seed_everything``, or 0.
    """

    linked: ClassVar[tuple[str, ...]] = ()
    """Names of the sizes that :meth:`sizes` states; a network takes them under the same names."""

    train_set: Sized
    val_set: Sized
    test_set: Sized
    collate: Callable[[Any], Any] | None = None

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if eval_batch_size < 1 or num_workers < 0:
            raise UserError(
                f"data.eval_batch_size={eval_batch_size} must be at least 1"
                f" and data.num_workers={num_workers} at least 0"
            )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self._position = (0, 0)
        self._plan: Plan | None = None  # of the loader that trains

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """State the sizes that the network takes from the data, for the given ``init_args``."""
        return {}

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the results: ``dataset``, ``setting``, ``unit``, ``notes``."""
        return {"dataset": type(self).__name__, "setting": {}}

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What ``pleiad predict`` needs besides the network; known after ``setup``."""
        return None

    def summary(self) -> list[str]:
        """Say in a few lines what was read and what was made of it; known after ``setup``."""
        return []

    def check(self, network: nn.Module) -> None:
        """Refuse a network that these data do not fit; called after ``setup``, before training.

        Raises:
            UserError: naming what does not fit.
        """

    def keep(self, folder: Path) -> None:
        """Write into a run's folder what else tells how its data were made."""

    def transforms(self) -> list[dict[str, Any]]:
        """List the classes to wrap the network in, as ``{class_path, init_args}``.

        Each is called with the network and its arguments, and travels in ``model/``.
        """
        return []

    def baselines(self) -> dict[str, Baseline]:
        """Fit the baselines of this data; called after ``setup``.

        One whose name ends in ``(oracle)`` knows the answers: a bound, and no rival.
        """
        return {}

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw figures from ``predictions.parquet`` into ``folder``."""
        return []

    def plain_train_set(self) -> Sized:
        """Give the items of training as they are, without what is drawn anew in each epoch."""
        return self.train_set

    def lengths(self, dataset: Sized) -> Lengths | None:
        """Give the lengths of the items of a data set, where batches shall be of similar ones.

        Asked for training, validation and test, and for any data set given to :meth:`every_item`.
        """
        return None

    def plan(self) -> Plan:
        """Plan the training batches, of items of similar length where :meth:`lengths` knows any."""
        found = self.lengths(self.train_set)
        try:
            if found is None:
                return BatchPlan(len(self.train_set), self.batch_size)
            return LengthPlan(found.tokens, self.batch_size, found.budget, rows=found.rows)
        except ValueError as error:
            raise UserError(f"data{'' if found else '.batch_size'}: {error}") from None

    def train_dataloader(self) -> DataLoader[Any]:
        """Load the training batches from the kept position on."""
        rank, world_size = self._rank()
        self._plan = self.plan()
        try:
            self._plan.check(world_size)
        except ValueError as error:
            raise UserError(f"data.{error}") from None
        sampler = PlannedBatchSampler(self._plan, self.seed, rank=rank, world_size=world_size)
        sampler.set_position(*self._position)
        return self._loader(self.train_set, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Load every validation item once: in order, or the longest first."""
        return self._once(self.val_set, *self._rank())

    def test_dataloader(self) -> DataLoader[Any]:
        """Load every test item once: in order, or the longest first."""
        return self._once(self.test_set, *self._rank())

    def state_dict(self) -> dict[str, Any]:
        """Keep the position in the data, and what the order depends on."""
        position = self._position
        if self.trainer is not None and self.trainer.training:
            position = (
                self.trainer.current_epoch,
                self.trainer.fit_loop.epoch_loop.batch_progress.current.ready,
            )
        return {"position": list(position), "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the kept position.

        Raises:
            UserError: if the data or the batch size is not that of the interrupted run.
        """
        self.seed = state_dict["order"]["seed"]
        self._plan = self.plan()
        order = self._order()
        for name, was in state_dict["order"].items():
            now = order.get(name)
            if now != was:
                if name == "fingerprint":
                    raise UserError(
                        f"{self.facts['dataset']}: the data changed since the run was interrupted;"
                        " bring them back, or start a new run"
                    )
                raise UserError(
                    f"data: {name} was {was} when the run was interrupted and is {now} now;"
                    " resume with the same data and settings"
                )
        epoch, batch = state_dict["position"]
        self._position = (epoch + 1, 0) if batch >= len(self._plan) else (epoch, batch)

    def fingerprint(self) -> str:
        """Identify the data itself; a resumed run must find the same."""
        return str(len(self.train_set))

    def _order(self) -> dict[str, Any]:
        settings = (self.plan() if self._plan is None else self._plan).settings()
        return {"seed": self.seed, **settings, "fingerprint": self.fingerprint()}

    def every_item(self, dataset: Sized) -> DataLoader[Any]:
        """Load every item once, in this process alone: in order, or the longest first."""
        return self._once(dataset, 0, 1)

    def _once(self, dataset: Sized, rank: int, world_size: int) -> DataLoader[Any]:
        found = self.lengths(dataset)
        if found is None:
            size = max(1, self.eval_batch_size // world_size) * world_size
            batches = [
                list(range(i, min(i + size, len(dataset)))) for i in range(0, len(dataset), size)
            ]
        else:
            batches = longest_first(found, self.eval_batch_size, world_size)
        if len(batches) > 1 and len(batches[-1]) < world_size:
            batches[-2:] = [batches[-2] + batches[-1]]  # as many batches in each process
        own = [share for batch in batches if (share := batch[rank::world_size])]
        return self._loader(dataset, own)

    def _loader(self, dataset: Any, batches: Any) -> DataLoader[Any]:
        return PlannedLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            pin_memory=self.trainer is not None
            and self.trainer.accelerator.__class__.__name__ == "CUDAAccelerator",
        )

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def whole_batch(batch: Any) -> Any:
    """Pass on a batch that the data set has already put together."""
    return batch
