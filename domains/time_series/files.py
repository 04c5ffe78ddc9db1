"""Read series from CSV files of any origin: one column a series, or all in one column with ids.

A repair is never silent: what was sorted, filled in or taken for granted stands in
``Series.repairs``. Lines are counted from 1, the header included.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import UserError
from domains.time_series import timestamps
from domains.time_series.columns import (
    TRAINING,
    Advice,
    Wanted,
    channels,
    covariates,
    dates,
    groups,
    ids,
    parts,
    words,
)
from domains.time_series.series import Array, Covariates, Gaps, Series, carried, interpolated
from domains.time_series.tables import Table, listed, read_table

DESCRIBED = 12
"""Columns that :func:`show` describes one by one."""
HOW = {
    "mask": "masked: they count neither in the loss nor in the scale, and the value before stands"
    " in what a network sees",
    "zero": "set to zero",
    "interpolate": "interpolated",
    "ffill": "filled by the value before",
}


def read_csv(
    path: str | Path,
    *,
    time: str | None = None,
    target: str | Sequence[str] | None = None,
    freq: str | None = None,
    gaps: Gaps = "error",
) -> Series:
    """Read a CSV of any origin.

    Fields may be separated by comma, semicolon, tab or bar; a decimal comma is understood where
    commas do not separate fields. Rows out of order are sorted. A constant column is kept.

    Args:
        path: the file.
        time: the date column; None finds it by its name, or as the only column that holds dates.
        target: the columns to keep, in this order; None keeps every numeric column.
        freq: the step as pandas names it; None infers it.
        gaps: what to do about missing rows and values: refuse them, ``mask`` them as NaN, set them
            to zero, draw a line between their neighbours, or repeat the value before; the first
            value is repeated backwards. ``keep`` takes the rows as they stand, one after the
            other, whatever their times are.

    Raises:
        UserError: naming file, line and column, and the fix.
    """
    wanted = Wanted(time=time, target=[target] if isinstance(target, str) else target)
    return read_series([Path(path)], wanted, freq=freq, gaps=gaps)


def read_series(
    paths: Sequence[Path],
    wanted: Wanted,
    *,
    val: Sequence[Path] = (),
    test: Sequence[Path] = (),
    freq: str | None = None,
    gaps: Gaps = "mask",
    advice: Advice = TRAINING,
) -> Series:
    """Read files of one form as one set of series.

    Args:
        paths: the files; the rows of each series may stand in several.
        wanted: the columns.
        val: files for validation, which go on with the same series.
        test: files for the test, which go on from there.
        freq: the step as pandas names it; None infers it.
        gaps: as in :func:`read_csv`.
        advice: what messages advise.

    Raises:
        UserError: naming file, line and column, and the fix.
    """
    tables = (read_table(path) for path in (*paths, *val, *test))
    counts = (len(paths), len(val), len(test))
    return read_tables(tables, wanted, counts=counts, freq=freq, gaps=gaps, advice=advice)


def read_tables(
    tables: Iterable[Table],
    wanted: Wanted,
    *,
    counts: tuple[int, int, int] = (1, 0, 0),
    freq: str | None = None,
    gaps: Gaps = "mask",
    advice: Advice = TRAINING,
) -> Series:
    """Read tables as :func:`read_series` reads files; ``counts`` are those of each part."""
    if gaps not in get_args(Gaps):
        raise UserError(f"data.gaps={gaps!r} must be one of {', '.join(get_args(Gaps))}")
    rows = _together(tables, wanted, counts, advice)
    if gaps == "keep":
        return _as_they_stand(rows, freq, advice)
    return _filled(_regular(rows, freq, advice), gaps, advice)


class _Rows(NamedTuple):
    """The rows of some tables: N rows, C channels, F covariates."""

    times: pd.DatetimeIndex
    owner: NDArray[np.int32]  # (N,) the series
    values: Array  # (N, C)
    beside: Array  # (N, F)
    part: NDArray[np.int8] | None  # (N,)
    group: NDArray[np.object_]  # (N,), or empty
    line: NDArray[np.int32]  # (N,)
    file: NDArray[np.int32]  # (N,)
    paths: list[Path]  # of the files
    ids: tuple[str, ...]
    columns: tuple[str, ...]
    time_column: str
    id_column: str
    names: list[str]
    counts: tuple[int, int, int]  # names of covariates that are known, past and static
    notes: list[str]

    def where(self, row: int) -> str:
        """Name a row by file and line."""
        return f"{self.paths[int(self.file[row])]}:{self.line[row]}"

    def whose(self, row: int) -> str:
        """Name the series of a row, where there are several."""
        name = self.ids[int(self.owner[row])]
        return f" of {name!r}" if name else ""


def _together(
    tables: Iterable[Table], wanted: Wanted, counts: tuple[int, int, int], advice: Advice
) -> _Rows:
    """Read the columns of all tables and put their rows below one another."""
    pieces, paths = [], []
    notes: dict[str, None] = {}
    wanted.check()
    levels = wanted.levels or {}
    if wanted.levels is None and wanted.covariates:
        tables = list(tables)
        levels = words(tables[: counts[0]], wanted)
    for number, table in enumerate(tables):
        time_column, times, read_notes = dates(table, wanted, advice)
        found = ids(table, wanted)
        others = [time_column, *wanted.covariates]
        others += [name for name in (wanted.part, wanted.group) if name]
        columns, values, more = channels(
            table, wanted, [*others, *([found[0]] if found else [])], found is not None
        )
        beside, names, strange = covariates(table, wanted, levels)
        labels = found[1].to_numpy() if found else None
        if found is None and max(counts) > 1:
            stem = table.path.stem
            labels = np.array([stem if len(columns) == 1 else f"{stem}/{c}" for c in columns])
        part = parts(table, wanted.part) if wanted.part else None
        if sum(counts[1:]) and part is None:
            part = np.full(len(times), np.searchsorted(np.cumsum(counts), number, "right"), np.int8)
        group = groups(table, wanted.group) if wanted.group else np.zeros(0, object)
        lines = (table.frame.index.to_numpy() + table.first).astype(np.int32)
        files = np.full(len(times), number, np.int32)
        piece = (times, labels, values, beside, part, group, lines, files)
        kind = (time_column, found[0] if found else "", columns, tuple(names))
        pieces.append((kind, piece))
        paths.append(table.path)
        notes |= dict.fromkeys([*table.notes, *read_notes, *more, *strange])
    del table, tables  # their cells are much larger than what was read of them
    first = pieces[0][0]
    for (kind, _), path in zip(pieces, paths, strict=True):
        if kind != first:
            differ = next(pair for pair in zip(kind, first, strict=True) if pair[0] != pair[1])
            raise UserError(
                f"{path}: has not the form of {paths[0]}: {differ[0]!r} here,"
                f" {differ[1]!r} there; give files of one form"
            )
    time_column, id_column, columns, all_names = first
    many = pieces[0][1][1] is not None and not id_column
    if many:  # wide files, each with series of its own
        columns = columns if len(columns) == 1 else ("value",)
        pieces = [(kind, _melted(piece)) for kind, piece in pieces]
    times, labels, values, beside, part, group, lines, files = zip(
        *(piece for _, piece in pieces), strict=True
    )
    if labels[0] is None:
        owner, unique = np.zeros(sum(map(len, lines)), np.int32), [""]
    else:
        categories = pd.Categorical(_joined(labels))
        owner, unique = categories.codes.astype(np.int32), list(categories.categories)
    del pieces, piece, labels
    widths = [len([n for n in all_names if n.split("=")[0] in of]) for of in wanted[3:6]]
    return _Rows(
        pd.DatetimeIndex(_joined([t.to_numpy() for t in times])),
        owner,
        _joined(values),
        _joined(beside),
        None if part[0] is None else _joined(part),
        _joined(group),
        _joined(lines),
        _joined(files),
        paths,
        tuple(map(str, unique)),
        columns,
        time_column,
        id_column or ("unique_id" if many else ""),
        list(all_names),
        (widths[0], widths[1], widths[2]),
        list(notes),
    )


def _joined(parts: Sequence[Any]) -> Any:
    """Put arrays below one another; a single one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _melted(piece: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put the channels of a wide file below one another, named by ``labels``."""
    times, labels, values, beside, part, group, lines, files = piece
    count = len(labels)
    return (
        pd.DatetimeIndex(np.tile(times.to_numpy(), count)),
        np.repeat(labels, len(times)),
        values.T.reshape(-1, 1),
        np.tile(beside, (count, 1)),
        None if part is None else np.tile(part, count),
        np.tile(group, count),
        np.tile(lines, count),
        np.tile(files, count),
    )


class _Regular(NamedTuple):
    """Series on their full grid, NaN where the files have nothing, and the line of each row.

    The line is 0 where the whole row is missing.
    """

    series: Series
    lines: NDArray[np.int32]


def _regular(rows: _Rows, freq: str | None, advice: Advice) -> _Regular:
    """Find the step and set every row in its place."""
    rows = _sorted(rows, advice)
    longest = rows.owner == np.bincount(rows.owner).argmax()
    _check_steps(rows)
    freq = timestamps.frequency(
        rows.times[longest], freq, rows.where(0).rpartition(":")[0], advice.freq
    )
    unique = rows.times.unique().sort_values()
    grid = timestamps.grid(unique, freq)
    place = np.full(len(rows.times), -1) if grid is None else grid.get_indexer(rows.times)
    if grid is None or (place < 0).any():
        row = int(np.argmax(place < 0))
        raise UserError(
            f"{rows.where(row)}: {timestamps.written(rows.times[[row]])[0]} and the rows around"
            f" it do not keep to the step {freq!r}; {advice.freq}"
        )
    begins = np.flatnonzero(np.r_[True, np.diff(rows.owner) > 0])
    ends = np.r_[begins[1:], len(place)]
    lengths = place[ends - 1] - place[begins] + 1
    starts = np.r_[0, np.cumsum(lengths)]
    position = starts[rows.owner] + place - place[begins][rows.owner]
    on_grid = np.full((starts[-1], rows.values.shape[1]), np.nan)
    beside = np.full((starts[-1], rows.beside.shape[1]), np.nan)
    line_of = np.zeros(starts[-1], np.int32)
    on_grid[position], line_of[position] = rows.values, rows.line
    beside[position] = rows.beside
    shift = np.repeat(place[begins] - starts[:-1], lengths)
    notes = rows.notes
    if empty := int(np.isnan(beside).any(1).sum()):
        notes = [*notes, f"covariates are missing in {empty:,} rows, where their mean stands"]
    series = Series(
        on_grid,
        grid[np.arange(starts[-1]) + shift],
        rows.columns,
        freq,
        tuple(notes),
        str(rows.paths[0]),
        rows.time_column,
        rows.id_column,
        rows.ids,
        starts,
        _covariates(rows, beside, starts) if rows.names else None,
        _groups(rows, begins),
        _ends(rows, position, starts),
    )
    return _Regular(series, line_of)


def _sorted(rows: _Rows, advice: Advice) -> _Rows:
    """Sort by series and time; a time that stands twice is refused."""
    order = np.lexsort((rows.times.asi8, rows.owner))
    if not np.array_equal(order, np.arange(len(order))):
        apart = np.argsort(rows.owner, kind="stable")
        early = np.diff(rows.times.asi8[apart])[np.diff(rows.owner[apart]) == 0] < 0
        notes = [*rows.notes, "rows were not in the order of time and were sorted"]
        rows = rows._replace(
            times=rows.times[order],
            owner=rows.owner[order],
            values=rows.values[order],
            beside=rows.beside[order],
            part=None if rows.part is None else rows.part[order],
            group=rows.group[order] if len(rows.group) else rows.group,
            line=rows.line[order],
            file=rows.file[order],
            notes=notes if early.any() else rows.notes,
        )
    again = (np.diff(rows.times.asi8) == 0) & (np.diff(rows.owner) == 0)
    if again.any():
        row = int(np.argmax(again)) + 1
        same = int(rows.file[row - 1]) == int(rows.file[row])
        other = f"line {rows.line[row - 1]}" if same else rows.where(row - 1)
        fix = (
            "keep one row a series and time step"
            if rows.id_column
            else "keep one row a time step and one column a series, with date and time of day in"
            f" one column; or {advice.id}"
        )
        raise UserError(
            f"{rows.where(row)}: {timestamps.written(rows.times[[row]])[0]}{rows.whose(row)}"
            f" stands in {other} already; {again.sum():,} times are repeated; {fix}"
        )
    return rows


def _check_steps(rows: _Rows) -> None:
    """Refuse series whose usual step is not that of the longest one."""
    inside = np.diff(rows.owner) == 0
    steps = pd.Series(np.diff(rows.times.to_numpy())[inside]).groupby(rows.owner[1:][inside])
    usual, sizes = steps.median(), steps.size()
    if usual.empty:
        return
    longest = int(sizes.index[int(sizes.argmax())])
    ratio = usual / usual[longest]
    odd = usual[((ratio > 1.5) | (ratio < 1 / 1.5)) & (sizes >= 3)]
    if len(odd):
        other = int(odd.index[0])
        row = int(np.argmax(rows.owner == other))
        raise UserError(
            f"{rows.where(row)}: {rows.ids[other]!r} has a row every"
            f" {timestamps.span(usual[other])}, but {rows.ids[longest]!r} every"
            f" {timestamps.span(usual[longest])} ({len(odd):,} of {len(rows.ids):,} series differ"
            " from it); give series of different steps in files of their own, and train on each"
            " step alone"
        )


def _covariates(rows: _Rows, beside: Array, starts: NDArray[np.int64]) -> Covariates:
    """Tell the covariates apart; one of a series as a whole must not change within it."""
    places = np.split(np.arange(sum(rows.counts)), np.cumsum(rows.counts)[:-1])
    known, past, static = (list(part) for part in places)
    whole = carried(beside[:, static], starts)[starts[:-1]]
    lengths = np.diff(starts)
    differs = (beside[:, static] != np.repeat(whole, lengths, 0)) & ~np.isnan(beside[:, static])
    if differs.any():
        row, column = (int(found[0]) for found in np.nonzero(differs))
        name = rows.ids[int(np.searchsorted(starts, row, "right")) - 1]
        raise UserError(
            f"{rows.paths[0]}: --data.static={rows.names[static[column]].split('=')[0]}"
            f" changes within the series{f' {name!r}' if name else ''}; name it by"
            " --data.known_future or --data.past"
        )
    names = tuple(tuple(rows.names[c] for c in part) for part in (known, past, static))
    return Covariates(beside[:, known], beside[:, past], whole, (names[0], names[1], names[2]))


def _groups(rows: _Rows, begins: NDArray[np.int64]) -> tuple[str, ...]:
    """Give the group of each series, all rows of which must name the same."""
    if not len(rows.group):
        return ()
    own = rows.group[begins]
    differs = rows.group != own[rows.owner]
    if differs.any():
        row = int(np.argmax(differs))
        raise UserError(
            f"{rows.where(row)}: the group{rows.whose(row)} is {rows.group[row]!r} here and"
            f" {own[rows.owner[row]]!r} before; a series is of one group"
        )
    return tuple(map(str, own))


def _ends(
    rows: _Rows, position: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Give the rows at which training and validation of each series end, where the files say so."""
    if rows.part is None:
        return None
    inside = np.diff(rows.owner) == 0
    back = (np.diff(rows.part.astype(int)) < 0) & inside
    if back.any():
        row = int(np.argmax(back)) + 1
        raise UserError(
            f"{rows.where(row)}: {timestamps.written(rows.times[[row]])[0]}{rows.whose(row)} is for"
            " an earlier part than the row before it; each series must be for training first, then"
            " for validation, then for the test"
        )
    if not (rows.part == 0).any():
        raise UserError(f"{rows.paths[0]}: no row is for training")
    ends = np.repeat(starts[1:, None], 2, 1)
    for column, part in enumerate((1, 2)):
        later = rows.part >= part
        np.minimum.at(ends[:, column], rows.owner[later], position[later])
    return ends


def _as_they_stand(rows: _Rows, freq: str | None, advice: Advice) -> Series:
    """Take the rows of one wide file as they stand."""
    source = str(rows.paths[0])
    if rows.ids != ("",) or rows.names or rows.part is not None or len(rows.group):
        raise UserError(
            f"{source}: --data.gaps=keep takes one column a series, without ids, covariates or"
            " parts; leave them out, or take --data.gaps=mask"
        )
    freq = freq or timestamps.frequency(rows.times, freq, source, advice.freq)
    notes = (*rows.notes, "rows were taken as they stand")
    series = Series(rows.values, rows.times, rows.columns, freq, notes, source, rows.time_column)
    return _filled(_Regular(series, rows.line), "error", advice)


def _filled(regular: _Regular, gaps: Gaps, advice: Advice) -> Series:
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
    counts = {"rows": int(absent.sum()), "values": int(holes.sum())}
    told = " and ".join(f"{count:,} missing {what}" for what, count in counts.items() if count)
    values = series.values
    if gaps == "zero":
        values = np.nan_to_num(values)
    elif gaps == "interpolate":
        values = interpolated(values, series.starts)
    elif gaps == "ffill":
        values = carried(values, series.starts)
    return replace(series, values=values, repairs=(*series.repairs, f"{told} were {HOW[gaps]}"))


def show(path: Path, picture: Path | None) -> dict[str, str]:
    """Describe a file: its size, range, step, gaps and series; draw it where ``picture`` says.

    Raises:
        UserError: if it is not a CSV with a date column and numbers.
    """
    series = read_series([path], Wanted())
    missing = np.isnan(series.values)
    first, last = timestamps.written(pd.DatetimeIndex([series.time.min(), series.time.max()]))
    facts = {
        "rows": f"{len(series.values):,}",
        "columns": f"{len(series.columns)}: {listed(series.columns)}",
        "range": f"{first} to {last} (column {series.time_column!r})",
        "frequency": series.freq,
        "missing": f"{missing.sum():,} of {missing.size:,} values",
    }
    if series.id_column:
        lengths = series.lengths
        facts["series"] = (
            f"{len(series.ids):,} (column {series.id_column!r}), {lengths.min():,} to"
            f" {lengths.max():,} steps: {listed(series.ids)}"
        )
    if series.repairs:
        facts["notes"] = "; ".join(series.repairs)
    for number, name in enumerate(series.columns[:DESCRIBED]):
        known = series.values[~missing[:, number], number]
        facts[f"column {name}"] = (
            f"{known.min():.6g} to {known.max():.6g}, mean {known.mean():.6g},"
            f" standard deviation {known.std():.6g}"
        )
    if picture is not None:
        from domains.time_series.pictures import series_picture

        series_picture(picture, series)
    return facts
