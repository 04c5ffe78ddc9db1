"""The linear stage before a network: rigid, then twelve parameters, by mutual information.

A matrix (4, 4) takes places of the fixed world to places of the moving world, in mm, RAS+; files of
ITK hold the same in LPS+.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from core.array_cache import cached
from core.errors import UserError
from core.openers import file_digest, read_text, write_atomic
from domains.medical.fields import Matrix, sample
from domains.medical.scans import normalised
from domains.medical.volumes import Volume

BINS = 32
LEVELS = (4, 2, 1)
"""Spacings of the resolutions, in those of the finest."""
FINEST = 64
"""Points of the finest resolution along an axis, about."""
STEPS = 25
"""Steps of the optimiser at a resolution."""
ANGLES = (-0.35, 0.0, 0.35)
"""Rotations about each axis to start from, in radians."""
LEAST_OVERLAP = 0.2
"""Share of the points of fixed that must lie in moving."""
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TRANSFORMS = ("AffineTransform", "MatrixOffsetTransformBase")


class Alignment(NamedTuple):
    """A linear stage.

    ``matrix`` (4, 4), and the normalised mutual information of the volumes ``before`` and
    ``after``, from 1 to 2.
    """

    matrix: Matrix
    before: float
    after: float


def aligned(moving: Volume, fixed: Volume, *, rigid: bool = False) -> Alignment:
    """Align two volumes as :func:`align` does; the result is kept by the content of both files."""

    def make() -> Mapping[str, NDArray[Any]]:
        found = align(moving, fixed, rigid=rigid)
        return {"matrix": found.matrix, "figures": np.array([found.before, found.after])}

    affines = [volume.affine.tolist() for volume in (moving, fixed)]
    digests = [file_digest(volume.path) for volume in (moving, fixed)]
    kept = cached(["linear stage", 1, digests, affines, rigid], make)
    before, after = kept["figures"].tolist()
    return Alignment(np.array(kept["matrix"]), before, after)


def align(moving: Volume, fixed: Volume, *, rigid: bool = False) -> Alignment:
    """Find the linear map that makes two volumes most alike, whatever their contrasts are.

    From coarse to fine, the normalised mutual information (Studholme et al., Pattern Recognition
    1999) of smoothed intensities is maximised by L-BFGS: over rotation and translation, from the
    best of several starts, and then over all twelve parameters. The best that was seen is kept.

    Args:
        moving: the volume to be moved.
        fixed: the volume that stays.
        rigid: leave out the twelve parameters.
    """
    centre = _centre(fixed)
    extent = np.array(fixed.data.shape) * fixed.spacing
    finest = max(float(np.cbrt(extent.prod())) / FINEST, min(fixed.spacing))
    radius = float(np.cbrt(extent.prod())) / 2
    parameters = torch.zeros(12)
    for number, times in enumerate(LEVELS):
        level = _Level(moving, fixed, finest * times, centre, radius)
        if number == 0:
            parameters = _start(level, _centre(moving) - centre)
        parameters = _climb(level, parameters, rigid=True)
        if not rigid and times < LEVELS[0]:
            parameters = _climb(level, parameters, rigid=False)
    before = float(level.information(torch.zeros(12)))
    after = float(level.information(parameters))
    if after <= before:
        return Alignment(np.eye(4), before, before)
    return Alignment(level.matrix(parameters).double().numpy(), before, after)


class _Level:
    """The volumes at one resolution, and how alike they are under parameters (12,).

    Of the parameters, all in mm at the border of the volume, nine are the logarithm of the matrix
    and three the translation of the centre of fixed.
    """

    def __init__(
        self, moving: Volume, fixed: Volume, spacing: float, centre: Matrix, radius: float
    ) -> None:
        still, affine = pooled(fixed, spacing)
        self.moving, own = pooled(moving, spacing)
        shape = still.shape[1:]
        axes = [torch.arange(side, dtype=torch.float32) for side in shape]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).view(3, -1)
        matrix = torch.tensor(affine, dtype=torch.float32)
        self.points = matrix[:3, :3] @ places + matrix[:3, 3:]  # (3, N) in the world
        self.weights = _bins(still.view(-1))  # (N, bins)
        self.into = torch.tensor(np.linalg.inv(own), dtype=torch.float32)
        self.centre = torch.tensor(centre, dtype=torch.float32)
        self.radius = radius

    def matrix(self, parameters: Tensor) -> Tensor:
        """Give the map (4, 4)."""
        turn = torch.linalg.matrix_exp(parameters[:9].view(3, 3) / self.radius)
        shift = self.centre + parameters[9:] - turn @ self.centre
        rows = torch.cat([turn, shift[:, None]], 1)
        return torch.cat([rows, torch.eye(4)[3:]])

    def information(self, parameters: Tensor) -> Tensor:
        """Give the normalised mutual information of the places that both volumes have."""
        into = self.into @ self.matrix(parameters)
        places = into[:3, :3] @ self.points + into[:3, 3:]
        sides = places.new_tensor(self.moving.shape[1:])[:, None]
        inside = ((places >= -0.5) & (places <= sides - 0.5)).all(0)
        share = inside.float().mean()
        if share < LEAST_OVERLAP:
            return share.new_zeros(()) + 0 * parameters.sum()
        moved = _bins(sample(self.moving, places)[0][inside])
        joint = self.weights[inside].T @ moved / inside.sum()  # (bins, bins)
        both: Tensor = (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / _entropy(joint)
        return both


def pooled(volume: Volume, spacing: float) -> tuple[Tensor, Matrix]:
    """Average voxels to about a spacing in mm; ``(1, I, J, K)`` in [0, 1] and its affine."""
    sides = zip(volume.spacing, volume.data.shape, strict=True)
    times = [max(1, min(round(spacing / side), count // 4)) for side, count in sides]
    data = torch.from_numpy(normalised(volume.data, "percentile"))
    small = F.avg_pool3d(data[None], times)
    affine = volume.affine @ np.diag([*times, 1.0])
    affine[:3, 3] = volume.affine[:3] @ [*((count - 1) / 2 for count in times), 1.0]
    return small, affine


def _bins(values: Tensor) -> Tensor:
    """Spread values (N,) in [0, 1] over bins by a cubic B-spline: (N, bins)."""
    place = values.clamp(0, 1) * (BINS - 5) + 2
    apart = (place[:, None] - torch.arange(BINS)).abs()
    near = 2 / 3 + (apart / 2 - 1) * apart.square()
    return torch.where(apart < 1, near, (2 - apart).clamp_min(0).pow(3) / 6)


def _entropy(shares: Tensor) -> Tensor:
    found: Tensor = -torch.special.xlogy(shares, shares.clamp_min(1e-12)).sum()
    return found


def _centre(volume: Volume) -> Matrix:
    """Give the centre of mass (3,) in the world."""
    weight = normalised(volume.data, "percentile").astype(np.float64)
    total = weight.sum()
    place = [
        float(weight.sum(tuple({0, 1, 2} - {axis})) @ np.arange(count)) / total
        for axis, count in enumerate(weight.shape)
    ]
    centre: Matrix = volume.affine[:3] @ [*place, 1.0]
    return centre


def _start(level: _Level, shift: Matrix) -> Tensor:
    """Choose where to begin: where the files say or centre on centre, turned about each axis."""
    starts = []
    for offset in (np.zeros(3), shift):
        for axis in range(3):
            for angle in ANGLES:
                turn = torch.zeros(3, 3)
                a, b = (axis + 1) % 3, (axis + 2) % 3
                turn[a, b], turn[b, a] = -angle * level.radius, angle * level.radius
                starts.append(torch.cat([turn.view(-1), torch.tensor(offset).float()]))
    with torch.no_grad():
        return max(starts, key=lambda start: float(level.information(start)))


def _climb(level: _Level, parameters: Tensor, *, rigid: bool) -> Tensor:
    """Improve the parameters; the best that was seen is given back."""
    best, highest = parameters, float(level.information(parameters))
    free = torch.zeros(6 if rigid else 12, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [free], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def changed() -> Tensor:
        if not rigid:
            return parameters + free
        x, y, z = free[:3]
        none = torch.zeros(())
        turn = torch.stack([none, -z, y, z, none, -x, -y, x, none])
        return parameters + torch.cat([turn, free[3:]])

    def closure() -> Tensor:
        nonlocal best, highest
        optimiser.zero_grad()
        now = changed()
        information = level.information(now)
        if information.item() > highest:
            best, highest = now.detach().clone(), information.item()
        loss: Tensor = -100 * information
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return best


def write_itk(path: Path, matrix: Matrix) -> None:
    """Write a map as a text file of ITK, which antsApplyTransforms and SimpleITK read."""
    turned = LPS @ matrix @ LPS
    numbers = " ".join(f"{value:.17g}" for value in [*turned[:3, :3].flat, *turned[:3, 3]])
    write_atomic(
        path,
        "#Insight Transform File V1.0\n#Transform 0\n"
        f"Transform: AffineTransform_double_3_3\nParameters: {numbers}\nFixedParameters: 0 0 0\n",
    )


def read_itk(path: Path) -> Matrix:
    """Read a map from a text file of ITK.

    Raises:
        UserError: if it is another file, of several transforms, or of a kind without a matrix.
    """
    text = read_text(path)
    kinds = re.findall(r"^Transform:\s*(\w+?)_(?:double|float)_3_3\s*$", text, re.MULTILINE)
    rows = {
        name: re.findall(rf"^{name}:\s*(.*)$", text, re.MULTILINE)
        for name in ("Parameters", "FixedParameters")
    }
    if len(kinds) != 1 or any(len(found) != 1 for found in rows.values()):
        raise UserError(f"{path}: is not a text file of ITK with one transform in three dimensions")
    if kinds[0] not in _TRANSFORMS:
        raise UserError(
            f"{path}: is a {kinds[0]}; give a matrix ({' or '.join(_TRANSFORMS)}), as"
            " antsRegistration writes after ConvertTransformFile"
        )
    try:
        numbers = np.array(rows["Parameters"][0].split(), float)
        centre = np.array(rows["FixedParameters"][0].split(), float)
        turn, shift = numbers[:9].reshape(3, 3), numbers[9:]
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn, shift + centre - turn @ centre
    except ValueError:
        raise UserError(f"{path}: does not have 12 parameters and 3 fixed ones") from None
    if not np.isfinite(matrix).all() or np.linalg.det(turn) <= 0:
        raise UserError(f"{path}: mirrors or flattens space; give another transform")
    found: Matrix = LPS @ matrix @ LPS
    return found
