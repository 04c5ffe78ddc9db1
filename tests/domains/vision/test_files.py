import json

import numpy as np
import pytest
import torch
from matplotlib.path import Path as MplPath
from PIL import Image

from core.errors import UserError
from core.pretrained import from_pretrained, save_pretrained
from domains.vision.class_file import make_classes
from domains.vision.files import SegmentationFiles, show
from domains.vision.polygons import regions
from pleiad import command

CLASSES = make_classes(["dark", "red", "blue"], values=[0, 5, 9])


def files(**given):
    return SegmentationFiles(CLASSES, **given)


def saved(tmp_path, height=40, width=56):
    rng = np.random.default_rng(0)
    path = tmp_path / "a photo.jpg"
    Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("given", [{}, {"size": (16, 24)}, {"window": 16}])
def test_a_photo_gets_a_mask_an_overlay_and_regions(tmp_path, tiny, given):
    output = tmp_path / "out.png"
    made = files(**given)
    told = made.predict_file(tiny(), saved(tmp_path), output, flip="yes", scales="0.5,1")
    mask = Image.open(output)
    mask.load()
    assert mask.mode == "P"
    assert mask.size == (56, 40)
    assert set(np.unique(mask)) <= {0, 5, 9}
    with Image.open(tmp_path / "out.overlay.png") as drawn:
        assert drawn.size == (56, 40)
    described = json.loads((tmp_path / "out.regions.json").read_text())
    assert described["images"][0]["file_name"] == "a photo.jpg"
    assert "56x40 pixels" in told
    assert "images per second" in made.totals()


def test_it_travels_with_the_network(tmp_path, tiny):
    again = SegmentationFiles.from_json(json.loads(json.dumps(files(size=(8, 9)).to_json())))
    assert again == files(size=(8, 9))
    for wrong in ({"size": None}, {**files().to_json(), "window": -1}):
        with pytest.raises(UserError, match=r"preprocessing\.json"):
            SegmentationFiles.from_json(wrong)


@pytest.mark.parametrize(
    "option",
    [
        {"flip": "perhaps"},
        *({"scales": given} for given in ("a", "0", "", "inf", "1,nan", "5")),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, tiny, option):
    with pytest.raises(UserError, match=f"--{next(iter(option))}=|scales="):
        files().predict_file(tiny(), saved(tmp_path), tmp_path / "out.png", **option)


def test_what_is_not_finite_is_refused(tmp_path, tiny):
    network = tiny()
    torch.nn.init.constant_(network.heads[0].weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        files().predict_file(network, saved(tmp_path), tmp_path / "out.png")


def test_regions_say_what_the_mask_says():
    labels = np.zeros((60, 80), np.uint8)
    labels[5:25, 10:40] = 1
    labels[30:50, 10:40] = 1  # apart from the first
    labels[10:50, 50:75] = 2
    labels[20:30, 55:65] = 0  # a hole
    found = regions(labels, ["ground", "car", "tree"], "a.png")
    names = {category["id"]: category["name"] for category in found["categories"]}
    kinds = [names[each["category_id"]] for each in found["annotations"]]
    assert kinds.count("car") == 2
    assert kinds.count("tree") == 1
    again = np.full(labels.shape, 9)
    for each in sorted(found["annotations"], key=lambda each: -each["area"]):
        if isinstance(each["segmentation"], dict):
            flat = np.repeat(
                np.arange(len(each["segmentation"]["counts"])) % 2,
                each["segmentation"]["counts"],
            )
            mask = flat.reshape(labels.shape[::-1]).T.astype(bool)
        else:
            grid = np.mgrid[0:80, 0:60].reshape(2, -1).T + 0.5  # x, y of the centres of pixels
            inside = MplPath(np.array(each["segmentation"][0]).reshape(-1, 2)).contains_points(grid)
            mask = inside.reshape(80, 60).T
        again[mask] = each["category_id"] - 1
    assert (again == labels).all()
    car = next(each for each in found["annotations"] if names[each["category_id"]] == "car")
    assert car["area"] == 600
    assert car["bbox"] == [10, 5, 30, 20]


def test_a_folder_is_shown(photos, tmp_path):
    facts = show(photos, tmp_path / "picture.png")
    assert facts["classes"] == "3"
    assert "% of the pixels, in 12 photos" in facts["class class 0"]
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_save_and_load(tmp_path, tiny):
    network = torch.nn.Conv2d(3, 3, 1)
    save_pretrained(network, tmp_path / "model", init_args={}, preprocessing=files(window=32))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["preprocessing"] == "domains.vision.files.SegmentationFiles"
    with pytest.raises(UserError):
        from_pretrained(tmp_path / "model")  # a class of torch is no network of ours


def test_a_mask_is_a_png(tmp_path, tiny):
    with pytest.raises(UserError, match=r"--output \S*out\.jpg: a mask is written as PNG"):
        files().predict_file(tiny(), saved(tmp_path), tmp_path / "out.jpg")
    assert not (tmp_path / "out.jpg").exists()


def test_a_table_and_a_coco_file_are_shown_by_the_command(photos, tmp_path, capsys):
    rows = [f"images/{p.name},masks/{p.name}" for p in sorted((photos / "images").iterdir())]
    (photos / "all.csv").write_text("\n".join(["image,mask", *rows]))
    labels = np.zeros((24, 32), np.uint8)
    labels[2:9, 3:20] = 1
    content = regions(labels, ["wall", "door"], "")
    content["images"] = [
        {**content["images"][0], "id": n, "file_name": p.name}
        for n, p in enumerate(sorted((photos / "images").iterdir()), 1)
    ]
    (photos / "all.json").write_text(json.dumps(content))
    for name in ("all.csv", "all.json"):
        drawn = tmp_path / f"{name}.png"
        with pytest.raises(SystemExit) as ended:
            command.main(["show", str(photos / name), "--picture", str(drawn)])
        told = capsys.readouterr()
        assert ended.value.code == 0, told.err
        assert "of the pixels" in told.out
        assert drawn.is_file()
