import numpy as np
import pandas as pd
import torch

from core.batch_plan import PlannedIndex
from domains.vision.examples import Collate, SegmentationSet
from domains.vision.own_data import own_layout
from domains.vision.pictures import draw, spread
from domains.vision.segmentation import SemanticSegmentation


def test_photos_are_chosen_from_the_best_to_the_worst():
    accuracy = np.array([0.2, np.nan, 0.9, 0.5, 0.1, 0.7])
    assert spread(accuracy).tolist() == [2, 5, 3, 4]
    assert spread(np.array([np.nan, 0.5])).tolist() == [1]


def test_a_photo_that_is_void_throughout_has_no_score(photos, tiny, tmp_path):
    layout = own_layout({"train": str(photos)})
    items = SegmentationSet(layout.parts[0], layout.classes)
    batch = Collate()([items[PlannedIndex(n, 0)] for n in range(2)])
    batch.labels[1] = 255
    task = SemanticSegmentation(tiny()).eval()
    columns = task.items(task.step(batch), batch)
    assert 0 <= columns["pixel_accuracy"][0] <= 1
    assert np.isnan(columns["pixel_accuracy"][1])
    assert columns["pixels"][1] == []
    frame = pd.DataFrame(
        {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in columns.items()}
    )
    frame.to_parquet(tmp_path / "predictions.parquet")
    drawn = draw(tmp_path / "predictions.parquet", tmp_path, layout.classes, items)
    assert [path.stem for path in drawn] == ["iou_by_class", "confusion", "overlays"]
