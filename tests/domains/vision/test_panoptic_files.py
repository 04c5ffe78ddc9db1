import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from core.early_exit.transform import EarlyExit
from core.errors import UserError
from domains.vision import panoptic_files
from domains.vision.class_file import make_classes
from domains.vision.networks.mask2former import Mask2Former
from domains.vision.networks.outputs import MaskOutput
from domains.vision.panoptic_files import PanopticFiles, coco_colors
from domains.vision.panoptic_pictures import segment_overlay

CLASSES = make_classes(("box", "ground"), things=(True, False))
SMALL = {
    "backbone": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
    },
    **{"width": 32, "queries": 3, "heads": 2, "encoder_layers": 3, "decoder_layers": 1},
}


class Halves(nn.Module):
    """Finds two boxes, left and right above, and the ground below."""

    def __init__(self, finite=True) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0 if finite else torch.nan))
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        height, width = (size // 4 for size in images.shape[-2:])
        masks = torch.full((1, 3, height, width), -9.0)
        masks[0, 0, : height // 2, : width // 2] = 9
        masks[0, 1, : height // 2, width // 2 :] = 9
        masks[0, 2, height // 2 :] = 9
        classes = torch.tensor([[[4.0, 0, 0], [4.0, 0, 0], [0, 9.0, 0]]])
        return MaskOutput(self.scale * classes, masks)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "street.png"
    Image.fromarray(np.full((80, 120, 3), 90, np.uint8)).save(path)
    return path


def read(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("most", [2_000_000, 3_000])
def test_segments_of_a_photo(photo, tmp_path, most, monkeypatch):
    """A photo that is too large is judged smaller; what is written has its own size."""
    monkeypatch.setattr(panoptic_files, "MOST_PIXELS", most)
    files, network = PanopticFiles(CLASSES), Halves()
    told = files.predict_file(network, photo, tmp_path / "out.png", tmp_path / "plot.png")
    assert told.endswith("out.png: 120x80 pixels: 2 box, 1 ground")
    assert network.sizes == [(80, 120) if most > 80 * 120 else (45, 67)]
    numbers = read(tmp_path / "out.png") @ [1, 256, 65536]
    content = json.loads((tmp_path / "out.segments.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "street.png", "height": 80, "width": 120}]
    assert [kind["isthing"] for kind in content["categories"]] == [1, 0]
    [annotation] = content["annotations"]
    infos = annotation["segments_info"]
    assert [info["category_id"] for info in infos] == [1, 1, 2]
    for info in infos:
        own = numbers == info["id"]
        left, top, width, height = info["bbox"]
        assert own.sum() == info["area"] == own[top : top + height, left : left + width].sum()
    assert sum(info["area"] for info in infos) > 0.9 * 80 * 120
    for name in ("out.overlay.png", "plot.png"):
        assert read(tmp_path / name).shape == (80, 120, 3)
    assert "images per second" in files.totals()


def test_a_score_that_none_reaches(photo, tmp_path):
    files = PanopticFiles(CLASSES)
    told = files.predict_file(Halves(), photo, tmp_path / "out.png", score="0.99")
    assert told.endswith(": 1 ground")
    told = files.predict_file(Halves(), photo, tmp_path / "out.png", score="1")
    assert told.endswith(": no segment")
    assert not read(tmp_path / "out.png").any()
    for score in ("2", "much"):
        with pytest.raises(UserError, match=f"--score={score}: give a number from 0 to 1"):
            files.predict_file(Halves(), photo, tmp_path / "out.png", score=score)
    with pytest.raises(UserError, match="not finite"):
        files.predict_file(Halves(finite=False), photo, tmp_path / "out.png")


def test_the_mean_exit_is_told(photo, tmp_path):
    torch.manual_seed(0)
    network = Mask2Former(2, **SMALL)
    EarlyExit(network, threshold=0.0, min_exit=2)
    files = PanopticFiles(CLASSES, (32, 48))
    files.predict_file(network.eval(), photo, tmp_path / "out.png")
    assert files.totals().endswith("images per second, mean exit 2.00")


def test_what_travels():
    files = PanopticFiles(CLASSES, (96, 96), score=0.5)
    kept = json.loads(json.dumps(files.to_json()))
    assert PanopticFiles.from_json(kept) == files
    with pytest.raises(UserError, match=r"'score': 2\.0"):
        PanopticFiles.from_json({**kept, "score": 2.0})
    with pytest.raises(UserError, match="must hold classes, size and window"):
        PanopticFiles.from_json({**kept, "color": 1})


def test_numbers_as_colours():
    numbers = np.array([[0, 1], [256, 70_000]])
    assert (coco_colors(numbers).astype(int) @ [1, 256, 65536] == numbers).all()


def test_segments_over_a_photo():
    """Void stays as it is, borders are white, and segments of a class differ."""
    pixels = np.full((4, 9, 3), 100, np.uint8)
    numbers = np.repeat([0, 1, 2], 3)[None].repeat(4, 0)
    drawn = segment_overlay(pixels, numbers, [0, 0], CLASSES)
    assert (drawn[:, :3] == 100).all()
    assert (drawn[:, [3, 6]] == 255).all()
    assert (drawn[0, 4] != drawn[0, 7]).any()
