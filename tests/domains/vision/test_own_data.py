import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from core.batch_plan import PlannedIndex
from core.errors import UserError
from core.split_plan import Split
from domains.vision.own_data import OwnSegmentationData
from domains.vision.rare_plan import RarePlan


def own(photos, **given):
    return OwnSegmentationData(train=str(photos), batch_size=2, seed=0, **given)


def test_a_folder_is_read_divided_and_described(photos):
    data = own(photos)
    assert OwnSegmentationData.sizes(data.config) == {"classes": 3}
    data.setup()
    assert len(data.train_set) + len(data.val_set) + len(data.test_set) == 12
    assert data.class_pixels().sum() == len(data.train_set) * 24 * 32
    assert data.summary()[0].startswith("photos: ")
    assert "no class file" in " ".join(data.summary())
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (2, 3, 24, 32)
    assert batch.labels.dtype == torch.int64
    assert (data.preprocessing.classes.values) == (0, 1, 2)


def test_photos_of_one_flight_stay_together(photos, tmp_path):
    data = own(photos, split="group:prefix", val_fraction=0.25, test_fraction=0.25)
    data.setup()
    flights = [{pair.facts["prefix"] for pair in part} for part in data.layout.parts]
    assert set().union(*flights) == {"flighta", "flightb", "flightc", "flightd"}
    assert sum(map(len, flights)) == 4
    data.keep(tmp_path)
    again = own(photos, split=str(tmp_path / "splits.parquet"))
    again.setup()
    assert again.layout.parts == data.layout.parts
    assert Split.load(tmp_path / "splits.parquet").rule == "group:prefix"


def test_a_table_names_files_and_groups(photos):
    rows = [
        {"image": f"images/{p.name}", "mask": f"masks/{p.name}", "street": p.name[6]}
        for p in sorted((photos / "images").iterdir())
    ]
    pd.DataFrame(rows).to_csv(photos / "all.csv", index=False)
    data = own(photos / "all.csv", split="group:street", val_fraction=0.3)
    data.setup()
    streets = [{pair.facts["street"] for pair in part} for part in data.layout.parts]
    assert sum(map(len, streets)) == 4


def spoil(photos, name):
    image = photos / "images" / "flighta_00.png"
    mask = photos / "masks" / "flighta_00.png"
    if name == "size":
        Image.fromarray(np.zeros((24, 31), np.uint8)).save(mask)
    elif name == "mask":
        mask.unlink()
    elif name == "photo":
        image.unlink()
    elif name == "truncated":
        image.write_bytes(image.read_bytes()[:400])
    elif name == "value":
        labels = np.zeros((24, 32), np.uint8)
        labels[5, 6] = 9
        Image.fromarray(labels).save(mask)
        (photos / "classes.txt").write_text("dark\nred\nblue\n")
    elif name == "empty":
        for path in (photos / "images").iterdir():
            path.unlink()
    elif name == "one pixel":
        Image.new("RGB", (1, 1)).save(image)
        Image.new("L", (1, 1)).save(mask)
    elif name == "sizes":
        Image.new("RGB", (40, 40)).save(image)
        Image.new("L", (40, 40)).save(mask)
    elif name == "rgb":
        Image.new("RGB", (32, 24), (1, 2, 3)).save(mask)


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("size", r"masks/flighta_00\.png: 31x24 pixels, but \S*flighta_00\.png has 32x24"),
        ("mask", r"images/flighta_00\.png: has no mask of its name in \S*masks \(1 lack one\)"),
        ("photo", r"masks/flighta_00\.png: has no photo of its name"),
        ("truncated", r"images/flighta_00\.png: is truncated or damaged"),
        ("value", r"flighta_00\.png: the value 9 \(first at row 5, column 6"),
        ("empty", r"images: holds no picture"),
        ("one pixel", r"1x1 pixels; a photo needs at least 8 a side"),
        ("sizes", r"differ in size, and a batch needs one; give --data\.crop"),
        ("rgb", r"is RGB; name its colours in a class file"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(photos, fault, match):
    spoil(photos, fault)
    with pytest.raises(UserError, match=match) as told:
        own(photos, split="column:none" if fault == "none" else "random").setup()
    assert "\n" not in str(told.value)


def test_unicode_names(tmp_path, photos):
    for folder in ("images", "masks"):
        (photos / folder / "flighta_00.png").rename(photos / folder / "größe 路_00.png")
    data = own(photos)
    data.setup()
    assert "größe 路_00" in {pair.id for part in data.layout.parts for pair in part}


def test_a_turned_photo_keeps_to_its_mask(photos):
    pixels = np.zeros((24, 32, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    path = photos / "images" / "flighta_00.png"
    path.unlink()
    image.save(path.with_suffix(".jpg"), exif=exif)
    data = own(photos)
    data.setup()
    assert "not turned, as the mask is not" in " ".join(data.summary())
    upright = Image.fromarray(np.zeros((32, 24), np.uint8))
    upright.save(photos / "masks" / "flighta_00.png")
    turned = own(photos, crop=(16, 16))
    turned.setup()
    assert "turned upright as EXIF says" in " ".join(turned.summary())


def test_masks_of_0_and_255_are_an_object(photos):
    for path in (photos / "masks").iterdir():
        with Image.open(path) as image:
            labels = np.asarray(image)
        Image.fromarray(np.where(labels == 1, 255, 0).astype(np.uint8)).save(path)
    data = own(photos)
    data.setup()
    assert data.class_names == ("background", "object")
    assert data.train_set[0].labels.unique().tolist() == [0, 1]


def test_an_item_is_a_function_of_seed_epoch_and_index(photos):
    data = own(photos, scale=(0.5, 2.0), crop=(16, 24), jitter=0.3)
    data.setup()
    first = data.train_set[PlannedIndex(1, 5)]
    torch.rand(3)
    again = data.train_set[PlannedIndex(1, 5)]
    other = data.train_set[PlannedIndex(1, 6)]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.labels, again.labels)
    assert first.image.shape == (3, 16, 24)
    assert not torch.equal(first.image, other.image)
    state = torch.get_rng_state()
    data.train_set[PlannedIndex(1, 7)]
    assert torch.equal(state, torch.get_rng_state())


def test_photo_and_labels_are_changed_alike(photos):
    data = own(photos, scale=(0.5, 2.0), crop=(40, 40))
    data.setup()
    colors = {0: (20, 20, 20), 1: (220, 30, 30), 2: (30, 30, 220)}
    for seed in range(10):
        _, image, labels = 0, *data.train_set[PlannedIndex(0, seed)][:2]
        for label, color in colors.items():
            own_pixels = image.permute(1, 2, 0)[labels == label].float()
            if len(own_pixels) > 30:
                near = (own_pixels - torch.tensor(color)).abs().amax(1) < 60
                assert near.float().mean() > 0.6


def test_large_photos_are_cut_into_tiles_that_hold_every_pixel(photos):
    data = own(photos, tile_above=0.0005, window=16)
    data.setup()
    assert len(data.train_set) == 4 * len(data.layout.parts[0])
    assert data.train_set[0].image.shape == (3, 16, 16)
    seen = sum(data.counts.sum(1))
    assert seen >= data.class_pixels().sum()
    assert len(data.test_set) == len(data.layout.parts[2])
    assert next(iter(data.test_dataloader())).window == 16


def test_rare_classes_are_drawn_more_often_and_the_plan_resumes():
    weights = np.array([1.0, 1, 1, 1, 4])
    plan = RarePlan(weights * 5 / weights.sum(), 2)
    drawn = [i for epoch in range(200) for batch in plan.global_batches(0, epoch) for i in batch]
    shares = np.bincount(np.array(drawn) % 5, minlength=5) / len(drawn)
    np.testing.assert_allclose(shares, weights / 8, atol=0.03)
    for epoch in range(20):
        batches = list(plan.global_batches(0, epoch))
        flat = [i for batch in batches for i in batch]
        assert len(set(flat)) == len(flat)  # a second draw has a seed of its own
        assert list(plan.global_batches(0, epoch, 1)) == batches[1:]


def test_the_same_photo_in_two_parts_is_told(photos):
    for folder in ("images", "masks"):
        source = (photos / folder / "flighta_00.png").read_bytes()
        for path in (photos / folder).iterdir():
            path.write_bytes(source)
    data = own(photos)
    data.setup()
    assert "that stand in train too" in " ".join(data.summary())


def test_photos_that_are_void_throughout_are_told_and_a_part_of_them_refused(photos):
    def blank(*names):
        for name in names:
            Image.new("L", (32, 24), 255).save(photos / "masks" / f"{name}.png")

    (photos / "classes.txt").write_text("dark\nred\nblue\n")
    parts = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    names = sorted(path.stem for path in (photos / "images").iterdir())
    rows = [f"images/{n}.png,masks/{n}.png,{part}" for n, part in zip(names, parts, strict=True)]
    (photos / "all.csv").write_text("\n".join(["image,mask,part", *rows]))
    blank(names[0], names[-1])
    data = own(photos / "all.csv", split="column:part")
    data.setup()
    assert "void throughout: 2" in " ".join(data.summary())
    blank(names[-2])
    with pytest.raises(UserError, match=r"all others of test are void throughout"):
        own(photos / "all.csv", split="column:part").setup()
