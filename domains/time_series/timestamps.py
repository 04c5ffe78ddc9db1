"""Read dates the way people write them, and find the step between them."""

import re
import warnings
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas.tseries.api import guess_datetime_format

from core.errors import UserError

NAMES = (
    "date",
    "datetime",
    "date_time",
    "timestamp",
    "time",
    "ds",
    "day",
    "week",
    "month",
    "quarter",
    "year",
    "period",
)
"""What a date column is called, in the order of trust; case does not matter."""

_ZONE = re.compile(r"(?<=:\d\d)(?P<fraction>\.\d+)?\s?(?P<zone>Z|UTC|[+-]\d\d:?\d\d)$")
_EITHER_ORDER = re.compile(r"\d{1,2}[/.-]\d{1,2}[/.-]\d{2}")
_FURTHER = (
    *("%b %Y", "%B %Y", "%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%m/%d/%y", "%d/%m/%y"),
    *("%m/%d/%Y %I:%M %p", "%d/%m/%Y %I:%M %p", "%m/%d/%Y %I:%M:%S %p", "%d/%m/%Y %I:%M:%S %p"),
)
_NUMBERS = (("%Y", 1500, 2300), ("%Y%m", 150001, 230012), ("%Y%m%d", 15000101, 23001231))
_EPOCHS: tuple[tuple[Literal["s", "ms"], float, float], ...] = (
    ("s", 1e8, 1e10),
    ("ms", 1e11, 1e13),
)


class Times(NamedTuple):
    """Dates read from a column.

    ``values`` holds NaT where nothing could be read; ``zones`` each row's time zone as written,
    None where there is none; ``note`` what the reading took for granted.
    """

    values: pd.Series
    zones: pd.Series | None
    note: str


def parse(column: pd.Series, named: bool) -> Times | None:
    """Read a column as dates.

    Args:
        column: text or numbers.
        named: whether its name says that it holds dates; only then may a plain number be a year,
            a month or the seconds since 1970.

    Returns:
        None if less than half of it can be read.
    """
    if pd.api.types.is_bool_dtype(column) or column.isna().all():
        return None
    codes, unique = pd.factorize(column)  # a file of many series repeats its dates
    each = pd.Series(unique)
    if pd.api.types.is_numeric_dtype(each):
        times = _from_numbers(each, named)
    else:
        times = _from_text(each.astype("string").str.strip())
    if times is None:
        return None
    place = pd.Series(codes, index=column.index)
    values = place.map(times.values)
    if values.notna().sum() * 2 < len(column):
        return None
    return Times(values, None if times.zones is None else place.map(times.zones), times.note)


def _from_numbers(column: pd.Series, named: bool) -> Times | None:
    known = column.dropna()
    low, high = known.min(), known.max()
    if (known % 1 != 0).any():
        return None
    for form, least, most in _NUMBERS if named else _NUMBERS[2:]:
        if least <= low and high <= most:
            text = column.astype("Int64").astype("string")
            return Times(pd.to_datetime(text, format=form, errors="coerce"), None, "")
    for unit, start, end in _EPOCHS if named else ():
        if start <= low and high < end:
            note = f"dates were read as {unit} since 1970-01-01 UTC"
            return Times(pd.to_datetime(column, unit=unit, errors="coerce"), None, note)
    return None


def _from_text(text: pd.Series) -> Times | None:
    sample = str(text.dropna().iloc[0])
    zones = None
    if _ZONE.search(sample):
        zones = text.str.extract(_ZONE.pattern)["zone"]
        text = text.str.replace(_ZONE.pattern, r"\g<fraction>", regex=True)
        sample = _ZONE.sub(r"\g<fraction>", sample)
    either = _EITHER_ORDER.match(sample) is not None
    readings = []
    for form in _formats(sample):
        values = pd.to_datetime(text, format=form, errors="coerce")
        unread = int(values.isna().sum() - text.isna().sum())
        readings.append((unread, either and not _regular(values), values, form))
        if unread == 0 and not either:
            break
    _, _, values, form = min(readings, key=lambda reading: reading[:2])
    note = ""
    if either:
        first = "day" if form.find("%d") < form.find("%m") else "month"
        note = f"dates such as {sample} were read with the {first} first"
    return Times(values, zones, note)


def _regular(values: pd.Series) -> bool:
    time = pd.DatetimeIndex(values.dropna().drop_duplicates().sort_values())
    return len(time) > 2 and pd.infer_freq(time) is not None


def _formats(sample: str) -> list[str]:
    """Give the formats that ``sample`` may be written in, the likeliest first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it tells that the day comes first
        guess = guess_datetime_format(sample)
    if guess is None:
        return [*_FURTHER, "ISO8601"]
    if not _EITHER_ORDER.match(sample):
        return [guess, "ISO8601"]
    swapped = guess.replace("%m", "%_").replace("%d", "%m").replace("%_", "%d")
    day_first = "." in sample.split(" ", 1)[0]  # as in 31.12.2024
    return sorted([guess, swapped], key=lambda form: form.startswith("%d") != day_first)


def frequency(time: pd.DatetimeIndex, freq: str | None, source: str, advice: str) -> str:
    """Name the frequency of sorted times without repeats, some of which may be missing.

    Args:
        time: T times.
        freq: the frequency if it is known; every time must then lie on its grid.
        source: the file, for errors.
        advice: how to state a frequency, for errors.

    Raises:
        UserError: if ``freq`` is no frequency, or the times lie on no regular grid.
    """
    if freq is not None:
        if not is_frequency(freq):
            raise UserError(
                f"{source}: {freq!r} is not a frequency; write one as pandas does,"
                " such as h, 15min, D, W-SUN or MS"
            )
        return freq
    if len(time) < 3:
        raise UserError(f"{source}: {len(time)} rows do not show how far apart they are; {advice}")
    if (inferred := pd.infer_freq(time)) is not None:
        return inferred
    fitting = {}
    for candidate in _candidates(time):
        on_grid = grid(time, candidate)
        if on_grid is not None and time.isin(on_grid).all():
            fitting[candidate] = len(on_grid)
    if not fitting:
        usual = (time[1:] - time[:-1]).value_counts().index[0]
        off = np.asarray((time - time[0]) % usual != pd.Timedelta(0))
        which = f"{time[int(np.argmax(off))]} is not a whole number of such steps after {time[0]}"
        if not off.any():
            which = f"there are only {len(time):,} rows from {time[0]} to {time[-1]}"
        raise UserError(
            f"{source}: the times are irregular: most rows are {span(usual)} apart, but {which};"
            f" bring them to one step, or {advice}"
        )
    return min(fitting, key=lambda name: fitting[name])


def grid(time: pd.DatetimeIndex, freq: str) -> pd.DatetimeIndex | None:
    """Give every step of ``freq`` from the first to the last time.

    Returns:
        None where more than three in four steps would be missing: the frequency is not theirs.
    """
    most = 4 * len(time) + 8
    try:
        step = pd.tseries.frequencies.to_offset(freq).nanos
    except ValueError:  # months, quarters and years have no fixed length
        step = 0
    if (time[-1].to_pydatetime() - time[0].to_pydatetime()).total_seconds() > most * step / 1e9 > 0:
        return None
    whole = pd.date_range(time[0], time[-1], freq=freq)
    return None if len(whole) > most else whole


def continued(last: pd.Timestamp, freq: str, steps: int) -> pd.DatetimeIndex:
    """Give the ``steps`` times that follow ``last``."""
    return pd.date_range(last, periods=steps + 1, freq=freq)[1:]


def is_frequency(freq: object) -> bool:
    """Say whether pandas knows a frequency by this name."""
    try:
        return isinstance(freq, str) and pd.tseries.frequencies.to_offset(freq) is not None
    except ValueError:
        return False


def written(time: pd.DatetimeIndex) -> list[str]:
    """Write times as text, without the time of day where it is always midnight."""
    midnight = (time == time.normalize()).all()
    return list(time.strftime("%Y-%m-%d" if midnight else "%Y-%m-%d %H:%M:%S"))


def _candidates(time: pd.DatetimeIndex) -> list[str]:
    """Name the frequencies that times with some missing may have."""
    step = (time[1:] - time[:-1]).value_counts().index[0]
    day = pd.Timedelta(days=1)
    name = time[0].month_name()[:3].upper()
    if step >= 360 * day:
        return [f"YS-{name}", f"YE-{name}"]
    if step >= 28 * day:
        return ["MS", "ME", "BMS", "BME", f"QS-{name}", f"QE-{name}"]
    if step == 7 * day:
        return [f"W-{time[0].day_name()[:3].upper()}"]
    offset = pd.tseries.frequencies.to_offset(step)
    fixed = offset.freqstr if offset is not None else "D"
    return ["B", fixed] if step == day else [fixed]


def span(step: pd.Timedelta) -> str:
    """Write a time span as one does: 1 day, not 1 days 00:00:00."""
    text = str(step).replace(" 00:00:00", "").replace("0 days ", "")
    return text.replace("1 days", "1 day") if text.startswith("1 days") else text
