import json

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

from domains.vision.mask_inference import class_scores, find_segments
from domains.vision.networks.outputs import MaskOutput
from domains.vision.panoptic import PanopticSegmentation
from domains.vision.panoptic_data import PanopticData

COLORS = ((30, 60, 30), (220, 30, 30))  # ground, box


@pytest.fixture
def boxes(tmp_path, monkeypatch):
    """COCO's panoptic layout: two red boxes on the ground."""
    root = tmp_path / "vision" / "coco"
    for part in ("train", "val"):
        (root / f"{part}2017").mkdir(parents=True)
        folder = root / "annotations" / f"panoptic_{part}2017"
        folder.mkdir(parents=True)
        content = {
            "images": [],
            "annotations": [],
            "categories": [
                {"id": 1, "name": "box", "isthing": 1},
                {"id": 2, "name": "ground", "isthing": 0},
            ],
        }
        for number in range(4):
            ids = np.full((16, 24), 3)
            ids[2:8, 2 + number : 9] = 1
            ids[9:15, 14:22] = 2
            pixels = np.where((ids < 3)[..., None], COLORS[1], COLORS[0]).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"{part}2017" / f"{number}.png")
            colors = np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8)
            Image.fromarray(colors).save(folder / f"{number}.png")
            content["images"].append(
                {"id": number, "file_name": f"{number}.png", "height": 16, "width": 24}
            )
            infos = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 1}]
            infos.append({"id": 3, "category_id": 2})
            content["annotations"].append(
                {"image_id": number, "file_name": f"{number}.png", "segments_info": infos}
            )
        folder.with_suffix(".json").write_text(json.dumps(content))
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path))
    return root


class Oracle(nn.Module):
    """Says what is in the batch that it was shown."""

    classes = 2

    def __init__(self, lose=False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.lose = lose
        self.truth = None

    def forward(self, images):
        classes, masks = self.truth
        count = max(map(len, classes))
        logits = torch.full((len(images), count + 1, 3), -9.0)
        logits[..., 2] = 0
        shapes = torch.full((len(images), count + 1, *images.shape[-2:]), -9.0)
        for at, (kinds, own) in enumerate(zip(classes, masks, strict=True)):
            for query, (kind, mask) in enumerate(zip(kinds, own, strict=True)):
                if self.lose and kind == 0 and query == 0:
                    continue
                logits[at, query, kind] = 9
                shapes[at, query] = torch.where(mask, 9.0, -9.0)
        return MaskOutput(self.scale * logits, shapes)


def judged(boxes, lose):
    network = Oracle(lose)
    data = PanopticData("coco_panoptic", batch_size=2, eval_batch_size=3)
    task = PanopticSegmentation(network, points=64)
    plain = task.step

    def step(batch):
        network.truth = batch.mask_classes, batch.masks
        return plain(batch)

    task.step = step
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    return trainer.test(task, data, verbose=False)[0]


def test_what_is_found_whole_is_1_and_what_is_missed_costs(boxes):
    found = judged(boxes, lose=False)
    assert found["test/pq"] == found["test/sq"] == found["test/rq_stuff"] == 1
    assert found["test/miou"] == found["test/iou/box"] == found["test/pq/ground"] == 1
    missed = judged(boxes, lose=True)
    assert missed["test/pq_things"] == pytest.approx(1 / 1.5)  # one box of two in each photo
    assert missed["test/pq_stuff"] == missed["test/pq/ground"] == 1
    assert missed["test/pq/box"] == missed["test/pq_things"]
    assert missed["test/pq"] == pytest.approx((1 + 1 / 1.5) / 2)


def test_the_quality_of_a_photo_is_its_own(boxes):
    network = Oracle(lose=True)
    data = PanopticData("coco_panoptic", eval_batch_size=3)
    data.setup()
    task = PanopticSegmentation(network, points=64).eval()
    task.things = torch.tensor([True, False])
    for batch in data.every_item(data.test_set):
        network.truth = batch.mask_classes, batch.masks
        found = task.quality(task.step(batch), batch)
        assert found.tolist() == pytest.approx([(1 + 1 / 1.5) / 2] * len(batch.ids))


def test_training_without_augmentation_is_the_photos_as_they_are(boxes):
    data = PanopticData("coco_panoptic", scale=(0.5, 2.0), crop=(20, 20), batch_size=2, seed=3)
    data.setup()
    (batch,) = data.every_item(data.plain_train_set())
    assert batch.images.shape == (4, 3, 16, 24)
    assert data.train_set.augmentation is not None


def test_augmentation_moves_segments_and_labels_alike(boxes):
    data = PanopticData("coco_panoptic", scale=(0.5, 2.0), crop=(20, 20), batch_size=2, seed=3)
    data.setup()
    for batch in data.train_dataloader():
        for at in range(2):
            for mask, kind in zip(batch.masks[at], batch.mask_classes[at], strict=True):
                assert mask.any()
                assert (batch.labels[at][mask] == kind).all()
            covered = torch.stack(list(batch.masks[at])).any(0)
            assert torch.equal(covered, batch.labels[at] != 255)


def test_segments_of_queries():
    """Scores weigh who owns a pixel, but not whether a mask reaches it."""
    masks = torch.full((4, 8, 8), -9.0)
    masks[0, :, :4] = 9
    masks[1, :, 4:] = 9
    masks[2, :, :4] = 8  # the same place, less sure
    masks[3, 4:] = 9  # half of it is another's
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 3, 0], [0, 0, 3, 0]])
    things = torch.tensor([True, False, True])
    found = find_segments(logits, masks, (8, 8), things)
    assert found.classes.tolist() == [0, 1]
    assert found.map[0].tolist() == [1] * 4 + [2] * 4
    sure = find_segments(logits, masks, (8, 8), things, score=0.9999)
    assert len(sure.classes) == 0
    assert (sure.map == 0).all()
    stuff = torch.tensor([[0, 9.0, 0, 0], [0, 9, 0, 0]])
    merged = find_segments(stuff, masks[:2], (8, 8), things)
    assert merged.classes.tolist() == [1]
    assert (merged.map == 1).all()
    scores = class_scores(logits[None], masks[None], (8, 8))
    assert scores.shape == (1, 3, 8, 8)
    assert scores.argmax(1)[0, 0].tolist() == [0] * 4 + [1] * 4
