"""The preprocessing of a retriever: it answers a user's questions from a user's documents."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from core.array_cache import cached
from core.errors import UserError
from core.precision import faster_precision
from domains.nlp.bm25 import BM25
from domains.nlp.collection import read_questions
from domains.nlp.embedding import embed
from domains.nlp.encoding import LongInput, encode
from domains.nlp.index import by_both, by_vectors, spread
from domains.nlp.networks.text_embedder import Pooling
from domains.nlp.ranking import Hits
from domains.nlp.retrieval_parts import read_documents
from domains.nlp.tables import SUFFIXES, write_table
from domains.nlp.tokenizer import Tokenized, fingerprint
from domains.nlp.trec import Texts, write_run

RUN = ".trec"
VECTORS = (".npy", ".parquet")
SNIPPET = 200
"""Characters of a document that are written beside it."""
BATCH = 256
"""Questions that are answered at a time."""
POOLING = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}
"""What sentence-transformers calls the ways of pooling."""


@dataclass(frozen=True)
class RetrievalFiles(Tokenized):
    """What a retriever needs besides its network; it travels in ``model/``.

    Attributes:
        corpus: the documents that were searched: a set of the catalogue, a folder or a file; None
            where there were none but those of the pairs.
        query_prefix: what stands before a question.
        document_prefix: what stands before a document.
        max_length: the most tokens of a text.
        long_input: what to do about a longer text.
        tokenizer: of the network; saved as files of its own.
        pooling: how the network makes one vector of a text, for sentence-transformers.
        normalise: whether its vectors are of length 1.
        width: D, how many numbers a vector has.
    """

    corpus: str | None
    query_prefix: str
    document_prefix: str
    max_length: int
    long_input: LongInput
    tokenizer: Any = None
    pooling: Pooling | None = None
    normalise: bool = True
    width: int = 0

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    options: ClassVar[Mapping[str, str]] = {
        "corpus": "the documents to search: a BEIR folder, a table with text, a text a line, TREC",
        "top": "how many documents to write for a question (10)",
        "hybrid": "yes: rank by the sum with BM25 (no)",
        "vectors": "question or document: write the vectors of the input, as .npy or .parquet",
    }

    def to_json(self) -> dict[str, Any]:
        """Give all but the tokenizer as plain values."""
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "RetrievalFiles":
        """Rebuild it, without its tokenizer."""
        return cls(**mapping)

    def files(self) -> Mapping[str, bytes]:
        """Give the tokenizer's files, and those that sentence-transformers loads the model by."""
        return {**super().files(), **self._sentence_transformers()}

    def predict_file(
        self,
        network: nn.Module,
        input: Path,
        output: Path,
        plot: Path | None = None,
        *,
        corpus: str | None = None,
        top: str = "10",
        hybrid: str = "no",
        vectors: str | None = None,
    ) -> str:
        """Answer each question of a file by the best documents of a corpus.

        Args:
            network: maps tokens (B, L) to vectors (B, D).
            input: questions: a table with ``text`` (and ``id``), a text a line, or topics of TREC.
            output: a table of questions, ranks, documents, scores and snippets; a run for
                trec_eval where it ends in ``.trec``.
            plot: not drawn.
            corpus: the documents; None takes those of the training.
            top: how many documents are written for a question.
            hybrid: ``yes`` ranks by the sum with BM25.
            vectors: ``question`` or ``document``: write vectors of the input instead.

        Raises:
            UserError: naming the file or the option.
        """
        if plot is not None:
            raise UserError(f"--plot {plot}: there is no picture of hits; leave it out")
        count, both = _count(top), _yes(hybrid)
        if vectors is not None:
            return self._write_vectors(network, input, output, vectors)
        suffix = output.suffix.lower()
        if suffix != RUN and (suffix not in SUFFIXES or suffix == ".txt"):
            raise UserError(f"--output {output}: name a file that ends in {(RUN, *SUFFIXES[:-1])}")
        if (named := corpus or self.corpus) is None:
            raise UserError("--corpus FILE is needed: the documents to search")
        asked, documents = read_questions(input), read_documents(named)
        whole = asked.whole()
        known = [row for row, text in enumerate(whole) if text]
        if not known:
            raise UserError(f"{input}: every question is empty")
        hits = self._search(network, [whole[row] for row in known], documents, count, both)
        table = _table([asked.ids[row] for row in known], documents, hits)
        if suffix == RUN:
            write_run(output, table, "pleiad-hybrid" if both else "pleiad")
        else:
            write_table(table, output, suffix)
        empty = len(whole) - len(known)
        without = f"; {empty:,} empty questions have no answer" if empty else ""
        return (
            f"{output}: {len(known):,} questions among {len(documents.ids):,} documents of"
            f" {named}{without}"
        )

    def _search(
        self, network: nn.Module, questions: list[str], documents: Texts, count: int, both: bool
    ) -> Hits:
        """Rank the documents for each question."""
        vectors = self._of_corpus(network, documents)
        measured = spread(vectors) if both else None
        words = BM25(documents.whole()) if both else None
        found = []
        for start in range(0, len(questions), BATCH):
            some = questions[start : start + BATCH]
            asked = self._vectors(network, some, self.query_prefix)
            if words is None or measured is None:
                found.append(by_vectors(asked, vectors, count))
            else:
                found.append(by_both(asked, vectors, measured, words.scores(some), count))
        return Hits(*(torch.cat(parts).cpu() for parts in zip(*found, strict=True)))

    def _of_corpus(self, network: nn.Module, documents: Texts) -> Tensor:
        """Give the vectors (N, D) of the documents, kept in the user's cache folder."""
        whole = documents.whole()
        digest = hashlib.sha256()
        for tensor in network.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        for text in whole:
            digest.update(hashlib.sha256(text.encode()).digest())
        settings = {name: value for name, value in self.to_json().items() if name != "corpus"}
        key = ["vectors of documents", digest.hexdigest(), fingerprint(self.tokenizer), settings]

        def make() -> dict[str, Any]:
            return {"vectors": self._vectors(network, whole, self.document_prefix).cpu().numpy()}

        found = torch.from_numpy(cached([*key, faster_precision()], make)["vectors"])
        return found.to(next(network.parameters()).device)

    def _vectors(self, network: nn.Module, texts: Sequence[str], prefix: str) -> Tensor:
        """Give the vectors (N, D) of texts."""
        encoded = encode(
            self.tokenizer, [prefix + t for t in texts], None, self.max_length, self.long_input
        )
        device = next(network.parameters()).device.type
        bf16 = faster_precision() == "bf16-mixed"
        network.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            return embed(network, encoded, self.tokenizer.pad_token_id)

    def _write_vectors(self, network: nn.Module, input: Path, output: Path, kind: str) -> str:
        """Write the vectors of a file's texts."""
        if kind not in ("question", "document"):
            raise UserError(f"--vectors={kind}: must be question or document")
        if output.suffix.lower() not in VECTORS:
            raise UserError(f"--output {output}: vectors are written as {' or '.join(VECTORS)}")
        texts = read_questions(input) if kind == "question" else read_documents(str(input))
        prefix = self.query_prefix if kind == "question" else self.document_prefix
        vectors = self._vectors(network, texts.whole(), prefix).cpu().numpy()
        if output.suffix.lower() == ".npy":
            np.save(output, vectors, allow_pickle=False)
        else:
            pd.DataFrame({"id": texts.ids, "vector": list(vectors)}).to_parquet(output, index=False)
        return f"{output}: {len(vectors):,} vectors of {vectors.shape[1]} numbers"

    def _sentence_transformers(self) -> dict[str, bytes]:
        """Give the files that say how the network's states become a vector."""
        if self.pooling is None:
            return {}
        kinds = ["Transformer", "Pooling", *(["Normalize"] if self.normalise else [])]
        modules = [
            {
                "idx": number,
                "name": str(number),
                "path": f"{number}_{kind}" if number else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for number, kind in enumerate(kinds)
        ]
        pooling = {
            "word_embedding_dimension": self.width,
            **{f"pooling_mode_{name}": name == POOLING[self.pooling] for name in POOLING.values()},
        }
        cut = {"max_seq_length": self.max_length, "do_lower_case": False}
        files = {
            "modules.json": modules,
            "sentence_bert_config.json": cut,
            "1_Pooling/config.json": pooling,
        }
        return {
            name: (json.dumps(value, indent=2) + "\n").encode() for name, value in files.items()
        }


def _table(asked: Sequence[str], documents: Texts, hits: Hits) -> pd.DataFrame:
    """Put hits into rows: question, rank, document, score, and how the document begins."""
    rows = []
    whole = documents.whole()
    for name, scores, places in zip(asked, hits.scores.tolist(), hits.rows.tolist(), strict=True):
        for rank, (score, place) in enumerate(zip(scores, places, strict=True), 1):
            snippet = shorten(whole[place], SNIPPET, placeholder=" ...")
            rows.append((name, rank, documents.ids[place], round(score, 6), snippet))
    return pd.DataFrame(rows, columns=["query", "rank", "document", "score", "snippet"])


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise UserError(f"--top={text}: must be a whole number from 1 on")
    return int(text)


def _yes(text: str) -> bool:
    if text.lower() not in ("yes", "no", "true", "false"):
        raise UserError(f"--hybrid={text}: must be yes or no")
    return text.lower() in ("yes", "true")
