"""Calendar features against their published formulas."""

import numpy as np
import pandas as pd

from domains.time_series.calendar_features import calendar_features

TIMES = pd.DatetimeIndex(["2016-07-01 00:00", "2018-12-31 23:59", "2020-12-31 12:30"])


def test_hour_weekday_day_and_day_of_year():
    expected = [
        [0 / 23 - 0.5, 4 / 6 - 0.5, 0 / 30 - 0.5, 182 / 365 - 0.5],
        [0.5, 0 / 6 - 0.5, 0.5, 364 / 365 - 0.5],
        [12 / 23 - 0.5, 3 / 6 - 0.5, 0.5, 0.5],
    ]
    features = calendar_features(TIMES)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_the_minute_comes_first():
    features = calendar_features(TIMES, minutes=True)
    assert features.shape == (3, 5)
    np.testing.assert_allclose(features[:, 0], [-0.5, 0.5, 30 / 59 - 0.5], atol=1e-6)
    np.testing.assert_array_equal(features[:, 1:], calendar_features(TIMES))
