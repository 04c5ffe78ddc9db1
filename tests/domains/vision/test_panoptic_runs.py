"""Mask2Former with exits from the command: trained, tested, and asked about photos."""

import json

import pytest
from PIL import Image

from core.pretrained import from_pretrained
from domains.vision.shapes import draw
from pleiad import command

SMALL = [
    "--model.network.backbone.embed_dim=8",
    "--model.network.backbone.num_heads=[1,1,2,2]",
    "--model.network.width=32",
    "--model.network.decoder_layers=1",
    "--model.network.encoder_layers=3",
    "--model.points=64",
    "--data.train_photos=8",
    "--data.eval_photos=4",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


@pytest.mark.slow
def test_from_training_to_segments(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(["fit", "vision/eco_mask2former_shapes", *SMALL, "--run", "run"]) == 0
    content = json.loads((tmp_path / "run/results.json").read_text())
    assert content["system"] == "eco_m2f"
    metrics = content["metrics"]
    names = {"test/pq", "test/miou", "test/pq/disc", "test/iou/background"}
    assert names <= metrics.keys()
    assert all(0 <= metrics[name] <= 1 for name in names)
    [exits] = content["techniques"]
    assert (exits["name"], exits["schedule"], exits["mean_exit"]) == ("EarlyExit", "drawn", 3.0)
    assert (tmp_path / "run/pictures/overlays.png").is_file()
    loaded = from_pretrained("run")
    assert loaded.preprocessing.score == 0.5
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        Image.fromarray(draw(0, 2, number).pixels).save(photos / f"{number}.png")
    assert command.main(["predict", "run", "--input", "photos", "--output", "found"]) == 0
    assert "mean exit 3.00" in capsys.readouterr().out
    for number in range(2):
        with Image.open(tmp_path / f"found/{number}.png") as image:
            assert (image.size, image.mode) == ((96, 96), "RGB")
        told = json.loads((tmp_path / f"found/{number}.segments.json").read_text())
        assert told["images"][0]["file_name"] == f"{number}.png"
