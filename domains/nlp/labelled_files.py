"""The preprocessing of a text classifier: it reads a user's file and writes it with answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor, nn

from core.errors import UserError
from core.length_plan import Lengths, longest_first
from core.tasks.calibration import threshold_for
from core.tasks.classification import mean_by, read_answers
from core.tasks.heads import Head, read_heads
from domains.nlp.encoding import LongInput, encode
from domains.nlp.tables import SUFFIXES, TEXT, column, read_table, write_table
from domains.nlp.tokenizer import Tokenized
from domains.nlp.tokens import pad

BUDGET = 16_384
"""Tokens that are answered at a time."""


@dataclass(frozen=True)
class LabelledFiles(Tokenized):
    """What a classifier needs besides its network; it travels in ``model/``.

    Attributes:
        heads: what the outputs mean.
        text: the column of texts.
        pair: the column of second texts, for pairs.
        separator: what stands between several labels of a cell.
        max_length: the most tokens of a text.
        long_input: what to do about a longer text.
        tokenizer: of the network; saved as files of its own.
        temperature: what the logits of each head are divided by.
        threshold: of each output.
        curves: of each head, thresholds with the accuracy and the share of answers above them.
    """

    heads: list[dict[str, Any]]
    text: str
    pair: str | None
    separator: str
    max_length: int
    long_input: LongInput
    tokenizer: Any = None
    temperature: list[float] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    curves: list[list[list[float]]] = field(default_factory=list)

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    options: ClassVar[Mapping[str, str]] = {
        "accuracy": "abstain where answers were less accurate than this on validation data (0.9)",
        "top": "how many labels to write (3)",
    }

    def to_json(self) -> dict[str, Any]:
        """Give all but the tokenizer as plain values."""
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "LabelledFiles":
        """Rebuild it, without its tokenizer."""
        return cls(**mapping)

    def calibrated(
        self, temperature: list[float], threshold: list[float], curves: list[list[list[float]]]
    ) -> "LabelledFiles":
        """Keep what was measured on validation data."""
        return replace(self, temperature=temperature, threshold=threshold, curves=curves)

    def predict_file(
        self,
        network: nn.Module,
        input: Path,
        output: Path,
        plot: Path | None = None,
        accuracy: str = "0.9",
        top: str = "3",
    ) -> str:
        """Answer on every row of a table and write it with the answers.

        Args:
            network: gives logits (W, K).
            input: a table, or a text a line.
            output: a CSV, TSV, JSON lines or Parquet file.
            plot: not drawn.
            accuracy: answers that were less accurate on validation data are abstained from.
            top: how many labels to write, the most probable first.

        Raises:
            UserError: naming the file and column, or the option.
        """
        suffix = output.suffix.lower()
        if suffix not in SUFFIXES or suffix == ".txt":
            known = ", ".join(SUFFIXES[:-1])
            raise UserError(f"--output {output}: name a file that ends in {known}")
        if plot is not None:
            raise UserError(f"--plot {plot}: there is no picture of labels; leave it out")
        wanted, count = _share(accuracy), _count(top)
        frame = read_table(input)
        texts, pairs, present = self._texts(frame, input)
        logits = self._logits(network, texts, pairs)
        columns: dict[str, Any] = {}
        told = []
        for number, head in enumerate(read_heads(self.heads)):
            own = logits[:, head.outputs] / self.temperature[number]
            columns |= _spread(self._columns(number, head, own, wanted, count), present)
            if head.kind != "regression":
                left = sum(columns[head.metric("abstain")])
                told.append(f"{head.name or 'labels'}: abstains on {left:,}")
        clash = _renamed([str(name) for name in frame.columns], columns)
        frame = frame.rename(columns=clash)
        write_table(pd.concat([frame, pd.DataFrame(columns)], axis=1), output, suffix)
        renamed = f"; given columns renamed: {', '.join(clash.values())}" if clash else ""
        empty = len(frame) - int(present.sum())
        without = f"; {empty:,} rows have no text" if empty else ""
        at = f"; {'; '.join(told)} (asked for an accuracy of {wanted:g})" if told else ""
        return f"{output}: {len(frame):,} rows{without}{at}{renamed}"

    def _texts(self, frame: pd.DataFrame, source: Path) -> tuple[list[str], Any, Any]:
        """Take the texts that are there; say which rows have them."""
        if frame.empty:
            raise UserError(f"{source}: holds no rows")
        alone = len(frame.columns) == 1 and self.pair is None
        name = str(frame.columns[0]) if alone or source.suffix == ".txt" else self.text
        if self.pair is not None and source.suffix == ".txt":
            raise UserError(f"{source}: pairs need a table with {self.text!r} and {self.pair!r}")
        column(frame, name, (TEXT,), "text", str(source))
        names = [name]
        if self.pair is not None:
            names.append(column(frame, self.pair, (), "pair", str(source)))
        whole = frame[names].map(lambda cell: isinstance(cell, str) and bool(cell.strip()))
        present = whole.all(axis=1).to_numpy()
        kept = frame[present]
        return list(kept[name]), list(kept[names[1]]) if len(names) > 1 else None, present

    def _logits(self, network: nn.Module, texts: list[str], pairs: list[str] | None) -> Tensor:
        """Give the logits (N, K), with the longest texts first on the way."""
        heads = read_heads(self.heads)
        result = torch.zeros(len(texts), heads[-1].outputs.stop)
        if not texts:
            return result
        encoded = encode(self.tokenizer, texts, pairs, self.max_length, self.long_input)
        device = next(network.parameters()).device
        with torch.inference_mode():
            for some in longest_first(Lengths(encoded.tokens, BUDGET, encoded.rows), BUDGET):
                windows = [encoded.windows(place) for place in some]
                tokens = pad([w for each in windows for w in each], self.tokenizer.pad_token_id)
                counts = torch.tensor([len(each) for each in windows])
                owner = torch.repeat_interleave(torch.arange(len(some)), counts)
                logits = network(*(part.to(device) for part in tokens)).float().cpu()
                result[torch.tensor(some)] = mean_by(logits, owner, len(some))
        return result

    def _columns(
        self, number: int, head: Head, logits: Tensor, accuracy: float, top: int
    ) -> dict[str, list[Any]]:
        """Write the answers of a head as columns."""
        threshold = torch.tensor(self.threshold[head.outputs])
        told = read_answers(head, logits, threshold)
        if head.kind == "regression":
            return {head.metric("predicted"): told.labels}
        labels = told.labels
        if head.kind == "multi":
            labels = [self.separator.join(each) for each in labels]
        found: dict[str, list[Any]] = {
            head.metric("label"): labels,
            head.metric("probability"): _rounded(told.probability),
        }
        scores = logits.softmax(1) if head.kind == "single" else logits.sigmoid()
        best, places = scores.sort(dim=1, descending=True, stable=True)
        for rank in range(min(top, len(head.labels))):
            found[head.metric(f"top_{rank + 1}")] = [
                head.labels[place] for place in places[:, rank].tolist()
            ]
            found[head.metric(f"top_{rank + 1}_probability")] = _rounded(best[:, rank])
        least = threshold_for(self.curves[number], accuracy) if self.curves else 0.0
        sure = told.probability.double()
        unsure = torch.ones(len(sure), dtype=torch.bool) if least is None else sure < least
        found[head.metric("abstain")] = unsure.tolist()
        return found


def _spread(columns: Mapping[str, list[Any]], present: Any) -> dict[str, list[Any]]:
    """Put answers in their rows; a row without text has none, and abstains."""
    spread = {}
    for name, values in columns.items():
        rest = iter(values)
        empty = True if name.startswith("abstain") else None
        spread[name] = [next(rest) if there else empty for there in present]
    return spread


def _renamed(given: Sequence[str], added: Mapping[str, Any]) -> dict[str, str]:
    """Give new names to the columns of a file that are called as the answers are."""
    taken = {*given, *added}
    found: dict[str, str] = {}
    for name in given:
        if name in added:
            new = f"{name}_given"
            while new in taken:
                new += "_given"
            taken.add(new)
            found[name] = new
    return found


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise UserError(f"--accuracy={text}: must be a number above 0 and up to 1")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UserError(f"--top={text}: must be a whole number from 1 on")
    return int(text)
