import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from domains.vision.class_file import Classes, make_classes, read_classes
from domains.vision.masks import read_mask

LABELS = np.array([[0, 1, 2, 255]] * 9, np.uint8)
CLASSES = make_classes(["road", "car", "sky"])


def test_index_palette_and_16_bits_are_one(tmp_path):
    palette = Image.fromarray(LABELS).copy()
    palette.putpalette([7, 8, 9] * 256)
    for name, image in (
        ("index", Image.fromarray(LABELS)),
        ("palette", palette),
        ("deep", Image.fromarray(LABELS.astype(np.uint16))),
        ("grey", Image.fromarray(LABELS).convert("RGB")),
    ):
        image.save(tmp_path / f"{name}.png")
        assert (read_mask(tmp_path / f"{name}.png", CLASSES) == LABELS).all(), name


def test_colours_are_read_by_the_class_file(tmp_path):
    (tmp_path / "classes.csv").write_text(
        "name,r,g,b,thing\nroad,128,64,128,no\ncar,0,0,142,yes\nvoid,0,0,0,\n", "utf-8"
    )
    (tmp_path / "classes.txt").write_text("128 64 128 road\n0 0 142 car\n0 0 0 void\n", "utf-8")
    colors = np.array([[128, 64, 128], [0, 0, 142], [0, 0, 0]], np.uint8)
    labels = np.array([[0, 1, 2]] * 9)
    Image.fromarray(colors[labels]).save(tmp_path / "a.png")
    for name in ("classes.csv", "classes.txt"):
        classes = read_classes(tmp_path / name)
        assert classes.names == ("road", "car")
        found = read_mask(tmp_path / "a.png", classes)
        assert (found == np.where(labels == 2, 255, labels)).all()
    assert read_classes(tmp_path / "classes.csv").things == (False, True)
    colors[1, 0] = 9
    Image.fromarray(colors[labels]).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: the colour \(9, 0, 142\) is not in the class"):
        read_mask(tmp_path / "a.png", classes)
    with pytest.raises(UserError, match=r"is RGB with 3 colours"):
        read_mask(tmp_path / "a.png", CLASSES)


def test_values_outside_the_classes_are_refused(tmp_path):
    labels = LABELS.copy()
    labels[3, 2] = 7
    Image.fromarray(labels).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: the value 7 \(first at row 3, column 2; 1 such"):
        read_mask(tmp_path / "a.png", CLASSES)
    Image.fromarray(labels).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="store masks as PNG"):
        read_mask(tmp_path / "a.jpg", CLASSES)


def test_values_need_not_be_in_a_row(tmp_path):
    classes = make_classes(["nothing", "house"], values=[0, 255])
    Image.fromarray(np.array([[0, 255]] * 9, np.uint8)).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", classes)[0].tolist() == [0, 1]
    assert Classes.from_json(classes.to_json()) == classes


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,value\nroad,x\n", r":2: 'x' must be a whole number"),
        ("name\nroad\nroad\n", "'road' is given twice"),
        ("name\nroad\n", "1 classes; there must be 2 to"),
        ("title\nroad\n", "needs a header with a column 'name'"),
    ],
)
def test_a_wrong_class_file_is_refused(tmp_path, text, match):
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(UserError, match=match):
        read_classes(tmp_path / "classes.csv")
