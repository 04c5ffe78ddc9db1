"""How sure an exit is of its answer: higher is surer, and a threshold decides who leaves.

| criterion | surer is | source |
| --- | --- | --- |
| NormalisedEntropy | 1 - H(p) / ln C, from 0 to 1 | Liu et al., FastBERT, ACL 2020 |
| Entropy | -H(p), in nats | BranchyNet, ICPR 2016; DeeBERT, ACL 2020 |
| Confidence | the largest p, or its lead over the next | Schuster et al., CALM, NeurIPS 2022 |
| Patience | answers in a row that agree | Zhou et al., PABEE, NeurIPS 2020 |
| Learned | 1 - the learnt probability of an error | Xin et al., BERxiT, EACL 2021 |
| Saturation | the cosine of two states in a row | CALM |

Sizes: n samples that are still in, C classes, T tokens, D width of the state.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import UserError

Reduction = Literal["auto", "mean", "worst", "quantile"]


class Seen(NamedTuple):
    """What an exit shows of the n samples that are still in.

    ``output`` is the answer from there: logits (n, C), of tokens (n, T, C) or of maps (n, C, H, W),
    or values. ``state`` is the state (n, ..., D), ``mask`` (n, T) is True on the tokens that count,
    where the network is given such a mask.
    """

    output: Tensor
    state: Tensor
    mask: Tensor | None


class Criterion(nn.Module):
    """Say how sure an exit is; a subclass gives :meth:`score`, in float32 and finite."""

    @abstractmethod
    def score(self, outputs: Seen, history: Sequence[Seen]) -> Tensor:
        """Give (n,), (n, T) or (n, H, W), higher where the answer is surer.

        Args:
            outputs: what this exit shows.
            history: what the earlier exits showed of the same samples, the first one first.
        """


class NormalisedEntropy(Criterion):
    """One less the entropy's share of the most it can be, so that classes may be few or many."""

    def score(self, outputs: Seen, history: Sequence[Seen]) -> Tensor:
        """Give values from 0 to 1."""
        logs = log_probabilities(outputs.output)
        return (1 - _entropy(logs) / math.log(logs.shape[-1])).clamp(0, 1)


class Entropy(Criterion):
    """The entropy in nats, with its sign turned."""

    def score(self, outputs: Seen, history: Sequence[Seen]) -> Tensor:
        """Give values from -ln C to 0."""
        return -_entropy(log_probabilities(outputs.output))


class Confidence(Criterion):
    """The probability of the answer, or by how much it exceeds the next one's.

    Args:
        kind: ``max`` or ``margin``.
    """

    def __init__(self, kind: Literal["max", "margin"] = "max") -> None:
        super().__init__()
        if kind not in ("max", "margin"):
            raise UserError(f"Confidence: kind={kind!r} must be 'max' or 'margin'")
        self.kind = kind

    def score(self, outputs: Seen, history: Sequence[Seen]) -> Tensor:
        """Give values from 0 to 1."""
        first, second = log_probabilities(outputs.output).exp().topk(2, -1).values.unbind(-1)
        return first if self.kind == "max" else first - second


class Patience(Criterion):
    """How many answers in a row agree with this one; the threshold is a number of exits.

    Args:
        theta: of values: two answers agree where none of a sample's differs by so much; None
            compares classes.
    """

    def __init__(self, theta: float | None = None) -> None:
        super().__init__()
        if theta is not None and theta <= 0:
            raise UserError(f"Patience: theta={theta} must be above 0")
        self.theta = theta

    def score(self, outputs: Seen, history: Sequence[Seen]) -> Tensor:
        """Give whole numbers from 0 on."""
        answers = [*(seen.output for seen in history), outputs.output]
        if self.theta is None:
            classes = [log_probabilities(answer).argmax(-1) for answer in answers]
            agree = [a == b for a, b in zip(classes[1:], classes[:-1], strict=True)]
            count = torch.zeros_like(classes[-1], dtype=torch.float32)
        else:
            rows = [answer.float().flatten(1) for answer in answers]
            pairs = zip(rows[1:], rows[:-1], strict=True)
            agree = [((a - b).abs() < self.theta).all(1) for a, b in pairs]
            count = torch.zeros(len(rows[-1]), device=rows[-1].device)
        for same in agree:
            count = torch.where(same, count + 1, torch.zeros_like(count))
        return count


class Learned(Criterion):
    """A linear map of the state that learns where the answer is wrong, the same at all exits.

    Args:
        width: D; :class:`core.early_exit.transform.EarlyExit` fills it in.
    """

    def __init__(self, width: int | None = None) -> None:
        super().__init__()
        if width is None or width < 1:
            raise UserError(f"Learned: width={width} must be that of the state")
        self.width = width
        self.error = nn.Linear(width, 1)

    def score(self, outputs: Seen, history: Sequence[Seen]) -> Tensor:
        """Give values from 0 to 1."""
        return 1 - self.doubt(outputs)

    def doubt(self, outputs: Seen) -> Tensor:
        """Give the probability (n,) or (n, T) that the answer is wrong."""
        state = outputs.state
        if not of_tokens(outputs):
            state = pooled(outputs)
        doubt: Tensor = self.error(state).squeeze(-1)
        return doubt.float().sigmoid()

    def loss(self, outputs: Seen, wrong: Tensor) -> Tensor:
        """Give the squared distance of the doubt from what is wrong; none reaches the state.

        Args:
            outputs: what the exit shows.
            wrong: (n, ...) from 0 to 1, as :func:`mistakes` gives it.

        Raises:
            UserError: if the shapes do not fit one another.
        """
        doubt = self.doubt(outputs._replace(state=outputs.state.detach()))
        if doubt.ndim == 1:
            wrong = by_item(wrong)
        elif wrong.ndim == doubt.ndim + 1:  # several answers a token
            wrong = wrong.nanmean(-1)
        if wrong.shape != doubt.shape:
            raise UserError(
                f"Learned: answers {tuple(wrong.shape)} are judged where the exits show"
                f" {tuple(doubt.shape)}; take another criterion"
            )
        known = wrong.isfinite()
        if not bool(known.any()):
            return doubt.sum() * 0
        return F.mse_loss(doubt[known], wrong[known].to(doubt.dtype))


class Saturation(Criterion):
    """The cosine of the state with the one before; the first exit has -1."""

    def score(self, outputs: Seen, history: Sequence[Seen]) -> Tensor:
        """Give values from -1 to 1."""
        if not history:
            shape = outputs.state.shape[:2] if of_tokens(outputs) else outputs.state.shape[:1]
            return torch.full(shape, -1.0, device=outputs.state.device)
        cosine = F.cosine_similarity(outputs.state.float(), history[-1].state.float(), dim=-1)
        if of_tokens(outputs):
            return cosine
        return reduced(cosine, outputs.mask, "mean")


def log_probabilities(logits: Tensor) -> Tensor:
    """Give ln p in float32 with the classes last: of maps they are the second axis of logits.

    A single output is the logit of the second of two classes.
    """
    logits = logits.float()
    if logits.ndim == 4:
        logits = logits.movedim(1, -1)
    if logits.shape[-1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], -1)
    return logits.log_softmax(-1)


def of_tokens(outputs: Seen) -> bool:
    """Say whether there is an answer for each token of the state."""
    output, state = outputs.output, outputs.state
    return output.ndim == 3 and state.ndim == 3 and output.shape[:2] == state.shape[:2]


def pooled(outputs: Seen) -> Tensor:
    """Give the mean (n, D) of the state over all that counts."""
    state, mask = outputs.state, outputs.mask
    if state.ndim == 2:
        return state
    tokens = state.flatten(1, -2)  # (n, T, D)
    if mask is None or mask.shape != tokens.shape[:2]:
        return tokens.mean(1)
    weight = mask.to(tokens.dtype).unsqueeze(-1)
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def mistakes(prediction: Tensor, target: Tensor, unknown: int = -100) -> Tensor:
    """Say where answers are wrong: 1, else 0, and NaN where no answer is known.

    Args:
        prediction: logits (n, C), of tokens (n, T, C) or of maps (n, C, H, W), classes as the
            target, or values.
        target: classes (n,), (n, 1), (n, T) or (n, H, W), as whole numbers; or values, whose
            mistake is ``|tanh(prediction - target)|`` (BERxiT).
        unknown: the class that stands for none.
    """
    if target.is_floating_point():
        return (prediction.detach().float() - target.float()).tanh().abs()
    classes = prediction
    if prediction.is_floating_point():
        classes = log_probabilities(prediction.detach()).argmax(-1)
    if target.ndim == classes.ndim + 1 and target.shape[-1] == 1:
        target = target.squeeze(-1)
    return (classes != target).float().masked_fill(target == unknown, math.nan)


def by_item(values: Tensor) -> Tensor:
    """Give the mean (n,) of what is known of each item (n, ...); NaN where nothing is."""
    return values.flatten(1).nanmean(1) if values.ndim > 1 else values


def reduced(score: Tensor, mask: Tensor | None, how: Reduction) -> Tensor:
    """Make one score a sample: (n,).

    Args:
        score: (n,), (n, T) or (n, H, W).
        mask: (n, T), True where a token counts.
        how: ``worst`` is that of the least sure place, ``quantile`` that at 95 % of the
            uncertainty, ``mean`` the mean; ``auto`` is ``worst`` of tokens and ``mean`` of maps.
    """
    if score.ndim == 1:
        return score
    if how == "auto":
        how = "worst" if score.ndim == 2 else "mean"
    flat = score.flatten(1)
    counts = torch.ones_like(flat, dtype=torch.bool)
    if mask is not None and mask.shape == flat.shape:
        counts = mask.bool() | ~mask.bool().any(1, keepdim=True)
    if how == "worst":
        return flat.masked_fill(~counts, math.inf).amin(1)
    if how == "mean":
        return (flat * counts).sum(1) / counts.sum(1)
    if how == "quantile":
        return flat.masked_fill(~counts, math.nan).nanquantile(0.05, 1)
    raise UserError(f"EarlyExit: reduce={how!r} must be one of auto, mean, worst, quantile")


def _entropy(logs: Tensor) -> Tensor:
    return -(logs.exp() * logs).sum(-1)
