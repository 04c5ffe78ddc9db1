import numpy as np
import pandas as pd
import pytest

from domains.nlp.answer_pictures import draw


@pytest.fixture
def predictions(tmp_path):
    def write(count, golds):
        random = np.random.default_rng(0)
        frame = pd.DataFrame(
            {
                "gold": [golds[n % len(golds)] for n in range(count)],
                "exact_match": random.integers(0, 2, count).astype(float),
                "f1": random.random(count),
                "context_characters": random.integers(50, 5000, count),
            }
        )
        path = tmp_path / "predictions.parquet"
        frame.to_parquet(path)
        return path

    return write


@pytest.mark.parametrize("golds", [("one", "one two", "1 2 3", "1 2 3 4 5 6", "x " * 12), ("one",)])
def test_a_picture_is_drawn(predictions, tmp_path, golds):
    for count in (1, 3, 200):
        (path,) = draw(predictions(count, golds), tmp_path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_drawn_of_nothing(predictions, tmp_path):
    assert draw(tmp_path / "absent.parquet", tmp_path) == []
    assert draw(predictions(3, ("",)), tmp_path) == []
