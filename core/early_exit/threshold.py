"""The threshold of early exits, chosen on validation data: as cheap as a wished quality allows.

Learn-then-Test: Angelopoulos et al., 2021, with its fixed sequence of tests: from safe to fast, up
to the first threshold that cannot be shown to be safe.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from core.errors import UserError

Test = Literal["binomial", "hoeffding"]


class ExitTable(NamedTuple):
    """What N samples show at each of L exits: ``scores`` (N, L - 1) and ``losses`` (N, L).

    A loss lies from 0 to 1, such as 1 for a wrong class. Exits before the first one that is used
    have scores of minus infinity.
    """

    scores: Tensor
    losses: Tensor


class Choice(NamedTuple):
    """A threshold, the mean exit and the mean loss with it, and those of the last exit.

    Without a threshold nobody leaves early.
    """

    threshold: float | None
    mean_exit: float
    loss: float
    last_loss: float
    guarantee: str


def exits_at(scores: Tensor, threshold: float) -> Tensor:
    """Give the exit (N,), from 1 on, at which each sample leaves."""
    reached = torch.cat([scores >= threshold, torch.ones_like(scores[:, :1], dtype=torch.bool)], 1)
    return reached.int().argmax(1) + 1


def losses_at(table: ExitTable, threshold: float) -> tuple[Tensor, Tensor]:
    """Give the exits (N,) and the losses (N,) with a threshold."""
    exits = exits_at(table.scores, threshold)
    return exits, table.losses.gather(1, exits[:, None] - 1).squeeze(1)


def candidates(scores: Tensor, count: int = 200) -> list[float]:
    """Give thresholds from the highest, where hardly anyone leaves early, to the lowest."""
    finite = torch.unique(scores[scores.isfinite()].double())
    if not len(finite):
        return []
    places = torch.linspace(len(finite) - 1, 0, min(count, len(finite))).round().long()
    return list(dict.fromkeys(finite[places].tolist()))


def smallest_cost(table: ExitTable, delta: float, among: Sequence[float] | None = None) -> Choice:
    """Choose the cheapest threshold whose mean loss is at most ``delta`` above the last exit's.

    It holds for these samples; what others will lose is not said.

    Raises:
        UserError: if ``delta`` is out of range.
    """
    _check(delta, 0.5)
    best = _never(table, f"mean loss on {len(table.losses)} validation samples")
    for threshold in candidates(table.scores) if among is None else among:
        exits, losses = losses_at(table, threshold)
        loss, mean = float(losses.double().mean()), float(exits.double().mean())
        if loss - best.last_loss <= delta + 1e-12 and mean < best.mean_exit:
            best = best._replace(threshold=threshold, mean_exit=mean, loss=loss)
    return best


def learn_then_test(
    table: ExitTable,
    delta: float,
    alpha: float = 0.1,
    test: Test = "binomial",
    among: Sequence[float] | None = None,
) -> Choice:
    """Choose a threshold with a guarantee: with probability 1 - alpha the harm is at most delta.

    The harm of a sample is what its exit loses more than the last one, at least 0: so a gain of
    others is not set off against it, and the mean loss exceeds the last exit's by no more. The
    guarantee is for samples of the same distribution, over the draw of the validation samples.

    Args:
        table: of validation samples that training has not seen.
        delta: the mean harm allowed.
        alpha: the probability of choosing a threshold that harms more.
        test: ``binomial`` of harms 0 and 1, exact; ``hoeffding`` of any from 0 to 1.
        among: thresholds in the order of the tests, given before the samples were seen; None takes
            them from the scores of every other sample, and tests on the rest.

    Raises:
        UserError: if ``delta`` or ``alpha`` is out of range, or a harm is no 0 or 1 in the test
            ``binomial``.
    """
    _check(delta, alpha)
    if among is None:
        among = candidates(table.scores[::2])
        table = ExitTable(table.scores[1::2], table.losses[1::2])
    harm_last = table.losses[:, -1]
    share = f"with probability {1 - alpha:g} the mean harm is at most {delta:g} ({test})"
    best = _never(table, share)
    for threshold in among:
        exits, losses = losses_at(table, threshold)
        harm = (losses - harm_last).clamp(min=0).double()
        if p_value(harm, delta, test) > alpha:
            break
        mean = float(exits.double().mean())
        best = best._replace(
            threshold=threshold, mean_exit=mean, loss=float(losses.double().mean())
        )
    return best


def p_value(harm: Tensor, delta: float, test: Test) -> float:
    """Bound the probability of so small a mean of harms (N,) where the true one is above delta.

    Example:
        >>> round(p_value(torch.zeros(100), 0.03, "binomial"), 4)
        0.0476
    """
    count, mean = len(harm), float(harm.double().mean())
    if test == "hoeffding":
        return math.exp(-2 * count * max(delta - mean, 0.0) ** 2)
    if test != "binomial":
        raise UserError(f"EarlyExit: test={test!r} must be 'binomial' or 'hoeffding'")
    if not bool(((harm == 0) | (harm == 1)).all()):
        raise UserError("EarlyExit: test=binomial is for right and wrong; take test=hoeffding")
    successes = round(mean * count)
    terms = torch.arange(successes + 1, dtype=torch.float64)
    logs = (
        math.lgamma(count + 1)
        - torch.lgamma(terms + 1)
        - torch.lgamma(count - terms + 1)
        + terms * math.log(delta)
        + (count - terms) * math.log1p(-delta)
    )
    return min(1.0, float(logs.logsumexp(0).exp()))


def joined(tables: Iterable[ExitTable]) -> ExitTable:
    """Put the tables of several batches into one."""
    scores, losses = zip(*tables, strict=True)
    return ExitTable(torch.cat(scores), torch.cat(losses))


def _never(table: ExitTable, guarantee: str) -> Choice:
    last = float(table.losses[:, -1].double().mean())
    return Choice(None, float(table.losses.shape[1]), last, last, guarantee)


def _check(delta: float, alpha: float) -> None:
    for name, value in (("delta", delta), ("alpha", alpha)):
        if not 0 < value < 1:
            raise UserError(f"EarlyExit: {name}={value} must lie between 0 and 1")
