"""Windows of multivariate series: the published protocol, and any wide CSV of a user's own.

Protocol (Zhou et al., Informer, AAAI 2021; Wu et al., Autoformer, NeurIPS 2021): channels are
standardised with mean and population standard deviation of the training rows alone; validation and
test windows reach ``lookback`` rows back into the split before; every window of stride one counts.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

import data as catalogue
from core.data_module import Baseline, DataModule, whole_batch
from core.errors import UserError
from domains.time_series import baselines, pictures
from domains.time_series.calendar_features import calendar_features, mark_count
from domains.time_series.files import ForecastFiles, Gaps, Series, read_csv


class Window(NamedTuple):
    """A batch of windows: B windows, L look-back and H horizon steps, C channels, M marks.

    ``past`` (B, L, C) and ``future`` (B, H, C) are standardised; ``past_marks`` (B, L, M) and
    ``future_marks`` (B, H, M) lie in [-0.5, 0.5]; ``origin`` (B,) is the row of the first future
    step; ``offset`` and ``scale`` (C,) take values back to the unit of the data: ``value * scale +
    offset``.
    """

    past: Tensor
    future: Tensor
    past_marks: Tensor
    future_marks: Tensor
    origin: Tensor
    offset: Tensor
    scale: Tensor


class Windows(Dataset[Window]):
    """Every window of stride one whose future lies in rows ``first`` to ``end``.

    Args:
        values: standardised series (T, C).
        marks: calendar features (T, M).
        lookback: L.
        horizon: H.
        first: row of the first future step of the first window.
        end: one past the last row of the last window's future.
        offset: mean (C,) that was taken off.
        scale: standard deviation (C,) that was divided by.
    """

    def __init__(
        self,
        values: Tensor,
        marks: Tensor,
        lookback: int,
        horizon: int,
        first: int,
        end: int,
        offset: Tensor,
        scale: Tensor,
    ) -> None:
        self.values, self.marks = values, marks
        self.lookback, self.horizon = lookback, horizon
        self.first, self.end = first, end
        self.offset, self.scale = offset, scale

    def __len__(self) -> int:
        """Count the windows."""
        return self.end - self.first - self.horizon + 1

    def __getitem__(self, index: int) -> Window:
        """Cut one window, without the batch dimension."""
        window = self.__getitems__([index])
        past, future, past_marks, future_marks, origin = (field[0] for field in window[:5])
        return Window(past, future, past_marks, future_marks, origin, window.offset, window.scale)

    def __getitems__(self, indices: Sequence[int]) -> Window:
        """Cut a batch of windows by one indexing operation."""
        origin = torch.as_tensor([int(i) for i in indices]) + self.first
        past = origin[:, None] + torch.arange(-self.lookback, 0)  # (B, L)
        future = origin[:, None] + torch.arange(self.horizon)  # (B, H)
        return Window(
            self.values[past],
            self.values[future],
            self.marks[past],
            self.marks[future],
            origin,
            self.offset,
            self.scale,
        )


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

    @abstractmethod
    def read(self) -> Series:
        """Read the series."""

    @abstractmethod
    def borders(self, rows: int) -> tuple[int, int, int]:
        """Give the rows at which training, validation and test end."""

    @property
    def season(self) -> int | None:
        """Steps in a season, for the baselines; None where there is none."""
        return None

    @property
    def unit(self) -> str:
        """The unit of every channel; empty where they differ or it is not known."""
        return ""

    def setup(self, stage: str | None = None) -> None:
        """Read, split, standardise; done once.

        Raises:
            UserError: if a split is too short for a single window.
        """
        if self.series is not None:
            return
        series = self.read()
        ends = self.borders(len(series.values))
        self._check_lengths(series, ends)
        train = series.values[: ends[0]]
        self.mean = train.mean(axis=0)
        spread = train.std(axis=0)
        self.std = np.where(spread > 0, spread, 1.0)
        self.scaled: NDArray[np.float64] = (series.values - self.mean) / self.std
        marks = calendar_features(series.time, minutes=self.minute_marks)
        tensors = (torch.tensor(self.scaled, dtype=torch.float32), torch.from_numpy(marks))
        back = (
            torch.tensor(self.mean, dtype=torch.float32),
            torch.tensor(self.std, dtype=torch.float32),
        )
        self.ends = ends
        splits = [(self.lookback, ends[0]), (ends[0], ends[1]), (ends[1], ends[2])]
        self.train_set, self.val_set, self.test_set = (
            Windows(*tensors, self.lookback, self.horizon, first, end, *back)
            for first, end in splits
        )
        self.series = series

    def fingerprint(self) -> str:
        """Identify the standardised values, their times and names; hashed once."""
        self.setup()
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        assert self.series is not None
        found = hashlib.sha256(np.ascontiguousarray(self.scaled).tobytes())
        found.update(self.series.time.asi8.tobytes())
        found.update(repr(self.series.columns).encode())
        return found.hexdigest()

    @property
    def preprocessing(self) -> ForecastFiles | None:
        """Columns, frequency and scale, as fitted on the training rows."""
        if self.series is None:
            return None
        return ForecastFiles(
            columns=self.series.columns,
            time=self.series.time_column,
            freq=self.series.freq,
            lookback=self.lookback,
            horizon=self.horizon,
            mean=tuple(self.mean.tolist()),
            std=tuple(self.std.tolist()),
            gaps=self.gaps,
            minutes=self.minute_marks,
        )

    @property
    def gaps(self) -> Gaps:
        """How missing values are treated."""
        return "error"

    def baselines(self) -> dict[str, Baseline]:
        """Fit the baselines that the series allows, on the training rows."""
        self.setup()
        channels = self.scaled.shape[1]
        fitted = {}
        for name, model in baselines.available(self.season, self.lookback, channels).items():
            model.fit(self.scaled[: self.ends[2]], self.ends[1], self.season)
            fitted[name] = _judged(model, self.horizon)
        return fitted

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw test windows and the error by step ahead."""
        self.setup()
        assert self.series is not None
        return pictures.draw(
            predictions, folder, self.series, self.lookback, self.season, self.unit
        )

    def _check_lengths(self, series: Series, ends: tuple[int, int, int]) -> None:
        rows = {
            "training": (ends[0], self.lookback + self.horizon),
            "validation": (ends[1] - ends[0], self.horizon),
            "test": (ends[2] - ends[1], self.horizon),
        }
        for split, (have, need) in rows.items():
            if have < need:
                raise UserError(
                    f"{series.source}: the {split} part has {have} of {len(series.values)} rows,"
                    f" fewer than the {need} that one window takes (data.lookback={self.lookback},"
                    f" data.horizon={self.horizon}); use a longer series or a smaller"
                    " `--data.horizon`"
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
            "notes": list(self.series.repairs) if self.series is not None else [],
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


class OwnForecastingData(WindowData):
    """Any wide CSV of the user's own: one date column, one numeric column a channel.

    Args:
        train: the CSV file; without ``val`` and ``test`` it is split in time order.
        target: the columns to forecast, comma-separated; None takes every numeric column.
        time: the date column; None finds it.
        freq: the frequency as pandas names it (``h``, ``D``, ``W``, ``MS``); None infers it.
        gaps: what to do about missing values and rows: ``error``, ``interpolate``, ``ffill`` or
            ``keep``, which takes the rows as they stand.
        season_length: steps in a season, for the baselines; None infers it from the frequency.
        val_fraction: share of rows for validation.
        test_fraction: share of rows for the test, the last ones.
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
        target: str | None = None,
        time: str | None = None,
        freq: str | None = None,
        gaps: Gaps = "error",
        season_length: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
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
        self.train = train
        self.target = target
        self.time = time
        self.freq = freq
        self._gaps = gaps
        self.season_length = season_length
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Channels from the file; look-back, horizon and marks from the configuration."""
        series = read_csv(
            Path(config["train"]),
            time=config["time"],
            target=_columns(config["target"]),
            freq=config["freq"],
            gaps=config["gaps"],
        )
        return {
            "lookback": config["lookback"],
            "horizon": config["horizon"],
            "channels": len(series.columns),
            "marks": mark_count(config["minute_marks"]),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """The file's name; no published setting."""
        return {
            "dataset": Path(self.train).name,
            "setting": {},
            "notes": list(self.series.repairs) if self.series is not None else [],
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
        return self._gaps

    def read(self) -> Series:
        """Read the user's file."""
        return read_csv(
            Path(self.train),
            time=self.time,
            target=_columns(self.target),
            freq=self.freq,
            gaps=self._gaps,
        )

    def borders(self, rows: int) -> tuple[int, int, int]:
        """Split in time order."""
        test = int(self.test_fraction * rows)
        val = int(self.val_fraction * rows)
        return rows - test - val, rows - test, rows


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


def _columns(target: str | None) -> list[str] | None:
    return [name.strip() for name in target.split(",")] if target else None


def _entry(dataset: str) -> catalogue.Entry:
    entry = catalogue.entry(dataset)
    if entry.domain != "time_series":
        raise UserError(
            f"data.dataset={dataset!r} belongs to {entry.domain};"
            " see `pleiad list datasets --domain time_series`"
        )
    return entry
