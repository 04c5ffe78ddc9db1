from itertools import pairwise

import pytest
import torch

from domains.vision.inference import Inference, rows_resized, starts


@pytest.mark.parametrize("size", [(50, 70), (16, 90), (17, 15), (33, 16)])
def test_windows_of_a_local_network_give_what_the_whole_gives(tiny, size):
    network = tiny().eval()
    network.heads[0] = torch.nn.Conv2d(3, 3, 1)  # sees one pixel, so that borders do not matter
    image = torch.randn(3, *size)
    whole = Inference().probabilities(network, image[None])[0]
    rows = []
    top = 0
    for band in Inference(window=16).bands(network, image):
        assert band.top == top
        top += band.probabilities.shape[1]
        assert band.probabilities.shape[1] <= 16 or max(size) <= 16
        rows.append(band.probabilities)
    torch.testing.assert_close(torch.cat(rows, 1), whole)


def test_windows_overlap_by_a_quarter_at_least():
    for length in range(20, 400, 7):
        places = starts(length, 20)
        assert places[0] == 0
        assert places[-1] == length - 20
        assert all(b - a <= 15 for a, b in pairwise(places))


def test_scales_and_mirrors_are_averaged(tiny):
    network = tiny().eval()
    images = torch.randn(2, 3, 20, 24)
    plain = network(images).logits.softmax(1)
    mirrored = network(images.flip(-1)).logits.flip(-1).softmax(1)
    found = Inference(flip=True).probabilities(network, images)
    torch.testing.assert_close(found, (plain + mirrored) / 2)
    several = Inference(scales=(0.5, 1.0, 1.5)).probabilities(network, images)
    assert several.shape == plain.shape
    torch.testing.assert_close(several.sum(1), torch.ones(2, 20, 24))


def test_rows_are_those_of_the_whole():
    small = torch.randn(2, 7, 9)
    whole = torch.nn.functional.interpolate(
        small[None], size=(31, 40), mode="bilinear", align_corners=False
    )[0]
    rows = [rows_resized(small, (31, 40), top, min(top + 8, 31)) for top in range(0, 31, 8)]
    torch.testing.assert_close(torch.cat(rows, 1), whole)
