"""Spans in sequences of tags: the BIO family of schemes, and how many spans were found.

A tag is ``O`` or a prefix, a hyphen and the type: ``B-PER``. B begins a span, I goes on with it, E
(also L) ends it, S (also U) is one by itself; M is I. A tag without a prefix, such as ``PER``, is
read as ``I-PER``.

Two readings, those of seqeval (Nakayama, 2018), whose first is that of the script of CoNLL-2000:

- lenient (``scheme=None``): neighbours of one type are one span until something says otherwise; a
  span may begin with I.
- strict (``BIO``, ``IOB1``, ``IOBES``, ``BILOU``): a span that the scheme does not allow is none.
  In ``IOB1`` B stands only where a span touches another of its type. On tags that break IOB1
  seqeval keeps the rest of some spans, and here the whole span is left out.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

Scheme = Literal["BIO", "IOB1", "IOBES", "BILOU"]
PREFIXES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
NO_TAG = -100
"""The target of a word that has no tag, and of padding."""
_CODES = "OBIES"


class Span(NamedTuple):
    """Words ``start`` to ``stop`` (not included) of one ``type``."""

    type: str
    start: int
    stop: int


def parse(tag: str) -> tuple[str, str]:
    """Give the prefix of a tag, one of ``OBIES``, and its type.

    Example:
        >>> parse("B-PER"), parse("U-LOC"), parse("O"), parse("TIM")
        (('B', 'PER'), ('S', 'LOC'), ('O', ''), ('I', 'TIM'))
    """
    if tag == "O":
        return "O", ""
    prefix, hyphen, name = tag.partition("-")
    if hyphen and name and prefix in PREFIXES:
        return PREFIXES[prefix], name
    return "I", tag


def marks_spans(tags: Sequence[str]) -> bool:
    """Say whether tags mark spans: one of them begins or goes on with one.

    Example:
        >>> marks_spans(["O", "B-PER"]), marks_spans(["NOUN", "VERB", "-LRB-", "O"])
        (True, False)
    """
    return any(tag[:2] in ("B-", "I-") and len(tag) > 2 for tag in tags)


def decode(tags: Sequence[str], scheme: Scheme | None = None) -> list[Span]:
    """List the spans of one sequence of tags.

    Example:
        >>> decode(["B-PER", "I-PER", "O", "I-LOC"])
        [Span(type='PER', start=0, stop=2), Span(type='LOC', start=3, stop=4)]
        >>> decode(["B-PER", "I-PER", "O", "I-LOC"], scheme="BIO")
        [Span(type='PER', start=0, stop=2)]
    """
    labels = sorted(set(tags))
    table = SpanTable(labels, scheme)
    number = {label: index for index, label in enumerate(labels)}
    ids = torch.tensor([[number[tag] for tag in tags]], dtype=torch.long)  # (1, N)
    begins, last, kind = table(ids)
    return [
        Span(table.types[int(kind[0, at])], at, int(last[0, at]) + 1)
        for at in begins[0].nonzero().flatten().tolist()
    ]


class SpanTable(torch.nn.Module):
    """Find spans in batches of label numbers.

    Args:
        labels: C tags.
        scheme: how strict to be; None is lenient.

    Attributes:
        types: the T types of spans, sorted.
    """

    prefix: Tensor
    kind: Tensor

    def __init__(self, labels: Sequence[str], scheme: Scheme | None = None) -> None:
        super().__init__()
        if scheme is not None and scheme not in get_args(Scheme):
            raise ValueError(f"scheme={scheme!r} must be one of {', '.join(get_args(Scheme))}")
        self.scheme = scheme
        parts = [parse(label) for label in labels]
        self.types = sorted({name for prefix, name in parts if prefix != "O"})
        number = {name: index for index, name in enumerate(self.types)}
        prefixes = [_CODES.index(prefix) for prefix, _ in parts]
        kinds = [number.get(name, -1) if prefix != "O" else -1 for prefix, name in parts]
        self.register_buffer("prefix", torch.tensor(prefixes, dtype=torch.long), persistent=False)
        self.register_buffer("kind", torch.tensor(kinds, dtype=torch.long), persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the spans of label numbers (B, N), of which those below 0 are read as ``O``.

        Returns:
            Where spans begin, as booleans (B, N); at the beginning of each the index of its last
            word (B, N); and the type of each word (B, N), -1 for ``O``.
        """
        absent = ids < 0
        known = ids.clamp(min=0)
        prefix = self.prefix[known].masked_fill(absent, 0)  # (B, N)
        kind = self.kind[known].masked_fill(absent, -1)
        before = torch.nn.functional.pad(kind, (1, 0), value=-1)[:, :-1]
        prefix_before = torch.nn.functional.pad(prefix, (1, 0), value=0)[:, :-1]
        opens = (before != kind) | _is(prefix, "BS") | _is(prefix_before, "ES")
        begins = (kind >= 0) & opens
        follows = torch.nn.functional.pad(opens | (kind < 0), (0, 1), value=True)[:, 1:]
        ends = (kind >= 0) & follows
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        last = places.masked_fill(~ends, ids.shape[1]).flip(1).cummin(1).values.flip(1)
        return begins & self._allowed(prefix, kind, before, last), last, kind

    def _allowed(self, prefix: Tensor, kind: Tensor, before: Tensor, last: Tensor) -> Tensor:
        """Say at which words (B, N) a span may begin by the scheme."""
        if self.scheme is None:
            return torch.ones_like(kind, dtype=torch.bool)
        if self.scheme == "BIO":
            return _is(prefix, "B")
        if self.scheme == "IOB1":
            return _is(prefix, "I") | (_is(prefix, "B") & (before == kind))
        at_end = prefix.gather(1, last.clamp(max=max(prefix.shape[1] - 1, 0)))
        return _is(prefix, "S") | (_is(prefix, "B") & _is(at_end, "E"))


def _is(prefix: Tensor, letters: str) -> Tensor:
    codes = torch.tensor([_CODES.index(letter) for letter in letters], device=prefix.device)
    return torch.isin(prefix, codes)


class SpanScore(Metric):
    """F1, precision or recall of spans: one is right if its type and both its ends are.

    Counts per type are summed over batches and processes, so the score is that of the whole set. A
    score whose denominator is zero is 0. The mean over types takes those that occur, in the target
    or in the prediction.

    Args:
        labels: C tags, in the order of the network's outputs.
        score: which one.
        average: over all spans, or the mean over types.
        scheme: how strict to be; None is lenient.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    correct: Tensor
    predicted: Tensor
    wanted: Tensor

    def __init__(
        self,
        labels: Sequence[str],
        score: Literal["f1", "precision", "recall"] = "f1",
        average: Literal["micro", "macro"] = "micro",
        scheme: Scheme | None = None,
    ) -> None:
        super().__init__()
        self.table = SpanTable(labels, scheme)
        self.score = score
        self.average = average
        for name in ("correct", "predicted", "wanted"):
            zeros = torch.zeros(len(self.table.types), dtype=torch.long)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the spans of label numbers (B, N); words whose target is below 0 are ``O``."""
        preds = preds.masked_fill(target < 0, NO_TAG)
        begins, last, kind = self.table(preds)
        true_begins, true_last, true_kind = self.table(target)
        same = begins & true_begins & (last == true_last) & (kind == true_kind)
        types = len(self.table.types)
        self.correct = self.correct + torch.bincount(kind[same], minlength=types)
        self.predicted = self.predicted + torch.bincount(kind[begins], minlength=types)
        self.wanted = self.wanted + torch.bincount(true_kind[true_begins], minlength=types)

    def compute(self) -> Tensor:
        """Give the score as a fraction of one."""
        if self.average == "micro":
            parts = (self.correct.sum(), self.predicted.sum(), self.wanted.sum())
            return _scores(*parts)[self.score]
        occurs = (self.predicted + self.wanted) > 0
        every = _scores(self.correct, self.predicted, self.wanted)[self.score][occurs]
        return every.mean() if len(every) else every.new_zeros(())

    def per_type(self) -> dict[str, dict[str, float]]:
        """Give precision, recall, f1 and the spans in the target of each type."""
        scores = _scores(self.correct, self.predicted, self.wanted)
        return {
            name: {
                **{key: float(value[index]) for key, value in scores.items()},
                "spans": int(self.wanted[index]),
            }
            for index, name in enumerate(self.table.types)
        }


def _scores(correct: Tensor, predicted: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    right = correct.double()
    return {
        "precision": right / predicted.clamp(min=1),
        "recall": right / wanted.clamp(min=1),
        "f1": 2 * right / (predicted + wanted).clamp(min=1),
    }
