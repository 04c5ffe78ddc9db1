"""What every table shows beside a fine-tuned encoder: the majority, TF-IDF, a frozen encoder."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.array_cache import cached
from core.data_module import Baseline
from core.length_plan import Lengths, longest_first
from core.precision import faster_precision
from core.tasks.heads import Head
from domains.nlp.encoding import EncodedTexts
from domains.nlp.frozen import frozen
from domains.nlp.networks.text_embedder import TextEmbedder
from domains.nlp.tokens import pad

BUDGET = 8_192
"""Tokens that are encoded at a time."""
Array = NDArray[Any]


class Looked:
    """Predictions that are there already, for all rows of the test."""

    def __init__(self, predictions: Tensor) -> None:
        self.predictions = predictions

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Give those of a batch, and its targets."""
        return self.predictions[batch.rows], batch.targets


def fitted(
    heads: Sequence[Head],
    texts: Mapping[str, Sequence[str]],
    train: Any,
    test: Any,
    encoder: str | None,
) -> dict[str, Baseline]:
    """Fit the baselines on the training part, and predict the test.

    Args:
        heads: what is asked.
        texts: of the parts ``train`` and ``test``.
        train: the encoded training part with its targets.
        test: the encoded test part.
        encoder: the pretrained model of the frozen encoder; None leaves it out.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=200_000
    )
    found: dict[str, Baseline] = {
        "majority": Looked(_predicted(heads, None, train.targets, len(test)))
    }
    try:
        seen = vectorizer.fit_transform(texts["train"])
    except ValueError:  # no word stands twice
        seen = None
    if seen is not None:
        features = seen, vectorizer.transform(texts["test"])
        found["TF-IDF + linear"] = Looked(_predicted(heads, features, train.targets, len(test)))
    network = frozen(encoder, TextEmbedder, normalise=False) if encoder else None
    if network is not None:
        vectors = tuple(_vectors(network, part) for part in (train, test))
        found["frozen encoder + linear"] = Looked(
            _predicted(heads, vectors, train.targets, len(test))
        )
    return found


def _vectors(network: TextEmbedder, part: Any) -> Array:
    """Embed a part, or take its vectors from the cache."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    for array in (part.encoded.ids, part.encoded.starts, part.encoded.firsts):
        digest.update(array.tobytes())
    made = cached(
        ["vectors", digest.hexdigest(), faster_precision()],
        lambda: {"vectors": embed(network, part.encoded, part.pad_id)},
    )
    return made["vectors"]


def embed(network: TextEmbedder, encoded: EncodedTexts, pad_id: int) -> Array:
    """Give the mean state (N, D) of each text, over its windows."""
    bf16 = faster_precision() == "bf16-mixed"
    rows: list[Array | None] = [None] * len(encoded)
    network.eval()
    batches = longest_first(Lengths(encoded.tokens, BUDGET, encoded.rows), BUDGET)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for some in batches:
            windows = [encoded.windows(place) for place in some]
            tokens = pad([w for each in windows for w in each], pad_id)
            vectors = network(*tokens).float().numpy()
            ends = np.cumsum([len(each) for each in windows])
            for place, vector in zip(some, np.split(vectors, ends[:-1]), strict=True):
                rows[place] = vector.mean(0)
    return np.stack([row for row in rows if row is not None])


def _predicted(heads: Sequence[Head], features: Any, targets: Tensor, count: int) -> Tensor:
    """Predict logits (N, K) of all heads: 0 and above means that a label is given."""
    result = torch.zeros(count, heads[-1].outputs.stop)
    for head in heads:
        known = head.known(targets)
        truth = head.target(targets[known]).numpy()
        rows = known.numpy()
        seen, asked = (None, None) if features is None else (features[0][rows], features[1])
        columns = head.outputs
        if head.kind == "single":
            scores = np.full((count, len(head.labels)), -20.0)
            if seen is None or len(np.unique(truth)) < 2:
                scores[:, np.bincount(truth).argmax()] = 0.0
            else:
                model = _fit(_logistic(), seen, truth)
                scores[:, model.classes_] = model.predict_log_proba(asked)
            result[:, columns] = torch.from_numpy(scores).float()
        elif head.kind == "multi":
            for place, label in enumerate(truth.T):
                result[:, columns.start + place] = _binary(seen, asked, label, count)
        else:
            for place, values in enumerate(truth.T):
                mean = torch.full((count,), float(values.mean()))
                result[:, columns.start + place] = (
                    mean if seen is None else _regressed(seen, asked, values)
                )
    return result


def _binary(seen: Any, asked: Any, label: Array, count: int) -> Tensor:
    if seen is None or len(np.unique(label)) < 2:
        return torch.full((count,), 1.0 if label.mean() >= 0.5 else -1.0)
    return torch.from_numpy(_fit(_logistic(), seen, label).decision_function(asked)).float()


def _regressed(seen: Any, asked: Any, values: Array) -> Tensor:
    from sklearn.linear_model import Ridge

    return torch.from_numpy(np.asarray(_fit(Ridge(), seen, values).predict(asked))).float()


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1_000)


def _fit(model: Any, seen: Any, truth: Array) -> Any:
    fit: Callable[..., Any] = model.fit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a search that ends early still gives a model
        return fit(seen, truth)
