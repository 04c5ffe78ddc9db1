"""Mask2Former with exits from the command: trained, tested, and asked about photos."""

import json
import re

import pytest
from PIL import Image

from core.early_exit.transform import exits_of
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


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        command.main(list(arguments))
    assert ended.value.code == 0


@pytest.mark.slow
def test_from_training_to_segments(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("fit", "vision/eco_mask2former_shapes", *SMALL, "--run", "run")
    content = json.loads((tmp_path / "run/results.json").read_text())
    assert content["system"] == "eco_m2f"
    assert {"test/pq", "test/miou"} <= content["metrics"].keys()
    assert {"test/pq/disc", "test/iou/background"} <= content["details"].keys()
    exits = next(each for each in content["techniques"] if each["name"] == "EarlyExit")
    assert (exits["name"], exits["schedule"], exits["mean_exit"]) == ("EarlyExit", "drawn", 3.0)
    assert (tmp_path / "run/pictures/overlays.png").is_file()
    loaded = from_pretrained("run")
    assert loaded.preprocessing.score == 0.5
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        Image.fromarray(draw(0, 2, number).pixels).save(photos / f"{number}.png")
    run("predict", "run", "--input", "photos", "--output", "found")
    assert "mean exit 3.00" in capsys.readouterr().out
    for number in range(2):
        with Image.open(tmp_path / f"found/{number}.png") as image:
            assert (image.size, image.mode) == ((96, 96), "RGB")
        told = json.loads((tmp_path / f"found/{number}.segments.json").read_text())
        assert told["images"][0]["file_name"] == f"{number}.png"
    given = ("--trainer.enable_progress_bar=false", "--output", "chosen")
    run("exits", "run", "--beta", "0.02", *given)
    said = capsys.readouterr().out
    assert re.search(r"exit 2 +exit 3", said)
    assert len(re.findall(r"test/pq +[01]\.\d{4}", said)) == 2
    gate = exits_of(from_pretrained("chosen").network).gate
    assert (gate.depths, gate.width) == ((2, 3), 32)
    assert len(list((tmp_path / "run/early_exits").iterdir())) == 1
