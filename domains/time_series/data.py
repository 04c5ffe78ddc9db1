"""Windows of series: what benchmark and own data share, and the published protocol.

Protocol (Zhou et al., Informer, AAAI 2021; Wu et al., Autoformer, NeurIPS 2021): channels are
standardised with mean and population standard deviation of the training rows alone; validation and
test windows reach ``lookback`` rows back into the split before; every window of stride one counts.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

import data as catalogue
from core.data_module import Baseline, DataModule, whole_batch
from core.errors import UserError
from domains.time_series import baselines, pictures
from domains.time_series.calendar_features import calendar_features, mark_count
from domains.time_series.files import read_csv
from domains.time_series.forecast_files import ForecastFiles
from domains.time_series.scale import Standard, moments
from domains.time_series.series import Array, Covariates, Gaps, Series, carried
from domains.time_series.tables import listed
from domains.time_series.windows import Rows, Window, Windows

MOST_EVALUATED = 100_000
"""Windows of validation and test together with each other's; beyond it only every n-th counts."""


class WindowData(DataModule):
    """What benchmark and own data share: standardised windows, baselines, pictures, scaling.

    A subclass gives ``read()`` and ``borders(rows)``.

    Args:
        lookback: steps seen.
        horizon: steps forecast.
        batch_size: windows in a training batch, over all processes together.
        eval_batch_size: windows in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes the order of training; None takes the run's seed.
        minute_marks: put the minute of the hour before the other calendar features.
    """

    linked: ClassVar[tuple[str, ...]] = ("lookback", "horizon", "channels", "marks")
    collate = staticmethod(whole_batch)

    def __init__(
        self,
        lookback: int = 96,
        horizon: int = 96,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        minute_marks: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        if min(lookback, horizon) < 1:
            raise UserError(
                f"data.lookback={lookback} and data.horizon={horizon} must be at least 1"
            )
        self.lookback = lookback
        self.horizon = horizon
        self.minute_marks = minute_marks
        self.series: Series | None = None
        self.notes: list[str] = []
        self.half_widths: dict[str, list[list[float]]] | None = None

    @abstractmethod
    def read(self) -> Series:
        """Read the series."""

    @abstractmethod
    def borders(self, rows: int) -> tuple[int, int, int]:
        """Give the rows of a series at which training, validation and test end."""

    @property
    def season(self) -> int | None:
        """Steps in a season, for the baselines; None where there is none."""
        return None

    @property
    def unit(self) -> str:
        """The unit of every channel; empty where they differ or it is not known."""
        return ""

    @property
    def stride(self) -> int:
        """Rows from one window of validation and test to the next."""
        return 1

    def setup(self, stage: str | None = None) -> None:
        """Read, split, standardise; done once.

        Raises:
            UserError: if a split is too short for a single window.
        """
        if self.series is not None:
            return
        series = self.read()
        starts, ends = series.starts, self._ends(series)
        self.moments = moments(series.values, starts, ends, self._season_of(series), self.lookback)
        owner = series.owner
        filled = carried(series.values, starts)
        self.scaled: Array = filled - self.moments.mean[owner]
        del filled
        self.scaled /= self.moments.std[owner]
        np.nan_to_num(self.scaled, copy=False)
        self.ends = ends
        self.standards, rows = self._rows(series, owner)
        room = {
            "training": (starts[:-1] + self.lookback, ends[:, 0], 1),
            "validation": (ends[:, 0], ends[:, 1], self.stride),
            "test": (ends[:, 1], ends[:, 2], self.stride),
        }
        made = {}
        for name, (first, end, stride) in room.items():
            made[name] = self._windows(rows, first, end, stride, thin=name != "training")
            if not len(made[name]):
                self._refuse(series, name)
        self.train_set, self.val_set, self.test_set = made.values()
        self._check_known(series)
        if strange := [series.ids[int(s)] for s in np.flatnonzero(ends[:, 0] <= starts[:-1])]:
            self.notes.append(
                f"{len(strange):,} series have no training row and are scaled by their first"
                f" {self.lookback} rows: {listed(strange, 5)}"
            )
        tested = ends[:, 2] > ends[:, 1] if series.ends is not None else True
        unseen = int((tested & (self.test_set.counts == 0)).sum())
        if len(series.ids) > 1 and unseen:
            self.notes.append(
                f"{unseen:,} of {len(series.ids):,} series are too short for a test window"
                f" of {self.lookback} + {self.horizon} steps"
            )
        self.series = series

    def summary(self) -> list[str]:
        """Say what was read and what windows are cut from it."""
        self.setup()
        assert self.series is not None
        series, lengths = self.series, self.series.lengths
        if len(series.ids) > 1:
            span = f"{lengths.min():,} to {lengths.max():,}"
            what = f"{len(series.ids):,} series of {span} steps ({series.freq}), each by itself"
        else:
            count = len(series.columns)
            what = f"{lengths[0]:,} steps ({series.freq}) of {count:,} channel{'s' * (count > 1)}"
        beside = [name for part in (series.covariates or [()] * 4)[3] for name in part]
        more = f"; covariates {', '.join(beside)}" if beside else ""
        parts = {"training": self.train_set, "validation": self.val_set, "the test": self.test_set}
        counts = "windows: " + ", ".join(f"{len(part):,} for {n}" for n, part in parts.items())
        notes = [*series.repairs, *self.notes]
        source = Path(series.source).name
        return [f"{source}: {what}{more}", counts, *(f"note: {note}" for note in notes)]

    def named(self, origin: Tensor) -> dict[str, Any]:
        """Name the series and the time of rows (B,)."""
        assert self.series is not None
        rows = origin.cpu().numpy()
        owner = np.searchsorted(self.series.starts, rows, "right") - 1
        ids = [self.series.ids[one] for one in owner]
        return {"series": ids, "start": self.series.time[rows].to_numpy()}

    def _ends(self, series: Series) -> NDArray[np.int64]:
        """Give the rows (S, 3) at which training, validation and test of each series end."""
        starts = series.starts
        if series.ends is not None:
            return np.concatenate([series.ends, starts[1:, None]], 1)
        lengths = {int(length): self.borders(int(length)) for length in np.unique(series.lengths)}
        within = np.array([lengths[int(length)] for length in series.lengths])
        return within + starts[:-1, None]

    def _rows(self, series: Series, owner: NDArray[np.int64]) -> tuple[list[Standard], Rows]:
        """Put together what windows are cut from, and how the covariates were standardised."""
        times = series.time.unique().sort_values()
        single = len(series.ids) == 1
        begins = np.zeros(1, int) if single else times.get_indexer(series.time[series.starts[:-1]])
        marks = calendar_features(series.time if single else times, minutes=self.minute_marks)
        rows, count = len(series.values), len(series.ids)
        empty = Covariates(np.zeros((rows, 0)), np.zeros((rows, 0)), np.zeros((count, 0)))
        beside = series.covariates or empty
        training = np.arange(rows) < self.ends[owner, 0]
        chosen = (training, training, np.ones(count, bool))
        parts = (beside.known, beside.past, beside.static)
        standards = [Standard.fit(part[rows]) for part, rows in zip(parts, chosen, strict=True)]
        known, past, static = (
            torch.tensor(standard(part), dtype=torch.float32)
            for standard, part in zip(standards, parts, strict=True)
        )
        gaps = np.isnan(series.values)
        mean, std, naive = (torch.tensor(part, dtype=torch.float32) for part in self.moments)
        return standards, Rows(
            values=torch.tensor(self.scaled, dtype=torch.float32),
            observed=torch.from_numpy(~gaps) if gaps.any() else None,
            marks=torch.from_numpy(marks),
            shift=torch.from_numpy(begins - series.starts[:-1]),
            starts=series.starts,
            offset=mean,
            scale=std,
            naive=naive,
            known=known,
            beside=past,
            static=static,
        )

    def _windows(
        self, rows: Rows, first: NDArray[np.int64], end: NDArray[np.int64], stride: int, thin: bool
    ) -> Windows:
        made = Windows(rows, self.lookback, self.horizon, first, end, stride)
        if thin and stride == 1 and len(made) > MOST_EVALUATED:
            stride = -(-len(made) // MOST_EVALUATED)
            note = f"of validation and test windows every {stride}th counts; see --data.windows"
            self.notes = [*(n for n in self.notes if n != note), note]
            made = Windows(rows, self.lookback, self.horizon, first, end, stride)
        return made

    def _season_of(self, series: Series) -> int:
        return self.season or usual_season(series.freq) or 1

    def fingerprint(self) -> str:
        """Identify the standardised values, their times and names; hashed once."""
        self.setup()
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        assert self.series is not None
        found = hashlib.sha256(np.ascontiguousarray(self.scaled).tobytes())
        found.update(self.series.time.asi8.tobytes())
        found.update(repr((self.series.columns, *self.series.ids)).encode())
        if self.series.covariates is not None:
            for part in self.series.covariates[:3]:
                found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()

    @property
    def preprocessing(self) -> ForecastFiles | None:
        """Columns, frequency and scale, as fitted on the training rows."""
        if self.series is None:
            return None
        return ForecastFiles.fitted(
            self.series,
            self.moments,
            self.standards,
            lookback=self.lookback,
            horizon=self.horizon,
            gaps=self.gaps,
            minutes=self.minute_marks,
            season=self._season_of(self.series),
            half_widths=self.half_widths,
        )

    @property
    def gaps(self) -> Gaps:
        """How missing values are treated."""
        return "error"

    def baselines(self) -> dict[str, Baseline]:
        """Fit the baselines that the series allows, on the training rows."""
        self.setup()
        assert self.series is not None
        fitted = {}
        ends = self.ends.copy()  # no window of the test begins before its look-back is whole
        ends[:, 1] = np.maximum(ends[:, 1], self.series.starts[:-1] + self.lookback)
        channels = len(self.series.ids) * len(self.series.columns)
        for name, model in baselines.available(self.season, self.lookback, channels).items():
            model.fit(self.scaled, self.series.starts, ends, self.season)
            fitted[name] = _judged(model, self.horizon)
        return fitted

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw test windows and the error by step ahead."""
        self.setup()
        assert self.series is not None
        return pictures.draw(
            predictions, folder, self.series, self.lookback, self.season, self.unit
        )

    def _check_known(self, series: Series) -> None:
        """Refuse a part of which all values are missing; tell of series that training lacks."""
        known = ~np.isnan(series.values)
        if known.all():
            return
        begins = np.concatenate([series.starts[:-1, None], self.ends[:, :2]], 1)
        row, owner = np.arange(len(known)), series.owner
        inside = [
            (row >= begin[owner]) & (row < end[owner])
            for begin, end in zip(begins.T, self.ends.T, strict=True)
        ]
        for name, rows in zip(("training", "validation", "test"), inside, strict=True):
            if not known[rows].any():
                raise UserError(
                    f"{series.source}: the {name} part ({rows.sum():,} rows) holds no known value;"
                    " give a file whose values are known there, or leave those rows out"
                )
        found = pd.DataFrame(known[inside[0]]).groupby(owner[inside[0]]).any()
        single = len(series.ids) == 1
        seen = found.iloc[0] if single else found[0]
        names = series.columns if single else series.ids
        lacking = [names[int(number)] for number in seen.index[~seen]]
        if lacking:
            self.notes.append(
                f"{len(lacking):,} series have no known value in training: {listed(lacking, 5)}"
            )

    def _refuse(self, series: Series, split: str) -> None:
        """Say why there is no window of a split."""
        column = {"training": 0, "validation": 1, "test": 2}[split]
        begins = series.starts[:-1] if column == 0 else self.ends[:, column - 1]
        have = int((self.ends[:, column] - begins).max())
        need = self.horizon + (self.lookback if column == 0 else 0)
        whose = "" if len(series.ids) == 1 else f", at most in any of {len(series.ids):,} series"
        raise UserError(
            f"{series.source}: the {split} part has {have} of {int(series.lengths.max())} rows"
            f"{whose}, fewer than the {need} that one window takes (data.lookback={self.lookback},"
            f" data.horizon={self.horizon}); use a longer series or a smaller `--data.horizon`"
        )


def _judged(model: Any, horizon: int) -> Baseline:
    def predict(batch: Window) -> tuple[Tensor, Tensor]:
        return model.predict(batch.past, horizon, batch.origin), batch.future

    return predict


class ForecastingData(WindowData):
    """A benchmark set of the catalogue by its published split.

    Args:
        dataset: its name in the catalogue, such as ``etth1``.
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
        dataset: str,
        lookback: int = 96,
        horizon: int = 96,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        minute_marks: bool = False,
    ) -> None:
        super().__init__(
            lookback, horizon, batch_size, eval_batch_size, num_workers, seed, minute_marks
        )
        self.dataset = dataset
        self.entry = _entry(dataset)

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Channels from the catalogue; look-back, horizon and marks from the configuration."""
        channels = int(_entry(config["dataset"]).facts["channels"])
        return {
            "lookback": config["lookback"],
            "horizon": config["horizon"],
            "channels": channels,
            "marks": mark_count(config["minute_marks"]),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """The set, the setting of a published row, licence and citation."""
        return {
            "dataset": self.dataset,
            "setting": {"lookback": self.lookback, "horizon": self.horizon},
            "licence": self.entry.licence,
            "citation": self.entry.citation,
            "notes": [*(self.series.repairs if self.series is not None else ()), *self.notes],
            "unit": self.unit,
        }

    @property
    def season(self) -> int | None:
        """The catalogue's season."""
        season = self.entry.facts.get("season_length")
        return int(season) if season else None

    @property
    def unit(self) -> str:
        """The catalogue's unit."""
        return str(self.entry.facts.get("unit", ""))

    @property
    def gaps(self) -> Gaps:
        """The catalogue's treatment of missing values."""
        gaps: Gaps = self.entry.facts.get("gaps", "error")
        return gaps

    def read(self) -> Series:
        """Read the verified file."""
        return read_csv(
            catalogue.locate(self.dataset), freq=self.entry.facts.get("freq"), gaps=self.gaps
        )

    def borders(self, rows: int) -> tuple[int, int, int]:
        """Split by the catalogue's row counts or fractions."""
        splits = self.entry.splits
        if "rows" in splits:
            train, val, test = (int(splits["rows"][s]) for s in ("train", "val", "test"))
            return train, train + val, train + val + test
        train, test = (int(splits["fractions"][s] * rows) for s in ("train", "test"))
        return train, rows - test, rows


def usual_season(freq: str) -> int | None:
    """Name the steps in the usual season of a pandas frequency: a day, a week or a year."""
    step = pd.tseries.frequencies.to_offset(freq)
    if step is None:
        return None
    name = step.name.split("-")[0]
    fixed = {"D": 7, "B": 5, "W": 52, "MS": 12, "ME": 12, "QS": 4, "QE": 4}
    if step.n == 1 and name in fixed:
        return fixed[name]
    try:
        seconds = pd.Timedelta(step).total_seconds()  # type: ignore[arg-type]
    except ValueError:
        return None
    steps = 86_400 / seconds if seconds else 0
    return int(steps) if steps > 1 and steps == int(steps) else None


def _entry(dataset: str) -> catalogue.Entry:
    entry = catalogue.entry(dataset)
    if entry.domain != "time_series":
        raise UserError(
            f"data.dataset={dataset!r} belongs to {entry.domain};"
            " see `pleiad list datasets --domain time_series`"
        )
    return entry
