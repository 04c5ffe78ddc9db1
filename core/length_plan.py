"""Batches of similar lengths under a token budget: little padding, and a bounded memory.

Items are sorted by width (their length rounded up to a multiple of 8) and cut once into batches, so
that every epoch has the same number of batches. Neighbouring widths form groups of several batches;
an epoch draws anew which items of a group take which of its places, and shuffles the batches.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.batch_plan import Plan, mix_seed

STEP = 8
"""Widths are multiples of this many tokens."""
MIX = 4
"""A group holds at least so many batches, for its items to meet others in each epoch..."""
STRETCH = 2
"""...unless its widest item would be so many times as wide as its narrowest."""


class Lengths(NamedTuple):
    """The lengths of a data set's items.

    ``tokens`` (N,) and ``rows`` (N,), one each where not given, are those of :class:`LengthPlan`;
    ``budget`` is the most padded tokens in a batch.
    """

    tokens: Sequence[int] | NDArray[Any]
    budget: int
    rows: Sequence[int] | NDArray[Any] | None = None


class _Group(NamedTuple):
    """So many items of at most ``width`` tokens and ``rows`` rows."""

    number: int
    narrowest: int
    width: int
    rows: int

    @property
    def cost(self) -> int:
        """Give the most tokens of an item."""
        return self.width * self.rows

    def join(self, other: "_Group") -> "_Group":
        """Put two groups together."""
        return _Group(
            self.number + other.number,
            min(self.narrowest, other.narrowest),
            max(self.width, other.width),
            max(self.rows, other.rows),
        )


class LengthPlan(Plan):
    """Batches of items of similar length; each item once an epoch.

    A batch holds at most ``batch_size`` items and, padded to its widest item, ``token_budget``
    tokens. Its number of items is ``batch_size``, or a multiple of ``multiple``, or a divisor of
    it, so that one and several processes see the same batches. The few items beyond a multiple are
    left out, others in each epoch.

    Args:
        lengths: the length of each item, in tokens.
        batch_size: the most items in a global batch, that is over all processes together.
        token_budget: the most tokens in a global batch, padding included.
        rows: how many rows of its width each item takes, such as the windows of a long text; one
            where not given.
        multiple: numbers of processes that divide it can share the batches.

    Raises:
        ValueError: if there is no item, a number is too small, or an item exceeds the budget.

    Example:
        >>> plan = LengthPlan([5, 30, 7, 6, 31, 8, 29, 32], batch_size=4, token_budget=128)
        >>> sorted(sorted(batch) for batch in plan.global_batches(seed=0, epoch=0))
        [[0, 2, 3, 5], [1, 4, 6, 7]]
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[Any],
        batch_size: int,
        token_budget: int,
        *,
        rows: Sequence[int] | NDArray[Any] | None = None,
        multiple: int = 8,
    ) -> None:
        tokens = np.asarray(lengths, dtype=np.int64)
        weights = np.ones_like(tokens) if rows is None else np.asarray(rows, dtype=np.int64)
        if not len(tokens) or min(batch_size, token_budget, multiple) < 1:
            raise ValueError(
                f"{len(tokens)} items, batch_size={batch_size}, token_budget={token_budget} and"
                f" multiple={multiple} must be at least 1"
            )
        if len(weights) != len(tokens):
            raise ValueError(f"rows has {len(weights)} entries for {len(tokens)} items")
        if tokens.min() < 0 or weights.min() < 1:
            raise ValueError(
                f"lengths ({tokens.min()} is the least) must be at least 0"
                f" and rows ({weights.min()} is the least) at least 1"
            )
        self.batch_size = batch_size
        self.token_budget = token_budget
        self.multiple = multiple
        widths = padded(tokens)
        self._check_items(tokens, widths, weights)
        self._digest = hashlib.blake2b(tokens.tobytes() + weights.tobytes(), digest_size=8)
        self._items = np.lexsort((widths, weights))
        groups = self._groups(widths[self._items], weights[self._items])
        counts = [group.number for group in groups]
        self._group_of = np.repeat(np.arange(len(groups)), counts)
        largest = int(np.argmax(counts))
        spare = len(tokens) % math.gcd(multiple, batch_size)
        spare = spare if spare < counts[largest] else 0  # not the same ones in every epoch
        begin = sum(counts[:largest])
        self._spare = slice(begin, begin + spare)
        groups[largest] = groups[largest]._replace(number=counts[largest] - spare)
        self._cuts, self._finest = self._cut(groups)

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        return len(self._cuts) - 1

    def settings(self) -> dict[str, Any]:
        """Give the limits of a batch and a digest of the lengths."""
        return {
            "batch_size": self.batch_size,
            "token_budget": self.token_budget,
            "multiple": self.multiple,
            "lengths": self._digest.hexdigest(),
        }

    def check(self, world_size: int) -> None:
        """Make sure that batches can be shared evenly; a short last one is filled up.

        Raises:
            ValueError: naming the number that stands in the way.
        """
        if self._finest % world_size == 0:
            return
        if self.batch_size % world_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible among {world_size} processes"
            )
        if self.multiple % world_size:
            raise ValueError(
                f"token_budget={self.token_budget} makes batches of a multiple of {self.multiple}"
                f" items or a divisor of it, which {world_size} processes cannot share;"
                f" use a number of processes that divides {self.multiple}"
            )
        least = self.multiple
        while self._rounded(least - 1) and self._rounded(least - 1) % world_size == 0:
            least -= 1
        raise ValueError(
            f"token_budget={self.token_budget} has no room for a share of the longest items"
            f" ({self._dearest} padded tokens) in each of {world_size} processes;"
            f" set it to {least * self._dearest} or more"
        )

    def global_batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the batches of all processes together, from batch ``start`` on."""
        draw = np.random.default_rng(mix_seed(seed, epoch))
        places = np.argsort(self._group_of + draw.random(len(self._items)))  # shuffled in groups
        order = np.delete(self._items[places], self._spare)
        for number in draw.permutation(len(self))[start:]:
            yield order[self._cuts[number] : self._cuts[number + 1]].tolist()

    def _check_items(
        self, tokens: NDArray[Any], widths: NDArray[Any], weights: NDArray[Any]
    ) -> None:
        costs = widths * weights
        worst = int(costs.argmax())
        self._dearest = int(costs[worst])
        if self._dearest > self.token_budget:
            raise ValueError(
                f"item {worst} of {tokens[worst]} tokens takes {weights[worst]} x {widths[worst]}"
                f" padded ones, more than token_budget={self.token_budget};"
                f" set token_budget to {self._dearest} or more, or cut long items"
            )

    def _rounded(self, count: int) -> int:
        """Lower a number of items to one that processes can share."""
        if count >= self.multiple:
            return count - count % self.multiple
        return next((n for n in range(count, 0, -1) if self.multiple % n == 0), 0)

    def _room(self, group: _Group) -> int:
        """Say how many items of a group fit into a batch."""
        count = self.token_budget // group.cost
        return self.batch_size if self.batch_size <= count else self._rounded(count)

    def _groups(self, widths: NDArray[Any], weights: NDArray[Any]) -> list[_Group]:
        """Join neighbouring widths until a group holds several batches."""
        changes = (np.diff(widths) != 0) | (np.diff(weights) != 0)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        counts = np.diff(np.append(starts, len(widths)))
        groups: list[_Group] = []
        for count, width, rows in zip(
            counts.tolist(), widths[starts].tolist(), weights[starts].tolist(), strict=True
        ):
            group = _Group(count, width, width, rows)
            if groups and self._small(groups[-1]) and self._alike(groups[-1], group):
                groups[-1] = groups[-1].join(group)
            else:
                groups.append(group)
        if len(groups) > 1 and self._small(groups[-1]) and self._alike(*groups[-2:]):
            groups[-2:] = [groups[-2].join(groups[-1])]
        return groups

    def _small(self, group: _Group) -> bool:
        return group.number < MIX * self._room(group)

    @staticmethod
    def _alike(left: _Group, right: _Group) -> bool:
        """Say whether joining them costs little padding."""
        both = left.join(right)
        return left.rows == right.rows and both.width <= STRETCH * both.narrowest + STEP

    def _cut(self, groups: list[_Group]) -> tuple[NDArray[np.int64], int]:
        """Cut the sorted items into batches; what a group leaves over joins the next one.

        Returns:
            The borders of the batches, and the number of items that divides all but short ones.
        """
        cuts = [0]
        end = finest = 0
        before: _Group | None = None  # what the items since the last cut belong to
        for group in groups:
            left = end - cuts[-1]
            end += group.number
            if before is not None:
                both = before.join(group)
                room = self._room(both) if both.cost == max(before.cost, group.cost) else 0
                while left and left >= room:
                    count = self._rounded(left) if room else left
                    finest = math.gcd(finest, count if room else 0)
                    cuts.append(cuts[-1] + count)
                    left -= count
                if left:
                    if end - cuts[-1] < room:
                        before = both
                        continue
                    finest = math.gcd(finest, room)
                    cuts.append(cuts[-1] + room)
            room = self._room(group)
            more = range(cuts[-1] + room, end + 1, room)
            finest = math.gcd(finest, room if more else 0)
            cuts.extend(more)
            before = group if end > cuts[-1] else None
        if end > cuts[-1]:
            cuts.append(end)
        return np.array(cuts), finest


def padded(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Round lengths up to the next multiple of 8, at least 8."""
    widths: NDArray[np.int64] = np.maximum(-(-lengths // STEP), 1) * STEP
    return widths


def longest_first(found: Lengths, batch_size: int, world_size: int = 1) -> list[list[int]]:
    """Batch every item once, the widest first, so that a lack of memory shows at once.

    A batch holds at most ``batch_size`` items and ``found.budget`` padded tokens, but an item for
    each process in any case.
    """
    widths = padded(np.asarray(found.tokens, dtype=np.int64))
    rows = np.ones_like(widths) if found.rows is None else np.asarray(found.rows, dtype=np.int64)
    order = np.lexsort((rows, widths))[::-1]
    widths, rows = widths[order], rows[order]
    batches = []
    start = 0
    while start < len(order):
        costs = widths[start] * rows[start : start + batch_size].cumsum()
        count = max(int(np.searchsorted(costs, found.budget, side="right")), world_size)
        batches.append(order[start : start + count].tolist())
        start += count
    return batches
