"""The one splitter: which rows of a user's data train, validate and test.

A rule is written as in ``--data.split=RULE``:

- ``random``: by a hash of the row's id, or of its content where there are no ids.
- ``stratified``: the same, and every class of the label is in every part.
- ``group:COLUMN``: whole groups, by a hash of the group.
- ``time:COLUMN``: in order of time; equal times are never parted.
- ``column:COLUMN``: the column says train, val or test, or the number of the fold.
- ``FILE.parquet``: as an earlier run has saved it; new rows are placed by the rule it carries.

What holds when rows come, go or change their order: a hash places each row, or group, by itself, so
none moves, and shares are met on average (of 10,000 rows within about a percent). The exception
are small sets: where hashing leaves a part without a row, the lowest hash of the largest part is
moved there. ``stratified`` does so class by class; a class with fewer rows than parts trains first,
then tests. The notes name what was moved; while they name nothing, before and after, no row moves.
The borders of ``time:`` move with the data. A saved split holds every row where it was, whatever
the rule.

Rows are counted from 1 in messages.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import UserError
from core.row_keys import contents, positions, texts
from core.split_columns import (
    RULES,
    check_rule,
    classes_of,
    fault,
    listed,
    named_places,
    times_of,
    whole,
)
from core.split_plan import PARTS, UNUSED, Codes, Plan, Split


def split(
    frame: pd.DataFrame,
    rule: str,
    *,
    ids: str | None = None,
    label: str | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    folds: int | None = None,
    fold: int = 0,
) -> Split:
    """Place the rows of ``frame``.

    With ``folds`` there are K folds of about equal size: ``fold`` is the test, the next one the
    validation, the rest trains, and every row is tested once over the K runs. With ``time:`` there
    are K + 2 blocks in order instead: run ``fold`` trains on the first ``fold + 1``, validates on
    the next one and tests on the one after; later blocks are unused.

    Args:
        frame: N rows; a table, or one row a file or series. Its index is not looked at.
        rule: see the module.
        ids: a column that names each row once; without it a row is known by its content, so that
            equal rows stay together and any edit makes a row a new one.
        label: the column of classes, for ``stratified``.
        fractions: shares of train, val and test; a share of 0 leaves val or test out.
        seed: another one places rows anew.
        folds: K, at least 3.
        fold: 0 to K - 1.

    Raises:
        UserError: if the rule or a column does not exist, a cell that decides is missing or
            unreadable, an id repeats, or there are too few rows, groups or times for every part.
    """
    if not len(frame):
        raise fault(rule, "the data has no rows")
    if rule.endswith(".parquet") and rule.partition(":")[0] not in RULES:
        return _again(frame, Path(rule), ids, folds, fold)
    plan = Plan(check_rule(rule, frame), ids, fractions, seed, folds, fold)
    keys = _keys(frame, plan)
    notes: list[str] = []
    if plan.kind == "time":
        plan = replace(plan, borders=_borders(times_of(frame, plan), plan))
    if plan.hashed:
        place, notes = _filled(frame, plan, keys, label)
    else:
        place = _places(frame, plan, keys)
    return _checked(Split(plan, keys, place, tuple(notes)))


def _again(frame: pd.DataFrame, path: Path, ids: str | None, folds: int | None, fold: int) -> Split:
    """Place known rows as ``path`` says and new ones by its rule; a known one never moves."""
    saved = Split.load(path)
    if folds not in (None, saved.plan.folds):
        raise UserError(
            f"--data.folds={folds}: {path} holds {saved.plan.folds or 'no'} folds; leave it out"
        )
    plan = replace(saved.plan, ids=ids, fold=saved.plan.fold if folds is None else fold)
    check_rule(plan.rule, frame)
    keys = _keys(frame, plan)
    known = pd.Series(saved.place, index=saved.keys)
    old = known[~known.index.duplicated()].reindex(keys)
    new = old.isna().to_numpy(bool)
    if new.all():
        raise fault(path, "none of its rows is in the data; is it the split of other data?")
    place = old.fillna(UNUSED).to_numpy(np.int64)
    notes = []
    if new.any():
        place[new] = _places(frame, plan, keys)[new]
        notes.append(f"rows that {path} does not know: {new.sum():,}, placed by {plan.rule}")
    if plan.kind == "group":
        place = _with_group(frame, plan, place, new)
    if gone := len(set(saved.keys) - set(keys)):
        notes.append(f"rows of {path} that are gone: {gone:,}")
    return _checked(Split(plan, keys, place, tuple(notes)))


def _with_group(frame: pd.DataFrame, plan: Plan, place: Codes, new: NDArray[np.bool_]) -> Codes:
    """Put new rows of a known group where it is; a group in two places is an error."""
    groups, names = texts(whole(frame, plan))
    known = pd.DataFrame({"group": groups, "place": place})[~new].drop_duplicates()
    if (twice := known["group"].duplicated()).any():
        name = names[known["group"][twice].iloc[0]]
        raise fault(
            plan.rule,
            f"the saved split has rows of {name!r} in two parts; the groups have changed since, so"
            " split anew",
        )
    home = known.set_index("group")["place"].reindex(groups).to_numpy()
    return np.where(np.isnan(home), place, home).astype(np.int64)


def _keys(frame: pd.DataFrame, plan: Plan) -> NDArray[np.object_]:
    """Name each row (N,) by its id or its content."""
    if plan.ids is None:
        return contents(frame)
    codes, distinct = texts(whole(frame, plan, plan.ids))
    if len(distinct) < len(codes):
        again = pd.Series(codes).duplicated().to_numpy()
        second = int(np.argmax(again))
        first = int(np.argmax(codes == codes[second]))
        raise fault(
            plan.rule,
            f"ids must differ, but column {plan.ids!r} holds {distinct[codes[second]]!r} in rows"
            f" {first + 1} and {second + 1}; to keep such rows together, name no ids and write"
            f" group:{plan.ids}",
        )
    return distinct[codes]


def _units(
    frame: pd.DataFrame, plan: Plan, keys: NDArray[np.object_]
) -> tuple[Codes, NDArray[np.object_]]:
    """Give what is placed as one: the unit of each row (N,), and the units' names (U,)."""
    if plan.kind == "group":
        return texts(whole(frame, plan))
    codes, names = pd.factorize(keys)
    return codes, np.asarray(names, dtype=object)


def _places(frame: pd.DataFrame, plan: Plan, keys: NDArray[np.object_]) -> Codes:
    """Place each row (N,) by itself."""
    if plan.kind == "column":
        return named_places(frame, plan)
    if plan.kind == "time":
        form = "datetime64[us]" if isinstance(next(iter(plan.borders), 0), str) else None
        times = times_of(frame, plan)
        if (times.dtype.kind == "M") != (form is not None) and plan.borders:
            raise fault(
                plan.rule,
                "the saved split is by dates, and the column holds numbers, or the reverse",
            )
        return np.searchsorted(np.array(plan.borders, form), times, side="right")
    units, names = _units(frame, plan, keys)
    return _thrown(positions(names, plan.seed), plan)[units]


def _thrown(position: NDArray[np.float64], plan: Plan) -> Codes:
    """Turn positions in [0, 1) into parts or folds."""
    if plan.folds is not None:
        return (position * plan.folds).astype(np.int64)
    ends = np.round(np.cumsum(plan.fractions) / sum(plan.fractions), 12)[:2]
    return np.searchsorted(ends, position, side="right")


def _filled(
    frame: pd.DataFrame, plan: Plan, keys: NDArray[np.object_], label: str | None
) -> tuple[Codes, list[str]]:
    """Place rows (N,) by hash, and leave no part empty."""
    units, names = _units(frame, plan, keys)
    what = "groups" if plan.kind == "group" else "different rows"
    needed = f"{plan.folds} folds" if plan.folds else ", ".join(PARTS[p] for p in plan.order)
    if len(names) < len(plan.order):
        raise fault(plan.rule, f"{what} in the data: {len(names)}, too few for {needed}")
    position = positions(names, plan.seed)
    place = _thrown(position, plan)
    notes = []
    if plan.kind == "stratified":
        codes, classes = classes_of(frame, plan, label)
        of_unit = np.zeros(len(names), np.int64)
        of_unit[units] = codes
        place, moved = _fill(place, position, of_unit, plan)
        sizes = np.bincount(of_unit)
        if len(moved):
            notes.append(
                _moved(len(moved), what, f" of class {listed(classes[np.unique(of_unit[moved])])}")
            )
        if len(rare := classes[sizes < len(plan.order)]):
            notes.append(f"too few {what} to be in each of {needed}: class {listed(rare)}")
    place, moved = _fill(place, position, np.zeros(len(names), np.int64), plan)
    if len(moved):
        notes.append(_moved(len(moved), what, ""))
    return place[units], notes


def _moved(count: int, what: str, whose: str) -> str:
    return (
        f"{what}{whose} moved into a part that hashing left empty: {count:,}; added rows may move"
        " them again, unless this split is reused"
    )


def _fill(
    place: Codes, position: NDArray[np.float64], classes: Codes, plan: Plan
) -> tuple[Codes, Codes]:
    """Move units (U,) so that every class is in each part, where it has enough of them.

    A part without a unit of the class takes the lowest hash of the part that has most. A class with
    too few for every part trains first, then tests; folds take from folds that keep one.

    Returns:
        The places, and the units that were moved.
    """
    filled = place.copy()
    order = list(plan.order)
    counts = np.zeros((classes.max() + 1, max(order) + 1), np.int64)
    np.add.at(counts, (classes, place), 1)
    sorted_units = np.lexsort((position, classes))
    ends = np.cumsum(counts.sum(1))
    for number in np.flatnonzero((counts[:, order] == 0).any(1)):
        members = sorted_units[ends[number] - counts[number].sum() : ends[number]]
        have = counts[number]
        for rank, part in enumerate(order):
            if have[part]:
                continue
            givers = [p for p in order if have[p] > 1]
            if not givers and plan.folds is None:
                givers = [p for p in order[rank + 1 :] if have[p]]
            if not givers:
                break
            giver = max(givers, key=lambda p: (have[p], order.index(p)))
            unit = members[int(np.argmax(filled[members] == giver))]
            filled[unit] = part
            have[giver] -= 1
            have[part] += 1
    return filled, np.flatnonzero(filled != place)


def _borders(times: NDArray[Any], plan: Plan) -> tuple[int | float | str, ...]:
    """Find the times at which the blocks after the first begin, each of them with a row."""
    distinct, counts = np.unique(times, return_counts=True)
    before = np.cumsum(counts) - counts  # rows that are earlier
    shares = plan.fractions if plan.folds is None else (1,) * (plan.folds + 2)
    width = np.array([share > 0 for share in shares], np.int64)
    spare = len(distinct) - width.sum()
    if spare < 0:
        raise fault(
            plan.rule,
            f"different times in the data: {len(distinct)}, too few for {width.sum()} parts",
        )
    wanted = np.round(np.cumsum(shares)[:-1] / np.sum(shares) * len(times), 6)
    least = np.cumsum(width)[:-1]
    first = (
        np.maximum.accumulate(np.clip(np.searchsorted(before, wanted) - least, 0, spare)) + least
    )
    starts = distinct[first[first < len(distinct)]]
    return tuple(str(t) if times.dtype.kind == "M" else t.item() for t in starts)


def _checked(split: Split) -> Split:
    """Refuse a split that lacks a part, and tell of shares that are far from those asked for."""
    plan = split.plan
    shares = np.bincount(split.part[split.part != UNUSED], minlength=3) / len(split.part)
    wanted = [0, 1, 2] if plan.folds is not None else plan.order
    notes = list(split.notes)
    for part in wanted:
        if shares[part] > 0:
            continue
        if plan.kind == "column" and part != 0:
            notes.append(f"column {plan.column!r} names no {PARTS[part]} rows")
        else:
            raise fault(plan.rule, f"no row of the data is left for {PARTS[part]}")
    if (
        plan.hashed
        and plan.folds is None
        and np.abs(shares - plan.fractions).max() > 0.05 + 1 / len(split.part)
    ):
        asked = ", ".join(f"{share:.0%}" for share in plan.fractions)
        got = ", ".join(f"{share:.0%}" for share in shares)
        notes.append(f"train, val and test hold {got} of the rows, not {asked}")
    if plan.kind == "time" and (unused := int((split.part == UNUSED).sum())):
        notes.append(f"rows after the test of fold {plan.fold}, unused: {unused:,}")
    return replace(split, notes=tuple(notes))
