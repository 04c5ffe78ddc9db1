"""Metrics of one registered pair that torchmetrics lacks, or defines otherwise.

Sizes: a volume of D x H x W voxels, K labels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SSIM_WINDOW = 7


def label_dice(found: Tensor, truth: Tensor, labels: Tensor) -> Tensor:
    """Give the overlap 2 |A and B| / (|A| + |B|) of each label (K,); NaN where neither has it.

    Args:
        found: (D, H, W) integers.
        truth: of that shape.
        labels: (K,) the values to judge.
    """
    scores = []
    for label in labels.tolist():
        a, b = found == label, truth == label
        scores.append(2 * (a & b).sum().double() / (a.sum() + b.sum()))
    return torch.stack(scores)


def hausdorff_95(found: Tensor, truth: Tensor, labels: Tensor, spacing: Tensor) -> Tensor:
    """Give the 95th percentile of the distances between surfaces, in mm, by two definitions.

    A surface is what an erosion by the six neighbours takes away. The first definition joins the
    distances of both directions, from each voxel of a surface to the nearest of the other, and
    takes their percentile, as the code of NestedMorph does. In the second surfaces lie between
    voxels, each piece counts by its area, and of the percentiles of the two directions the larger
    one is taken (Nikolov et al., JMIR 2021; Learn2Reg).

    Args:
        found: (D, H, W) integers.
        truth: of that shape.
        labels: (K,) the values to judge.
        spacing: (3,) sides of a voxel in mm.

    Returns:
        (2, K): ``hd95`` and ``hd95_surfel``; NaN where either volume lacks a label.
    """
    from monai.metrics.utils import get_mask_edges
    from scipy.spatial import cKDTree

    sides = spacing.double().cpu().numpy()
    scores = torch.full((2, len(labels)), torch.nan, dtype=torch.float64)
    for at, label in enumerate(labels.tolist()):
        a, b = ((part == label).cpu().numpy() for part in (found, truth))
        if not (a.any() and b.any()):
            continue
        a, b = _cropped(a, b)
        voxels = [np.argwhere(edge) * sides for edge in get_mask_edges(a, b, crop=False)]
        joined = np.concatenate(
            [cKDTree(voxels[1]).query(voxels[0])[0], cKDTree(voxels[0]).query(voxels[1])[0]]
        )
        scores[0, at] = np.percentile(joined, 95)
        own = get_mask_edges(
            *(torch.from_numpy(part).float() for part in (a, b)), crop=False, spacing=sides.tolist()
        )
        edges, areas = ([part.numpy() for part in own[:2]], [part.numpy() for part in own[2:]])
        pieces = [np.argwhere(edge) * sides for edge in edges]
        ways = []
        for here, there in ((0, 1), (1, 0)):
            distances = cKDTree(pieces[there]).query(pieces[here])[0]
            ways.append(_weighted_percentile(distances, areas[here][edges[here]], 0.95))
        scores[1, at] = max(ways)
    return scores


def _cropped(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], ...]:
    """Cut both to where either is, with a border of one voxel, outside of which nothing is."""
    places = np.argwhere(a | b)
    low, high = places.min(0), places.max(0) + 1
    inside = tuple(slice(*ends) for ends in zip(low, high, strict=True))
    return np.pad(a[inside], 1), np.pad(b[inside], 1)


def _weighted_percentile(
    values: NDArray[np.float64], weights: NDArray[np.float64], share: float
) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    place = min(int(np.searchsorted(reached, share)), len(values) - 1)
    return float(values[order][place])


def slice_ssim(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give the structural similarity of two volumes, slice by slice along the first axis.

    With means, variances and covariance (of a sample) over squares of 7 x 7 voxels inside a slice:
    (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x + s_y + c2)), c1 = (0.01 r)^2,
    c2 = (0.03 r)^2, r the range of ``y`` (Wang et al., IEEE TIP 2004); as scikit-image has it, and
    the code of NestedMorph. torchmetrics takes variances of a population.

    Args:
        x: (D, H, W).
        y: of that shape.
        mask: of that shape, where the centres of the squares count; None counts all.

    Returns:
        a scalar; NaN where a slice is smaller than a square.
    """
    if min(x.shape[1:]) < SSIM_WINDOW:
        return x.new_tensor(torch.nan)
    x, y = x.double(), y.double()
    r = y.max() - y.min()
    n = SSIM_WINDOW**2
    planes = torch.stack([x, y, x * x, y * y, x * y], 1)
    mx, my, xx, yy, xy = F.avg_pool2d(planes, SSIM_WINDOW, 1).unbind(1)
    scale = n / (n - 1)
    vx, vy, vxy = scale * (xx - mx * mx), scale * (yy - my * my), scale * (xy - mx * my)
    c1, c2 = (0.01 * r) ** 2, (0.03 * r) ** 2
    above = (2 * mx * my + c1) * (2 * vxy + c2)
    below = (mx * mx + my * my + c1) * (vx + vy + c2)
    local = above / below
    if mask is None:
        return local.mean()
    edge = SSIM_WINDOW // 2
    return local[mask[:, edge:-edge, edge:-edge]].mean()
