import numpy as np
import pytest
import torch
import torch.nn.functional as F

from domains.medical.deformation import folding_share, sd_log_jacobian
from domains.medical.losses import diffusion, local_ncc
from domains.medical.networks.nested_morph import NestedMorph
from domains.medical.networks.voxelmorph import VoxelMorph
from domains.medical.synthetic import random_flow, random_velocity
from domains.medical.warping import integrate, warp


@pytest.fixture(scope="module")
def scan(real_data):
    """A head and its labels, resampled to a cube, and the labels that count."""
    folder = real_data / "medical" / "voxelmorph"
    with np.load(folder / "test_scan.npz") as file:
        volume, labels = (torch.from_numpy(file[key]).float()[None, None] for key in ("vol", "seg"))
    with np.load(folder / "labels.npz") as file:
        scored = file["labels"].tolist()

    def give(side):
        size = (side, side, side)
        head = F.interpolate(volume, size, mode="trilinear", align_corners=True)
        head = (head - head.min()) / (head.max() - head.min())
        return head, F.interpolate(labels, size, mode="nearest"), scored

    return give


def dice(one, other, labels):
    """Mean over the labels that are in either map."""
    scores = []
    for label in labels:
        a, b = one == label, other == label
        if total := (a.sum() + b.sum()).item():
            scores.append(2 * (a & b).sum().item() / total)
    return sum(scores) / len(scores)


def seeded(seed=123):
    return torch.Generator().manual_seed(seed)


def test_the_same_seed_gives_the_same_warp():
    flow = random_flow((8, 9, 10), 5, 2.0, seeded())
    assert flow.shape == (1, 3, 8, 9, 10)
    assert torch.equal(flow, random_flow((8, 9, 10), 5, 2.0, seeded()))
    generator = seeded()
    random_flow((8, 9, 10), 5, 2.0, generator)
    assert not torch.equal(flow, random_flow((8, 9, 10), 5, 2.0, generator))


def test_the_inverse_of_a_warp_is_that_of_the_opposite_velocity():
    velocity = random_velocity((32, 32, 32), 5, 1.0, seeded())
    there, back = integrate(velocity, 6), integrate(-velocity, 6)
    both = back + warp(there, back)
    assert both[..., 6:-6, 6:-6, 6:-6].norm(dim=1).mean() < 0.05
    assert folding_share(there).item() == 0


@pytest.mark.data
@pytest.mark.parametrize(
    ("side", "points", "amplitude", "told"),
    [
        (64, 6, 4.0, [(0.309, -0.205), (0.333, -0.184)]),
        (32, 5, 2.0, [(0.337, -0.452)]),
    ],
)
def test_warped_heads_agree_as_much_as_is_told(scan, side, points, amplitude, told):
    head, labels, scored = scan(side)
    generator, found = seeded(), []
    for _ in range(2 if side == 64 else 4):
        flow = random_flow((side, side, side), points, amplitude, generator)
        agreed = dice(warp(labels, flow, "nearest"), labels, scored)
        found.append((agreed, local_ncc(warp(head, flow), head).item()))
    if side == 32:  # told as a mean over the four
        found = [tuple(np.mean(found, 0))]
    np.testing.assert_allclose(found, told, atol=6e-4)


@pytest.mark.data
@pytest.mark.slow
def test_a_free_flow_is_found_again(scan):
    """By three grids of 60 steps each; local correlation, diffusion and warps in concert."""
    head, labels, scored = scan(64)
    generator = seeded()
    for least in (0.68, 0.52):
        given = random_flow((64, 64, 64), 6, 4.0, generator)
        moving, warped_labels = warp(head, given), warp(labels, given, "nearest")
        flow = torch.zeros(1, 3, 8, 8, 8)
        for side in (16, 32, 64):
            size = (side, side, side)
            scaled = flow.detach() * (side / flow.shape[2])
            flow = F.interpolate(scaled, size, mode="trilinear", align_corners=True)
            flow.requires_grad_()
            pair = [
                F.interpolate(part, size, mode="trilinear", align_corners=True)
                for part in (moving, head)
            ]
            optimizer = torch.optim.Adam([flow], lr=0.1)
            for _ in range(60):
                optimizer.zero_grad()
                (local_ncc(warp(pair[0], flow), pair[1]) + diffusion(flow)).backward()
                optimizer.step()
        flow = flow.detach()
        assert dice(warp(warped_labels, flow, "nearest"), labels, scored) >= least
        assert folding_share(flow).item() < 0.015
        assert sd_log_jacobian(flow).item() < 0.12


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("build", "steps"), [(NestedMorph, 60), (VoxelMorph, 100)])
def test_learns_one_pair(scan, build, steps):
    torch.manual_seed(0)
    head, _, _ = scan(32)
    moving = warp(head, random_flow((32, 32, 32), 5, 2.0, seeded()))
    network = build()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, amsgrad=True)
    scores = []
    for _ in range(steps):
        output = network(moving, head)
        score = local_ncc(output.warped, head)
        field = output.flow if output.velocity is None else output.velocity
        optimizer.zero_grad()
        (score + diffusion(field)).backward()
        optimizer.step()
        scores.append(score.item())
    assert scores[-1] < scores[0] - 0.1
