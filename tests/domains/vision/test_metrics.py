import math

import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from core.metric_words import metric_words
from domains.vision.metrics import (
    ClassAccuracy,
    ClassIoU,
    PanopticQuality,
    PixelAccuracy,
    Segments,
    photo_quality,
)
from domains.vision.panoptic import panoptic_metrics
from domains.vision.segmentation import segmentation_metrics


def segments(rows, classes, crowd=None):
    return Segments(
        torch.tensor(rows),
        torch.tensor(classes),
        None if crowd is None else torch.tensor(crowd),
    )


def quality(prediction, target, what="pq", part="all", things=(True, False)):
    metric = PanopticQuality(things, part, what)
    metric.update([prediction], [target])
    found = metric.compute().item()
    if (what, part) == ("pq", "all"):  # of one image
        assert photo_quality(prediction, target, len(things)) == pytest.approx(found)
    return found


TRUTH = segments([[1] * 5 + [2] * 5] * 10, [0, 1])  # a thing and stuff, 50 pixels each


def test_a_perfect_prediction():
    assert quality(TRUTH, TRUTH) == 1
    swapped = segments([[2] * 5 + [1] * 5] * 10, [1, 0])
    assert quality(swapped, TRUTH) == 1  # the numbers of segments say nothing


def test_an_object_predicted_as_void_is_missed():
    """The reference implementation of COCO gives 0.5, torchmetrics 1.0."""
    prediction = segments([[0] * 5 + [1] * 5] * 10, [1])
    assert quality(prediction, TRUTH) == 0.5
    assert quality(prediction, TRUTH, part="things") == 0
    assert quality(prediction, TRUTH, part="stuff") == 1


def test_a_part_predicted_as_void_counts_against_it():
    """0.85 and 0.833 by the reference implementation of COCO."""
    rows = [[1] * 5 + [2] * 5] * 7 + [[0] * 5 + [2] * 5] * 3
    assert quality(segments(rows, [0, 1]), TRUTH) == pytest.approx((0.7 + 1) / 2)
    third = segments([[1] * 6 + [2] * 9] * 10, [0, 1])
    found = segments([[1] * 6 + [2] * 6 + [0] * 3] * 10, [0, 1])
    assert quality(found, third) == pytest.approx((1 + 2 / 3) / 2)


def test_what_lies_on_void_of_the_truth_is_left_out():
    target = segments([[1] * 5 + [0] * 5] * 10, [0])
    wide = segments([[1] * 7 + [0] * 3] * 10, [0])
    assert quality(wide, target) == 1  # the union leaves out void
    more = segments([[1] * 5 + [2] * 5] * 10, [0, 1])
    assert quality(more, target) == 1  # wholly on void: not wrong
    half = segments([[1] * 3 + [2] * 4 + [0] * 3] * 10, [0, 0])
    # 3 of 5 columns match by 0.6; 2 of the 4 columns of the other lie on void, not more than half
    assert quality(half, target) == pytest.approx(0.6 / 1.5)


def test_crowds_are_neither_missed_nor_make_others_wrong():
    target = segments([[1] * 5 + [2] * 5] * 10, [0, 1], [True, False])
    nothing = segments([[0] * 5 + [1] * 5] * 10, [1])
    assert quality(nothing, target) == 1
    inside = segments([[1] * 4 + [0] + [2] * 5] * 10, [0, 1])
    assert quality(inside, target) == 1
    other = segments([[1] * 5 + [2] * 5] * 10, [1, 1])
    assert quality(other, target) == pytest.approx(1 / 1.5)  # a crowd of another class


def test_overlap_of_a_half_is_no_match():
    found = segments([[1] * 10] * 10, [0])
    assert quality(found, TRUTH) == 0
    metric = PanopticQuality((True, False))
    metric.update([found], [TRUTH])
    assert metric.counts.tolist() == [[0, 1, 1], [0, 0, 1]]


def test_sq_and_rq_multiply_to_pq_for_one_class_and_images_add_up():
    rows = [[1] * 5 + [2] * 5] * 7 + [[0] * 5 + [2] * 5] * 3
    found = segments(rows, [0, 1])
    missed = segments([[0] * 5 + [1] * 5] * 10, [1])
    scores = {}
    for what in ("pq", "sq", "rq"):
        metric = PanopticQuality((True, False), "things", what)
        metric.update([found], [TRUTH])
        metric.update([missed], [TRUTH])
        scores[what] = metric.compute().item()
    assert scores["sq"] == pytest.approx(0.7)
    assert scores["rq"] == pytest.approx(1 / 1.5)
    assert scores["pq"] == pytest.approx(scores["sq"] * scores["rq"])


def test_an_image_of_void_has_no_quality():
    void = Segments(torch.zeros(10, 10, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert math.isnan(photo_quality(void, void, 2))
    assert photo_quality(void, TRUTH, 2) == 0
    assert math.isnan(photo_quality(TRUTH, void, 2))  # all of it lies on void: not wrong


def test_pixels():
    prediction = torch.tensor([[0, 1, 1, 0]])
    target = torch.tensor([[0, 1, 0, 255]])
    scores = {}
    for name, metric in {
        "miou": MulticlassJaccardIndex(3, ignore_index=255),
        "first": ClassIoU(3, 0),
        "absent": ClassIoU(3, 2),
        "pixels": PixelAccuracy(3),
        "classes": ClassAccuracy(3),
    }.items():
        metric.update(prediction, target)
        scores[name] = metric.compute().item()
    assert scores == pytest.approx(
        {"miou": 0.5, "first": 0.5, "absent": 0, "pixels": 2 / 3, "classes": 0.75}
    )


def test_any_names_of_classes_make_metrics_of_their_own():
    names = ["e.g. wall", "Road", "road ", "road", "pole/post", "路", "..."]
    words = metric_words(names)
    assert words == ["e_g_wall", "road", "road_2", "road_3", "pole_post", "路", "class"]
    for made in (segmentation_metrics(names), panoptic_metrics([True] * 7, names)):
        collection = MetricCollection(made)
        assert {f"iou/{word}" for word in words} <= set(collection.keys())
