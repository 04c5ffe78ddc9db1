"""Metrics as functions of sums over test items, so that they can be told again for resampled items.

The mean of a column is such a function, and so is F1, of counts of answers. A metric is read from
``predictions.parquet`` in whichever way gives the number that the run itself measured; a metric of
which none does, such as a rank correlation, is not resampled.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

ID = "id"
"""The column by which the items of two runs are matched."""
GROUP = "group"
"""The column, where there is one, whose values are resampled as a whole."""
TOLERANCE = 1e-4
"""By how much of itself, or of 1, a recomputed metric may depart: results are single precision."""

Array = NDArray[np.float64]


class Score(NamedTuple):
    """A metric: ``of`` turns sums of ``parts`` (n, d) over items, (R, d), into R values."""

    parts: Array
    of: Callable[[Array], Array]

    def value(self) -> float:
        """Give it for the items as they are."""
        return float(self.of(self.parts.sum(0, keepdims=True))[0])

    def at(self, rows: NDArray[np.int64]) -> "Score":
        """Take some of the items."""
        return self._replace(parts=self.parts[rows])


class Items(NamedTuple):
    """The test items of a run: their ``ids`` (n), the ``groups`` (n) they belong to, a score."""

    ids: NDArray[Any]
    groups: NDArray[Any]
    score: Score


def read(path: Path, metric: str, measured: float, block: int | None = None) -> Items | None:
    """Read a metric from a run's predictions; None where it is no function of them known here.

    Args:
        path: ``predictions.parquet``.
        metric: such as ``test/accuracy``.
        measured: its value in ``results.json``.
        block: so many neighbouring ids overlap and are taken as one group; None: none do.
    """
    if not path.is_file() or ID not in (names := pq.read_schema(path).names):
        return None
    name = metric.removeprefix("test/")
    wanted = [ID, GROUP, name] if name in names else names
    frame = pd.read_parquet(path, columns=[column for column in names if column in wanted])
    if frame[ID].duplicated().any():
        return None
    frame = frame.sort_values(ID, ignore_index=True)
    ids = frame[ID].to_numpy()
    groups = frame[GROUP].to_numpy() if GROUP in frame else ids if block is None else ids // block
    margin = TOLERANCE * max(1.0, abs(measured))
    for score in _candidates(frame, name):
        if abs(score.value() - measured) <= margin:
            return Items(ids, groups, score)
    return None


def mean(values: Array) -> Score:
    """Give the mean of known values (n)."""
    known = np.isfinite(values)
    return Score(np.stack([np.where(known, values, 0.0), known], 1), lambda s: s[:, 0] / s[:, 1])


def counted(counts: Array, of: Callable[[Array, Array, Array], Array]) -> Score:
    """Give a function of how often each of K labels is right, told and true.

    Args:
        counts: (n, 3, K), for each item.
        of: takes the sums of the three, (R, K) each, and gives R values.
    """
    shape = counts.shape[1:]
    return Score(
        counts.reshape(len(counts), -1),
        lambda sums: of(*np.moveaxis(sums.reshape(-1, *shape), 1, 0)),
    )


def f1(right: Array, told: Array, true: Array) -> Array:
    """Give F1 of counts of any shape, 0 where nothing is told and true."""
    value: Array = 2 * right / np.maximum(told + true, 1e-12)
    return value


def matthews(right: Array, told: Array, true: Array) -> Array:
    """Give the correlation of answers and truth (Gorodkin, 2004), 0 where one is constant."""
    count = true.sum(1)
    covariance = right.sum(1) * count - (told * true).sum(1)
    spread = (count**2 - (told**2).sum(1)) * (count**2 - (true**2).sum(1))
    value: Array = np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1e-12)), 0.0)
    return value


def _macro(right: Array, told: Array, true: Array) -> Array:
    seen = told + true > 0
    value: Array = (f1(right, told, true) * seen).sum(1) / np.maximum(seen.sum(1), 1)
    return value


OF_COUNTS: dict[str, list[Callable[[Array, Array, Array], Array]]] = {
    "accuracy": [lambda right, told, true: right.sum(1) / true.sum(1)],
    "f1": [lambda right, told, true: f1(right.sum(1), told.sum(1), true.sum(1))],
    "f1_macro": [_macro, lambda right, told, true: f1(right, told, true).mean(1)],
    "f1_weighted": [
        lambda right, told, true: (f1(right, told, true) * true).sum(1) / true.sum(1),
    ],
    "precision": [lambda right, told, true: right.sum(1) / np.maximum(told.sum(1), 1)],
    "recall": [lambda right, told, true: right.sum(1) / np.maximum(true.sum(1), 1)],
    "matthews": [matthews],
}
"""The readings of each metric, of counts (R, K); of several, one gives the measured number."""
OF_TWO: list[Callable[[Array, Array, Array], Array]] = [
    lambda right, told, true: f1(right[:, -1], told[:, -1], true[:, -1]),
    lambda right, told, true: f1(right[:, 0], told[:, 0], true[:, 0]),
]
"""F1 where an item has one of two labels: of the label that counts as positive."""


def _candidates(frame: pd.DataFrame, name: str) -> Iterator[Score]:
    """Give what a metric may be, the likeliest first."""
    if name in frame and pd.api.types.is_numeric_dtype(frame[name]):
        yield mean(frame[name].to_numpy(float))
    for base, head in _heads(name, OF_COUNTS):
        for true, told in (("label", "prediction"), ("gold", "predicted")):
            if true + head in frame and told + head in frame:
                for counts, one_each in _counts(frame[true + head], frame[told + head]):
                    readings = OF_TWO if base == "f1" and one_each else OF_COUNTS[base]
                    yield from (counted(counts, of) for of in readings)
    for base, head in _heads(name, ("exact_match", "mse", "mae")):
        if "label" + head in frame:
            yield from _of_pairs(base, frame["label" + head], frame["prediction" + head])


def _heads(name: str, bases: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Part a metric's name into a known one and ``_HEAD``, of the head that it judges."""
    for base in bases:
        head = name.removeprefix(base)
        if name.startswith(base) and (not head or head.startswith("_")):
            yield base, head


def _of_pairs(base: str, true: "pd.Series[Any]", told: "pd.Series[Any]") -> Iterator[Score]:
    """Give errors of told values, or the share of items whose labels are all right."""
    if base == "exact_match":
        pairs = zip(true, told, strict=True)
        yield mean(np.array([np.nan if t is None else set(t) == set(p) for t, p in pairs], float))
    elif pd.api.types.is_numeric_dtype(true):
        error = told.to_numpy(float) - true.to_numpy(float)
        yield mean(error**2 if base == "mse" else np.abs(error))


def _counts(true: "pd.Series[Any]", told: "pd.Series[Any]") -> Iterator[tuple[Array, bool]]:
    """Count labels (n, 3, K), and say whether an item has one: of items, or of words and spans."""
    known = true.notna()
    several = any(isinstance(value, np.ndarray) for value in true)
    own, answers = (
        [
            [] if not sure else list(value) if several else [value]
            for value, sure in zip(column, known, strict=True)
        ]
        for column in (true, told)
    )
    if str(true.name).startswith("gold"):
        yield _span_counts(own, answers), False
        yield _word_counts(own, answers), False
    else:
        yield _label_counts(own, answers), not several


def _label_counts(true: list[list[Any]], told: list[list[Any]]) -> Array:
    number = _numbers([true, told])
    counts = np.zeros((len(true), 3, len(number)))
    for row, (own, answers) in enumerate(zip(true, told, strict=True)):
        for place, labels in enumerate((set(own) & set(answers), set(answers), set(own))):
            counts[row, place, [number[label] for label in labels]] = 1
    return counts


def _word_counts(true: list[list[Any]], told: list[list[Any]]) -> Array:
    number = _numbers([true, told])
    counts = np.zeros((len(true), 3, len(number)))
    for row, pair in enumerate(zip(true, told, strict=True)):
        for own, answer in zip(*pair, strict=True):
            if own is not None:
                counts[row, 0, number[own]] += own == answer
                counts[row, 1, number[answer]] += 1
                counts[row, 2, number[own]] += 1
    return counts


def _span_counts(true: list[list[Any]], told: list[list[Any]]) -> Array:
    """Count spans by their types, as the metric of tagging does; words without a tag are none."""
    from domains.nlp.spans import decode

    own = [{*decode([tag or "O" for tag in row])} for row in true]
    answers = [
        {*decode([told_tag if tag else "O" for tag, told_tag in zip(*pair, strict=True)])}
        for pair in zip(true, told, strict=True)
    ]
    number = _numbers([[[span.type for span in row] for row in part] for part in (own, answers)])
    counts = np.zeros((len(own), 3, len(number)))
    for row, (right, answered) in enumerate(zip(own, answers, strict=True)):
        for place, spans in enumerate((right & answered, answered, right)):
            for span in spans:
                counts[row, place, number[span.type]] += 1
    return counts


def _numbers(rows: list[list[list[Any]]]) -> dict[Any, int]:
    found = {value for part in rows for row in part for value in row if value is not None}
    return {value: number for number, value in enumerate(sorted(found, key=str))}
