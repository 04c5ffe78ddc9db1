"""What a batch of network flows holds.

Sizes: B windows, W flows in a window, N numeric fields, C categorical fields, R rows of a table.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class FlowBatch(NamedTuple):
    """Windows of W flows, each ending at the flow that is judged.

    Attributes:
        numeric: (B, W, N) float32, scaled.
        codes: (B, W, C) int64, from 0 to ``levels[c] - 1``: 0 is a level that training has not
            kept, and those kept follow by falling frequency. With the published preprocessing
            there is no such place, and 0 is the most frequent level.
        labels: (B,) int64, 0 is benign; 1 an attack, or the class from 1 on.
        attacks: (B,) int64, the place of the flow's label value among the data module's
            ``attacks``; 0 is benign.
        rows: (B,) int64, the place of the judged flow in its table, in file order.
    """

    numeric: Tensor
    codes: Tensor
    labels: Tensor
    attacks: Tensor
    rows: Tensor


class FlowTable(NamedTuple):
    """R encoded flows in file order; the fields are those of :class:`FlowBatch`, row by row.

    Codes are uint8, as there are at most 33 a field.
    """

    numeric: NDArray[np.float32]
    codes: NDArray[np.uint8]
    labels: NDArray[np.int64]
    attacks: NDArray[np.int64]
