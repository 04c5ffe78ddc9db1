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


def test_a_palette_with_the_colours_of_the_class_file_is_read_by_them(tmp_path):
    """A tool may number the colours in another order than the file names them."""
    classes = make_classes(["road", "car"], colors=[(128, 64, 128), (0, 0, 142)], coloured=True)
    image = Image.fromarray(LABELS % 255 % 2).copy()  # 0 1 0 0
    image.putpalette([0, 0, 142, 128, 64, 128] + [9] * 762)
    image.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", classes)[0].tolist() == [1, 0, 1, 1]
    image.putpalette([1, 2, 3, 128, 64, 128] + [9] * 762)  # colours of its own: indices count
    image.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", classes)[0].tolist() == [0, 1, 0, 0]
    labels = LABELS.copy()
    labels[labels == 2] = 0
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 142, 128, 64, 128] + [9] * 762)
    image.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png", classes)[0].tolist() == [1, 0, 1, 255]


@pytest.mark.parametrize(
    "header", ["index,name,red,green,blue", "\ufeffID, Name ,R,G,B", "value,name,r,g,b"]
)
def test_columns_of_a_class_file_have_the_names_that_people_give(tmp_path, header):
    (tmp_path / "classes.csv").write_text(
        f"{header}\n7,road,128,64,128\n\n3,car,0,0,142\n", "utf-8"
    )
    classes = read_classes(tmp_path / "classes.csv")
    assert classes.names == ("road", "car")
    assert classes.values == (7, 3)
    assert classes.colors == ((128, 64, 128), (0, 0, 142))
    assert classes.coloured


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
        ("", "needs a header with a column 'name'"),
        ("name,hue\nroad,1\ncar,2\n", ":1: the column 'hue' is none of name, value, r"),
        ("name,id,value\nroad,1,1\ncar,2,2\n", ":1: the column 'value' is given twice"),
        ("name,value\n,1\ncar,2\n", ":2: a class has no name"),
        ("name,value\nroad,1,7\ncar,2\n", ":2: has 3 cells, the header 2"),
        ("name,value\nroad\ncar,2\n", ":2: '' must be a whole number"),
    ],
)
def test_a_wrong_class_file_is_refused(tmp_path, text, match):
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(UserError, match=match):
        read_classes(tmp_path / "classes.csv")
