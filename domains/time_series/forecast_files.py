"""The fitted preprocessing of a forecaster: it reads a user's file and writes the forecast."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import UserError
from core.openers import write_atomic
from domains.time_series import timestamps
from domains.time_series.calendar_features import calendar_features
from domains.time_series.columns import ID, PREDICTING, TARGET, Wanted, covariates, dates, ids
from domains.time_series.files import read_tables
from domains.time_series.scale import Moments, Standard, of_rows
from domains.time_series.series import Array, Gaps, Series, carried
from domains.time_series.tables import Table, listed, read_table
from domains.time_series.windows import Window, forecast

BATCH = 256
"""Series that are forecast at a time."""


@dataclass(frozen=True)
class ForecastFiles:
    """What was fitted on the training rows; it travels in ``model/``.

    Attributes:
        columns: C names of the channels.
        time: the name of the date column.
        freq: the step as pandas names it.
        lookback: L, the steps that the network sees.
        horizon: H, the steps that it forecasts.
        mean: S times C means of the training rows, series by series.
        std: S times C standard deviations of the training rows, 1 for a constant channel.
        gaps: what to do about missing rows and values.
        minutes: whether the calendar features, for a network that takes them, begin with the
            minute of the hour.
        ids: the names of S series with a forecast each; one empty name where the channels are
            forecast together.
        id: the name of the column of ids; empty where the file had one column a series.
        season: steps in a season, to forecast series that are too short for the network.
        known: columns of covariates that are known in advance.
        past: columns of covariates that are known up to now.
        static: columns of covariates that are one value a series.
        levels: the words that covariates of text had.
        standards: mean and standard deviation of each kind of covariates.
        half_widths: from a level in percent to half the width of its interval for each step (and
            channel), in standard deviations; None where none were measured.
    """

    columns: tuple[str, ...]
    time: str
    freq: str
    lookback: int
    horizon: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gaps: Gaps = "error"
    minutes: bool = False
    ids: tuple[str, ...] = ("",)
    id: str = ""
    season: int = 1
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    levels: Mapping[str, list[str]] = field(default_factory=dict)
    standards: tuple[Mapping[str, list[float]], ...] = ()
    half_widths: Mapping[str, list[list[float]]] | None = None

    options: ClassVar[Mapping[str, str]] = {
        "future": "a CSV of the covariates that are known in advance, one row a series and step",
        "levels": "levels of intervals in percent, such as 80,95",
    }

    @classmethod
    def fitted(
        cls, series: Series, moments: Moments, standards: list[Standard], **given: Any
    ) -> "ForecastFiles":
        """Keep what the training series say."""
        beside = series.covariates
        names: list[dict[str, None]] = [{}, {}, {}]
        levels: dict[str, list[str]] = {}
        for kind, columns in enumerate(beside.names if beside else ()):
            for name in columns:
                column, equals, word = name.partition("=")
                names[kind][column] = None
                if equals:
                    levels.setdefault(column, []).append(word)
        return cls(
            columns=series.columns,
            time=series.time_column,
            freq=series.freq,
            mean=tuple(moments.mean.flatten().tolist()),
            std=tuple(moments.std.flatten().tolist()),
            ids=series.ids,
            id=series.id_column,
            known=tuple(names[0]),
            past=tuple(names[1]),
            static=tuple(names[2]),
            levels=levels,
            standards=tuple(s.to_json() for s in standards) if beside else (),
            **given,
        )

    def to_json(self) -> dict[str, Any]:
        """Give plain values, from which :meth:`from_json` rebuilds it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "ForecastFiles":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: naming the key that is unknown, missing or of a wrong value.
        """
        where = "preprocessing.json"
        if not isinstance(mapping, Mapping):
            raise UserError(f"{where}: must hold a mapping")
        for name in sorted(mapping.keys() ^ {part.name for part in fields(cls)}):
            raise UserError(f"{where}: {name!r} is {'unknown' if name in mapping else 'missing'}")
        for name, (fits, wording) in _CHECKS.items():
            if not fits(mapping[name]):
                raise UserError(f"{where}: {name}={mapping[name]!r} must be {wording}")
        values: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in mapping.items()
        }
        if (
            not len(values["columns"]) * len(values["ids"])
            == len(values["mean"])
            == len(values["std"])
        ):
            raise UserError(f"{where}: columns, mean and std differ in length")
        return cls(**values)

    @property
    def joint(self) -> bool:
        """Whether the channels are forecast together."""
        return self.ids == ("",)

    def predict_file(
        self,
        network: nn.Module,
        input: Path,
        output: Path,
        plot: Path | None = None,
        *,
        future: str | None = None,
        levels: str | None = None,
    ) -> str:
        """Forecast the steps after the last row of each series, in the unit of the file.

        Args:
            network: maps standardised past (B, L, C) to (B, H, C).
            input: a CSV with the columns of the training file, one a series or all in one with
                their ids; any others are left out.
            output: the CSV to write, in the form of the input.
            plot: a PNG to draw.
            future: a CSV of the covariates that are known in advance.
            levels: the levels of intervals in percent, comma-separated.

        Returns:
            One line about what was done.

        Raises:
            UserError: if the file lacks columns or rows, or the forecast is not finite.
        """
        for path in (input, *([Path(future)] if future else [])):
            if output.exists() and path.exists() and output.samefile(path):
                raise UserError(f"--output {output} is the input file; give another name")
        wanted_levels = self._levels(levels)
        table = read_table(input)
        long = self._is_long(table)
        series, notes = self._read(table, long)
        times = [
            timestamps.continued(series.time[end - 1], series.freq, self.horizon)
            for end in series.starts[1:]
        ]
        known, more = self._known(series, times, future)
        notes += more
        moments, strange = self._moments(series, input.stem)
        if strange:
            notes.append(
                f"{len(strange):,} series that training has not seen are scaled by their own rows:"
                f" {listed(strange, 5)}"
            )
        values, short = self._forecast(network, series, times, known, moments)
        blank = self._blank(series, values)
        if len(blank):
            notes.append(
                f"{len(blank):,} series have no known value and are left empty:"
                f" {listed([series.ids[i] for i in blank], 5)}"
            )
        short = np.setdiff1d(short, blank)
        if len(short):
            notes.append(
                f"{len(short):,} series shorter than {self.lookback} steps are forecast by their"
                f" last season: {listed([series.ids[i] for i in short], 5)}"
            )
        widths = {level: self._width(level) * moments.std[:, None] for level in wanted_levels}
        for width in widths.values():
            width[[*short, *blank]] = np.nan
        model = type(getattr(network, "network", network)).__name__
        frame = _frame(series, times, values, widths, model, long, _given(table))
        if len(short) + len(blank) and long:
            flags = np.full(len(series.ids), "", object)
            flags[short] = "seasonal repeat: too short"
            flags[blank] = "no known value"
            frame["note"] = np.repeat(flags, self.horizon)
        write_atomic(output, frame.to_csv(index=False, float_format="%.8g"))
        if plot is not None:
            from domains.time_series.pictures import forecast_picture

            forecast_picture(plot, series, times, values, widths)
        first, last = timestamps.written(
            pd.DatetimeIndex([min(t[0] for t in times), max(t[-1] for t in times)])
        )
        shown = "series" if not self.joint else "columns"
        count = len(series.ids) if not self.joint else len(series.columns)
        told = f"{output}: {self.horizon} steps of {count:,} {shown}, {first} to {last}"
        return told + (f" ({'; '.join(notes)})" if notes else "")

    def _levels(self, levels: str | None) -> list[int]:
        if levels is None:
            return []
        if self.half_widths is None:
            raise UserError(
                f"--levels {levels}: the model holds no intervals; train it again with validation"
            )
        wanted = [part.strip().removesuffix("%") for part in str(levels).split(",")]
        for part in wanted:
            if part not in self.half_widths:
                least, most = min(map(int, self.half_widths)), max(map(int, self.half_widths))
                raise UserError(
                    f"--levels {levels}: {part!r} must be a whole number of percent from {least}"
                    f" to {most}, such as 80,95"
                )
        return sorted({int(part) for part in wanted})

    def _width(self, level: int) -> Array:
        """Half the width (1, H, C) of a level's interval."""
        assert self.half_widths is not None
        rows = self.half_widths[str(level)]
        channels = len(self.columns)
        return np.array([row * channels if len(row) == 1 else row for row in rows])[None]

    def _is_long(self, table: Table) -> bool:
        """Say whether the file holds its series below one another, with ids."""
        if self.id and self.id in table.frame:
            return True
        return ID in table.frame and ID not in self.columns

    def _read(self, table: Table, long: bool) -> tuple[Series, list[str]]:
        """Read the series of a file in the form that the model takes."""
        frame = table.frame
        time = self.time if self.time in frame else None
        channel = self.columns[0] if not self.joint else TARGET
        target: list[str] | None = [channel] if channel in frame else None
        if not long:
            target = list(self.columns) if self.joint else None
            missing = [name for name in self.columns if name not in frame] if self.joint else []
            if missing:
                raise UserError(
                    f"{table.path}: missing {listed(missing)}, which the model was trained on;"
                    f" it has {listed(frame.columns)}"
                )
        wanted = Wanted(
            time=time,
            id=(self.id if self.id in frame else ID) if long else None,
            target=target,
            known=self.known,
            past=self.past,
            static=self.static,
            levels=dict(self.levels),
        )
        series = read_tables([table], wanted, freq=self.freq, gaps=self.gaps, advice=PREDICTING)
        notes = list(series.repairs)
        if self.joint and long:
            series = self._together(series)
        elif not self.joint and not long:
            series = series.apart(self.columns[0])
        rows = series.lengths
        if self.joint and rows[0] < self.lookback:
            raise UserError(
                f"{table.path}: {rows[0]} rows are fewer than the {self.lookback} that the"
                " model looks back on; give it a longer file"
            )
        used = {series.time_column, series.id_column, *series.columns, *series.ids}
        used |= {*self.known, *self.past, *self.static, *((target or []) if long else [])}
        extra = [str(name) for name in frame if name not in used and name != channel]
        if extra:
            notes.append(f"left out: {listed(extra)}")
        return series, notes

    def _together(self, series: Series) -> Series:
        """Make the channels that the model knows of series with these ids."""
        if missing := [name for name in self.columns if name not in series.ids]:
            raise UserError(
                f"{series.source}: missing the series {listed(missing, 5)}, which the model was"
                " trained on"
            )
        if not series.aligned:
            raise UserError(
                f"{series.source}: the series begin or end at different times, but the model"
                " forecasts them together; fill in the missing rows"
            )
        whole = series.together()
        order = [whole.columns.index(name) for name in self.columns]
        return replace(whole, values=whole.values[:, order], columns=self.columns)

    def _known(
        self, series: Series, times: list[pd.DatetimeIndex], future: str | None
    ) -> tuple[Array | None, list[str]]:
        """Read what is known of the steps to forecast (S, H, K), standardised, with notes."""
        if not self.known:
            if future is not None:
                raise UserError(
                    f"--future {future}: the model takes no covariates of the future; leave it out"
                )
            return None, []
        if future is None:
            raise UserError(
                f"the model needs {listed(self.known)} of the steps to forecast; give them by"
                " --future PLAN.csv"
            )
        table = read_table(Path(future))
        wanted = Wanted(
            time=self.time if self.time in table.frame else None,
            id=series.id_column if series.id_column in table.frame else None,
            known=self.known,
            levels=dict(self.levels),
        )
        _, when, _ = dates(table, wanted, PREDICTING)
        named = ids(table, wanted)
        if named and series.ids == ("",):
            raise UserError(
                f"{table.path}: the column {named[0]!r} names series, but the input is one series"
                " without a name; leave the column out, and keep one row a time step"
            )
        values, names, notes = covariates(table, wanted, self.levels)
        who = named[1].to_numpy() if named else np.full(len(when), "")
        keys = pd.MultiIndex.from_arrays([who, when])
        if keys.has_duplicates:
            row = int(np.argmax(keys.duplicated()))
            raise UserError(
                f"{table.path}:{table.line(row)}: {' '.join(map(str, keys[row]))} stands twice"
            )
        mine = series.ids if named else [""] * len(series.ids)
        asked = pd.MultiIndex.from_arrays(
            [np.repeat(mine, self.horizon), np.concatenate([t.to_numpy() for t in times])]
        )
        place = keys.get_indexer(asked)
        empty = (place < 0) | np.isnan(values[place]).any(1)
        if empty.any():
            whose = np.repeat(series.ids, self.horizon)[empty]
            days = timestamps.written(pd.DatetimeIndex(asked.get_level_values(1)[empty]))
            rows = [f"{name} {day}".strip() for name, day in zip(whose, days, strict=True)]
            none = ""
            if (place < 0).all():
                span = timestamps.written(pd.DatetimeIndex([when.min(), when.max()]))
                none = f"; it covers {span[0]} to {span[1]} only"
            raise UserError(
                f"{table.path}: {listed(self.known)} missing for {len(rows):,} of {len(asked):,}"
                f" rows to forecast: {listed(rows, 5)}{none}"
            )
        scaled = self._standard(0)(values[place])
        return scaled.reshape(len(series.ids), self.horizon, len(names)), notes

    def _standard(self, kind: int) -> Standard:
        given = self.standards[kind]
        return Standard(np.array(given["mean"]), np.array(given["std"]))

    def _moments(self, series: Series, stem: str) -> tuple[Moments, list[str]]:
        """Find the scale (S, C) of each series of a file, and those that are not known.

        A series of one of many wide files is known by the name of the file, too.
        """
        shape = (len(self.ids), len(self.columns))
        mean, std = np.reshape(self.mean, shape), np.reshape(self.std, shape)
        if self.joint:
            return Moments(mean, std, std), []
        place = {name: number for number, name in enumerate(self.ids)}
        found, strange = [], []
        for number, name in enumerate(series.ids):
            names = [name, f"{stem}/{name}", *([stem] if len(series.ids) == 1 else [])]
            if known := [place[other] for other in names if other in place]:
                found.append((mean[known[0]], std[known[0]]))
            else:
                rows = slice(series.starts[number], series.starts[number + 1])
                own = of_rows(series.values[rows], self.season)
                found.append((own.mean, own.std))
                strange.append(name)
        means, stds = (np.stack(part) for part in zip(*found, strict=True))
        return Moments(means, stds, stds), strange

    def _forecast(
        self,
        network: nn.Module,
        series: Series,
        times: list[pd.DatetimeIndex],
        known: Array | None,
        moments: Moments,
    ) -> tuple[Array, NDArray[np.int64]]:
        """Forecast (S, H, C) for the times after the end of each series.

        Returns:
            The forecasts, and the numbers of the series that are too short for the network.
        """
        filled = carried(series.values, series.starts)  # NaN where a series has no known value
        short = np.flatnonzero(series.lengths < self.lookback)
        result = np.empty((len(series.ids), self.horizon, len(self.columns)))
        for number in short:
            rows = filled[series.starts[number] : series.starts[number + 1]]
            period = self.season if len(rows) >= self.season else 1
            repeated = rows[len(rows) - period + np.arange(self.horizon) % period]
            result[number] = np.nan_to_num(repeated)
        for batch, chosen in self._batches(series, filled, times, known, moments):
            scaled = _run(network, batch)
            result[chosen] = scaled * moments.std[chosen, None] + moments.mean[chosen, None]
        if not np.isfinite(result).all():
            raise UserError(f"{series.source}: the model's forecast is not finite; train it anew")
        return result, short

    def _marks(self, times: NDArray[np.datetime64]) -> NDArray[np.float32]:
        """Describe times (B, T) by their calendar features (B, T, M)."""
        features = calendar_features(pd.DatetimeIndex(times.ravel()), self.minutes)
        return features.reshape(*times.shape, -1)

    def _blank(self, series: Series, values: Array) -> NDArray[np.int64]:
        """Empty the forecasts (S, H, C) of series without a known value, and give their numbers.

        Where channels are forecast together, the network has seen the mean of such a channel.
        """
        unknown = np.logical_and.reduceat(np.isnan(series.values), series.starts[:-1]).all(1)
        values[unknown] = np.nan
        return np.flatnonzero(unknown)

    def _batches(
        self,
        series: Series,
        filled: Array,
        times: list[pd.DatetimeIndex],
        known: Array | None,
        moments: Moments,
    ) -> Iterator[tuple[Window, NDArray[np.int64]]]:
        """Cut the last window of each series that is long enough."""
        beside = series.covariates
        able = np.flatnonzero(series.lengths >= self.lookback)
        for first in range(0, len(able), BATCH):
            chosen = able[first : first + BATCH]
            rows = series.starts[chosen + 1, None] + np.arange(-self.lookback, 0)  # (B, L)
            past = (filled[rows] - moments.mean[chosen, None]) / moments.std[chosen, None]
            past = np.nan_to_num(past)
            seen = self._marks(series.time.to_numpy()[rows])
            ahead = self._marks(np.stack([times[n].to_numpy() for n in chosen]))
            covered: list[Array] = [np.zeros((len(chosen), 0))] * 3
            if beside is not None:
                both = self._standard(0)(beside.known[rows])
                if known is not None:
                    both = np.concatenate([both, known[chosen]], 1)
                static = self._standard(2)(beside.static[chosen])
                covered = [both, self._standard(1)(beside.past[rows]), static]
            arrays = [past, np.empty((len(chosen), self.horizon, 0)), seen]
            arrays += [ahead, chosen, moments.mean, moments.std, chosen, moments.naive]
            tensors = [torch.as_tensor(part) for part in (*arrays, *covered)]
            floats = [t.float() if t.is_floating_point() else t for t in tensors]
            yield Window(*floats), chosen


def _given(table: Table) -> list[str]:
    """The columns of a file in their order."""
    return [str(name) for name in table.frame]


def _frame(
    series: Series,
    times: list[pd.DatetimeIndex],
    values: Array,
    widths: Mapping[int, Array],
    model: str,
    long: bool,
    order: list[str],
) -> pd.DataFrame:
    """Lay out forecasts (S, H, C) as the file has its series; intervals as Nixtla's tools do."""
    if values.shape[2] > 1 or series.ids == ("",):  # one series of many channels
        names = series.columns
        columns = {name: values[0, :, c] for c, name in enumerate(names)}
        spans = {
            name: {level: w[0, :, c] for level, w in widths.items()} for c, name in enumerate(names)
        }
    else:
        names = series.ids
        columns = {name: values[s, :, 0] for s, name in enumerate(names)}
        spans = {
            name: {level: w[s, :, 0] for level, w in widths.items()} for s, name in enumerate(names)
        }
    every = times if len(times) > 1 else times * len(names)
    if long:
        frame = pd.DataFrame({series.id_column: np.repeat(names, len(every[0]))})
        frame[series.time_column] = timestamps.written(
            pd.DatetimeIndex(np.concatenate([t.to_numpy() for t in every]))
        )
        frame[model] = np.concatenate([columns[name] for name in names])
        for level in widths:
            width = np.concatenate([spans[name][level] for name in names])
            frame[f"{model}-lo-{level}"] = frame[model] - width
            frame[f"{model}-hi-{level}"] = frame[model] + width
        return frame
    frame = pd.DataFrame({series.time_column: timestamps.written(every[0])})
    for name in sorted(names, key=lambda name: order.index(name) if name in order else -1):
        frame[name] = columns[name]
        for level in widths:
            frame[f"{name}-lo-{level}"] = columns[name] - spans[name][level]
            frame[f"{name}-hi-{level}"] = columns[name] + spans[name][level]
    return frame


def _run(network: nn.Module, batch: Window) -> Array:
    """Call a network on windows, for forecasts (B, H, C)."""
    parameter = next(network.parameters(), None)
    device = parameter.device if parameter is not None else None
    network.eval()
    with torch.inference_mode():
        predicted: Tensor = forecast(network, Window(*(part.to(device) for part in batch)))
    return predicted.double().cpu().numpy()


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _words(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and 0 < len(value) == len(set(map(str, value)))
        and all(isinstance(word, str) for word in value)
    )


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(word, str) for word in value)


def _finite(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        type(number) in (int, float) and math.isfinite(number) for number in value
    )


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "columns": (_words, "a list of different names"),
    "time": (lambda value: isinstance(value, str), "a name"),
    "freq": (timestamps.is_frequency, "a frequency as pandas names it"),
    "lookback": (_whole, "a whole number above 0"),
    "horizon": (_whole, "a whole number above 0"),
    "mean": (_finite, "a list of finite numbers"),
    "std": (lambda value: _finite(value) and min(value, default=0) > 0, "numbers above 0"),
    "gaps": (lambda value: value in get_args(Gaps), f"one of {', '.join(get_args(Gaps))}"),
    "minutes": (lambda value: isinstance(value, bool), "true or false"),
    "ids": (_words, "a list of different names"),
    "id": (lambda value: isinstance(value, str), "a name or empty"),
    "season": (_whole, "a whole number above 0"),
    **dict.fromkeys(("known", "past", "static"), (_names, "a list of names")),
    "levels": (lambda value: isinstance(value, Mapping), "a mapping from columns to words"),
    "standards": (lambda value: isinstance(value, list | tuple), "a list"),
    "half_widths": (
        lambda value: value is None or isinstance(value, Mapping),
        "a mapping from levels to widths, or null",
    ),
}
