"""A user's own series: any CSV files, wide or long, bound to no benchmark."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from core.batch_plan import BatchPlan, Plan
from core.duplicates import duplicates
from core.errors import UserError
from core.split_plan import Split
from core.splits import split
from domains.time_series.calendar_features import mark_count
from domains.time_series.columns import ID, Wanted
from domains.time_series.data import WindowData, usual_season
from domains.time_series.files import read_series
from domains.time_series.series import Gaps, Series

MOST_TOGETHER = 100
"""Series that are channels of one network unless it is asked for."""


class OwnForecastingData(WindowData):
    """Any CSV files of the user's own, one column a series or all in one column with their ids.

    Args:
        train: a CSV file, a folder of them or a glob.
        val: the same for validation; its series go on after those of ``train``. Without it the
            last rows of each series are taken.
        test: the same for the test; its series go on after those of ``val``.
        target: the columns to forecast, comma-separated; None takes every numeric column, or ``y``
            in a file with ids.
        time: the date column; None finds it.
        id: the column of ids in a file that holds series below one another; None takes
            ``unique_id`` where there is one.
        freq: the frequency as pandas names it (``h``, ``D``, ``W``, ``MS``); None infers it.
        gaps: what to do about missing values and rows: ``mask`` (out of loss, scale and metrics),
            ``zero``, ``ffill``, ``interpolate``, ``error``, or ``keep``, which takes the rows as
            they stand.
        known_future: columns of covariates that are known in advance, comma-separated.
        past: columns of covariates that are known up to now, comma-separated.
        static: columns of covariates that are one value a series, comma-separated.
        together: whether a network sees all series at once, as its channels, or each by itself;
            ``auto`` puts up to 100 series of one file and of the same times together.
        split: ``time`` (the last rows of each series), ``column:NAME`` (a column that says train,
            val or test), or whole series by ``random``, ``group:NAME`` or a ``splits.parquet`` of
            another run.
        folds: K folds instead, by time (each next one tested by what is before it) or of series.
        fold: which of them is the test, from 0.
        season_length: steps in a season, for the baselines; None infers it from the frequency.
        val_fraction: share of rows for validation.
        test_fraction: share of rows for the test, the last ones.
        windows: rolling origins of the test and of validation, the last ones of each series, a
            horizon apart; None takes every window of the fractions.
        epoch_windows: windows drawn for an epoch of training at most.
        lookback: steps seen.
        horizon: steps forecast.
        batch_size: windows in a training batch, over all processes together.
        eval_batch_size: windows in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes the order of training; None takes the run's seed.
        minute_marks: put the minute of the hour before the other calendar features.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        target: str | None = None,
        time: str | None = None,
        id: str | None = None,
        freq: str | None = None,
        gaps: Gaps = "mask",
        known_future: str | None = None,
        past: str | None = None,
        static: str | None = None,
        together: Literal["auto", True, False] = "auto",
        split: str = "time",
        folds: int | None = None,
        fold: int = 0,
        season_length: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        windows: int | None = None,
        epoch_windows: int = 32_000,
        lookback: int = 96,
        horizon: int = 24,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        minute_marks: bool = False,
    ) -> None:
        super().__init__(
            lookback, horizon, batch_size, eval_batch_size, num_workers, seed, minute_marks
        )
        for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < value < 1:
                raise UserError(f"data.{name}={value} must lie between 0 and 1")
        if val_fraction + test_fraction >= 1:
            raise UserError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}"
                " leave no rows to train on"
            )
        for name, count in (
            ("windows", windows),
            ("epoch_windows", epoch_windows),
            ("season_length", season_length),
        ):
            if count is not None and count < 1:
                raise UserError(f"data.{name}={count} must be at least 1")
        self.config: dict[str, Any] = {
            "train": train,
            "val": val,
            "test": test,
            "target": target,
            "time": time,
            "id": id,
            "freq": freq,
            "gaps": gaps,
            "known_future": known_future,
            "past": past,
            "static": static,
            "together": together,
            "split": split,
            "folds": folds,
            "fold": fold,
            "fractions": (1 - val_fraction - test_fraction, val_fraction, test_fraction),
        }
        if folds is None and fold:
            raise UserError(f"data.fold={fold} needs data.folds, the number of folds")
        if folds is not None and (folds < 3 or not 0 <= fold < folds):
            raise UserError(
                f"data.folds={folds} must be at least 3, and data.fold={fold} lie below it"
            )
        self.season_length = season_length
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.windows = windows
        self.epoch_windows = epoch_windows

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Channels from the files; look-back, horizon and marks from the configuration."""
        return {
            "lookback": config["lookback"],
            "horizon": config["horizon"],
            "channels": len(_read_by(config).series.columns),
            "marks": mark_count(config["minute_marks"]),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """The file's name; no published setting."""
        return {
            "dataset": Path(str(self.config["train"])).name,
            "setting": {},
            "notes": [*(self.series.repairs if self.series is not None else ()), *self.notes],
            "unit": self.unit,
        }

    @property
    def season(self) -> int | None:
        """The given season, or the one that is usual for the frequency."""
        if self.season_length is not None or self.series is None:
            return self.season_length
        return usual_season(self.series.freq)

    @property
    def gaps(self) -> Gaps:
        """The given treatment of missing values."""
        gaps: Gaps = self.config["gaps"]
        return gaps

    @property
    def stride(self) -> int:
        """A horizon between rolling origins."""
        return self.horizon if self.windows else 1

    def read(self) -> Series:
        """Read the user's files."""
        return _read_by(self.config).series

    def keep(self, folder: Path) -> None:
        """Write which series train, validate and test, where whole series do."""
        if (made := _read_by(self.config).split) is not None:
            made.save(folder / "splits.parquet")

    def borders(self, rows: int) -> tuple[int, int, int]:
        """Split in time order."""
        folds, fold = self.config["folds"], self.config["fold"]
        if folds:
            block = rows // (folds + 2)
            return (fold + 1) * block, (fold + 2) * block, (fold + 3) * block
        if self.windows:
            test = min(self.windows * self.horizon, rows)
            return max(rows - 2 * test, 0), rows - test, rows
        test = int(self.test_fraction * rows)
        val = int(self.val_fraction * rows)
        return rows - test - val, rows - test, rows

    def plan(self) -> Plan:
        """Plan the training batches, of windows drawn anew each epoch where there are many."""
        most = max(self.epoch_windows, self.batch_size)
        if len(self.train_set) <= most:
            return super().plan()
        return BatchPlan(len(self.train_set), self.batch_size, draw=most)

    def transforms(self) -> list[dict[str, Any]]:
        """Wrap the network where there are covariates."""
        series = _read_by(self.config).series
        if series.covariates is None:
            return []
        known, past, static, _ = series.covariates
        sizes = {"known": known, "past": past, "static": static}
        arguments = {
            "lookback": self.lookback,
            "horizon": self.horizon,
            "channels": len(series.columns),
            **{name: part.shape[1] for name, part in sizes.items()},
        }
        path = "domains.time_series.covariates.WithCovariates"
        return [{"class_path": path, "init_args": arguments}]


class _Read(NamedTuple):
    """The series of the files, and which of them train, where whole series do."""

    series: Series
    split: Split | None


def _read_by(config: Mapping[str, Any]) -> _Read:
    """Read the files that a configuration names; the last ones read are kept."""
    files = tuple(_files(config[part], part) for part in ("train", "val", "test"))
    stamps = tuple(
        (path.stat().st_mtime_ns, path.stat().st_size)
        for paths in files
        for path in paths
        if path.is_file()
    )
    test, val = config.get("test_fraction", 0.2), config.get("val_fraction", 0.1)
    given = {"fractions": (1 - val - test, val, test), **config}
    keys: tuple[str, ...] = (
        "target",
        "time",
        "id",
        "freq",
        "gaps",
        "known_future",
        "past",
        "static",
        "together",
    )
    keys += ("split", "folds", "fold", "fractions")
    return _read(files, stamps, tuple((key, given[key]) for key in keys))


@lru_cache(maxsize=1)
def _read(
    files: tuple[tuple[Path, ...], ...], stamps: tuple[Any, ...], names: tuple[tuple[str, Any], ...]
) -> _Read:
    given = dict(names)
    rule, _, column = _rule(given["split"]).partition(":")
    if (rule == "time" and column) or (rule == "column" and not column):
        raise UserError(
            f"--data.split={given['split']}: write time (the column is --data.time), or column:NAME"
        )
    wanted = Wanted(
        time=given["time"],
        id=given["id"],
        target=_names(given["target"]),
        known=tuple(_names(given["known_future"]) or ()),
        past=tuple(_names(given["past"]) or ()),
        static=tuple(_names(given["static"]) or ()),
        part=column if rule == "column" else None,
        group=column if rule == "group" and column not in (given["id"], ID) else None,
    )
    train, val, test = files
    if bool(val) != bool(test):
        raise UserError("--data.val and --data.test: give both files or none")
    series = read_series(train, wanted, val=val, test=test, freq=given["freq"], gaps=given["gaps"])
    if not series.id_column and not given["target"]:
        series = series.ordered()
    whole = rule not in ("time", "column")
    together = given["together"]
    if whole or (together == "auto" and len(train) > 1):  # each file is forecast by itself later
        together = False
    series = _arranged(series, together)
    if not whole:
        if given["folds"] and series.ends is not None:
            raise UserError("--data.folds: the files or a column say already what trains")
        return _Read(series, None)
    return _split_series(series, given)


def _rule(given: str) -> str:
    """Give the rule by which series are split: that of an earlier run, where its file is named."""
    path = Path(given)
    return Split.load(path).plan.rule if path.suffix == ".parquet" and path.is_file() else given


def _arranged(series: Series, together: bool | str) -> Series:
    """Put the series together as channels, or each by itself."""
    if not series.id_column:
        many = len(series.columns) > MOST_TOGETHER
        apart = many if together == "auto" else not together
        return series.apart() if apart and len(series.columns) > 1 else series
    alike = series.aligned and series.ends is None and series.covariates is None
    if together is True and not alike:
        raise UserError(
            f"{series.source}: --data.together=yes, but the series begin or end at different times"
            " or have covariates of their own"
        )
    few = alike and len(series.ids) <= MOST_TOGETHER
    return series.together() if together is True or (together == "auto" and few) else series


def _split_series(series: Series, given: Mapping[str, Any]) -> _Read:
    """Let whole series train, validate and test."""
    if series.ends is not None:
        raise UserError(f"--data.split={given['split']}: the files say already what trains")
    frame = pd.DataFrame({series.id_column or ID: series.ids})
    if series.groups:
        frame[_rule(given["split"]).partition(":")[2]] = series.groups
    made = split(
        frame,
        given["split"],
        ids=str(frame.columns[0]),
        fractions=given["fractions"],
        folds=given["folds"],
        fold=given["fold"],
    )
    begins, stops = series.starts[:-1], series.starts[1:]
    ends = np.stack([stops, stops], 1)
    ends[made.val] = np.stack([begins, stops], 1)[made.val]
    ends[made.test] = np.stack([begins, begins], 1)[made.test]
    spans = zip(begins, stops, strict=True)
    content = [hashlib.sha256(series.values[a:b].tobytes()).hexdigest() for a, b in spans]
    equal = duplicates(frame.assign(content=content), made, ["content"])
    notes = (*series.repairs, *made.notes, *(found.note for found in equal))
    return _Read(replace(series, ends=ends, repairs=notes), made)


def _files(given: str | None, part: str) -> tuple[Path, ...]:
    """Find the files that a key means."""
    if not given:
        return ()
    path = Path(given)
    if path.is_dir():
        found = sorted(path.glob("*.csv"))
    elif any(mark in given for mark in "*?["):
        found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    else:
        return (path,)
    if not found:
        raise UserError(f"--data.{part}={given}: there is no CSV file")
    return tuple(found)


def _names(given: str | None) -> list[str] | None:
    return [name.strip() for name in given.split(",") if name.strip()] if given else None
