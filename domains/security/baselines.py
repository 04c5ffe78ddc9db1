"""What every table shows beside a network: boosted trees, a linear model, an isolation forest.

They see the fields of the judged flow alone, encoded as for the network, of the same rows; what is
not stated is scikit-learn's default.
"""

import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data_module import Baseline
from domains.security.flows import FlowBatch, FlowTable
from domains.security.scores import attack_score
from domains.security.thresholds import threshold_within

MOST = 1_000_000
"""Rows of training that a baseline is fitted to; of more that many are drawn."""
NEVER = -40.0
"""The logit of a class that training lacks."""


class FlowBaseline:
    """Logits of all flows of the test, and what was found on validation data.

    Args:
        rows: (T,) places of the flows of the test, rising.
        logits: (T, 1) or (T, K).
        scores: (V,) of the flows of validation.
        attack: (V,) whether they are attacks.
        seconds: that the test took.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        logits: Tensor,
        scores: NDArray[np.float64],
        attack: NDArray[np.bool_],
        seconds: float,
    ) -> None:
        self.rows = rows
        self.logits = logits
        self.scores = scores
        self.attack = attack
        self.figures = {"flows_per_second": len(rows) / seconds}

    def __call__(self, batch: FlowBatch) -> tuple[Tensor, Tensor]:
        """Give the logits of a batch, and its classes (B,)."""
        places = np.searchsorted(self.rows, batch.rows.numpy())
        binary = self.logits.shape[1] == 1
        return self.logits[places], (batch.labels > 0).long() if binary else batch.labels

    def threshold(self, budget: float) -> float:
        """Give the threshold that keeps to a share of false alarms on validation data."""
        found = threshold_within(self.scores, self.attack, budget)
        return 0.5 if found is None else found


def fitted(
    parts: Mapping[str, FlowTable], rows: NDArray[np.int64], classes: int, seed: int
) -> dict[str, Baseline]:
    """Fit the baselines to training, and let them judge validation and test.

    Args:
        parts: the judged flows of ``train``, ``val`` and ``test``.
        rows: the places of those of the test, rising.
        classes: K; 2 for attacks of one class.
        seed: of what is drawn.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest

    fields = {  # the published scaling makes infinities of what lies below training
        name: np.nan_to_num(np.hstack([part.numeric, part.codes]), posinf=1.0, neginf=0.0)
        for name, part in parts.items()
    }
    labels = _labels(parts["train"], classes)
    drawn = np.random.default_rng(seed).permutation(len(labels))[:MOST]
    seen, truth = fields["train"][drawn], labels[drawn]
    models: dict[str, Any] = {}
    if len(np.unique(truth)) > 1:
        boosted = HistGradientBoostingClassifier(random_state=seed)
        models["gradient boosting"] = _Supervised(boosted, classes, seen, truth)
        linear = _linear(parts["train"].numeric.shape[1])
        models["logistic regression"] = _Supervised(linear, classes, seen, truth)
    if (truth == 0).any():
        forest = IsolationForest(random_state=seed)
        models["isolation forest"] = _Unsupervised(forest, classes, seen, truth)
    attack = parts["val"].labels > 0
    found: dict[str, Baseline] = {}
    for name, model in models.items():
        began = time.perf_counter()
        logits = model.logits(fields["test"])
        seconds = time.perf_counter() - began
        scores = attack_score(model.logits(fields["val"])).numpy() if len(attack) else np.zeros(0)
        found[name] = FlowBaseline(rows, logits, scores, attack, seconds)
    return found


def _labels(part: FlowTable, classes: int) -> NDArray[np.int64]:
    return (part.labels > 0).astype(np.int64) if classes == 2 else part.labels


def _linear(numeric: int) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    one_hot = (OneHotEncoder(handle_unknown="ignore"), slice(numeric, None))
    columns = make_column_transformer(one_hot, remainder="passthrough")
    return make_pipeline(columns, LogisticRegression(max_iter=1_000))


class _Supervised:
    """A classifier of scikit-learn."""

    def __init__(self, model: Any, classes: int, seen: NDArray[Any], truth: NDArray[Any]) -> None:
        self.classes = classes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a search that ends early still gives a model
            self.model = model.fit(seen, truth)

    def logits(self, fields: NDArray[Any]) -> Tensor:
        """Give (N, 1) or (N, K)."""
        if self.classes == 2:
            return torch.from_numpy(self.model.decision_function(fields)).float()[:, None]
        logits = torch.full((len(fields), self.classes), NEVER)
        shares = torch.from_numpy(self.model.predict_proba(fields)).float()
        logits[:, self.model.classes_] = shares.log().clamp(min=NEVER)
        return logits


class _Unsupervised:
    """An isolation forest of the benign flows of training; what is odd is an attack.

    Of several classes it is given the most frequent one.
    """

    def __init__(self, model: Any, classes: int, seen: NDArray[Any], truth: NDArray[Any]) -> None:
        self.model = model.fit(seen[truth == 0])
        self.classes = classes
        self.frequent = int(np.bincount(truth[truth > 0], minlength=2).argmax())

    def logits(self, fields: NDArray[Any]) -> Tensor:
        """Give (N, 1) or (N, K)."""
        odd = torch.from_numpy(-self.model.decision_function(fields)).float()
        if self.classes == 2:
            return odd[:, None]
        logits = torch.full((len(odd), self.classes), NEVER)
        logits[:, 0] = 0
        logits[:, self.frequent] = odd
        return logits
