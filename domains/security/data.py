"""Windows of network flows in balanced batches: the benchmark NSL-KDD."""

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

import data as catalogue
from core.batch_plan import Plan
from core.data_module import Baseline, DataModule, whole_batch
from core.errors import UserError
from core.split_plan import PARTS
from domains.security.balanced_plan import BalancedPlan
from domains.security.baselines import fitted
from domains.security.flow_splits import LEAKS, Division, divide
from domains.security.flows import FlowTable
from domains.security.prepared import ClassesOf, FlowSet, Prepared, prepare
from domains.security.presets import NSL_KDD
from domains.security.raw_flows import read_raw


class FlowModule(DataModule):
    """Windows of flows; training batches hold as many flows of each class.

    A subclass says by :meth:`prepare` which flows there are.

    Args:
        config: what :meth:`prepare` takes.
        batch_size: windows in a training batch, over all processes together.
        eval_batch_size: windows in a batch of validation and test; never changes a result.
        steps_per_epoch: batches in an epoch, each drawn anew.
        num_workers: processes that load data; never changes a result.
        seed: fixes what is drawn; None takes the run's seed.
    """

    linked: ClassVar[tuple[str, ...]] = ("numeric", "levels", "window", "classes")
    collate: Callable[[Any], Any] = staticmethod(whole_batch)

    def __init__(
        self,
        config: Mapping[str, Any],
        batch_size: int,
        eval_batch_size: int,
        steps_per_epoch: int,
        num_workers: int,
        seed: int | None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self.config = dict(config)
        self.steps_per_epoch = steps_per_epoch
        self.prepared: Prepared | None = None

    @classmethod
    def prepare(cls, config: Mapping[str, Any]) -> Prepared:
        """Read, divide and encode the flows; asked for the same again, gives the same object."""
        raise NotImplementedError(f"{cls.__name__} must define prepare()")

    @classmethod
    def filled(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Add the defaults of arguments that a configuration does not state."""
        arguments = signature(cls.__init__).parameters
        return {name: own.default for name, own in arguments.items()} | dict(config)

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """State ``numeric``, ``levels`` (codes a categorical field), ``window``, ``classes``."""
        return cls.prepare(config).preprocessing.sizes

    def setup(self, stage: str | None = None) -> None:
        """Prepare the flows; done once.

        Raises:
            UserError: naming what does not fit.
        """
        if self.prepared is not None:
            return
        found = self.prepare(self.config)
        self.train_set, self.val_set, self.test_set = (FlowSet(found, own) for own in found.rows)
        self.prepared = found

    def plan(self) -> Plan:
        """Plan batches of equal shares of every class."""
        found = self._prepared()
        labels = found.table.labels[found.rows[0]]
        groups = [np.flatnonzero(labels == place) for place in range(len(self.class_names))]
        try:
            return BalancedPlan(groups, self.batch_size, self.steps_per_epoch)
        except ValueError as error:
            raise UserError(f"data.{error}") from None

    @property
    def preprocessing(self) -> Any:
        """What was fitted on training flows; the task makes of it what answers on files."""
        return self._prepared().preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; the first is benign."""
        return self._prepared().preprocessing.classes

    @property
    def attacks(self) -> tuple[str, ...]:
        """The label values, which ``FlowBatch.attacks`` counts; the first is benign."""
        return self._prepared().attacks

    @property
    def new_attacks(self) -> tuple[str, ...]:
        """The attacks of the test that training has not seen."""
        return self._prepared().new_attacks

    @property
    def tested_attacks(self) -> tuple[str, ...]:
        """The label values of the test, benign or not."""
        found = self._prepared()
        places = np.unique(found.table.attacks[found.rows[2]])
        return tuple(self.attacks[place] for place in places)

    def flows(self, part: str) -> FlowTable:
        """Give the flows of train, val or test without windows: what a tabular model is fitted to.

        Returns:
            Fields and labels of R flows, in file order.
        """
        found = self._prepared()
        rows = found.rows[PARTS.index(part)]
        table = found.table
        return FlowTable(
            table.numeric[rows], table.codes[rows], table.labels[rows], table.attacks[rows]
        )

    def summary(self) -> list[str]:
        """Say what was read and what is made of it."""
        found = self._prepared()
        lines = []
        for part, rows in zip(PARTS, found.rows, strict=True):
            counts = np.bincount(found.table.labels[rows], minlength=len(self.class_names))
            told = zip(self.class_names, counts, strict=True)
            shares = ", ".join(f"{name} {count:,}" for name, count in told if count)
            lines.append(f"{part}: {len(rows):,} flows ({shares})")
        scale = found.preprocessing
        lines.append(
            f"{len(scale.low)} numeric and {len(scale.levels)} categorical fields; windows of"
            f" {scale.window} flows, context {scale.context}"
            f"{'; published preprocessing' if scale.faithful else ''}"
        )
        if new := found.new_attacks:
            lines.append(f"attacks of the test that training has not seen: {', '.join(new)}")
        return [*lines, *found.notes]

    def baselines(self) -> dict[str, Baseline]:
        """Fit boosted trees, a linear model and an isolation forest to the flows of training."""
        parts = {"train": self.flows("train"), "val": self.flows("val"), "test": self.flows("test")}
        return fitted(parts, self._prepared().rows[2], len(self.class_names), self.seed)

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw confusions, thresholds and the recall of each attack."""
        from domains.security.pictures import draw

        return draw(predictions, folder, self.class_names, self.new_attacks)

    def keep(self, folder: Path) -> None:
        """Write which flows train, validate and test, where more than their order decides."""
        if (made := self._prepared().division.split) is not None:
            made.save(folder / "splits.parquet")

    def fingerprint(self) -> str:
        """Identify the flows of training by their labels and by what was fitted to them."""
        found = self._prepared()
        digest = hashlib.sha256(found.table.labels[found.rows[0]].tobytes())
        digest.update(repr(found.preprocessing.to_json()).encode())
        return digest.hexdigest()

    def _prepared(self) -> Prepared:
        self.setup()
        assert self.prepared is not None
        return self.prepared


class FlowData(FlowModule):
    """The benchmark NSL-KDD (Tavallaee et al., 2009).

    Validation takes the last tenth of the training file. Its rows have no order in time. With the
    test ``random`` the protocol is that of FlowTransformer: a random twentieth of the training file
    is the test, the same in every run, and another one validates; figures of other tests are not
    to be compared with the published ones.

    Args:
        dataset: ``nsl_kdd``.
        train_file: ``full``, or ``20percent``, its first fifth.
        test: ``plus`` (KDDTest+), ``21`` (its harder rows) or ``random``.
        window: flows in a window.
        classes: ``binary``, or ``multi`` for the four kinds of attacks.
        faithful: the published preprocessing, with its flaws.
        batch_size: windows in a training batch, over all processes together.
        eval_batch_size: windows in a batch of validation and test; never changes a result.
        steps_per_epoch: batches in an epoch, each drawn anew.
        num_workers: processes that load data; never changes a result.
        seed: fixes what is drawn; None takes the run's seed.
    """

    def __init__(
        self,
        dataset: Literal["nsl_kdd"] = "nsl_kdd",
        train_file: Literal["full", "20percent"] = "full",
        test: Literal["plus", "21", "random"] = "plus",
        window: int = 8,
        classes: ClassesOf = "binary",
        faithful: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 1024,
        steps_per_epoch: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        config = {
            "dataset": dataset,
            "train_file": train_file,
            "test": test,
            "window": window,
            "classes": classes,
            "faithful": faithful,
        }
        super().__init__(config, batch_size, eval_batch_size, steps_per_epoch, num_workers, seed)

    @classmethod
    def prepare(cls, config: Mapping[str, Any]) -> Prepared:
        """Read the files of the set."""
        given = cls.filled(config)
        names = ("dataset", "train_file", "test", "window", "classes", "faithful")
        return _benchmark(*(given[name] for name in names))

    @property
    def facts(self) -> dict[str, Any]:
        """The set and the protocol."""
        names = ("train_file", "test", "window", "classes")
        return {
            "dataset": self.config["dataset"],
            "setting": {name: self.config[name] for name in names},
            "notes": list(self.prepared.notes) if self.prepared else [],
        }


VAL_SHARE = 0.1
RANDOM_SHARE = 0.05


@lru_cache(maxsize=1)
def _benchmark(
    dataset: str, train_file: str, test: str, window: int, classes: ClassesOf, faithful: bool
) -> Prepared:
    if dataset != "nsl_kdd":
        raise UserError(
            f"data.dataset={dataset}: the benchmark of flows is nsl_kdd; your own are read by"
            " security/detect"
        )
    files = {"full": "train", "20percent": "train_20", "plus": "test", "21": "test_21"}
    for key, value, known in (
        ("train_file", train_file, ("full", "20percent")),
        ("test", test, ("plus", "21", "random")),
    ):
        if value not in known:
            raise UserError(f"data.{key}={value}: must be {' or '.join(known)}")
    folder = catalogue.locate(dataset)
    splits = catalogue.entry(dataset).splits["files"]
    names = [files[train_file], *([files[test]] if test != "random" else [])]
    raw = read_raw(
        [(folder / splits[name],) for name in names], NSL_KDD, also=("class",), faithful=faithful
    )
    if test == "random":
        drawn = np.random.default_rng(0).permutation(len(raw))
        count = int(RANDOM_SHARE * len(raw))
        part = np.zeros(len(raw), np.int64)
        part[drawn[:count]], part[drawn[count : 2 * count]] = 2, 1
        division = Division(part, False, (f"{LEAKS}; the tests plus and 21 are the honest ones",))
    else:
        division = divide(raw, "last", (1 - VAL_SHARE, VAL_SHARE, 0.0))
        division.part[raw.starts[1] :] = 2
    return prepare(raw, division, window=window, context="file", classes=classes, faithful=faithful)
