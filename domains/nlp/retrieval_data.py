"""Questions and the documents that answer them: benchmark collections and a user's own files."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from core.data_module import Baseline, Preprocessing, whole_batch
from core.length_plan import Lengths
from domains.nlp.bm25 import BM25
from domains.nlp.data import TextData
from domains.nlp.encoding import EncodedTexts, encode
from domains.nlp.index import DEPTH, by_words
from domains.nlp.ranking import FAR, ranked_gains
from domains.nlp.retrieval_parts import Asked, Collected, collect
from domains.nlp.tokenizer import fingerprint
from domains.nlp.tokens import Tokens, pad


class PairBatch(NamedTuple):
    """B questions (B, L) and their documents (B + B H, M): each one's answer, then H others each.

    ``asked`` (B,) and ``answers`` (B + B H,) number equal texts alike over the whole training part.
    """

    questions: Tokens
    documents: Tokens
    asked: Tensor
    answers: Tensor


class QuestionBatch(NamedTuple):
    """B questions with their relevant documents.

    ``rows`` (B,) are their places in the part; ``judged`` (B, R) are rows of documents as
    :func:`domains.nlp.ranking.ranked_gains` takes them, and ``gains`` (B, R) their gains.
    """

    tokens: Tokens
    rows: Tensor
    judged: Tensor
    gains: Tensor


class TrainingPairs:
    """Encoded pairs; the texts of equal numbers are the same text."""

    def __init__(
        self,
        questions: EncodedTexts,
        documents: EncodedTexts,
        pairs: NDArray[np.int64],
        pad_id: int,
    ) -> None:
        self.questions = questions
        self.documents = documents
        self.pairs = pairs  # (N, 2 + H): a question, its answer, others
        self.pad_id = pad_id

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self.pairs)

    def __getitems__(self, places: Sequence[int]) -> PairBatch:
        """Put the pairs of one batch together."""
        chosen = self.pairs[np.asarray([int(place) for place in places])]
        asked, answers = chosen[:, 0], np.concatenate([chosen[:, 1], chosen[:, 2:].reshape(-1)])
        return PairBatch(
            pad([self.questions.windows(row)[0] for row in asked.tolist()], self.pad_id),
            pad([self.documents.windows(row)[0] for row in answers.tolist()], self.pad_id),
            torch.from_numpy(asked),
            torch.from_numpy(answers),
        )


class Questions:
    """Encoded questions of a part, with what is relevant to each."""

    def __init__(self, encoded: EncodedTexts, asked: Asked, pad_id: int) -> None:
        self.encoded = encoded
        self.judged = asked.judged
        self.pad_id = pad_id

    def __len__(self) -> int:
        """Count the questions."""
        return len(self.encoded)

    @property
    def lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the tokens of each question, in one window."""
        return self.encoded.tokens, self.encoded.rows

    def __getitems__(self, places: Sequence[int]) -> QuestionBatch:
        """Put the questions of one batch together."""
        rows = [int(place) for place in places]
        most = max(len(self.judged.rows[row]) for row in rows)
        judged = np.full((len(rows), most), FAR, np.int64)
        gains = np.zeros_like(judged)
        for number, row in enumerate(rows):
            found = self.judged.rows[row]
            judged[number, : len(found)] = found
            gains[number, : len(found)] = self.judged.gains[row]
        return QuestionBatch(
            pad([self.encoded.windows(row)[0] for row in rows], self.pad_id),
            *(torch.from_numpy(part) for part in (np.asarray(rows), judged, gains)),
        )


class RetrievalData(TextData):
    """A collection of documents, questions and judgements, and pairs to learn from.

    Learned from are the given pairs, or the judgements of the collection for training, or, where
    there are neither, the titles of the documents, each as a question for its own text (without the
    title): no question and no judgement of the test is touched then.

    Args:
        dataset: ``cranfield``, a set of the catalogue, or a folder as BEIR has them: corpus.jsonl,
            queries.jsonl, qrels/test.tsv, and for training qrels/train.tsv and qrels/dev.tsv.
        corpus: documents: a table with ``text``, ``title`` and ``id``, a text a line, or TREC.
        queries: questions in such a form.
        qrels: judgements: a table with ``query-id``, ``corpus-id`` and ``score``, or TREC.
        train: pairs: a table with ``query``, ``positive`` and any ``negative``. Without a
            collection, questions of these files are held out for the test.
        val_fraction: share of the pairs for validation, where the collection has none.
        test_fraction: share of the pairs for the test, where there is no collection.
        query_prefix: what the encoder wants before a question.
        document_prefix: what it wants before a document.
        tokenizer: a folder, a name of the catalogue or an id of the hub; ``--checkpoint`` fills it
            in.
        max_length: the most tokens of a text, the special ones included.
        long_input: what to do about a longer text: ``truncate`` or ``head_tail``.
        token_budget: the most tokens in a batch of questions, padding included.
        batch_size: pairs in a training batch, over all processes together: the answers of the
            others are what a question is told not to find.
        eval_batch_size: the most questions in a batch; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes the order of training; None takes the run's seed.
    """

    collate = staticmethod(whole_batch)

    def __init__(
        self,
        dataset: str | None = None,
        corpus: str | None = None,
        queries: str | None = None,
        qrels: str | None = None,
        train: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        query_prefix: str = "",
        document_prefix: str = "",
        tokenizer: str | None = None,
        max_length: int = 256,
        long_input: Literal["truncate", "head_tail"] = "truncate",
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
        self.files = {
            **{"dataset": dataset, "corpus": corpus, "queries": queries, "qrels": qrels},
            **{"train": train},
        }
        self.fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
        self.query_prefix = query_prefix
        self.document_prefix = document_prefix
        self._encoded: dict[str, EncodedTexts] = {}
        self._ranked: dict[str, BM25] = {}

    @property
    def facts(self) -> dict[str, Any]:
        """The set or the files, and what was found in them."""
        found: dict[str, Any] = {"setting": {}, "notes": self._notes()}
        name = self.files["dataset"]
        if name and not Path(name).is_dir():
            import data

            entry = data.entry(name)
            rights = {"licence": entry.licence, "citation": entry.citation}
            return {**found, **rights, "dataset": name, "setting": {"part": ""}}
        return {
            **found,
            "dataset": Path(str(name or self.files["corpus"] or self.files["train"])).name,
        }

    def setup(self, stage: str | None = None) -> None:
        """Read and encode the questions and the pairs."""
        if hasattr(self, "test_set"):
            return
        read = collect(self.files, self.fractions)
        self.collected: Collected = read
        pad_id = self.tokenizer.pad_token_id
        pairs = read.pairs
        self.train_set = TrainingPairs(
            self._encode(pairs.questions, self.query_prefix),
            self._encode(pairs.documents, self.document_prefix),
            pairs.rows,
            pad_id,
        )
        self.val_set, self.test_set = (
            Questions(self._encode(asked.questions.whole(), self.query_prefix), asked, pad_id)
            for asked in (read.val, read.test)
        )

    def summary(self) -> list[str]:
        """Count pairs, questions and documents."""
        read = self.collected
        told = [f"{len(read.pairs.rows):,} pairs for training, {read.source}"]
        for name, asked in (("validation", read.val), ("test", read.test)):
            judged = sum(map(len, asked.judged.rows))
            told.append(
                f"{name}: {len(asked.questions.ids):,} questions, {len(asked.documents.ids):,}"
                f" documents, {judged:,} relevant"
            )
        return [*told, *self._notes()]

    def asked(self, split: str) -> Asked:
        """Give the questions and documents of ``val`` or ``test``."""
        return self.collected.val if split == "val" else self.collected.test

    def documents(self, split: str) -> EncodedTexts:
        """Give the encoded documents that are searched in ``val`` or ``test``."""
        if split not in self._encoded:
            whole = self.asked(split).documents.whole()
            self._encoded[split] = self._encode(whole, self.document_prefix)
        return self._encoded[split]

    def words(self, split: str, rows: Tensor) -> csr_array:
        """Give BM25's scores (B, N) for the questions of ``rows`` (B,)."""
        asked = self.asked(split)
        if split not in self._ranked:
            self._ranked[split] = BM25(asked.documents.whole())
        texts = asked.questions.whole()
        return self._ranked[split].scores([texts[row] for row in rows.tolist()])

    def keep(self, folder: Path) -> None:
        """Write which pairs train, validate and test, where they were divided."""
        if (made := self.collected.split) is not None:
            made.save(folder / "splits.parquet")

    def lengths(self, dataset: Any) -> Lengths | None:
        """Give the lengths of questions; pairs are drawn from all, for others of any length."""
        return None if isinstance(dataset, TrainingPairs) else super().lengths(dataset)

    def fingerprint(self) -> str:
        """Identify the training pairs and the tokenizer."""
        part: Any = self.train_set
        digest = hashlib.sha256(part.pairs.tobytes())
        for texts in (part.questions, part.documents):
            digest.update(texts.ids.tobytes())
        return digest.hexdigest()[:16] + fingerprint(self.tokenizer)[:16]

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The tokenizer, the prefixes, and which corpus was searched."""
        from domains.nlp.retrieval_files import RetrievalFiles

        corpus = self.files["corpus"] or self.files["dataset"]
        return RetrievalFiles(
            corpus=corpus,
            query_prefix=self.query_prefix,
            document_prefix=self.document_prefix,
            max_length=self.max_length,
            long_input=self.long_input,
            tokenizer=self.tokenizer,
        )

    def baselines(self) -> dict[str, Baseline]:
        """BM25, the ranking by words."""

        def bm25(batch: QuestionBatch) -> tuple[Tensor, Tensor]:
            rows = by_words(self.words("test", batch.rows), DEPTH).rows
            return rows, ranked_gains(rows, batch.judged, batch.gains)

        return {"BM25": bm25}

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw each question's score beside that of BM25."""
        from domains.nlp.retrieval_pictures import draw

        return draw(predictions, self, folder)

    def _encode(self, texts: Sequence[str], prefix: str) -> EncodedTexts:
        whole = [prefix + text for text in texts] if prefix else list(texts)
        return encode(self.tokenizer, whole, None, self.max_length, self.long_input)

    def _notes(self) -> list[str]:
        if not hasattr(self, "test_set"):
            return []
        cut = self.documents("test")
        if not (longer := int(cut.longer[0])):
            return list(self.collected.notes)
        where = "at their end" if self.long_input == "truncate" else "in their middle"
        told = f"{longer:,} of {len(cut):,} documents are cut {where}, to {self.max_length} tokens"
        return [*self.collected.notes, told]
