"""Find in a table which columns hold dates, ids, series and covariates, and read them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import UserError
from domains.time_series import timestamps
from domains.time_series.series import Array
from domains.time_series.tables import Table, listed

ID, TARGET = "unique_id", "y"
"""The columns of a long table that are found by themselves, as Nixtla's tools name them."""
MOST_LEVELS = 50
"""Different words that a covariate may hold."""


class Wanted(NamedTuple):
    """The columns to read; None finds them.

    ``known``, ``past`` and ``static`` are covariates; ``levels`` holds the words that those of text
    had in the training file, None learns them; ``part`` says which rows are for training, and
    ``group`` which series belong together.
    """

    time: str | None = None
    id: str | None = None
    target: Sequence[str] | None = None
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    levels: Mapping[str, Sequence[str]] | None = None
    part: str | None = None
    group: str | None = None

    @property
    def covariates(self) -> tuple[str, ...]:
        """All columns of covariates."""
        return (*self.known, *self.past, *self.static)

    def option(self, name: str) -> str:
        """Name the option that takes a covariate."""
        kinds = {"known_future": self.known, "past": self.past, "static": self.static}
        return next(option for option, names in kinds.items() if name in names)

    def check(self) -> None:
        """Refuse a column that is two things.

        Raises:
            UserError: naming the column and both options.
        """
        roles: dict[str, str] = {}
        for option, names in (
            ("time", [self.time]),
            ("target", self.target or ()),
            ("known_future", self.known),
            ("past", self.past),
            ("static", self.static),
        ):
            for name in filter(None, names):
                if name in roles:
                    raise UserError(
                        f"--data.{option}={name}: the column is named by --data.{roles[name]}"
                        " already; name it once"
                    )
                roles[name] = option


class Advice(NamedTuple):
    """What a message may advise: the options of training do not exist when predicting."""

    time: str
    id: str
    freq: str
    gaps: str


TRAINING = Advice(
    time="name it by `--data.time=COLUMN`",
    id="name the column of ids by --data.id",
    freq="state the step by `--data.freq`, such as `--data.freq=h`",
    gaps="fill them in, or pass `--data.gaps=mask`, `--data.gaps=interpolate` or"
    " `--data.gaps=ffill`",
)
PREDICTING = Advice(
    time="give it its name in the training file",
    id="give the column of ids its name in the training file",
    freq="keep to the step of the training file",
    gaps="fill them in, or train with `--data.gaps=mask`",
)


def dates(table: Table, wanted: Wanted, advice: Advice) -> tuple[str, pd.DatetimeIndex, list[str]]:
    """Find and read the date column, with notes on how it was read.

    Raises:
        UserError: if there is none, or several, or a cell holds no date.
    """
    path, frame, time = table.path, table.frame, wanted.time
    lower = {str(name).lower(): str(name) for name in frame}
    named = [lower[name] for name in timestamps.NAMES if name in lower]
    if time is not None:
        _known(table, "time", time)
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


def ids(table: Table, wanted: Wanted) -> tuple[str, pd.Series] | None:
    """Read the ids of a long table as text; None where the table is wide.

    Raises:
        UserError: if the column is not there, or a cell is empty.
    """
    name = wanted.id or (ID if ID in table.frame else None)
    if name is None:
        return None
    _known(table, "id", name)
    column = table.frame[name]
    if column.isna().any():
        row = int(np.argmax(column.isna()))
        raise UserError(f"{table.path}:{table.line(row)}: column {name!r}: no id; fill it in")
    if pd.api.types.is_float_dtype(column) and (column % 1 == 0).all():
        column = column.astype("int64")
    return name, column.astype(str)


def channels(
    table: Table, wanted: Wanted, others: Sequence[str], long: bool
) -> tuple[tuple[str, ...], Array, list[str]]:
    """Read the columns to forecast as numbers (T, C).

    Args:
        table: the file.
        wanted: what was asked for.
        others: the columns that are something else.
        long: whether one column holds all series.

    Raises:
        UserError: if a column is not there or holds no numbers, or more than one could be meant.
    """
    candidates = [str(name) for name in table.frame if name not in others]
    target = wanted.target
    for name in target or ():
        if name not in candidates:
            raise UserError(
                f"{table.path}: --data.target={name}: there is no such column; there is"
                f" {listed(candidates)}"
            )
    if long and target is None and TARGET in candidates:
        target = [TARGET]
    columns: dict[str, Array] = {}
    notes: dict[str, None] = {}
    for name in candidates if target is None else target:
        read = table.numbers(name)
        if read is None and target is not None:
            raise UserError(
                f"{table.path}: column {name!r} holds no numbers; fill it in, or leave it out"
            )
        if read is None:
            notes[f"column {name!r} holds no numbers and was left out"] = None
            continue
        columns[name], note = read
        _check_finite(table, name, columns[name])
        if not long and len(columns[name]) > 1 and np.ptp(columns[name]) == 0:
            note = f"column {name!r} is constant"
        if note:
            notes[note] = None
    if not columns:
        raise UserError(f"{table.path}: no column holds numbers besides the dates")
    if long and len(columns) > 1:
        raise UserError(
            f"{table.path}: {listed(columns)} could each be the series; name one by --data.target,"
            " and covariates by --data.known_future, --data.past or --data.static"
        )
    return tuple(columns), np.stack(list(columns.values()), 1), list(notes)


def words(tables: Sequence[Table], wanted: Wanted) -> dict[str, list[str]]:
    """Find the covariates of text, and the different words of each over all tables.

    Raises:
        UserError: if a column is not there, is empty, or holds too many different words.
    """
    found: dict[str, list[str]] = {}
    for name in wanted.covariates:
        option, path = wanted.option(name), tables[0].path
        for table in tables:
            _known(table, option, name)
        text = pd.concat([_text(table, name) for table in tables]).dropna()
        if text.empty:
            raise UserError(f"{path}: --data.{option}={name}: every cell is empty; leave it out")
        if pd.to_numeric(_switched(text), errors="coerce").notna().mean() > 0.5:
            continue  # numbers, most of them
        found[name] = sorted(text.unique())
        if len(found[name]) > MOST_LEVELS:
            raise UserError(
                f"{path}: --data.{option}={name}: {len(found[name]):,} different words are more"
                f" than the {MOST_LEVELS} that a covariate may hold; group them, or leave it out"
            )
    return found


def covariates(
    table: Table, wanted: Wanted, levels: Mapping[str, Sequence[str]]
) -> tuple[Array, list[str], list[str]]:
    """Read the columns of covariates as numbers: words become one column each of 0 and 1.

    Args:
        table: the file.
        wanted: what was asked for.
        levels: the words of each column of text.

    Returns:
        Numbers (T, F), NaN where a cell is empty; the F names, ``COLUMN`` or ``COLUMN=WORD``; and
        notes on words that are not among ``levels``.

    Raises:
        UserError: if a column is not there, or a cell holds no number where others do.
    """
    read: list[Array] = []
    names: list[str] = []
    notes: list[str] = []
    for name in wanted.covariates:
        if name not in table.frame:
            raise UserError(
                f"{table.path}: the covariate {name!r} is missing; there is"
                f" {listed(table.frame.columns)}"
            )
        if name not in levels:
            read.append(_numbers(table, name))
            _check_finite(table, name, read[-1])
            names.append(name)
            continue
        text = _text(table, name)
        for word in levels[name]:
            column = text.eq(word).astype("float64").where(text.notna())
            read.append(np.asarray(column.to_numpy(np.float64, na_value=np.nan)))
            names.append(f"{name}={word}")
        if strange := sorted(set(text.dropna()) - set(levels[name])):
            notes.append(
                f"words in {name!r} that training has not seen stand for none of its words:"
                f" {listed(strange)}"
            )
    if not read:
        return np.zeros((len(table.frame), 0)), [], []
    return np.stack(read, 1), names, notes


def parts(table: Table, name: str) -> NDArray[np.int8]:
    """Read which rows are for training (0), validation (1) and test (2).

    Raises:
        UserError: if the column is not there or holds another word.
    """
    _known(table, "split=column:", name)
    known = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1}
    known |= {"test": 2, "testing": 2}
    found = table.frame[name].astype("string").str.strip().str.lower().map(known)
    if found.isna().any():
        row = int(np.argmax(found.isna()))
        raise UserError(
            f"{table.path}:{table.line(row)}: column {name!r}: {table.frame[name].iloc[row]!r} is"
            " none of train, val and test"
        )
    return np.asarray(found, np.int8)


def groups(table: Table, name: str) -> NDArray[np.object_]:
    """Read the group of each row as text.

    Raises:
        UserError: if the column is not there, or a cell is empty.
    """
    _known(table, "split=group:", name)
    column = table.frame[name]
    if column.isna().any():
        row = int(np.argmax(column.isna()))
        raise UserError(f"{table.path}:{table.line(row)}: column {name!r}: no group; fill it in")
    return column.astype(str).to_numpy(object)


def _text(table: Table, name: str) -> pd.Series:
    text = table.frame[name].astype("string").str.strip()
    return text.mask(text.eq("").fillna(False))


def _switched(text: pd.Series) -> pd.Series:
    """Write true and false as 1 and 0."""
    lower = text.str.lower()
    return text.mask(lower.eq("true").fillna(False), "1").mask(lower.eq("false").fillna(False), "0")


def _numbers(table: Table, name: str) -> Array:
    column = table.frame[name]
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        frame = table.frame.assign(**{name: _switched(_text(table, name))})
        table = replace(table, frame=frame)
    read = table.numbers(name)
    if read is None:
        if not column.isna().all():
            raise UserError(
                f"{table.path}: column {name!r} holds words, but numbers in training; give numbers"
            )
        return np.full(len(column), np.nan)
    return read[0]


def _check_finite(table: Table, name: str, values: Array) -> None:
    infinite = np.isinf(values)
    if infinite.any():
        raise UserError(
            f"{table.path}:{table.line(int(np.argmax(infinite)))}: column {name!r}:"
            f" {infinite.sum():,} infinite values, the first here; correct them, or leave the"
            " cells empty"
        )


def _known(table: Table, option: str, name: str) -> None:
    if name not in table.frame:
        raise UserError(
            f"{table.path}: --data.{option}{'' if option.endswith(':') else '='}{name}: there is no"
            f" such column; there is {listed(table.frame.columns)}"
        )
