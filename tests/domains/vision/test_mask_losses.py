import pytest
import torch
import torch.nn.functional as F

from core.errors import UserError
from domains.vision.mask_losses import MaskCriterion
from domains.vision.networks.outputs import MaskOutput

TENTH = float(torch.tensor(0.1).half())
"""What the stored network weighs a query without an object by: a number of 16 bits."""


@pytest.fixture
def published(golden):
    """What transformers computed: layers in its order (the last first), masks, classes, losses."""
    file = golden("mask2former_tiny")
    told = file["outputs"]
    layers = [
        (told["class_logits"], told["mask_logits"]),
        *zip(told["aux_class_logits"], told["aux_mask_logits"], strict=True),
    ]
    inputs = file["inputs"]
    return file, layers, inputs["mask_labels_bool"], inputs["class_labels"]


def check(file, layers, masks, classes, criterion, key, atol):
    wanted = file[key]
    for number, (class_logits, mask_logits) in enumerate(layers):
        ending = f"_{number - 1}" if number else ""
        losses = criterion.layer(class_logits, mask_logits, [m.float() for m in masks], classes)
        names = ("cross_entropy", "mask", "dice")
        expected = [wanted["losses"][f"loss_{name}{ending}"] for name in names]
        torch.testing.assert_close(losses, torch.tensor(expected), atol=atol, rtol=0)


def test_dense_losses_and_matching_are_the_published_ones(published):
    file, layers, masks, classes = published
    criterion = MaskCriterion(no_object=TENTH, points=0)
    check(*published, criterion, "dense_loss", 3e-6)
    for (class_logits, mask_logits), wanted in zip(
        layers, file["dense_loss"]["matched"], strict=True
    ):
        found = criterion.match(class_logits, mask_logits, [m.float() for m in masks], classes)
        for pair, own in zip(found, wanted, strict=True):
            assert pair.queries.tolist() == own["query"].tolist()
            assert pair.targets.tolist() == own["target"].tolist()
    output = MaskOutput(*layers[0], tuple(layers[1:]))
    total = criterion(output, masks, classes)
    assert float(total) == pytest.approx(file["dense_loss"]["total"], abs=2e-5)


def test_sampled_losses_are_the_published_ones(published):
    file, layers, masks, classes = published
    criterion = MaskCriterion(no_object=TENTH, points=48)
    torch.manual_seed(file["seeded_loss"]["torch_seed"])
    check(*published, criterion, "seeded_loss", 3e-6)
    torch.manual_seed(file["seeded_loss"]["torch_seed"])
    total = criterion(MaskOutput(*layers[0], tuple(layers[1:])), masks, classes)
    assert float(total) == pytest.approx(file["seeded_loss"]["total"], abs=2e-5)


def drawn(counts=(2, 0, 3), queries=6, classes=4):
    torch.manual_seed(0)
    output = MaskOutput(
        torch.randn(len(counts), queries, classes + 1, requires_grad=True),
        torch.randn(len(counts), queries, 5, 7, requires_grad=True),
    )
    masks = [torch.rand(n, 18, 26) > 0.6 for n in counts]
    return output, masks, [torch.randint(classes, (n,)) for n in counts]


@pytest.mark.parametrize("points", [0, 40])
def test_an_image_without_masks_learns_to_say_no_object(points):
    output, masks, classes = drawn((0, 0))
    criterion = MaskCriterion(points=points)
    loss = criterion(output, masks, classes)
    expected = 2 * F.cross_entropy(output.class_logits.mT, torch.full((2, 6), 4))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert torch.equal(output.mask_logits.grad, torch.zeros_like(output.mask_logits))


def test_rows_of_no_object_weigh_a_tenth():
    output, masks, classes = drawn((1,), queries=2)
    criterion = MaskCriterion(points=0)
    with torch.no_grad():
        output.mask_logits[0, 0] = F.interpolate(masks[0][None].float() * 20 - 10, (5, 7))[0, 0]
    [pair] = criterion.match(*output[:2], [masks[0].float()], classes)
    target = torch.full((2,), 4)
    target[pair.queries] = classes[0]
    losses = F.cross_entropy(output.class_logits[0], target, reduction="none")
    weights = torch.where(target == 4, 0.1, 1.0)
    told = criterion.layer(*output[:2], [masks[0].float()], classes)
    expected = (losses * weights).sum() / weights.sum()
    assert told[0].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("points", [0, 60])
def test_void_pixels_count_nowhere(points):
    """Whatever is predicted there: neither loss nor gradient."""
    output, masks, classes = drawn()
    valid = torch.ones(3, 18, 26, dtype=torch.bool)
    valid[:, :, 13:] = False
    masks = [mask & valid[0] for mask in masks]
    criterion = MaskCriterion(points=points)
    found = []
    for value in (-8.0, 8.0):
        logits = output.mask_logits.detach().clone()
        logits[..., 5:] = value  # the third column from the border on shows no valid pixel
        logits.requires_grad_(True)
        torch.manual_seed(0)
        points_sure = MaskCriterion(points=points, importance=0.0)
        loss = points_sure(MaskOutput(output.class_logits, logits), masks, classes, valid)
        loss.backward()
        assert not logits.grad[..., 5:].any()
        found.append(loss.item())
    assert found[0] == pytest.approx(found[1])
    one, other = (criterion(output, masks, classes, part) for part in (valid, None))
    assert one.item() != other.item()
    nothing = torch.zeros_like(valid)
    empty = [mask[:0] for mask in masks]
    assert torch.isfinite(criterion(output, empty, [k[:0] for k in classes], nothing))


def test_more_masks_than_queries():
    output, masks, classes = drawn((9, 1))
    assert torch.isfinite(MaskCriterion(points=30)(output, masks, classes))


def test_a_prediction_that_is_not_finite_matches_last():
    output, masks, classes = drawn((2,), queries=3)
    logits = output.mask_logits.detach().clone()
    logits[0, 1] = torch.nan
    criterion = MaskCriterion(points=0)
    [pair] = criterion.match(output.class_logits, logits, [masks[0].float()], classes)
    assert pair.queries.tolist() == [0, 2]


def test_numbers_out_of_range():
    with pytest.raises(UserError, match=r"oversample=0\.5"):
        MaskCriterion(oversample=0.5)
    with pytest.raises(UserError, match="at least 0"):
        MaskCriterion(points=-1)
