"""Windows of the flows before each flow, gathered by an index.

A window ends at the flow that is judged. Where there are fewer flows before it, the first one is
repeated. The published framework has no such case: it judges no flow that lacks a whole window.

The window of one host holds its own flows alone. A host is forgotten after ``MEMORY`` flows of
others, so that what is kept has a bound; a flow after that begins anew. The rule counts flows, not
time or pieces, and so gives the same windows however a stream is cut.

Sizes: R flows, B windows, W flows in a window, S hosts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMORY = 65_536
"""Flows after which a host that has had none is forgotten."""

Keys = NDArray[np.uint64]
Rows = NDArray[np.int64]


def previous_rows(keys: Keys | None, rows: int, memory: int | None = MEMORY) -> Rows:
    """Give for each flow (R,) the row of the one before it with the same key, or its own row.

    Args:
        keys: (R,) of the hosts; None makes all flows one host's.
        rows: R.
        memory: flows after which a host is forgotten; None never forgets.
    """
    own = np.arange(rows)
    if keys is None:
        return np.maximum(own - 1, 0)
    order = np.argsort(keys, kind="stable")
    before: Rows = own.copy()
    same = keys[order[1:]] == keys[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    if memory is not None:
        before[own - before >= memory] = own[own - before >= memory]
    return before


class Windows:
    """The windows of flows whose encoded fields lie in arrays.

    Args:
        arrays: each (R, ...), a field or several of every flow.
        window: W.
        previous: (R,) the flow before each one, by row; None takes the row before.
    """

    def __init__(
        self, arrays: Sequence[NDArray[Any]], window: int, previous: Rows | None = None
    ) -> None:
        self.arrays = tuple(arrays)
        self.window = window
        self.previous = previous

    def index(self, rows: Rows) -> Rows:
        """Give the rows (B, W) of the windows that end at ``rows`` (B,)."""
        if self.previous is None:
            index: Rows = np.maximum(rows[:, None] + np.arange(1 - self.window, 1), 0)
            return index
        index = np.empty((len(rows), self.window), np.int64)
        index[:, -1] = rows
        for place in range(self.window - 1, 0, -1):
            index[:, place - 1] = self.previous[index[:, place]]
        return index

    def at(self, rows: Rows) -> tuple[NDArray[Any], ...]:
        """Gather the windows that end at ``rows`` (B,), each array as (B, W, ...)."""
        index = self.index(rows)
        return tuple(array[index] for array in self.arrays)


class HostWindows:
    """Windows over a stream of pieces, in memory that does not grow with it.

    Of each host the last W - 1 flows are kept, of at most ``memory`` hosts.

    Args:
        window: W.
        memory: flows after which a host that has had none is forgotten.
    """

    def __init__(self, window: int, memory: int = MEMORY) -> None:
        self.window = window
        self.memory = memory
        self.count = 0
        self._keys: Keys = np.zeros(0, np.uint64)  # (S,) ascending
        self._last: Rows = np.zeros(0, np.int64)  # (S,) place in the stream of the last flow
        self._kept: tuple[NDArray[Any], ...] = ()  # each (S, W - 1, ...)

    @property
    def hosts(self) -> int:
        """S, how many hosts are remembered."""
        return len(self._keys)

    def add(self, keys: Keys | None, *arrays: NDArray[Any]) -> Windows:
        """Go on with a piece of R flows; the windows' rows count within the piece.

        Args:
            keys: (R,) of the hosts; None makes all flows one host's.
            arrays: each (R, ...), encoded fields.
        """
        rows = len(arrays[0])
        memory = self.memory
        if keys is None:
            keys, memory = np.zeros(rows, np.uint64), self.count + rows + 1  # never forgotten
        depth = self.window - 1
        if not self._kept:
            self._kept = tuple(np.zeros((0, depth, *a.shape[1:]), a.dtype) for a in arrays)
        before = previous_rows(keys, rows, memory)
        first = np.flatnonzero(before == np.arange(rows))  # in this piece, of each host
        place = np.searchsorted(self._keys, keys[first])
        known = place < self.hosts
        known[known] = self._keys[place[known]] == keys[first[known]]
        known[known] = self.count + first[known] - self._last[place[known]] < memory
        used = place[known]
        kept = len(used) * depth
        chain = np.arange(kept)
        before = np.concatenate([chain - (chain % max(depth, 1) > 0), before + kept])
        if depth:
            before[kept + first[known]] = np.arange(len(used)) * depth + depth - 1
        joined = [
            np.concatenate([old[used].reshape(kept, *new.shape[1:]), new])
            for old, new in zip(self._kept, arrays, strict=True)
        ]
        windows = _Piece(joined, self.window, before, kept)
        self._remember(keys, windows, rows)
        return windows

    def _remember(self, keys: Keys, windows: "_Piece", rows: int) -> None:
        """Keep the last flows of every host that is not forgotten."""
        if not rows:
            return
        here, back = np.unique(keys[::-1], return_index=True)
        last = rows - 1 - back
        ends = windows.at(last)
        newest = self.count + rows
        old = ~np.isin(self._keys, here) & (newest - self._last < self.memory)
        all_keys = np.concatenate([self._keys[old], here])
        all_last = np.concatenate([self._last[old], self.count + last])
        order = np.argsort(all_keys)
        self._kept = tuple(
            np.concatenate([kept[old], end[:, 1:]])[order]
            for kept, end in zip(self._kept, ends, strict=True)
        )
        self._keys, self._last, self.count = all_keys[order], all_last[order], newest


class _Piece(Windows):
    """Windows of a piece, whose arrays begin with what was kept of the stream before it."""

    def __init__(
        self, arrays: Sequence[NDArray[Any]], window: int, previous: Rows, kept: int
    ) -> None:
        super().__init__(arrays, window, previous)
        self.kept = kept

    def index(self, rows: Rows) -> Rows:
        """Give the places (B, W) in the arrays."""
        return super().index(rows + self.kept)
