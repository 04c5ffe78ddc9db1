import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from domains.vision.photos import read_photo


def saved(tmp_path, image, name="a.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK"])
def test_every_form_becomes_rgb_and_is_told(tmp_path, mode):
    grey = Image.fromarray(np.tile(np.arange(0, 250, 10, dtype=np.uint8), (9, 1)))
    name = "a.tif" if mode == "CMYK" else "ä ö.png"
    found = read_photo(saved(tmp_path, grey.convert("RGB").convert(mode), name))
    assert found.pixels.shape == (9, 25, 3)
    assert found.pixels.dtype == np.uint8
    assert len(found.notes) == 1
    assert np.ptp(found.pixels) > 200


def test_of_16_bits_the_upper_8_are_kept(tmp_path):
    values = np.full((9, 9), 0x7B01, np.uint16)
    found = read_photo(saved(tmp_path, Image.fromarray(values)))
    assert (found.pixels == 0x7B).all()
    assert "16 bits" in found.notes[0]


def test_8_bits_that_were_stored_wider_are_not_cut(tmp_path):
    values = np.full((9, 9), 200, np.int32)
    found = read_photo(saved(tmp_path, Image.fromarray(values), "a.tif"))
    assert (found.pixels == 200).all()
    assert "stored wider" in found.notes[0]


def test_exif_turns_a_photo_upright(tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    path = saved(tmp_path, image, "a.jpg", exif=exif)
    assert read_photo(path).pixels.shape == (20, 10, 3)
    assert read_photo(path, upright=False).pixels.shape == (10, 20, 3)


def test_what_is_no_photo_is_refused(tmp_path):
    with pytest.raises(UserError, match="1x1 pixels"):
        read_photo(saved(tmp_path, Image.new("RGB", (1, 1))))
    rng = np.random.default_rng(0)
    for name in ("whole.png", "whole.jpg"):
        whole = saved(
            tmp_path, Image.fromarray(rng.integers(0, 255, (99, 99, 3)).astype(np.uint8)), name
        )
        cut = tmp_path / f"cut_{name}"
        cut.write_bytes(whole.read_bytes()[:2000])
        with pytest.raises(UserError, match=rf"^\S*cut_{name}: is truncated or damaged"):
            read_photo(cut)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(UserError, match="is no picture"):
        read_photo(text)
    with pytest.raises(UserError, match="no such file"):
        read_photo(tmp_path / "absent.png")
