"""Windows of series: what a network sees and what it has to say, cut when they are asked for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset


class Window(NamedTuple):
    """A batch of windows: B windows, L look-back and H horizon steps, C channels, M marks.

    ``past`` (B, L, C) and ``future`` (B, H, C) are standardised; ``past_marks`` (B, L, M) and
    ``future_marks`` (B, H, M) lie in [-0.5, 0.5]; ``origin`` (B,) is the row of the first future
    step; ``offset`` and ``scale`` (B, 1, C) take values back to the unit of the data: ``value *
    scale + offset``. ``observed`` (B, H, C) says which future values are known, and ``naive``
    (B, 1, C) is the mean absolute error of repeating the last season in training, in the unit of
    the data. Covariates are standardised: ``known`` (B, L + H, K), ``beside`` (B, L, P) and
    ``static`` (B, Q).
    """

    past: Tensor
    future: Tensor
    past_marks: Tensor
    future_marks: Tensor
    origin: Tensor
    offset: Tensor
    scale: Tensor
    observed: Tensor
    naive: Tensor
    known: Tensor
    beside: Tensor
    static: Tensor


class Rows(NamedTuple):
    """What windows are cut from: T rows of S series, one after the other, and G times.

    ``values`` (T, C) are standardised and without gaps, ``observed`` (T, C) says where there were
    none (None: everywhere); the marks (G, M) of row t of series s are ``marks[t + shift[s]]``.
    ``offset``, ``scale`` and ``naive`` are (S, C), ``starts`` (S + 1,). Covariates are ``known``
    (T, K), ``beside`` (T, P) and ``static`` (S, Q).
    """

    values: Tensor
    observed: Tensor | None
    marks: Tensor
    shift: Tensor
    starts: NDArray[np.int64]
    offset: Tensor
    scale: Tensor
    naive: Tensor
    known: Tensor
    beside: Tensor
    static: Tensor


class Windows(Dataset[Window]):
    """Every window, or every n-th, whose future lies between two rows of its series.

    Args:
        rows: the series.
        lookback: L.
        horizon: H.
        first: (S,), the first row of the first future of each series; moved on to where the
            look-back is whole.
        end: (S,), one past the last row of the last future.
        stride: rows from one window to the next, counted back from the last window where it is not
            1.
    """

    def __init__(
        self,
        rows: Rows,
        lookback: int,
        horizon: int,
        first: NDArray[np.int64],
        end: NDArray[np.int64],
        stride: int = 1,
    ) -> None:
        self.rows, self.lookback, self.horizon, self.stride = rows, lookback, horizon, stride
        first = np.maximum(first, rows.starts[:-1] + lookback)
        room = end - first - horizon  # rows that the first window can be moved on
        counts = np.where(room >= 0, room // stride + 1, 0)
        self.first = first + np.where(room >= 0, room % stride, 0)
        self.until = np.cumsum(counts)

    def __len__(self) -> int:
        """Count the windows."""
        return int(self.until[-1])

    @property
    def counts(self) -> NDArray[np.int64]:
        """The windows of each series (S,)."""
        return np.diff(self.until, prepend=0)

    def __getitem__(self, index: int) -> Window:
        """Cut one window, without the batch dimension."""
        return Window(*(field[0] for field in self.__getitems__([index])))

    def __getitems__(self, indices: Sequence[int]) -> Window:
        """Cut a batch of windows by one indexing operation."""
        items = np.asarray([int(i) for i in indices])
        owner = np.searchsorted(self.until, items, "right")
        number = items - np.where(owner > 0, self.until[owner - 1], 0)
        origin = torch.from_numpy(self.first[owner] + number * self.stride)
        series = torch.from_numpy(owner)
        rows = self.rows
        past = origin[:, None] + torch.arange(-self.lookback, 0)  # (B, L)
        future = origin[:, None] + torch.arange(self.horizon)  # (B, H)
        values = rows.values[future]
        seen = torch.ones(()).bool().expand_as(values)
        shift = rows.shift[series, None]
        return Window(
            rows.values[past],
            values,
            rows.marks[past + shift],
            rows.marks[future + shift],
            origin,
            rows.offset[series, None],
            rows.scale[series, None],
            seen if rows.observed is None else rows.observed[future],
            rows.naive[series, None],
            rows.known[torch.cat([past, future], 1)],
            rows.beside[past],
            rows.static[series],
        )


def forecast(network: nn.Module, batch: Window) -> Tensor:
    """Give a network what it takes of a batch, for its forecast (B, H, C)."""
    takes_marks = getattr(network, "takes_marks", False)
    marks = (batch.past_marks, batch.future_marks) if takes_marks else ()
    covariates = (batch.known, batch.beside, batch.static)
    more = covariates if getattr(network, "takes_covariates", False) else ()
    predicted: Tensor = network(batch.past, *marks, *more)
    return predicted
