import numpy as np
import pandas as pd
import torch
from PIL import Image

from domains.vision.exit_gallery import draw, grouped


def written(tmp_path, exits):
    count = len(exits)
    frame = pd.DataFrame({"id": range(count), "exit": exits, "pixel_accuracy": [0.5] * count})
    frame.to_parquet(tmp_path / "predictions.parquet")
    return tmp_path / "predictions.parquet"


def test_photos_are_drawn_by_exit(tmp_path):
    asked = []

    def image(row):
        asked.append(row)
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

    path = written(tmp_path, [3.0, 1.0, None, 1.0, 2.0])
    assert draw(path, tmp_path, image) == [tmp_path / "exit_depth.png"]
    assert asked == [1, 3, 4, 0]
    with Image.open(tmp_path / "exit_depth.png") as drawn:
        assert min(drawn.size) > 500


def test_nothing_is_drawn_where_all_leave_at_one_exit(tmp_path):
    assert draw(written(tmp_path, [2.0, 2.0]), tmp_path, lambda row: None) == []
    pd.DataFrame({"id": [0], "pixel_accuracy": [1.0]}).to_parquet(tmp_path / "plain.parquet")
    assert draw(tmp_path / "plain.parquet", tmp_path, lambda row: None) == []
    assert draw(tmp_path / "absent.parquet", tmp_path, lambda row: None) == []


def test_many_depths_share_rows():
    groups = grouped(np.linspace(1, 2, 100))
    assert len(groups) == 8
    assert np.concatenate(groups).tolist() == list(range(100))
