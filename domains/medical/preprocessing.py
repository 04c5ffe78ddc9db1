"""The preprocessing of a network of registration: it reads two files and writes a folder."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import UserError
from domains.medical.fields import (
    Field,
    Matrix,
    composed,
    field_of,
    inverse_residual,
    inverted,
    resample,
    write_field,
)
from domains.medical.judged_pair import judged
from domains.medical.linear import aligned, pooled_to, read_itk, write_itk
from domains.medical.pairs import padded
from domains.medical.refine import flow_from, refined
from domains.medical.scans import Grid, Normalise, cubic, grid_of, normalised
from domains.medical.volumes import (
    SUFFIXES,
    Volume,
    on_grid,
    placed_as,
    read_labels,
    read_volume,
    write_volume,
)

Affine = Literal["auto", "none", "centre"]
AFFINES = get_args(Affine)
MEMORY_SIDE = 2.0
"""The spacing, in mm, that is offered when memory is short."""


@dataclass(frozen=True)
class RegistrationFiles:
    """What a network of registration needs besides itself; it travels in ``model/``.

    Attributes:
        affine: the linear stage before the network: ``auto`` finds one, ``none`` takes the world of
            both files, ``centre`` lays the middles of both grids onto each other.
        spacing: side of a voxel of the network's grid, in mm; None takes cubes of the fixed
            volume's own size.
        divisor: of the sides of the network's grid.
        normalise: of the intensities, to [0, 1].
    """

    affine: Affine = "auto"
    spacing: float | None = None
    divisor: int = 1
    normalise: Normalise = "minmax"

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    inputs: ClassVar[tuple[str, ...]] = ("moving", "fixed")
    beside_inputs: ClassVar[tuple[str, ...]] = ("moving_labels", "fixed_labels", "mask")
    result: ClassVar[str] = "/"
    options: ClassVar[Mapping[str, str]] = {
        "moving_labels": "label map of the moving volume, to be warped too",
        "fixed_labels": "label map of the fixed volume, for the overlap after and before",
        "mask": "volume on the grid of the fixed one: where it is above 0, scores count",
        "affine": "linear stage: auto, none, centre (middles onto each other), or a text file of"
        " ITK",
        "spacing": "side of the voxels that the network sees, in mm; 2 saves memory",
        "refine": "steps of an optimisation of the field itself, such as 50",
    }

    def to_json(self) -> dict[str, Any]:
        """Give plain values, from which :meth:`from_json` rebuilds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "RegistrationFiles":
        """Rebuild from what :meth:`to_json` gave.

        Raises:
            UserError: if it is of another form.
        """
        try:
            found = cls(**mapping)
            fit = found.affine in AFFINES and found.normalise in get_args(Normalise)
            fit = fit and int(found.divisor) >= 1 and float(found.spacing or 1) > 0
        except (TypeError, ValueError) as error:
            raise UserError(f"preprocessing.json: not that of registration ({error})") from None
        if not fit:
            raise UserError(f"preprocessing.json: not that of registration ({dict(mapping)})")
        return found

    def predict_files(
        self,
        network: nn.Module,
        inputs: Mapping[str, Path],
        output: Path,
        plot: Path | None = None,
        **options: str,
    ) -> str:
        """Register two volumes.

        Args:
            network: maps moving and fixed (1, 1, D, H, W) to a ``RegistrationOutput``.
            inputs: the files of ``moving`` and ``fixed``.
            output: a folder: ``warped.nii.gz`` on the grid of fixed; ``displacement`` there, and
                ``inverse_displacement`` on the grid of moving, as ``.nii.gz`` in mm and ``.npz`` in
                voxels; ``affine.txt`` of the linear stage, if there is one; ``warped_labels.nii.gz``
                of labels; ``scores.csv`` and ``scores.json``; ``registration.png``.
            plot: a PNG in place of the last.
            options: of :attr:`options`.

        Returns:
            One line about what was done.

        Raises:
            UserError: if a file cannot be read or does not fit the others, or an option is wrong.
        """
        steps = _count("refine", options.get("refine", "0"))
        spacing = _spacing(options.get("spacing"), self.spacing)
        given = {name: options.get(name) for name in self.beside_inputs}
        moving, fixed = read_volume(inputs["moving"]), read_volume(inputs["fixed"])
        moving_labels, fixed_labels, mask = (
            read_labels(path) if path else None for path in given.values()
        )
        if not (moving.placed and fixed.placed):
            moving = placed_as(moving, fixed)
        if moving_labels is not None:
            moving_labels = on_grid(moving_labels, moving, "label map")
        if fixed_labels is not None:
            fixed_labels = on_grid(fixed_labels, fixed, "label map")
        mask = None if mask is None else on_grid(mask, fixed, "mask")
        volumes = (moving, fixed, moving_labels, fixed_labels, mask)
        told = [f"{v.path.name}: {note}" for v in volumes if v is not None for note in v.repairs]

        matrix, how = self._linear(moving, fixed, options.get("affine", self.affine))
        told.append(how)
        pair = _Pair(moving, fixed, mask, matrix, spacing, self)
        told.extend(pair.notes)
        try:
            forward, backward, notes = pair.registered(network, steps)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise UserError(
                f"{fixed.path}: the memory does not hold {' x '.join(map(str, pair.shape))}"
                f" voxels; give --spacing={max(MEMORY_SIDE, 1.5 * pair.grid.spacing[0]):g}"
            ) from None
        told.extend(notes)

        output.mkdir(exist_ok=True)
        grids = _grid(fixed), _grid(moving)
        field = composed(forward, grids[0], after=matrix)
        write_field(output / "displacement.nii.gz", field, fixed)
        write_field(output / "displacement.npz", field, fixed)
        warped = _warped(moving, field)
        write_volume(output / "warped.nii.gz", warped, fixed, moving.dtype)
        labels = None
        if moving_labels is not None:
            labels = warped_labels(moving_labels, field)
            write_volume(
                *(output / "warped_labels.nii.gz", labels, fixed, moving_labels.dtype), labels=True
            )
        scores = judged(
            *((moving, fixed), (moving_labels, fixed_labels), mask, field, (warped, labels)),
            self.normalise,
            output,
            plot or output / "registration.png",
        )
        back = composed(backward, grids[1], before=np.linalg.inv(matrix))
        write_field(output / "inverse_displacement.nii.gz", back, moving)
        write_field(output / "inverse_displacement.npz", back, moving)
        if not np.array_equal(matrix, np.eye(4)):
            write_itk(output / "affine.txt", matrix)
        return "; ".join([f"{output}: {scores}", *told])

    def _linear(self, moving: Volume, fixed: Volume, asked: str) -> tuple[Matrix, str]:
        """Give the matrix of the linear stage, and say where it comes from."""
        if asked == "none":
            return np.eye(4), "no linear stage"
        if asked == "centre":
            ends = [
                volume.affine[:3] @ [*((side - 1) / 2 for side in volume.data.shape), 1.0]
                for volume in (moving, fixed)
            ]
            matrix = np.eye(4)
            matrix[:3, 3] = ends[0] - ends[1]
            return matrix, "the middles laid onto each other"
        if asked == "auto":
            found = aligned(moving, fixed)
            figures = f"mutual information {found.before:.3f} to {found.after:.3f}"
            return found.matrix, f"linear stage: {figures}"
        if not Path(asked).is_file():
            raise UserError(f"--affine={asked}: give {', '.join(AFFINES)}, or a file that exists")
        return read_itk(Path(asked)), f"linear stage of {asked}"


class _Pair:
    """A pair on the grid of the network.

    Attributes:
        grid: that grid, without what is filled up.
        shape: of its volumes, filled up at the ends to multiples of the divisor.
        notes: what was done to it.
    """

    def __init__(
        self,
        moving: Volume,
        fixed: Volume,
        mask: Volume | None,
        matrix: Matrix,
        spacing: float | None,
        files: RegistrationFiles,
    ) -> None:
        self.grid = cubic(_grid(fixed), spacing)
        self.shape = padded(self.grid.shape, files.divisor)
        self.notes: list[str] = []
        if self.grid.shape != fixed.data.shape:
            sides = " x ".join(map(str, self.grid.shape))
            self.notes.append(f"registered at {self.grid.spacing[0]:.3g} mm ({sides} voxels)")
        into = np.linalg.inv(matrix)
        self.moving = self._brought(moving, into @ moving.affine, into, files.normalise)
        self.fixed = self._brought(fixed, fixed.affine, np.eye(4), files.normalise)
        self.mask = None
        if mask is not None:
            inside = torch.from_numpy((mask.data > 0).astype(np.float32))[None]
            self.mask = self._filled(resample(inside, mask.affine, self.grid, mode="nearest"))

    def _brought(
        self, volume: Volume, affine: Matrix, into: Matrix, normalise: Normalise
    ) -> Tensor:
        data = normalised(volume.data, normalise)
        small, own = pooled_to(data, volume, float(self.grid.spacing[0]))
        return self._filled(resample(small, into @ own, self.grid).clamp(0, 1))

    def _filled(self, values: Tensor) -> Tensor:
        filled = values.new_zeros(1, 1, *self.shape)
        i, j, k = self.grid.shape
        filled[0, :, :i, :j, :k] = values
        return filled

    def registered(self, network: nn.Module, steps: int) -> tuple[Field, Field, list[str]]:
        """Give the field and its inverse on the grid, and say how they were found."""
        device = next((each.device for each in network.parameters()), torch.device("cpu"))
        moving, fixed = self.moving.to(device), self.fixed.to(device)
        mask = None if self.mask is None else self.mask.to(device)
        with torch.inference_mode():
            found = network(moving, fixed)
        squarings = int(getattr(network, "int_steps", 0)) if found.velocity is not None else 0
        official = getattr(network, "sampling", "corners") == "official"
        start = found.velocity if squarings and not official else _true(found.flow, official)
        start, squarings = start.clone(), 0 if official else squarings
        notes = []
        if steps:
            start, told = refined(moving, fixed, start, steps, squarings=squarings, mask=mask)
            notes.append(told)
        with torch.inference_mode():
            forward = self._field(flow_from(start, fixed.shape[2:], squarings))
            if squarings:
                backward = self._field(flow_from(-start, fixed.shape[2:], squarings))
                residual, how = inverse_residual(forward, backward), "exp(-v)"
            else:
                (backward, residual), how = inverted(forward), "fixed point"
        notes.append(f"inverse by {how}, off by at most {residual:.3f} voxels")
        return forward, backward, notes

    def _field(self, flow: Tensor) -> Field:
        i, j, k = self.grid.shape
        return field_of(flow[0, :, :i, :j, :k].float().cpu(), self.grid)


def warped_labels(labels: Volume, field: Field) -> Any:
    """Bring labels through a field; each voxel takes the nearest label, outside it is 0."""
    values = torch.from_numpy(labels.data.astype(np.int64))[None]
    return resample(values, labels.affine, field.grid, field=field, mode="nearest")[0].numpy()


def _warped(moving: Volume, field: Field) -> Any:
    values = torch.from_numpy(moving.data)[None]
    outside = float(moving.data.min())
    return resample(values, moving.affine, field.grid, field=field, outside=outside)[0].numpy()


def _true(flow: Tensor, official: bool) -> Tensor:
    """Give the displacements that a network's sampling really does, see ``MIDIR.sampling``."""
    if not official:
        return flow
    axes = [torch.arange(side, device=flow.device) / (side - 1) - 0.5 for side in flow.shape[2:]]
    return flow + torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _grid(volume: Volume) -> Grid:
    return grid_of(volume.affine, volume.data.shape)


def _count(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--{name}={text}: give a whole number, such as 50")
    return int(text)


def _spacing(text: str | None, known: float | None) -> float | None:
    if text is None:
        return known
    try:
        side = float(text)
    except ValueError:
        side = math.nan
    if not 0.1 <= side <= 20:
        raise UserError(f"--spacing={text}: give mm from 0.1 to 20, such as {MEMORY_SIDE:g}")
    return side


def fitted(files: RegistrationFiles, network: nn.Module) -> RegistrationFiles:
    """Give the preprocessing for a network, whose ``divisor`` it takes."""
    return replace(files, divisor=int(getattr(network, "divisor", 1)))
