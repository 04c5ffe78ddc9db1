"""Read any wide CSV of series, and write forecasts back in the same columns and units.

One column holds dates, every other numeric column is a channel. What is wrong with a file is told
in one line, with column, line and fix; what is repaired is listed in ``Series.repairs``.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import UserError
from core.openers import write_atomic
from domains.time_series.calendar_features import calendar_features

Array = NDArray[np.float64]
Gaps = Literal["error", "interpolate", "ffill"]
LIMIT_BYTES = 2 * 2**30
TIME_NAMES = ("date", "datetime", "timestamp", "time", "ds", "day", "week", "month", "index")


@dataclass(frozen=True)
class Series:
    """Values (T, C) at regular time steps, in the unit of the file."""

    values: Array
    time: pd.DatetimeIndex
    columns: tuple[str, ...]
    freq: str
    time_column: str
    source: str
    repairs: tuple[str, ...] = ()


def read_csv(
    path: Path,
    *,
    time: str | None = None,
    target: Sequence[str] | None = None,
    freq: str | None = None,
    gaps: Gaps = "error",
) -> Series:
    """Read a wide CSV.

    Args:
        path: the file; its separator (comma, semicolon, tab) and decimal mark are found.
        time: the date column; None finds it by its name or its content.
        target: the channels to keep; None keeps all.
        freq: the frequency as pandas names it; None infers it.
        gaps: what to do about missing values and missing rows.

    Raises:
        UserError: naming column, line and fix.
    """
    frame, repairs = _parse(path)
    column = _time_column(frame, time, path)
    stamps = _dates(frame[column], path)
    frame = frame.drop(columns=column)
    frame = _choose(frame, target, path)
    values = frame.apply(lambda each: _numbers(each, path)).to_numpy(np.float64)
    if not stamps.is_monotonic_increasing:
        order = np.argsort(stamps, kind="stable")
        stamps, values = stamps[order], values[order]
        repairs.append("rows were sorted by date")
    twice = stamps.duplicated()
    if twice.any():
        raise UserError(
            f"{path}: {int(twice.sum())} dates stand twice, the first is {stamps[twice][0]};"
            " keep one row a date (many series under each other need one column each)"
        )
    stamps, values, freq = _regular(stamps, values, freq, gaps, path, repairs)
    values = _filled(values, frame.columns, stamps, gaps, path, repairs)
    flat = [
        str(name)
        for name, spread in zip(frame.columns, np.ptp(values, 0), strict=True)
        if not spread
    ]
    if flat:
        repairs.append(f"constant, left at scale 1: {', '.join(flat)}")
    columns = tuple(str(name) for name in frame.columns)
    return Series(values, stamps, columns, freq, str(column), str(path), tuple(repairs))


def _parse(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read the cells as text."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size > LIMIT_BYTES:
        raise UserError(f"{path}: larger than {LIMIT_BYTES // 2**30} GiB; split it or drop columns")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.read(65536)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; is it a CSV file?") from None
    if not head.strip():
        raise UserError(f"{path}: the file is empty")
    first = head.splitlines()[0]
    separator = max(",;\t", key=first.count)
    repairs = [] if separator == "," else [f"columns are separated by {separator!r}"]
    names = next(csv.reader([first], delimiter=separator))
    again = sorted({name for name in names if names.count(name) > 1})
    if again:
        raise UserError(f"{path}: the column {again[0]!r} stands twice in line 1; rename one")
    if len(names) < 2:
        raise UserError(
            f"{path}: only one column, {names[0]!r}; a date column and a numeric one are needed"
        )
    try:
        frame = pd.read_csv(
            path, sep=separator, dtype=str, encoding="utf-8-sig", skipinitialspace=True, engine="c"
        )
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        UnicodeDecodeError,
        ValueError,
    ) as error:
        raise UserError(f"{path}: not a readable CSV file ({str(error).strip()})") from None
    if not len(frame):
        raise UserError(f"{path}: there is no row below the header")
    if not isinstance(frame.index, pd.RangeIndex):
        raise UserError(f"{path}: rows have more cells than the header has names")
    return frame, repairs


def _time_column(frame: pd.DataFrame, time: str | None, path: Path) -> str:
    names = [str(name) for name in frame.columns]
    if time is not None:
        if time not in names:
            raise UserError(
                f"{path}: --data.time={time}: there is no such column; there is {_list(names)}"
            )
        return time
    for wanted in TIME_NAMES:
        for name in names:
            if name.strip().lower() == wanted and _looks_like_dates(frame[name]):
                return name
    for name in names:
        text = frame[name].dropna().head(50)
        if len(text) and not _is_number(text).any() and _looks_like_dates(text):
            return name
    raise UserError(
        f"{path}: no column of dates among {_list(names)}; name it by --data.time=COLUMN"
        " (dates such as 2024-01-31 or 2024-01-31 13:00)"
    )


def _looks_like_dates(column: "pd.Series[str]") -> bool:
    head = column.dropna().head(50)
    try:
        return len(head) > 0 and bool(_to_datetime(head).notna().all())
    except (ValueError, TypeError, pd.errors.OutOfBoundsDatetime):
        return False


def _to_datetime(text: "pd.Series[str]") -> "pd.Series[pd.Timestamp]":
    digits = text.dropna().str.fullmatch(r"(1[6-9]|2[0-2])\d{6}")
    if len(digits) and digits.all():
        return pd.to_datetime(text, format="%Y%m%d")
    if _is_number(text.dropna().head(50)).all():
        raise ValueError("numbers are not dates")
    known = text.dropna()
    dotted = known.str.match(r"\d{1,2}\.\d{1,2}\.\d{4}").all()
    slashed = known.str.extract(r"^(\d{1,2})[/-](\d{1,2})[/-]\d{4}")
    first_is_day = bool(dotted) or bool((pd.to_numeric(slashed[0]) > 12).any())
    return pd.to_datetime(text, format="mixed", dayfirst=first_is_day)


def _dates(column: "pd.Series[str]", path: Path) -> pd.DatetimeIndex:
    if column.isna().any():
        line = int(np.flatnonzero(column.isna())[0]) + 2
        raise UserError(
            f"{path}:{line}: column {column.name!r} has no date; remove the row or fill it"
        )
    ambiguous = column.str.extract(r"^(\d{1,2})[/-](\d{1,2})[/-]\d{4}").dropna()
    if len(ambiguous) == len(column):
        parts = ambiguous.apply(pd.to_numeric)
        if (parts[0] <= 12).all() and (parts[1] <= 12).all() and (parts[0] != parts[1]).any():
            raise UserError(
                f"{path}: column {column.name!r}: {column.iloc[0]!r} may be day/month or month/day;"
                " write dates as 2024-01-31"
            )
    try:
        stamps = _to_datetime(column)
    except (ValueError, TypeError, OverflowError) as error:
        for number, text in enumerate(column):
            try:
                if pd.isna(pd.to_datetime(text)):
                    raise ValueError
            except (ValueError, TypeError, OverflowError):
                raise UserError(
                    f"{path}:{number + 2}: column {column.name!r}: {text!r} is not a date"
                ) from None
        raise UserError(
            f"{path}: column {column.name!r}: dates of several kinds or time zones"
            f" ({str(error).splitlines()[0]}); write all of them the same way"
        ) from None
    if stamps.dtype == object:
        raise UserError(
            f"{path}: column {column.name!r} mixes time zones; convert all dates to UTC"
        )
    index = pd.DatetimeIndex(stamps)
    return index.tz_localize(None) if index.tz is not None else index


def _choose(frame: pd.DataFrame, target: Sequence[str] | None, path: Path) -> pd.DataFrame:
    if target is None:
        return frame
    for name in target:
        if name not in frame.columns:
            raise UserError(
                f"{path}: --data.target={name}: there is no such column;"
                f" there is {_list(frame.columns)}"
            )
    return frame[list(target)]


def _is_number(text: "pd.Series[str]") -> "pd.Series[bool]":
    return pd.to_numeric(text, errors="coerce").notna()


def _numbers(column: "pd.Series[str]", path: Path) -> "pd.Series[float]":
    values: pd.Series[float] = pd.to_numeric(column, errors="coerce")
    wrong = np.flatnonzero(values.isna() & column.notna())
    if not len(wrong):
        return values
    text = column.iloc[wrong[0]]
    line = int(wrong[0]) + 2
    comma = column.dropna().str.fullmatch(r"[-+]?\d+,\d+|[-+]?\d+")
    if comma.all():
        return pd.to_numeric(column.str.replace(",", "."))
    if len(wrong) == column.notna().sum():
        fix = "it holds text; drop it or choose the numeric columns by --data.target"
    else:
        fix = "write a number, or leave the cell empty and choose --data.gaps=interpolate"
    raise UserError(f"{path}:{line}: column {column.name!r}: {text!r} is not a number; {fix}")


def _regular(
    stamps: pd.DatetimeIndex,
    values: Array,
    freq: str | None,
    gaps: Gaps,
    path: Path,
    repairs: list[str],
) -> tuple[pd.DatetimeIndex, Array, str]:
    """Put the rows on a regular grid of time steps."""
    if len(stamps) < 3:
        raise UserError(f"{path}: {len(stamps)} rows are too few to find a frequency")
    found = freq or pd.infer_freq(stamps) or _usual_step(stamps)
    try:
        offset = pd.tseries.frequencies.to_offset(found)
        grid = pd.date_range(stamps[0], stamps[-1], freq=offset)
    except (ValueError, TypeError):
        raise UserError(
            f"{path}: --data.freq={found} is not a frequency; use h, 15min, D, W, MS, ..."
        ) from None
    if len(grid) > 50 * len(stamps):
        raise UserError(
            f"{path}: with --data.freq={found} most rows would be missing; name another"
        )
    off = ~stamps.isin(grid)
    if off.any():
        raise UserError(
            f"{path}: irregular dates: {int(off.sum())} of {len(stamps)} do not fit steps of"
            f" {found!r}, the first is {stamps[off][0]}; name the frequency by --data.freq or"
            " resample the file"
        )
    name = str(offset.freqstr) if offset is not None else str(found)
    missing = len(grid) - len(stamps)
    if missing:
        first = grid[~grid.isin(stamps)][0]
        if gaps == "error":
            raise UserError(
                f"{path}: {missing} rows are missing at steps of {name!r}, the first is {first};"
                " choose --data.gaps=interpolate or --data.gaps=ffill"
            )
        full = np.full((len(grid), values.shape[1]), np.nan)
        full[grid.isin(stamps)] = values
        repairs.append(f"{missing} missing rows were added")
        values = full
    return grid, values, name


def _usual_step(stamps: pd.DatetimeIndex) -> str:
    """Name the most frequent difference; months and years by the calendar."""
    step = pd.Series(stamps).diff().dropna().mode().iloc[0]
    if step >= pd.Timedelta(days=28):
        day = "MS" if (stamps.day == 1).all() else "ME"
        return day if step < pd.Timedelta(days=90) else day[1] and ("QS" if day == "MS" else "QE")
    return str(pd.tseries.frequencies.to_offset(step).freqstr)


def _filled(
    values: Array,
    columns: "pd.Index[str]",
    stamps: pd.DatetimeIndex,
    gaps: Gaps,
    path: Path,
    repairs: list[str],
) -> Array:
    bad = ~np.isfinite(values)
    if not bad.any():
        return values
    row, column = np.argwhere(bad)[0]
    count = int(bad.sum())
    where = f"the first in column {columns[column]!r} at {stamps[row]}"
    if gaps == "error":
        raise UserError(
            f"{path}: {count} values are missing or not finite, {where};"
            " choose --data.gaps=interpolate or --data.gaps=ffill"
        )
    empty = [str(columns[int(each)]) for each in np.flatnonzero(bad.all(axis=0))]
    if empty:
        raise UserError(f"{path}: the column {empty[0]!r} holds no value at all; drop it")
    frame = pd.DataFrame(np.where(bad, np.nan, values))
    filled = (
        frame.interpolate("linear", limit_direction="both")
        if gaps == "interpolate"
        else frame.ffill().bfill()
    )
    repairs.append(f"{count} missing values were filled ({gaps})")
    return filled.to_numpy(np.float64)


def _list(names: Any) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")


@dataclass(frozen=True)
class ForecastFiles:
    """The preprocessing that travels with a forecaster: columns, frequency and scale.

    Args:
        columns: the channels, in the order of the network.
        time: name of the date column.
        freq: the frequency as pandas names it.
        lookback: L, the rows a forecast needs.
        horizon: H, the rows forecast.
        mean: taken off each channel.
        std: each channel is divided by it.
        gaps: how missing values are treated.
        minutes: whether the calendar features, for a network that takes marks, begin with the
            minute.
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
        """Return all that was fitted."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ForecastFiles":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: if a key is missing, unknown, or does not fit the others.
        """
        try:
            arguments: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
            made = cls(**arguments)
            sizes = {len(made.columns), len(made.mean), len(made.std)}
            numbers = np.asarray([made.mean, made.std], np.float64)
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(f"preprocessing.json: {error}") from None
        if len(sizes) != 1 or not np.isfinite(numbers).all() or (numbers[1] <= 0).any():
            raise UserError("preprocessing.json: columns, mean and std do not fit each other")
        return made

    def predict_file(
        self, network: nn.Module, input: Path, output: Path, plot: Path | None = None
    ) -> str:
        """Forecast the steps after the last row of ``input``; write them in its columns and units.

        Raises:
            UserError: if ``input`` lacks a column, has another frequency, or too few rows.
        """
        series = read_csv(
            input, time=self._time_in(input), target=self._check_columns(input), gaps=self.gaps
        )
        if series.freq != self.freq:
            raise UserError(
                f"{input}: its frequency is {series.freq!r}, the model was trained on {self.freq!r}"
            )
        if len(series.values) < self.lookback:
            raise UserError(
                f"{input}: {len(series.values)} rows are fewer than the {self.lookback}"
                " that the model looks back"
            )
        past = series.values[-self.lookback :]
        times = pd.date_range(series.time[-1], periods=self.horizon + 1, freq=self.freq)[1:]
        scaled = torch.tensor((past - self.mean) / np.asarray(self.std), dtype=torch.float32)
        forecast = self._run(network, scaled[None], series.time[-self.lookback :], times)
        values = forecast[0].double().numpy() * np.asarray(self.std) + np.asarray(self.mean)
        table = pd.DataFrame(values, columns=list(self.columns))
        table.insert(0, self.time, times)
        text = io.StringIO()
        table.to_csv(text, index=False, float_format="%.10g")
        write_atomic(output, text.getvalue())
        if plot is not None:
            from domains.time_series.pictures import forecast_picture

            forecast_picture(plot, series, times, values)
        notes = f" ({'; '.join(series.repairs)})" if series.repairs else ""
        return f"{output}: {self.horizon} steps from {times[0]} to {times[-1]}{notes}"

    def _run(
        self, network: nn.Module, past: Tensor, times: pd.DatetimeIndex, ahead: pd.DatetimeIndex
    ) -> Tensor:
        with torch.inference_mode():
            if not getattr(network, "takes_marks", False):
                plain: Tensor = network(past)
                return plain
            marks = (
                torch.from_numpy(calendar_features(each, self.minutes))[None]
                for each in (times, ahead)
            )
            marked: Tensor = network(past, *marks)
            return marked

    def _time_in(self, path: Path) -> str | None:
        frame, _ = _parse(path)
        return self.time if self.time in frame.columns else None

    def _check_columns(self, path: Path) -> tuple[str, ...]:
        frame, _ = _parse(path)
        missing = [name for name in self.columns if name not in frame.columns]
        if missing:
            raise UserError(
                f"{path}: the model needs the columns {_list(self.columns)};"
                f" missing {_list(missing)}"
            )
        return self.columns


def show(path: Path, picture: Path | None = None) -> dict[str, str]:
    """Describe a file of series, and draw it.

    Raises:
        UserError: if it is not a wide CSV.
    """
    series = read_csv(path, gaps="interpolate")
    if picture is not None:
        from domains.time_series.pictures import series_picture

        series_picture(picture, series)
    facts = {
        "file": str(path),
        "rows": f"{len(series.values):,}, {series.time[0]} to {series.time[-1]}",
        "frequency": series.freq,
        "channels": str(len(series.columns)),
    }
    for number, name in enumerate(series.columns[:20]):
        values = series.values[:, number]
        facts[f"  {name}"] = (
            f"mean {values.mean():.4g}, sd {values.std():.4g},"
            f" {values.min():.4g} to {values.max():.4g}"
        )
    if series.repairs:
        facts["repaired"] = "; ".join(series.repairs)
    return facts
