"""Read the columns that a rule of :mod:`core.splits` names: groups, classes, times, parts."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import UserError
from core.row_keys import texts
from core.split_plan import PARTS, UNUSED, Codes, Plan

FORMS = (
    "random, stratified, group:COLUMN, time:COLUMN, column:COLUMN or the .parquet of a saved split"
)
RULES = {"random": False, "stratified": False, "group": True, "time": True, "column": True}
"""The first words of a rule, and whether a column follows."""

SPELLINGS = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "eval"), 1),
    **dict.fromkeys(("test", "testing"), 2),
    **dict.fromkeys(("unused", "ignore"), UNUSED),
}
"""What a cell may say with ``column:``, in any case; rows marked ``unused`` are in no part."""

_MOST_CLASSES = 20  # a label of more is a measure if it holds fractions, or most values differ


def fault(rule: object, what: str) -> UserError:
    """Make the error that names the key."""
    return UserError(f"--data.split={rule}: {what}")


def listed(names: Iterable[object], most: int = 8) -> str:
    """Write out names for a message, at most ``most`` of them."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def check_rule(rule: str, frame: pd.DataFrame) -> str:
    """Return ``rule`` with its column spelt as the data spells it.

    Raises:
        UserError: if there is no such rule or column; the message gives the nearest.
    """
    word, _, column = rule.partition(":")
    if word not in RULES:
        near = _nearest(word, RULES)
        raise fault(rule, f"there is no such rule{near}; write {FORMS}")
    if RULES[word] != bool(column):
        fix = f"write {word}:COLUMN, of {listed(frame.columns)}" if RULES[word] else f"write {word}"
        raise fault(
            rule, f"{'a column is missing' if RULES[word] else 'it takes no column'}; {fix}"
        )
    return f"{word}:{column_named(frame, column, rule).name}" if column else rule


def column_named(frame: pd.DataFrame, name: str, rule: str) -> pd.Series:
    """Take the column whose name is written ``name``.

    Raises:
        UserError: if there is none or more than one.
    """
    names = [str(column) for column in frame.columns]
    name = name if name in names else name.strip()
    if (count := names.count(name)) != 1:
        if count:
            raise fault(rule, f"{count} columns have the name {name!r}; rename one")
        near = _nearest(name, names)
        raise fault(rule, f"there is no column {name!r}{near}; there are {listed(names)}")
    return frame.iloc[:, names.index(name)]


def whole(frame: pd.DataFrame, plan: Plan, name: str | None = None) -> pd.Series:
    """Take the column ``name``, by default that of the rule.

    Raises:
        UserError: if it does not exist or a cell is missing.
    """
    column = column_named(frame, plan.column if name is None else name, plan.rule)
    if (missing := column.isna().to_numpy(bool)).any():
        rows = f" ({missing.sum():,} such rows)" if missing.sum() > 1 else ""
        raise fault(
            plan.rule,
            f"row {int(np.argmax(missing)) + 1} has no value in column {column.name!r}{rows};"
            " fill it in, or leave the row out",
        )
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object).infer_objects()
    return column


def classes_of(
    frame: pd.DataFrame, plan: Plan, label: str | None
) -> tuple[Codes, NDArray[np.object_]]:
    """Give the class of each row (N,) as a number, and the names of the classes.

    Raises:
        UserError: if no label is named, a cell is missing, or the column is a measure.
    """
    if label is None:
        raise fault(
            plan.rule, "the data names no column of classes; write random, or name its label"
        )
    column = whole(frame, plan, label)
    codes, names = texts(column)
    fractions = pd.api.types.is_float_dtype(column) and bool((column % 1 != 0).any())
    measure = fractions or 2 * len(names) > len(column)
    if len(names) == len(column) or (measure and len(names) > _MOST_CLASSES):
        raise fault(
            plan.rule,
            f"column {label!r} has {len(names):,} values in {len(column):,} rows, so it holds no"
            " classes; write random",
        )
    return codes, names


def times_of(frame: pd.DataFrame, plan: Plan) -> NDArray[Any]:
    """Give the time of each row (N,): numbers as they are, dates in UTC.

    Raises:
        UserError: if a cell is missing or no date that begins with the year.
    """
    column = whole(frame, plan)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy()
    if pd.api.types.is_datetime64_any_dtype(column):
        dates = pd.to_datetime(column, utc=True)
    else:
        text = column.astype("string").str.strip()
        year_first = text.where(text.str.match(r"\d{4}"))
        dates = pd.to_datetime(year_first, format="ISO8601", errors="coerce", utc=True)
    if (unread := dates.isna().to_numpy(bool)).any():
        row = int(np.argmax(unread))
        raise fault(
            plan.rule,
            f"row {row + 1} of column {column.name!r} holds {str(column.iloc[row])!r}, which is no"
            " date of the years 1678 to 2261; write dates as 2024-12-31 or 2024-12-31 18:00",
        )
    return dates.dt.tz_localize(None).to_numpy("datetime64[us]")


def named_places(frame: pd.DataFrame, plan: Plan) -> Codes:
    """Give the part or fold (N,) that the column states.

    Raises:
        UserError: if a cell is missing or says something else, or a fold has no row.
    """
    codes, words = texts(whole(frame, plan))
    known = SPELLINGS if plan.folds is None else {str(k): k for k in range(plan.folds)}
    said = [word.strip().lower() for word in words]
    if unknown := sorted(w for w, low in zip(words, said, strict=True) if low not in known):
        wanted = f"{listed(PARTS)} or unused" if plan.folds is None else f"0 to {plan.folds - 1}"
        raise fault(plan.rule, f"column {plan.column!r} may hold {wanted}, not {listed(unknown)}")
    if plan.folds is not None and (lacking := sorted(set(known) - set(said))):
        raise fault(
            plan.rule,
            f"column {plan.column!r} has no row of fold {listed(lacking)}; see --data.folds",
        )
    return np.array([known[word] for word in said], np.int64)[codes]


def _nearest(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
