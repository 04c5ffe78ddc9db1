"""Which flows train, validate and test.

Besides the rules of :mod:`core.splits`:

- ``last``: the last flows of the file test, those before them validate. The honest rule where a
  file is in order of time: windows look back, never ahead.
- ``attack:NAME``, or several with commas: as ``last``, but every flow of these attacks tests, so
  that the test tells how an attack is met that training has not seen.

With ``random`` and ``stratified`` a window may hold flows of all parts, as in the published
framework; with every other rule but ``last`` it holds flows of its own part alone.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.errors import UserError
from core.split_columns import FORMS, RULES, listed
from core.split_plan import UNUSED, Split
from core.splits import split
from domains.security.raw_flows import RawFlows
from domains.security.specification import near

LEAKS = (
    "a random split leaks: neighbouring flows of one burst stand in training and in the test, and"
    " in one another's windows"
)
_OWN = ("last", "attack")


class Division(NamedTuple):
    """The parts of flows.

    Attributes:
        part: (R,) 0 train, 1 val, 2 test, -1 none.
        apart: whether windows hold flows of their own part alone.
        notes: what the user should know.
        split: what a later run may reuse; None where order alone decides.
    """

    part: NDArray[np.int64]
    apart: bool
    notes: tuple[str, ...] = ()
    split: Split | None = None


def columns_of_rule(rule: str) -> tuple[str, ...]:
    """Name the columns that a rule needs.

    Raises:
        UserError: if there is no such rule.
    """
    word, _, column = _inner(rule).partition(":")
    if word not in _OWN and word not in RULES:
        raise UserError(
            f"--data.split={rule}: there is no such rule{near(word, (*_OWN, *RULES))}; write last,"
            f" attack:NAME, {FORMS}"
        )
    if word == "attack" and not column:
        raise UserError(f"--data.split={rule}: name the attacks, as in attack:NAME,NAME")
    return (column,) if column and word != "attack" else ()


def divide(raw: RawFlows, rule: str, fractions: tuple[float, float, float]) -> Division:
    """Divide the flows of the first table by a rule; those of others are left as -1.

    Args:
        raw: R flows.
        rule: see the module.
        fractions: shares of train, val and test.

    Raises:
        UserError: if the rule does not fit, or a part would be empty.
    """
    word, _, rest = _inner(rule).partition(":")
    part = np.full(len(raw), UNUSED, np.int64)
    rows = raw.starts[1]
    notes: tuple[str, ...] = ()
    made = None
    if word in _OWN:
        ends = np.round(np.cumsum(fractions)[:2] * rows)
        part[:rows] = np.searchsorted(ends, np.arange(rows), side="right")
        if word == "attack":
            part[:rows][_held_out(raw, rule, rest)[:rows]] = 2 if fractions[2] else UNUSED
    else:
        made = split(_frame(raw, word, rest), rule, label=_LABEL, fractions=fractions)
        part[:rows], notes = made.part, made.notes
    leaks = word in ("random", "stratified")
    for name, place in (("train", 0), ("val", 1), ("test", 2)):
        if word in _OWN and fractions[place] and not (part == place).any():
            raise UserError(
                f"--data.split={rule}: the file has {rows:,} flows, of which none is left for"
                f" {name}"
            )
    told = [f"{LEAKS}; --data.split=last is the honest one"] if leaks else []
    return Division(part, word != "last" and not leaks, (*notes, *told), made)


_LABEL = "the label"


def _inner(rule: str) -> str:
    """Give the rule of a saved split."""
    return Split.load(Path(rule)).plan.rule if rule.endswith(".parquet") else rule


def _held_out(raw: RawFlows, rule: str, attacks: str) -> NDArray[np.bool_]:
    label = raw.specification.label
    assert label is not None
    names = raw.names[label]
    wanted = [name.strip() for name in attacks.split(",")]
    for name in wanted:
        if name not in names:
            raise UserError(
                f"--data.split={rule}: no flow has the label {name!r}{near(name, names)}; there are"
                f" {listed(names)}"
            )
    return np.isin(raw.texts[label], [names.index(name) for name in wanted])


def _frame(raw: RawFlows, word: str, column: str) -> pd.DataFrame:
    """Give what the rule looks at: its column, or a hash of all that tells flows apart."""
    rows = raw.starts[1]
    if column:
        found = raw.column(column)[:rows]
        if word == "time":
            values = pd.to_numeric(found.astype(object), errors="coerce")
            found = found if values.isna().any() else values
        return pd.DataFrame({column: found})
    frame = pd.DataFrame(raw.numeric[:rows], columns=list(raw.specification.numeric), copy=False)
    for name, codes in raw.texts.items():
        frame[name] = pd.Categorical.from_codes(codes[:rows], raw.names[name])  # type: ignore[call-overload]
    content = pd.util.hash_pandas_object(frame, index=False).to_numpy()  # equal flows stay together
    return pd.DataFrame({"content": content, _LABEL: frame[raw.specification.label]})
