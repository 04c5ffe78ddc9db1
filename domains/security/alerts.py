"""Judge files of flows, of any length, in memory that does not grow with them."""

import copy
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import UserError
from domains.security.alert_files import AlertWriter
from domains.security.alert_options import (
    FLAGS,
    FORMATS,
    OPTIONS,
    Asked,
    choose_threshold,
    read_options,
)
from domains.security.contributions import contributions
from domains.security.flow_files import ENDINGS, read_flows
from domains.security.preprocessing import Encoded, FlowPreprocessing
from domains.security.progress import counted
from domains.security.scores import attack_score, likely_class
from domains.security.thresholds import Point
from domains.security.windows import HostWindows, Windows

BATCH = 1_024
"""Flows that are judged at a time."""
STRANGE = 0.05
"""The share of unknown levels, or of numbers out of bounds, from which on it is warned of."""
TOLD = 3
"""Fields that an alert names."""


class FlowAlerts:
    """What turns flows into alerts besides the network; it travels in ``model/``.

    The files of one call are one stream: the windows of the first flows of a file hold flows of the
    file before. A file that fails leaves no trace in the windows of the next one. What was written
    by an earlier call, before it was killed, is not judged again, but read again where a window
    needs it.

    Args:
        flows: scales and codes the fields.
        threshold: that keeps to the budget of false alarms in training.
        curve: thresholds and what validation data measured at them.
    """

    suffixes: ClassVar[tuple[str, ...]] = ENDINGS
    options: ClassVar[Mapping[str, str]] = OPTIONS
    flags: ClassVar[tuple[str, ...]] = FLAGS

    def __init__(
        self, flows: FlowPreprocessing, threshold: float = 0.5, curve: Sequence[Point] = ()
    ) -> None:
        self.flows = flows
        self.threshold = threshold
        self.curve = list(curve)
        self._stream = HostWindows(flows.window)
        self._unread: list[Path] = []

    def to_json(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "flows": self.flows.to_json(),
            "threshold": self.threshold,
            "curve": [list(point) for point in self.curve],
        }

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "FlowAlerts":
        """Rebuild from what :meth:`to_json` gave."""
        curve = [Point(*map(float, row)) for row in mapping["curve"]]
        flows = FlowPreprocessing.from_json(mapping["flows"])
        return cls(flows, float(mapping["threshold"]), curve)

    def result(self, options: Mapping[str, str]) -> str:
        """Give the ending of results in a folder."""
        return FORMATS[read_options(**options).format or "csv"]

    def passed(self, source: Path) -> None:
        """Take note of a file of the stream that an earlier call has answered."""
        self._unread.append(source)

    def predict_file(
        self,
        network: nn.Module,
        input: Path,
        output: Path,
        plot: Path | None = None,
        **options: str,
    ) -> str:
        """Write a score and a verdict for every flow, in the order of the file.

        Args:
            network: gives logits.
            input: a file of flows.
            output: a CSV or JSON lines file.
            plot: not drawn.
            options: those of :data:`OPTIONS`.

        Raises:
            UserError: naming the file, line and column, or the option.
        """
        if plot is not None:
            raise UserError(f"--plot {plot}: there is no picture of alerts; leave it out")
        asked = read_options(**options)
        specification = self.flows.specification
        threshold = choose_threshold(asked, self.curve, input, specification)
        stream = self._continued()
        judge = _Judge(self.flows, network, threshold.value, asked)
        began = time.perf_counter()
        with AlertWriter(output, asked.format) as writer:
            for table, windows, encoded in self._pieces(stream, input, asked.keep, judge.repairs):
                writer.write(judge.answer(table, windows, encoded))
        self._stream = stream
        speed = judge.count / (time.perf_counter() - began)
        return f"{output}: {judge.told()}; {threshold.told}; {speed:,.0f} flows a second"

    def _continued(self) -> HostWindows:
        """Give the windows as they are after all files before; kept until a file is whole."""
        while self._unread:
            stream = copy.copy(self._stream)
            for _ in self._pieces(stream, self._unread[0], (), Counter()):
                pass
            self._stream = stream
            self._unread.pop(0)
        return copy.copy(self._stream)

    def _pieces(
        self, stream: HostWindows, source: Path, keep: Sequence[str], repairs: Counter[str]
    ) -> Iterator[tuple[pa.Table, Windows, Encoded]]:
        """Read a file as a part of the stream."""
        also = [*self.flows.also, *keep]
        tables = read_flows(source, self.flows.specification, also=also, repairs=repairs)
        for table in counted(tables, source):
            encoded = self.flows.encode(table)
            windows = stream.add(self.flows.hosts(table), encoded.numeric, encoded.codes)
            yield table, windows, encoded


class _Judge:
    """Judge one file, piece by piece, and count what it meets."""

    def __init__(
        self, flows: FlowPreprocessing, network: nn.Module, threshold: float, asked: Asked
    ) -> None:
        self.flows = flows
        self.network = network
        self.threshold = threshold
        self.asked = asked
        self.repairs: Counter[str] = Counter()
        self.count = self.alerts = self.unknown = 0
        self.unseen: NDArray[np.int64] = np.zeros(len(flows.levels), np.int64)
        self.outside: NDArray[np.int64] = np.zeros(len(flows.low), np.int64)
        self.device = next(network.parameters()).device

    def answer(self, table: pa.Table, windows: Windows, encoded: Encoded) -> dict[str, Any]:
        """Give the columns of one piece."""
        rows = np.arange(table.num_rows)
        parts = [self._scores(windows, rows[at : at + BATCH]) for at in rows[::BATCH]]
        score, classes = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        alerts = np.flatnonzero(classes)
        fields = self._fields(windows, alerts)
        columns: dict[str, Any] = {"flow": rows + self.count + 1}
        columns |= {name: table[name].combine_chunks() for name in self.asked.keep}
        names = pa.DictionaryArray.from_arrays(classes, list(self.flows.classes))
        columns |= {"score": score, "verdict": names}
        told = np.full(len(rows), None, object)
        told[alerts] = fields
        columns["fields"] = told
        self.count += len(rows)
        self.alerts += len(alerts)
        self.unknown += int(np.isnan(score).sum())
        self.unseen += encoded.unseen
        self.outside += encoded.outside
        if self.asked.alerts_only:
            columns = {name: _taken(column, alerts) for name, column in columns.items()}
        return columns

    def told(self) -> str:
        """Sum up."""
        share = self.alerts / max(self.count, 1)
        text = f"{self.count:,} flows, {self.alerts:,} alerts ({share:.2%})"
        drift = self.flows.drift(self.unseen, self.outside, self.count)
        for part, what in zip(
            drift, ("levels that training had not", "numbers out of its range"), strict=True
        ):
            text += f"; {'WARNING: ' if part > STRANGE else ''}{part:.1%} {what}"
        if max(drift) > STRANGE:
            text += ": these flows are unlike those of training, scores may mislead"
        if self.unknown:
            text += f"; WARNING: {self.unknown:,} flows have no score (NaN) and no alert"
        return text + "".join(f"; {count:,} {what}" for what, count in self.repairs.items())

    def _scores(self, windows: Windows, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Give the scores and the classes (B,) of some flows."""
        with torch.inference_mode():
            logits = self.network(*self._batch(windows, rows)).float()
            score = attack_score(logits)
            return score.cpu(), likely_class(logits, score > self.threshold).int().cpu()

    def _fields(self, windows: Windows, rows: NDArray[np.int64]) -> list[dict[str, float]]:
        """Give for each of some flows the fields that speak most for an attack."""
        names = self.flows.specification.fields
        found = []
        for start in range(0, len(rows), BATCH):
            batch = self._batch(windows, rows[start : start + BATCH])
            shares = contributions(self.network, *batch, 0 if self.flows.faithful else 1)
            best = shares.topk(min(TOLD, len(names)))
            found += [
                {
                    names[place]: value
                    for place, value in zip(places, values, strict=True)
                    if value > 0
                }
                for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        return found

    def _batch(self, windows: Windows, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        numeric, codes = windows.at(rows)
        return torch.from_numpy(numeric).to(self.device), torch.from_numpy(codes).to(self.device)


def _taken(column: Any, rows: NDArray[np.int64]) -> Any:
    return column.take(pa.array(rows)) if isinstance(column, pa.Array) else column[rows]
