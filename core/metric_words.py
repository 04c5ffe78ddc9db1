"""Names of metrics of one class."""

import re
from collections.abc import Sequence


def metric_words(names: Sequence[str]) -> list[str]:
    """Give each class a word for the names of its metrics: lower case, no two alike.

    Example:
        >>> metric_words(["Traffic light", "e.g. wall", "Road", "road"])
        ['traffic_light', 'e_g_wall', 'road', 'road_2']
    """
    words: list[str] = []
    for name in names:
        word = "_".join(re.findall(r"\w+", name.lower())) or "class"
        count = 1
        while (found := word if count == 1 else f"{word}_{count}") in words:
            count += 1
        words.append(found)
    return words
