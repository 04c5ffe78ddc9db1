"""Sentences whose words have tags: sets of the catalogue, or the user's own files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import data as catalogue
from core.data_module import Baseline, whole_batch
from core.errors import UserError
from core.networks.hugging_face import HuggingFace
from core.split_columns import listed
from core.split_plan import PARTS
from domains.nlp import tagging_pictures
from domains.nlp.alignment import WordEncoder
from domains.nlp.data import TextData
from domains.nlp.frozen import frozen
from domains.nlp.spans import NO_TAG, marks_spans, parse
from domains.nlp.tagged_batches import TaggedSet
from domains.nlp.tagged_files import TaggedFiles
from domains.nlp.tagging_baselines import MajorityTag, Probe, judged, judged_by_words
from domains.nlp.tagging_corpus import Corpus, read_corpus
from domains.nlp.tokenizer import fingerprint

LEAST_LENGTH = 8
"""The least ``max_length``: a window must hold some words beside the special tokens."""


class TaggingData(TextData):
    """Words with tags, whole sentences at a time; no word is ever left out.

    Sentences of more than ``max_length`` tokens go through windows that share a third; each word is
    learnt and judged in the window in which it is farthest from a cut.

    Args:
        dataset: a set of the catalogue: ``wnut17``, ``tweebank_ner``, ``tweebank_ud`` or
            ``bangla``.
        train: a file of the user's own: CoNLL, CoNLL-U (``.conllu``) or JSON lines (``.jsonl``).
        val: the same for validation; without it sentences of ``train`` are taken.
        test: the same for the test; without it sentences of ``train`` are taken.
        tokens: the column of the words: a number from 1, a name of CoNLL-U or a key of JSON; None
            takes the first, ``form`` or ``tokens``.
        tags: the column of the tags: a number, from the end below 0; None takes the last, ``upos``
            or ``tags``. Several are as many heads, named as in ``ner:4,pos:2``.
        split: how ``train`` is divided where a file is not given: ``random`` (by sentence),
            ``group:document``, ``group:NAME`` (a comment ``# NAME = ...`` or a key of JSON), or a
            ``splits.parquet`` of another run.
        val_fraction: share of sentences for validation, where no file is given.
        test_fraction: share of sentences for the test, where no file is given.
        probe: judge a linear classifier on the frozen encoder's states, beside the others.
        tokenizer: a folder, a name of the catalogue or an id of the hub; ``--checkpoint`` fills it
            in.
        max_length: the most tokens of a window, the special ones included.
        token_budget: the most tokens in a batch, padding included.
        batch_size: the most sentences in a training batch, over all processes together.
        eval_batch_size: the most sentences in a batch of validation and test; never changes a
            result.
        num_workers: processes that load data; never changes a result.
        seed: fixes the order of training; None takes the run's seed.
    """

    linked: ClassVar[tuple[str, ...]] = ("heads",)
    collate = staticmethod(whole_batch)
    train_set: TaggedSet
    val_set: TaggedSet
    test_set: TaggedSet

    def __init__(
        self,
        dataset: str | None = None,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        tokens: str | None = None,
        tags: str | None = None,
        split: str = "random",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        probe: bool = True,
        tokenizer: str | None = None,
        max_length: int = 128,
        token_budget: int = 16_384,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            *(tokenizer, max_length, "window", token_budget),
            *(batch_size, eval_batch_size, num_workers, seed),
        )
        if max_length < LEAST_LENGTH:
            raise UserError(f"data.max_length={max_length} must be at least {LEAST_LENGTH}")
        self.config: dict[str, Any] = {
            **{"dataset": dataset, "train": train, "val": val, "test": test},
            **{"tokens": tokens, "tags": tags, "split": split},
            **{"val_fraction": val_fraction, "test_fraction": test_fraction},
        }
        self.probe = probe
        self.corpus: Corpus | None = None

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """State the heads: the tags of each column."""
        return {"heads": read_corpus(config).heads}

    @property
    def facts(self) -> dict[str, Any]:
        """The set or the file; of a set also the setting, licence and citation."""
        notes = list(self.corpus.notes) if self.corpus else []
        dataset = self.config["dataset"]
        if dataset is None:
            return {"dataset": Path(str(self.config["train"])).name, "setting": {}, "notes": notes}
        entry = catalogue.entry(dataset)
        return {
            "dataset": dataset,
            "setting": {"tags": self.config["tags"]} if self.config["tags"] else {},
            "licence": entry.licence,
            "citation": entry.citation,
            "notes": notes,
        }

    def setup(self, stage: str | None = None) -> None:
        """Read, split and tokenise; done once.

        Raises:
            UserError: if files do not fit.
        """
        if self.corpus is not None:
            return
        corpus = read_corpus(self.config)
        encoder = WordEncoder(self.tokenizer)
        made = []
        for part in range(len(PARTS)):
            pieces = encoder([sentence.words for sentence in corpus.parts[part]])
            labels = corpus.numbers(part)
            made.append(TaggedSet(encoder, pieces, labels, self.max_length, apart=part == 0))
        self.train_set, self.val_set, self.test_set = made
        self.corpus = corpus

    def summary(self) -> list[str]:
        """Say what was read and what is made of it."""
        corpus = self._read()
        lines = []
        for column, labels in zip(corpus.columns, corpus.labels, strict=True):
            spans = marks_spans(labels)
            kinds = sorted({parse(tag)[1] for tag in labels} - {""}) if spans else labels
            what = "types of spans" if spans else "tags"
            name = f"{column.name}: " if column.name else ""
            lines.append(f"{corpus.source}: {name}{len(kinds)} {what}: {listed(kinds, 20)}")
        counts = [
            f"{len(part):,} for {what} ({sum(len(s.words) for s in part):,} words)"
            for part, what in zip(corpus.parts, ("training", "validation", "the test"), strict=True)
        ]
        lines.append(f"sentences: {', '.join(counts)}")
        more = len(self.train_set) - len(self.train_set.pieces)
        if more > 0:
            lines.append(f"long sentences are trained in {more:,} windows more")
        return [*lines, *(f"note: {note}" for note in corpus.notes)]

    def keep(self, folder: Path) -> None:
        """Write which sentences train, validate and test, where a file had to be divided."""
        if (made := self._read().split) is not None:
            made.save(folder / "splits.parquet")

    def fingerprint(self) -> str:
        """Identify words, tags, parts and the tokenizer."""
        return self._read().fingerprint()[:16] + fingerprint(self.tokenizer)[:16]

    def label_counts(self) -> list[Tensor]:
        """Count the words of training (K,) with each tag, for each head."""
        corpus = self._read()
        numbers = np.concatenate(corpus.numbers(0))  # (n, H)
        return [
            torch.bincount(torch.from_numpy(own[own != NO_TAG]), minlength=len(labels))
            for own, labels in zip(numbers.T, corpus.labels, strict=True)
        ]

    @property
    def preprocessing(self) -> TaggedFiles | None:
        """The tags, the windows and the tokenizer."""
        if self.corpus is None:
            return None
        return TaggedFiles(
            self.corpus.labels,
            tuple(name for name, _ in self.corpus.columns),
            tuple(column for _, column in self.corpus.columns),
            self.max_length,
            self.tokenizer,
        )

    def test_words(self, row: int) -> Sequence[str]:
        """Give the words of a sentence of the test."""
        return self._read().parts[2][row].words

    def baselines(self) -> dict[str, Baseline]:
        """Fit what each word was in training, and a probe of the first states."""
        corpus = self._read()
        words = [sentence.words for sentence in corpus.parts[0]]
        majority = MajorityTag(words, corpus.numbers(0))
        fitted: dict[str, Baseline] = {
            "majority tag of a word": judged_by_words(majority, self.test_words)
        }
        network = frozen(str(self.tokenizer_name), HuggingFace) if self.probe else None
        if network is not None:
            probe = Probe(network, self.every_item(self.train_set))
            fitted["frozen encoder + linear"] = judged(probe)
        return fitted

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw how well each type, or each tag, is found."""
        corpus = self._read()
        names = [name for name, _ in corpus.columns]
        return tagging_pictures.draw(
            predictions, folder, list(zip(names, corpus.labels, strict=True))
        )

    def _read(self) -> Corpus:
        self.setup()
        assert self.corpus is not None
        return self.corpus
