import numpy as np
import pytest
import torch

from core.errors import UserError
from domains.vision.metrics import PanopticQuality
from domains.vision.shapes import BACKGROUND, COLORS, LEAST_SEEN, SIDE, ShapesData, ShapesSet, draw


def test_a_photo_depends_on_seed_part_and_place_alone():
    one, again = draw(3, 0, 5), draw(3, 0, 5)
    for own, other in zip(one, again, strict=True):
        assert np.array_equal(own, other)
    pixels = [draw(*place).pixels for place in ((3, 0, 5), (4, 0, 5), (3, 1, 5), (3, 0, 6))]
    assert len({own.tobytes() for own in pixels}) == 4
    short, long = ShapesSet("test", 5), ShapesSet("test", 50)
    assert torch.equal(short[4].image, long[4].image)


def test_the_photos_are_those_they_were():
    """Published figures are of these very photos."""
    drawn = draw(0, 2, 0)
    assert drawn.labels.tolist() == [3, 0, 0, 0, 2]
    assert np.bincount(drawn.segments.ravel()).tolist() == [6980, 496, 726, 437, 577]
    assert drawn.pixels[::32, ::32].sum(2).tolist() == [
        [504, 472, 472],
        [402, 419, 412],
        [370, 360, 303],
    ]


def test_each_photo_has_one_to_four_shapes_that_are_seen():
    counts = []
    for row in range(200):
        drawn = draw(1, 0, row)
        assert drawn.pixels.shape == (SIDE, SIDE, 3)
        assert drawn.labels[0] == BACKGROUND
        assert (drawn.labels[1:] < BACKGROUND).all()
        areas = np.bincount(drawn.segments.ravel(), minlength=len(drawn.labels))
        assert len(areas) == len(drawn.labels)
        assert areas.min() >= LEAST_SEEN
        counts.append(len(areas) - 1)
    assert set(counts) == {1, 2, 3, 4}


def test_shapes_have_the_form_of_their_class():
    """Alone in a photo, a shape fills a known share of the disc around it."""
    shares = {label: [] for label in range(3)}
    for row in range(600):
        drawn = draw(2, 0, row)
        if len(drawn.labels) > 2:
            continue
        rows, columns = np.nonzero(drawn.segments)
        if min(rows.min(), columns.min()) == 0 or max(rows.max(), columns.max()) == SIDE - 1:
            continue
        reach = np.hypot(rows - rows.mean(), columns - columns.mean()).max()
        shares[int(drawn.labels[1])].append(len(rows) / (np.pi * reach**2))
    means = [np.mean(shares[label]) for label in range(3)]
    # of the disc around a regular polygon: 1, 2 / pi, 3 sqrt(3) / (4 pi)
    assert means == pytest.approx([1, 0.637, 0.413], abs=0.06)


@pytest.mark.parametrize("coloured", [True, False])
def test_colour_tells_the_class_only_if_asked_for(coloured):
    right = total = 0
    for row in range(150):
        drawn = draw(0, 0, row, coloured)
        for number, label in enumerate(drawn.labels.tolist()):
            if not number:
                continue
            mean = drawn.pixels[drawn.segments == number].mean(0)
            nearest = np.abs(mean - np.array(COLORS)).sum(1).argmin()
            right, total = right + (nearest == label), total + 1
    assert (right / total > 0.95) if coloured else (right / total < 0.5)


def test_batches_hold_masks_and_classes_that_agree_with_labels():
    data = ShapesData(train_photos=20, eval_photos=6, batch_size=4, eval_batch_size=5)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, SIDE, SIDE)
    assert batch.images.dtype == torch.float32
    assert batch.images.abs().max() < 3
    assert batch.labels.dtype == torch.int64
    for at in range(4):
        masks, classes = batch.masks[at], batch.mask_classes[at]
        assert masks.dtype == torch.bool
        assert (masks.sum(0) == 1).all()  # each pixel is of one segment
        assert torch.equal(classes[masks.int().argmax(0)], batch.labels[at])
        row = int(batch.rows[at])
        drawn = draw(0, 0, row)
        assert torch.equal(batch.labels[at], torch.from_numpy(drawn.labels[drawn.segments]))
        assert classes.tolist() == drawn.labels.tolist()
    labels = list(data.val_set.labels())
    drawn = draw(0, 1, 2)
    assert torch.equal(labels[2], torch.from_numpy(drawn.labels[drawn.segments]))
    truth = [batch.truth(at) for at in range(4)]
    metric = PanopticQuality(data.things)
    metric.update(truth, truth)
    assert metric.compute() == 1
    sizes = [len(own.ids) for own in data.test_dataloader()]
    assert sizes == [5, 1]


def test_parts_are_of_other_photos_and_their_sizes_are_those_asked_for():
    data = ShapesData()
    assert [len(s) for s in (data.train_set, data.val_set, data.test_set)] == [800, 100, 100]
    images = [s[0].image for s in (data.train_set, data.val_set, data.test_set)]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])
    assert data.sizes({}) == {"classes": 4}
    assert ShapesData(drawing_seed=1).fingerprint() != data.fingerprint()


def test_every_second_photo_of_training_is_mirrored_and_its_segments_with_it():
    plain = ShapesData(train_photos=16, batch_size=16, seed=0)
    mirrored = ShapesData(train_photos=16, batch_size=16, seed=0, flip=True)
    before, after = (next(iter(d.train_dataloader())) for d in (plain, mirrored))
    assert before.ids == after.ids
    turned = 0
    for at in range(16):
        same = torch.equal(before.images[at], after.images[at])
        own = before.labels[at] if same else before.labels[at].flip(-1)
        assert torch.equal(own, after.labels[at])
        turned += not same
    assert 0 < turned < 16
    (whole,) = mirrored.every_item(mirrored.plain_train_set())
    (same,) = plain.every_item(plain.train_set)
    assert torch.equal(whole.images, same.images)


def test_it_says_what_was_drawn():
    told = ShapesData(train_photos=30, eval_photos=4).summary()
    assert "30 for training" in told[0]
    assert "background" in told[1]


def test_arguments_out_of_range_are_refused():
    for argument in ({"train_photos": 0}, {"eval_photos": 0}, {"drawing_seed": -1}):
        with pytest.raises(UserError, match=next(iter(argument))):
            ShapesData(**argument)
