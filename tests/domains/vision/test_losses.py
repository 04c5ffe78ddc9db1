import pytest
import torch
import torch.nn.functional as F

from domains.vision import losses
from domains.vision.class_file import VOID

EVERY = [losses.cross_entropy, losses.ohem, losses.dice, losses.focal]


def example():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 3, 6, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 6, 5), generator=generator)
    labels[0, :2] = VOID
    return logits, labels


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5])])
@pytest.mark.parametrize("loss", EVERY)
def test_void_pixels_change_nothing(loss, weights):
    logits, labels = example()
    other = logits.clone()
    other[0, :, :2] = 100 * torch.randn(3, 2, 5)
    assert torch.equal(loss(logits, labels, weights), loss(other, labels, weights))
    other = other.requires_grad_()
    loss(other, labels, weights).backward()
    assert (other.grad[0, :, :2] == 0).all()
    assert (other.grad[0, :, 2:] != 0).any()


@pytest.mark.parametrize("loss", EVERY)
def test_all_void_is_a_loss_of_zero(loss):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((1, 4, 4), VOID))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("least", [0, 7, 30, 1000])
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_ohem_is_its_definition(least, threshold):
    logits, labels = example()
    shares = logits.softmax(1)
    pixels = []
    for b, row, column in (labels != VOID).nonzero().tolist():
        p = shares[b, labels[b, row, column], row, column].item()
        pixels.append((p, F.cross_entropy(logits[b, :, row, column], labels[b, row, column])))
    pixels.sort(key=lambda pair: pair[0])
    border = max(pixels[min(least, len(pixels) - 1)][0], threshold)
    hard = [loss for p, loss in pixels if p < border]
    found = losses.ohem(logits, labels, threshold=threshold, least=least)
    torch.testing.assert_close(found, torch.stack(hard).mean())


def test_dice_and_focal_are_their_definitions():
    logits = torch.tensor([2.0, 0.0])[None, :, None, None].repeat(1, 1, 1, 2)
    labels = torch.tensor([[[0, 1]]])
    p = torch.tensor([2.0, 0.0]).softmax(0)
    dice = [1 - (2 * share + 1) / (2 * share + 1 + 1) for share in p]
    torch.testing.assert_close(losses.dice(logits, labels), torch.stack(dice).mean())
    focal = -((1 - p) ** 2 * p.log()).mean()
    torch.testing.assert_close(losses.focal(logits, labels), focal)
