import json

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from domains.vision.class_file import make_classes
from domains.vision.coco import drawn_labels, drawn_segments, read_coco, unpacked
from domains.vision.layouts import read_layout
from domains.vision.own_data import OwnSegmentationData
from domains.vision.polygons import regions, run_lengths

CLASSES = ["background", "car", "tree"]


def labels_of(seed):
    labels = np.zeros((40, 50), np.uint8)
    labels[5:15, 5 + seed : 30] = 1
    labels[20:38, 10:45] = 2
    labels[25:30, 20:30] = 0  # a hole
    return labels


@pytest.fixture
def annotated(tmp_path):
    """Six photos, whose regions our own predictions have described."""
    (tmp_path / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": []}
    for number in range(6):
        name = f"{number}.png"
        Image.new("RGB", (50, 40), (number, 0, 0)).save(tmp_path / "images" / name)
        found = regions(labels_of(number), CLASSES, name)
        kept = [each for each in found["annotations"] if each["category_id"] > 1]
        content["images"].append({**found["images"][0], "id": number})
        for each in kept:
            content["annotations"].append({**each, "image_id": number})
    content["categories"] = [{"id": 2, "name": "car"}, {"id": 3, "name": "tree"}]
    (tmp_path / "all.json").write_text(json.dumps(content))
    return tmp_path / "all.json"


def test_regions_are_read_as_they_were_written(annotated):
    classes, pairs = read_coco(annotated)
    assert classes.names == tuple(CLASSES)
    assert classes.things == (False, True, True)
    for number, pair in enumerate(pairs):
        assert (drawn_labels(pair) == labels_of(number)).all()
    data = OwnSegmentationData(train=str(annotated), batch_size=2)
    data.setup()
    assert data.class_names == tuple(CLASSES)
    assert data.train_set[0].labels.shape == (40, 50)


def test_what_was_predicted_can_be_learnt_from_as_it_is(tmp_path):
    """A class ``background`` of the file is the one of all other pixels."""
    Image.new("RGB", (50, 40)).save(tmp_path / "0.png")
    names = ["car", "background", "tree"]
    labels = np.array([1, 0, 2], np.uint8)[labels_of(0)]
    (tmp_path / "0.regions.json").write_text(json.dumps(regions(labels, names, "0.png")))
    classes, pairs = read_coco(tmp_path / "0.regions.json")
    assert classes.names == ("background", "car", "tree")
    assert (drawn_labels(pairs[0]) == labels_of(0)).all()


def test_compressed_run_lengths():
    """Counts as the reference implementation packs them: 6 1 40 4 5 4 5 4 21."""
    assert unpacked("61X13mN000`0") == [6, 1, 40, 4, 5, 4, 5, 4, 21]
    mask = np.zeros((9, 10), bool)
    mask[2:5, 3:7] = True
    found = run_lengths(mask)
    again = np.repeat(np.arange(len(found["counts"])) % 2, found["counts"])
    assert (mask == again.reshape(10, 9).T).all()


def test_a_panoptic_set(tmp_path):
    root = tmp_path / "coco"
    for part in ("train", "val"):
        (root / f"{part}2017").mkdir(parents=True)
        folder = root / "annotations" / f"panoptic_{part}2017"
        folder.mkdir(parents=True)
        Image.new("RGB", (20, 10)).save(root / f"{part}2017" / "1.jpg")
        colors = np.zeros((10, 20, 3), np.uint8)
        colors[:, :8] = (7, 1, 0)  # 7 + 256
        colors[:, 8:12] = (0, 0, 1)  # 65536
        colors[5:, 12:] = (9, 0, 0)
        Image.fromarray(colors).save(folder / "1.png")
        infos = [
            {"id": 263, "category_id": 1, "iscrowd": 0},
            {"id": 65536, "category_id": 1, "iscrowd": 1},
            {"id": 9, "category_id": 90, "iscrowd": 0},
        ]
        content = {
            "images": [{"id": 1, "file_name": "1.jpg", "height": 10, "width": 20}],
            "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": infos}],
            "categories": [
                {"id": 90, "name": "grass", "isthing": 0},
                {"id": 1, "name": "person", "isthing": 1},
            ],
        }
        folder.with_suffix(".json").write_text(json.dumps(content))
    layout = read_layout(root)
    assert layout.classes.names == ("person", "grass")
    assert layout.classes.things == (True, False)
    pair = layout.parts[0][0]
    labels = drawn_labels(pair)
    assert labels[0].tolist() == [0] * 8 + [255] * 12  # the crowd and the rest are void
    assert labels[9].tolist() == [0] * 8 + [255] * 4 + [1] * 8
    numbers, found = drawn_segments(pair)
    assert [region.label for region in found] == [0, 0, 1]
    assert np.unique(numbers).tolist() == [0, 1, 2, 3]


def test_a_wrong_file_is_refused(tmp_path):
    path = tmp_path / "a.json"
    for text, match in (
        ("{", r"not valid JSON"),
        ("[]", "is no COCO file"),
        (
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "x.png", "height": 9, "width": 9}],
                    "annotations": [],
                    "categories": [{"id": 1, "name": "a"}],
                }
            ),
            r"x\.png: no such file",
        ),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=match):
            read_coco(path)
    with pytest.raises(UserError, match="1 classes"):
        make_classes(["a"])
