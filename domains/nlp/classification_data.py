"""Labelled texts, alone or in pairs: benchmark sets and a user's own files."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data_module import Baseline, Preprocessing, whole_batch
from core.errors import UserError
from core.split_plan import Split
from core.splits import split
from core.tasks.heads import Head, read_heads
from domains.nlp.baselines import fitted
from domains.nlp.benchmarks import PARTS, Labelled, read_benchmark
from domains.nlp.data import TextData
from domains.nlp.encoding import EncodedTexts, LongInput, encode
from domains.nlp.label_columns import (
    KindGiven,
    counts_of,
    describe_head,
    is_missing,
    targets_of,
)
from domains.nlp.labelled_files import LabelledFiles
from domains.nlp.tables import COMMON_LABEL, COMMON_TEXT, column, read_table
from domains.nlp.templates import shared_templates
from domains.nlp.tokenizer import fingerprint
from domains.nlp.tokens import Tokens, pad


class TextBatch(NamedTuple):
    """Texts with their targets.

    ``inputs`` are W windows, ``owner`` (W,) says of which of the B texts each is (None where every
    text is one window), ``targets`` (B, T) are those of all heads, ``rows`` (B,) the places of the
    texts in their part.
    """

    inputs: Tokens
    owner: Tensor | None
    targets: Tensor
    rows: Tensor


class LabelledTexts:
    """A part of the data: encoded texts with their targets (N, T)."""

    def __init__(self, encoded: EncodedTexts, targets: Tensor, pad_id: int) -> None:
        self.encoded = encoded
        self.targets = targets
        self.pad_id = pad_id

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.encoded)

    @property
    def lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the tokens and windows of each text."""
        return self.encoded.tokens, self.encoded.rows

    def __getitems__(self, places: Sequence[int]) -> TextBatch:
        """Put the texts of one batch together."""
        windows = [self.encoded.windows(place) for place in places]
        inputs = pad([window for each in windows for window in each], self.pad_id)
        rows = torch.tensor([int(place) for place in places])
        owner = None
        if len(inputs.ids) > len(places):
            counts = torch.tensor([len(each) for each in windows])
            owner = torch.repeat_interleave(torch.arange(len(places)), counts)
        return TextBatch(inputs, owner, self.targets[rows], rows)


class ClassificationData(TextData):
    """Texts, or pairs of texts, with labels: a set of the catalogue, or tables of the user's own.

    Args:
        dataset: a set of the catalogue: ``sst``, ``cola``, ``ficle``, ``sdoh`` or ``bangla``.
        part: which of the set's collections, such as ``trees`` of ``sst``.
        train: a table: CSV, TSV, JSON lines or Parquet.
        val: the same for validation; without it rows of ``train`` are taken.
        test: the same for the test; without it rows of ``train`` are taken.
        text: the column of texts; None finds it.
        pair: the column of second texts, for pairs.
        label: the column of labels; several, comma-separated, become a head each.
        kind: ``single`` (one label a text), ``multi`` (any number), ``regression`` (a number), or
            ``auto``, which sees lists and fractions.
        separator: what stands between several labels of a cell.
        split: ``stratified``, ``random``, ``group:COLUMN``, ``time:COLUMN``, ``column:COLUMN`` or
            the ``splits.parquet`` of another run; None takes ``stratified`` for classes.
        val_fraction: share of rows for validation.
        test_fraction: share of rows for the test.
        folds: K folds instead.
        fold: which of them is the test, from 0.
        probe: judge a linear classifier on the frozen encoder, beside the others.
        tokenizer: a folder, a name of the catalogue or an id of the hub; ``--checkpoint`` fills it
            in.
        max_length: the most tokens of a text, the special ones included.
        long_input: what to do about a longer text: ``truncate``, ``head_tail`` or ``window``.
        token_budget: the most tokens in a batch, padding included.
        batch_size: the most texts in a training batch, over all processes together.
        eval_batch_size: the most texts in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes the order of training; None takes the run's seed.
    """

    linked: ClassVar[tuple[str, ...]] = ("heads",)
    collate = staticmethod(whole_batch)

    def __init__(
        self,
        dataset: str | None = None,
        part: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        text: str | None = None,
        pair: str | None = None,
        label: str | None = None,
        kind: KindGiven = "auto",
        separator: str = ",",
        split: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        folds: int | None = None,
        fold: int = 0,
        probe: bool = True,
        tokenizer: str | None = None,
        max_length: int = 128,
        long_input: LongInput = "truncate",
        token_budget: int = 16_384,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            *(tokenizer, max_length, long_input, token_budget),
            *(batch_size, eval_batch_size, num_workers, seed),
        )
        self.config: dict[str, Any] = {
            **{"dataset": dataset, "part": part, "train": train, "val": val, "test": test},
            **{"text": text, "pair": pair, "label": label, "kind": kind, "separator": separator},
            **{"split": split, "val_fraction": val_fraction, "test_fraction": test_fraction},
            **{"folds": folds, "fold": fold},
        }
        self.probe = probe

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The heads, from the labels of the training part."""
        return {"heads": _read_by(config).described}

    @property
    def facts(self) -> dict[str, Any]:
        """The set or the file, and what was found in it."""
        read = _read_by(self.config)
        found: dict[str, Any] = {"notes": [*read.notes, *self._cut_notes()], "setting": {}}
        if name := self.config["dataset"]:
            import data

            entry = data.entry(name)
            return {
                **found,
                "dataset": name,
                "licence": entry.licence,
                "citation": entry.citation,
                "setting": {"part": self.config["part"]} if self.config["part"] else {"part": ""},
            }
        return {**found, "dataset": Path(str(self.config["train"])).name}

    @property
    def heads(self) -> list[Head]:
        """What is asked of each text."""
        return read_heads(_read_by(self.config).described)

    def setup(self, stage: str | None = None) -> None:
        """Read, encode and place the texts."""
        if hasattr(self, "test_set"):
            return
        self.train_set, self.val_set, self.test_set = (self._part(name) for name in PARTS)

    def summary(self) -> list[str]:
        """Count the texts and the labels."""
        read = _read_by(self.config)
        source = self.config["dataset"] or self.config["train"]
        sizes = ", ".join(
            f"{len(read.frames[name]):,} {what}"
            for name, what in zip(
                PARTS, ("for training", "for validation", "for the test"), strict=True
            )
        )
        told = [f"{source}: {sizes}"]
        for head, count in zip(self.heads, self.label_counts(), strict=True):
            if head.kind == "regression":
                continue
            having = count if head.kind == "single" else count[0]
            pairs = sorted(zip(having.int().tolist(), head.labels, strict=True), reverse=True)
            shown = ", ".join(f"{label} {number:,}" for number, label in pairs[:12])
            more = f" and {len(pairs) - 12} more" if len(pairs) > 12 else ""
            told.append(f"{head.name or 'labels'} in training: {shown}{more}")
        return [*told, *read.notes, *self._cut_notes()]

    def label_counts(self) -> list[Tensor]:
        """Count the labels of the training part, for class weights."""
        return counts_of(self.train_set.targets, self.heads)  # type: ignore[attr-defined]

    def keep(self, folder: Path) -> None:
        """Write which rows train, validate and test, where one file was divided."""
        if (made := _read_by(self.config).split) is not None:
            made.save(folder / "splits.parquet")

    def fingerprint(self) -> str:
        """Identify the training texts, their targets and the tokenizer."""
        part: Any = self.train_set
        digest = hashlib.sha256(part.encoded.ids.tobytes())
        digest.update(part.targets.numpy().tobytes())
        return digest.hexdigest()[:16] + fingerprint(self.tokenizer)[:16]

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The tokenizer, the columns and what the outputs mean."""
        read = _read_by(self.config)
        return LabelledFiles(
            heads=read.described,
            text=read.text,
            pair=read.pair,
            separator=self.config["separator"],
            max_length=self.max_length,
            long_input=self.long_input,
            tokenizer=self.tokenizer,
        )

    def baselines(self) -> dict[str, Baseline]:
        """Fit the majority, TF-IDF with a linear classifier, and one on the frozen encoder."""
        read = _read_by(self.config)
        texts = {
            name: _joined(read.frames[name], read.text, read.pair) for name in ("train", "test")
        }
        train, test = self.train_set, self.test_set
        encoder = self.tokenizer_name if self.probe else None
        return fitted(self.heads, texts, train, test, encoder)

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw what was taken for what, and how sure the answers were."""
        from domains.nlp.label_pictures import draw

        return draw(self.heads, predictions, folder)

    def _part(self, name: str) -> LabelledTexts:
        read = _read_by(self.config)
        frame = read.frames[name]
        columns = read.columns
        targets = targets_of(frame, self.heads, columns, self.config["separator"], name)
        pairs = None if read.pair is None else frame[read.pair].tolist()
        encoded = encode(
            self.tokenizer, frame[read.text].tolist(), pairs, self.max_length, self.long_input
        )
        return LabelledTexts(encoded, targets, self.tokenizer.pad_token_id)

    def _cut_notes(self) -> list[str]:
        if not hasattr(self, "test_set"):
            return []
        parts: list[Any] = [self.train_set, self.val_set, self.test_set]
        longer = sum(int(part.encoded.longer[0]) for part in parts)
        if not longer:
            return []
        done = {
            "truncate": "cut at their end",
            "head_tail": "cut in their middle",
            "window": "read in several windows",
        }[self.long_input]
        total = sum(map(len, parts))
        return [
            f"{longer:,} of {total:,} texts are longer than {self.max_length} tokens and are {done}"
        ]


class _Read(NamedTuple):
    """The parts as frames, and what their columns are."""

    frames: dict[str, pd.DataFrame]
    text: str
    pair: str | None
    columns: tuple[str, ...]
    described: list[dict[str, Any]]
    split: Split | None
    notes: tuple[str, ...]


KEYS = (
    *("dataset", "part", "train", "val", "test", "text", "pair", "label", "kind", "separator"),
    *("split", "val_fraction", "test_fraction", "folds", "fold"),
)


def _read_by(config: Mapping[str, Any]) -> _Read:
    """Read what a configuration names; the last one read is kept."""
    stamps = tuple(
        (path.stat().st_mtime_ns, path.stat().st_size)
        for name in PARTS
        if config[name] and (path := Path(str(config[name]).partition("!")[0])).is_file()
    )
    return _read(tuple((key, config[key]) for key in KEYS), stamps)


@lru_cache(maxsize=1)
def _read(keys: tuple[tuple[str, Any], ...], stamps: tuple[Any, ...]) -> _Read:
    given = dict(keys)
    if bool(given["dataset"]) == bool(given["train"]):
        raise UserError(
            "give --data.train FILE for your own texts, or --data.dataset of the catalogue"
        )
    dataset = given["dataset"]
    labelled = read_benchmark(dataset, given["part"]) if dataset else _own(given)
    columns = tuple(given["label"].split(",")) if given["label"] else (labelled.label,)
    first = labelled.frames["train"]
    columns = tuple(
        column(first, name.strip(), (), "label", str(given["train"] or given["dataset"]))
        for name in columns
    )
    text = given["text"] or labelled.text
    pair = given["pair"] or labelled.pair
    frames = {}
    for part, frame in labelled.frames.items():
        asked = {"text": (text,), "pair": (pair,) if pair else (), "label": columns}
        for key, wanted in asked.items():
            for name in wanted:
                column(frame, name, (), key, str(given[part] or f"the {part} part"))
        _check_texts(frame, text, pair, part)
        frames[part] = frame
    stated = dataset and given["kind"] == "auto" and not given["label"]
    kind: Any = labelled.kind if stated else given["kind"]
    described = [
        describe_head(first[name], name if len(columns) > 1 else "", kind, given["separator"], name)
        for name in columns
    ]
    kept = _unanswered(frames, columns)
    frames, made = _divided(frames, given, columns, described)
    notes = [*labelled.notes, *kept, *(made.notes if made else ())]
    notes += shared_templates({part: _joined(frame, text, pair) for part, frame in frames.items()})
    return _Read(frames, text, pair, columns, described, made, tuple(notes))


def _own(given: Mapping[str, Any]) -> Labelled:
    """Read a user's own tables."""
    frames = {part: read_table(given[part]) for part in PARTS if given[part]}
    for part, frame in frames.items():
        if frame.empty:
            raise UserError(f"{given[part]}: holds no rows")
    first, name = frames["train"], given["train"]
    text = column(first, given["text"], COMMON_TEXT, "text", name)
    pair = column(first, given["pair"], (), "pair", name) if given["pair"] else None
    wanted = given["label"].split(",")[0].strip() if given["label"] else None
    return Labelled(frames, text, pair, column(first, wanted, COMMON_LABEL, "label", name))


def _unanswered(frames: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> list[str]:
    """Tell of rows without an answer; they do not count for its question."""
    notes = []
    for name in columns:
        lacking = sum(int(frame[name].map(is_missing).sum()) for frame in frames.values())
        if lacking:
            notes.append(
                f"{lacking:,} rows have no answer in column {name!r} and do not count there"
            )
    return notes


def _check_texts(frame: pd.DataFrame, text: str, pair: str | None, part: str) -> None:
    for name in (text, pair):
        if name is None:
            continue
        empty = np.array([not isinstance(t, str) or not t.strip() for t in frame[name]])
        if empty.any():
            rows = np.flatnonzero(empty)
            more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
            told = ", ".join(str(row + 1) for row in rows[:5])
            raise UserError(
                f"column {name!r}: no text in row {told}{more} of the {part} part; fill it in, or"
                " leave the row out"
            )


def _divided(
    frames: Mapping[str, pd.DataFrame],
    given: Mapping[str, Any],
    columns: Sequence[str],
    described: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, pd.DataFrame], Split | None]:
    """Take the parts that have no file of their own from the training rows."""
    lacking = [part for part in PARTS[1:] if part not in frames]
    if not lacking:
        if given["split"] or given["folds"]:
            raise UserError("--data.split: the parts are given already")
        return dict(frames), None
    shares = {
        "val": given["val_fraction"] if "val" in lacking else 0.0,
        "test": given["test_fraction"] if "test" in lacking else 0.0,
    }
    if given["folds"] and len(lacking) < 2:
        raise UserError(
            f"--data.folds={given['folds']}: folds validate and test on rows of --data.train; leave"
            " out --data.val and --data.test"
        )
    if min(shares[part] for part in lacking) <= 0 or sum(shares.values()) >= 1:
        raise UserError(
            f"data.val_fraction={given['val_fraction']} and"
            f" data.test_fraction={given['test_fraction']} must lie above 0 and leave rows to"
            " train on"
        )
    rows = frames["train"].reset_index(drop=True)
    cells = rows.map(lambda cell: " ".join(map(str, cell)) if isinstance(cell, list) else cell)
    classes = described[0]["kind"] == "single" and not rows[columns[0]].map(is_missing).any()
    made = split(
        cells,
        given["split"] or ("stratified" if classes else "random"),
        label=columns[0] if classes else None,
        fractions=(1 - sum(shares.values()), shares["val"], shares["test"]),
        folds=given["folds"],
        fold=given["fold"],
    )
    places = (made.train, made.val, made.test)
    drawn = {
        part: rows.iloc[np.flatnonzero(place) if place.dtype == bool else place].reset_index(
            drop=True
        )
        for part, place in zip(PARTS, places, strict=True)
    }
    return {
        part: frames[part] if part in frames and part != "train" else drawn[part] for part in PARTS
    }, made


def _joined(frame: pd.DataFrame, text: str, pair: str | None) -> list[str]:
    """Write each text with its second one."""
    if pair is None:
        return list(frame[text])
    return [f"{a}\n{b}" for a, b in zip(frame[text], frame[pair], strict=True)]
