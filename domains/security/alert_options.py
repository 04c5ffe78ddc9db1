"""What may be asked of alerts: which flows, by which threshold, in which form."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from core.errors import UserError
from domains.security.flow_files import read_flows
from domains.security.specification import FlowSpecification
from domains.security.thresholds import at_rate

OPTIONS = {
    "alerts_only": "write the alerts alone",
    "keep": "columns to copy, comma-separated",
    "budget": "false alarms that may come in a day, such as 100/day",
    "false_alarm_rate": "the share of benign flows that may be alerts, such as 0.001",
    "format": "csv or jsonl; else by the ending of --output",
}
FLAGS = ("alerts_only",)
FORMATS = {"csv": ".csv", "jsonl": ".jsonl"}
COLUMNS = ("flow", "score", "verdict", "fields")
"""What is written of every flow."""
_LOOKED = 64  # times of a piece that its span is read from


class Asked(NamedTuple):
    """The options, read.

    ``rate`` is a share of false alarms and ``daily`` their number in a day; at most one is given.
    """

    alerts_only: bool
    keep: tuple[str, ...]
    daily: float | None
    rate: float | None
    format: str | None


def read_options(
    alerts_only: str = "false",
    keep: str = "",
    budget: str = "",
    false_alarm_rate: str = "",
    format: str = "",
) -> Asked:
    """Read the options of the command.

    Raises:
        UserError: naming the option.
    """
    if alerts_only.lower() not in ("true", "false"):
        raise UserError(f"--alerts_only={alerts_only}: must be true or false")
    if budget and false_alarm_rate:
        raise UserError("--budget and --false_alarm_rate both choose the threshold; give one")
    if format and format not in FORMATS:
        raise UserError(f"--format={format}: must be {' or '.join(FORMATS)}")
    kept = tuple(dict.fromkeys(name.strip() for name in keep.split(",") if name.strip()))
    if clash := [name for name in kept if name in COLUMNS]:
        raise UserError(f"--keep={keep}: the result has a column {clash[0]!r} of its own")
    daily = re.fullmatch(r"(\d+(?:\.\d+)?)\s*/\s*day", budget)
    if budget and not daily:
        raise UserError(f"--budget={budget}: write a number a day, such as 100/day")
    return Asked(
        alerts_only.lower() == "true",
        kept,
        float(daily[1]) if daily else None,
        _share(false_alarm_rate) if false_alarm_rate else None,
        format or None,
    )


class Threshold(NamedTuple):
    """The score above which a flow is an alert, and where it comes from."""

    value: float
    told: str


def choose_threshold(
    asked: Asked,
    curve: Sequence[Sequence[float]],
    source: Path,
    specification: FlowSpecification,
) -> Threshold:
    """Choose the threshold by what validation data have measured.

    Args:
        asked: a rate, a number a day, or neither.
        curve: of validation data.
        source: of a number a day it is read once, for its flows in a day.
        specification: names the column of the time, if there is one.

    Raises:
        UserError: if nothing was measured.
    """
    if asked.rate is None and asked.daily is None:
        return Threshold(0.5, "threshold 0.5")
    if not curve:
        raise UserError("the model has no measured false alarms; leave out the budget")
    rate, why = asked.rate, ""
    if rate is None:
        flows, days = span_of(source, specification)
        a_day = flows / days
        assert asked.daily is not None
        rate = min(asked.daily / a_day, 1.0)
        of = f"{a_day:,.0f} flows a day" if specification.time else f"the {flows:,} flows here"
        why = f" ({asked.daily:g} of {of})"
    point = at_rate(curve, rate)
    told = f"threshold {point.threshold:.6g} for a false alarm rate of {rate:.3g}{why}"
    least = min(row[1] for row in curve if row[1] > 0) if any(row[1] for row in curve) else 1.0
    if rate < least:
        told += f", less than validation could measure ({least:.3g}): the highest score there"
    return Threshold(point.threshold, told)


def span_of(source: Path, specification: FlowSpecification) -> tuple[int, float]:
    """Count flows and the days that they took; one day where the time is not known.

    The span is that of the first, the last and some flows between them of each piece.

    Raises:
        UserError: if a time cannot be read.
    """
    time = specification.time
    columns = (time,) if time else specification.fields[:1]
    count, ends = 0, []
    for table in read_flows(
        source, replace(specification, numeric=(), categorical=columns, drop=())
    ):
        if time:
            looked = np.linspace(0, table.num_rows - 1, min(_LOOKED, table.num_rows)).astype(int)
            cells = table[time].take(looked).combine_chunks().cast("string").to_pylist()
            seconds = _seconds(cells, source, time)
            ends += [seconds.min(), seconds.max()]
        count += table.num_rows
    days = (max(ends) - min(ends)) / 86_400 if ends else 1.0
    return count, days or 1.0


def _seconds(cells: Sequence[str], source: Path, column: str) -> pd.Series:
    """Read times as seconds: since 1970 as numbers, in thousandths and so on too, or dates."""
    values = pd.to_numeric(pd.Series(cells), errors="coerce")
    if values.notna().all():
        while values.abs().max() > 1e11:  # beyond the year 5000
            values = values / 1e3
        return values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dates whose day may be their month
        dates = pd.to_datetime(
            pd.Series(cells), format="mixed", dayfirst=True, utc=True, errors="coerce"
        )
    if dates.isna().any():
        cell = cells[int(np.argmax(dates.isna()))]
        raise UserError(f"{source}: column {column!r} holds {cell!r}, which is no time")
    return (dates - pd.Timestamp(0, tz="UTC")).dt.total_seconds()


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UserError(f"--false_alarm_rate={text}: must be a share between 0 and 1")
    return value
