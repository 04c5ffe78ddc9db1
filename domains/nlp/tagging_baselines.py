"""What stands beside a tagger: what each word was in training, and a line through frozen states."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.data_module import Baseline
from core.precision import faster_precision
from domains.nlp.spans import NO_TAG
from domains.nlp.tagged_batches import TaggedBatch, of_words

PROBE_WORDS = 60_000
"""Words of training that the probe is fitted on at most."""


class MajorityTag:
    """Give a word the tag that it had most often in training.

    A word that training lacks is looked for in lower case, and else gets the most frequent tag.

    Args:
        sentences: the words of training.
        labels: their labels (N, H).
    """

    def __init__(
        self, sentences: Iterable[Sequence[str]], labels: Iterable[NDArray[np.int64]]
    ) -> None:
        exact: dict[str, list[Counter[int]]] = {}
        lower: dict[str, list[Counter[int]]] = {}
        totals: list[Counter[int]] = []
        for words, rows in zip(sentences, labels, strict=True):
            totals = totals or [Counter() for _ in range(rows.shape[1])]
            for word, row in zip(words, rows.tolist(), strict=True):
                for table, key in ((exact, word), (lower, word.lower())):
                    counts = table.setdefault(key, [Counter() for _ in row])
                    _count(counts, row)
                _count(totals, row)
        self.rest = _most(totals, [0] * len(totals))
        self.exact = {word: _most(counts, self.rest) for word, counts in exact.items()}
        self.lower = {word: _most(counts, self.rest) for word, counts in lower.items()}

    def __call__(self, words: Sequence[str]) -> NDArray[np.int64]:
        """Give the labels (N, H) of N words."""
        found = [self.exact.get(w) or self.lower.get(w.lower(), self.rest) for w in words]
        return np.array(found, np.int64).reshape(len(words), len(self.rest))


class Probe:
    """Tag words by logistic regression on a frozen network's states at their first pieces.

    Args:
        network: maps tokens to states (W, L, D); it is not trained.
        batches: of training; enough of them for ``PROBE_WORDS`` words are taken.
    """

    def __init__(self, network: nn.Module, batches: Iterable[TaggedBatch]) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.network = network.eval()
        self.bf16 = faster_precision() == "bf16-mixed"
        states, labels, count = [], [], 0
        for batch in batches:
            real = _real(batch)
            states.append(self._states(batch)[real.numpy()])
            labels.append(batch.labels[real].numpy())
            count += len(states[-1])
            if count >= PROBE_WORDS:
                break
        inputs, targets = np.concatenate(states), np.concatenate(labels)  # (n, D), (n, H)
        self.models: list[Any] = []
        for target in targets.T:
            known = target != NO_TAG
            if len(np.unique(target[known])) < 2:
                self.models.append(None)
                continue
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-3))
            self.models.append(model.fit(inputs[known], target[known]))
        self.single = [int(target.max()) for target in targets.T]

    def __call__(self, batch: TaggedBatch) -> Tensor:
        """Predict labels (B, N, H)."""
        states = self._states(batch)
        found = [
            np.full(states.shape[:2], only)
            if model is None
            else model.predict(states.reshape(-1, states.shape[-1])).reshape(states.shape[:2])
            for model, only in zip(self.models, self.single, strict=True)
        ]
        return torch.from_numpy(np.stack(found, -1))

    @torch.inference_mode()
    def _states(self, batch: TaggedBatch) -> NDArray[np.float32]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            states: NDArray[np.float32] = of_words(self.network, batch).float().numpy()
        return states


def judged_by_words(
    model: Callable[[Sequence[str]], NDArray[np.int64]], words: Callable[[int], Sequence[str]]
) -> Baseline:
    """Turn a model of words into a baseline: predictions and targets (B, N, H)."""

    def predict(batch: Any) -> tuple[Tensor, Tensor]:
        prediction = torch.zeros_like(batch.labels)
        for at, row in enumerate(batch.rows.tolist()):
            found = torch.from_numpy(model(words(row)))
            prediction[at, : len(found)] = found
        return prediction, batch.labels

    return predict


def judged(probe: Probe) -> Baseline:
    """Turn a probe into a baseline: predictions and targets (B, N, H)."""
    return lambda batch: (probe(batch), batch.labels)


def _real(batch: TaggedBatch) -> Tensor:
    """Say which places (B, N) hold words."""
    return torch.arange(batch.places.shape[1]) < batch.lengths[:, None]


def _count(counts: Sequence[Counter[int]], row: Sequence[int]) -> None:
    for counter, tag in zip(counts, row, strict=True):
        if tag != NO_TAG:
            counter[tag] += 1


def _most(counts: Sequence[Counter[int]], rest: Sequence[int]) -> list[int]:
    """Take the most frequent tag of each head, of equal ones the first label."""
    return [
        min(counter, key=lambda tag: (-counter[tag], tag)) if counter else other
        for counter, other in zip(counts, rest, strict=True)
    ]
