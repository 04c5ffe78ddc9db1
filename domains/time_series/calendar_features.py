"""Calendar features of time steps, as the forecasting benchmarks use them."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def mark_count(minutes: bool = False) -> int:
    """Count the features of a time step that :func:`calendar_features` gives."""
    return 5 if minutes else 4


def calendar_features(time: pd.DatetimeIndex, minutes: bool = False) -> NDArray[np.float32]:
    """Give hour, weekday, day of month and day of year, each in [-0.5, 0.5].

    Zhou et al., Informer, AAAI 2021.

    Args:
        time: T time steps.
        minutes: put the minute of the hour first, as published for 15-minute data.

    Returns:
        Features (T, 4), or (T, 5) with minutes.

    Example:
        >>> calendar_features(pd.DatetimeIndex(["2018-01-01 23:00"])).tolist()
        [[0.5, -0.5, -0.5, -0.5]]
    """
    columns = [
        time.hour / 23,
        time.dayofweek / 6,
        (time.day - 1) / 30,
        (time.dayofyear - 1) / 365,
    ]
    if minutes:
        columns.insert(0, time.minute / 59)
    return np.stack([np.asarray(column, np.float32) - 0.5 for column in columns], 1)
