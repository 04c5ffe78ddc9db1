"""Wide CSV files of one date column and one numeric column a channel: read, forecast, show.

A repair is never silent: what was sorted, filled in or taken for granted stands in
``Series.repairs``. Lines are counted from 1, the header included.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import UserError
from core.openers import write_atomic
from domains.time_series import timestamps
from domains.time_series.calendar_features import calendar_features
from domains.time_series.tables import Table, listed, read_table

Array = NDArray[np.float64]
Gaps = Literal["error", "interpolate", "ffill", "keep"]
DESCRIBED = 12
"""Columns that :func:`show` describes one by one."""


@dataclass(frozen=True, eq=False)
class Series:
    """A multivariate series of T regular steps and C channels.

    Attributes:
        values: (T, C), in the unit of the file.
        time: the T steps.
        columns: C names.
        freq: the step as pandas names it, such as ``h``.
        repairs: what was mended or taken for granted.
        source: the file.
        time_column: the name of the date column.
    """

    values: Array
    time: pd.DatetimeIndex
    columns: tuple[str, ...]
    freq: str
    repairs: tuple[str, ...]
    source: str
    time_column: str


def read_csv(
    path: str | Path,
    *,
    time: str | None = None,
    target: str | Sequence[str] | None = None,
    freq: str | None = None,
    gaps: Gaps = "error",
) -> Series:
    """Read a wide CSV of any origin.

    Fields may be separated by comma, semicolon, tab or bar; a decimal comma is understood where
    commas do not separate fields. Rows out of order are sorted. A constant column is kept.

    Args:
        path: the file.
        time: the date column; None finds it by its name, or as the only column that holds dates.
        target: the columns to keep, in this order; None keeps every numeric column.
        freq: the step as pandas names it; None infers it.
        gaps: what to do about missing rows and values: refuse them, draw a line between their
            neighbours, or repeat the value before; the first value is repeated backwards. ``keep``
            takes the rows as they stand, one after the other, whatever their times are.

    Raises:
        UserError: naming file, line and column, and the fix.
    """
    if gaps not in get_args(Gaps):
        raise UserError(f"data.gaps={gaps!r} must be one of {', '.join(get_args(Gaps))}")
    wanted = [target] if isinstance(target, str) else target
    return _read(read_table(Path(path)), time, wanted, freq, gaps, _TRAINING)


@dataclass(frozen=True)
class ForecastFiles:
    """The fitted preprocessing of a forecasting network; it travels in ``model/``.

    Attributes:
        columns: C names of the channels.
        time: the name of the date column.
        freq: the step as pandas names it.
        lookback: L, the steps that the network sees.
        horizon: H, the steps that it forecasts.
        mean: C means of the training rows.
        std: C standard deviations of the training rows, 1 for a constant column.
        gaps: what to do about missing rows and values.
        minutes: whether the calendar features, for a network that takes them, begin with the
            minute of the hour.
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
        for name in sorted(mapping.keys() ^ {field.name for field in fields(cls)}):
            raise UserError(f"{where}: {name!r} is {'unknown' if name in mapping else 'missing'}")
        for name, (fits, wording) in _CHECKS.items():
            if not fits(mapping[name]):
                raise UserError(f"{where}: {name}={mapping[name]!r} must be {wording}")
        lists = {name: tuple(mapping[name]) for name in ("columns", "mean", "std")}
        if len({len(values) for values in lists.values()}) != 1:
            raise UserError(f"{where}: columns, mean and std differ in length")
        return cls(**{**mapping, **lists})

    def scale(self, values: Array) -> Array:
        """Standardise values (T, C)."""
        scaled: Array = (values - np.array(self.mean)) / np.array(self.std)
        return scaled

    def unscale(self, values: Array) -> Array:
        """Take standardised values (T, C) back to the unit of the file."""
        raw: Array = values * np.array(self.std) + np.array(self.mean)
        return raw

    def predict_file(
        self, network: nn.Module, input: Path, output: Path, plot: Path | None = None
    ) -> str:
        """Forecast the steps after the last row of a file, in the unit of the file.

        Args:
            network: maps standardised past (1, L, C) to (1, H, C).
            input: a CSV with the columns of the training file; any others are left out.
            output: the CSV to write.
            plot: a PNG to draw.

        Returns:
            One line about what was done.

        Raises:
            UserError: if the file lacks columns or rows, or the forecast is not finite.
        """
        if output.exists() and output.samefile(input):
            raise UserError(f"--output {output} is the input file; give another name")
        table = read_table(input)
        if missing := [name for name in self.columns if name not in table.frame]:
            raise UserError(
                f"{input}: missing {listed(missing)}, which the model was trained on;"
                f" it has {listed(table.frame.columns)}"
            )
        time = self.time if self.time in table.frame else None
        series = _read(table, time, self.columns, self.freq, self.gaps, _PREDICTING)
        if len(series.values) < self.lookback:
            raise UserError(
                f"{input}: {len(series.values)} rows are fewer than the {self.lookback} that the"
                " model looks back on; give it a longer file"
            )
        future = timestamps.continued(series.time[-1], self.freq, self.horizon)
        forecast = self._forecast(network, series, future)
        frame = pd.DataFrame(forecast, columns=list(self.columns))
        dates = timestamps.written(future)
        frame.insert(0, series.time_column, dates)
        write_atomic(output, frame.to_csv(index=False, float_format="%.8g"))
        if plot is not None:
            from domains.time_series.pictures import forecast_picture

            forecast_picture(plot, series, future, forecast)
        extra = [name for name in table.frame if name not in (series.time_column, *self.columns)]
        notes = [*series.repairs, *([f"left out: {listed(extra)}"] if extra else [])]
        told = f"{output}: {len(future)} steps of {len(self.columns)} columns, {dates[0]} to"
        return f"{told} {dates[-1]}" + (f" ({'; '.join(notes)})" if notes else "")

    def _forecast(self, network: nn.Module, series: Series, future: pd.DatetimeIndex) -> Array:
        """Forecast (H, C) for the times ``future`` (H,) after the end of a series."""
        past = torch.tensor(self.scale(series.values[-self.lookback :]), dtype=torch.float32)
        inputs = [past]  # (L, C)
        if getattr(network, "takes_marks", False):
            seen = series.time[-self.lookback :]
            inputs += [torch.from_numpy(calendar_features(t, self.minutes)) for t in (seen, future)]
        forecast = self.unscale(_run(network, inputs))
        if not np.isfinite(forecast).all():
            raise UserError(f"{series.source}: the model's forecast is not finite; train it anew")
        return forecast


def show(path: Path, picture: Path | None) -> dict[str, str]:
    """Describe a file: its size, range, step, gaps and columns; draw it where ``picture`` says.

    Raises:
        UserError: if it is not a CSV with a date column and numbers.
    """
    regular = _regular(read_table(path), None, None, None, _TRAINING)
    series = _filled(regular, "interpolate", _TRAINING)
    missing = np.isnan(regular.series.values)
    first, last = timestamps.written(series.time[[0, -1]])
    facts = {
        "rows": f"{len(series.values):,}",
        "columns": f"{len(series.columns)}: {listed(series.columns)}",
        "range": f"{first} to {last} (column {series.time_column!r})",
        "frequency": series.freq,
        "missing": f"{missing.sum():,} of {missing.size:,} values",
    }
    if regular.series.repairs:
        facts["notes"] = "; ".join(regular.series.repairs)
    for number, name in enumerate(series.columns[:DESCRIBED]):
        known = regular.series.values[~missing[:, number], number]
        facts[f"column {name}"] = (
            f"{known.min():.6g} to {known.max():.6g}, mean {known.mean():.6g},"
            f" standard deviation {known.std():.6g}"
        )
    if picture is not None:
        from domains.time_series.pictures import series_picture

        series_picture(picture, series)
    return facts


class _Advice(NamedTuple):
    """What a message may advise: the options of training do not exist when predicting."""

    time: str
    freq: str
    gaps: str


_TRAINING = _Advice(
    time="name it by `--data.time=COLUMN`",
    freq="state the step by `--data.freq`, such as `--data.freq=h`",
    gaps="fill them in, or pass `--data.gaps=interpolate` or `--data.gaps=ffill`",
)
_PREDICTING = _Advice(
    time="give it its name in the training file",
    freq="keep to the step of the training file",
    gaps="fill them in, or train with `--data.gaps=interpolate`",
)


class _Regular(NamedTuple):
    """A series on its full grid, NaN where the file has nothing, and the file's line of each row.

    The line is 0 where the whole row is missing.
    """

    series: Series
    lines: NDArray[np.int64]


def _read(
    table: Table,
    time: str | None,
    target: Sequence[str] | None,
    freq: str | None,
    gaps: Gaps,
    advice: _Advice,
) -> Series:
    """Find the series in a table, and treat what is missing."""
    if gaps != "keep":
        return _filled(_regular(table, time, target, freq, advice), gaps, advice)
    time_column, times, notes = _dates(table, time, advice)
    columns, values, more = _channels(table, time_column, target)
    freq = freq or timestamps.frequency(times, freq, str(table.path), advice.freq)
    kept = (*table.notes, *notes, *more, "rows were taken as they stand")
    series = Series(values, times, columns, freq, kept, str(table.path), time_column)
    lines = table.frame.index.to_numpy() + table.first
    return _filled(_Regular(series, lines), "error", advice)


def _regular(
    table: Table,
    time: str | None,
    target: Sequence[str] | None,
    freq: str | None,
    advice: _Advice,
) -> _Regular:
    """Find the dates, the numbers and the step, and set every row in its place."""
    time_column, times, notes = _dates(table, time, advice)
    columns, values, more = _channels(table, time_column, target)
    lines = table.frame.index.to_numpy() + table.first
    notes = [*table.notes, *notes, *more]
    if not times.is_monotonic_increasing:
        order = np.argsort(times, kind="stable")
        times, values, lines = times[order], values[order], lines[order]
        notes.append("rows were not in the order of time and were sorted")
    repeated = times.duplicated()
    if repeated.any():
        row = int(np.argmax(repeated))
        raise UserError(
            f"{table.path}:{lines[row]}: {timestamps.written(times[[row]])[0]} stands in line"
            f" {lines[row - 1]} already; {repeated.sum():,} times are repeated; keep one row a"
            " time step and one column a series, with date and time of day in one column"
        )
    freq = timestamps.frequency(times, freq, str(table.path), advice.freq)
    grid = timestamps.grid(times, freq)
    place = np.full(len(times), -1) if grid is None else grid.get_indexer(times)
    if grid is None or (place < 0).any():
        row = int(np.argmax(place < 0))
        raise UserError(
            f"{table.path}:{lines[row]}: {timestamps.written(times[[row]])[0]} and the rows around"
            f" it do not keep to the step {freq!r}; {advice.freq}"
        )
    on_grid = np.full((len(grid), len(columns)), np.nan)
    line_of = np.zeros(len(grid), np.int64)
    on_grid[place], line_of[place] = values, lines
    series = Series(on_grid, grid, columns, freq, tuple(notes), str(table.path), time_column)
    return _Regular(series, line_of)


def _dates(
    table: Table, time: str | None, advice: _Advice
) -> tuple[str, pd.DatetimeIndex, list[str]]:
    """Find and read the date column."""
    path, frame = table.path, table.frame
    lower = {str(name).lower(): str(name) for name in frame}
    named = [lower[name] for name in timestamps.NAMES if name in lower]
    if time is not None:
        if time not in frame:
            raise UserError(
                f"{path}: --data.time={time}: there is no such column; there is"
                f" {listed(frame.columns)}"
            )
        named = [time]
    found = {name: times for name in named if (times := timestamps.parse(frame[name], True))}
    if not found and time is None:
        others = {str(name): timestamps.parse(frame[name], False) for name in frame}
        found = {name: times for name, times in others.items() if times is not None}
        if len(found) > 1:
            raise UserError(f"{path}: the columns {listed(found)} all hold dates; {advice.time}")
    if not found and named:
        raise UserError(
            f"{path}:{table.line(0)}: column {named[0]!r}: {str(frame[named[0]].iloc[0])!r} is not"
            " a date; write dates as 2024-01-31 or 2024-01-31 13:00"
        )
    if not found:
        raise UserError(f"{path}: no date column among {listed(frame.columns)}; {advice.time}")
    name, times = next(iter(found.items()))
    if times.values.isna().any():
        row = int(np.argmax(times.values.isna()))
        cell = frame[name].iloc[row]
        fault = "no date" if pd.isna(cell) else f"{str(cell)!r} is not a date like the others"
        raise UserError(
            f"{path}:{table.line(row)}: column {name!r}: {fault}; write it like"
            f" {frame[name].iloc[int(np.argmax(times.values.notna()))]!s}"
        )
    notes = [times.note] if times.note else []
    if times.zones is not None:
        differs = times.zones.fillna("none") != times.zones.fillna("none").iloc[0]
        if differs.any():
            row = int(np.argmax(differs))
            raise UserError(
                f"{path}:{table.line(row)}: column {name!r}: {frame[name].iloc[row]} is in another"
                f" time zone than {frame[name].iloc[0]}; write all times in one zone, such as UTC"
            )
        notes.append(f"times are in the zone {times.zones.iloc[0]}, which was left out")
    return name, pd.DatetimeIndex(times.values), notes


def _channels(
    table: Table, time_column: str, target: Sequence[str] | None
) -> tuple[tuple[str, ...], Array, list[str]]:
    """Read the columns to keep as numbers (T, C)."""
    candidates = [str(name) for name in table.frame if name != time_column]
    for name in target or ():
        if name not in candidates:
            raise UserError(
                f"{table.path}: --data.target={name}: there is no such column; there is"
                f" {listed(candidates)}"
            )
    columns: dict[str, Array] = {}
    notes: dict[str, None] = {}
    for name in candidates if target is None else target:
        read = table.numbers(name)
        if read is None and target is not None:
            raise UserError(f"{table.path}: column {name!r} holds no numbers; leave it out")
        if read is None:
            notes[f"column {name!r} holds no numbers and was left out"] = None
            continue
        columns[name], note = read
        infinite = np.isinf(columns[name])
        if infinite.any():
            raise UserError(
                f"{table.path}:{table.line(int(np.argmax(infinite)))}: column {name!r}:"
                f" {infinite.sum():,} infinite values, the first here; correct them, or leave the"
                " cells empty"
            )
        if len(columns[name]) > 1 and np.ptp(columns[name]) == 0:
            note = f"column {name!r} is constant"
        if note:
            notes[note] = None
    if not columns:
        raise UserError(f"{table.path}: no column holds numbers besides the dates")
    return tuple(columns), np.stack(list(columns.values()), 1), list(notes)


def _filled(regular: _Regular, gaps: Gaps, advice: _Advice) -> Series:
    """Treat what is missing."""
    series, lines = regular
    missing = np.isnan(series.values)
    if not missing.any():
        return series
    absent = lines == 0
    holes = missing[~absent]
    if gaps == "error" and absent.any():
        row = int(np.argmax(absent))
        raise UserError(
            f"{series.source}:{lines[row - 1]}: {absent.sum():,} rows are missing, the first after"
            f" this line ({timestamps.written(series.time[[row]])[0]}, step {series.freq});"
            f" {advice.gaps}"
        )
    if gaps == "error":
        row, column = (int(found[0]) for found in np.nonzero(missing))
        counted = zip(series.columns, holes.sum(0), strict=True)
        told = listed(f"{name} ({count:,})" for name, count in counted if count)
        raise UserError(
            f"{series.source}:{lines[row]}: {holes.sum():,} missing values in {told}, the first"
            f" here in column {series.columns[column]!r}; {advice.gaps}"
        )
    frame = pd.DataFrame(series.values)
    filled = frame.interpolate(limit_direction="both") if gaps == "interpolate" else frame.ffill()
    counts = {"rows": int(absent.sum()), "values": int(holes.sum())}
    told = " and ".join(f"{count:,} missing {what}" for what, count in counts.items() if count)
    how = "interpolated" if gaps == "interpolate" else "filled by the value before"
    note = f"{told} were {how}"
    return replace(series, values=filled.bfill().to_numpy(), repairs=(*series.repairs, note))


def _run(network: nn.Module, inputs: Sequence[Tensor]) -> Array:
    """Call a network on one window, past (L, C) and marks, for a forecast (H, C)."""
    parameter = next(network.parameters(), None)
    device = parameter.device if parameter is not None else None
    network.eval()
    with torch.inference_mode():
        forecast: Tensor = network(*(tensor[None].to(device) for tensor in inputs))[0]  # (H, C)
    return forecast.double().cpu().numpy()


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _words(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and 0 < len(value) == len(set(map(str, value)))
        and all(isinstance(word, str) for word in value)
    )


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
}
