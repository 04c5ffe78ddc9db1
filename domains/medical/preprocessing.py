"""The preprocessing of a network of registration: it reads two files and writes a folder."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from torch import nn

from core.errors import UserError
from domains.medical.fields import Matrix, composed, warped_image, warped_labels, write_field
from domains.medical.linear import aligned, read_itk, write_itk
from domains.medical.pair_on_grid import PairOnGrid, both_ways
from domains.medical.pair_scores import in_words, judged, judged_labels, write_scores
from domains.medical.pictures import draw_pair
from domains.medical.scans import Normalise
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
                voxels; ``affine.txt``, the linear stage; ``warped_labels.nii.gz``; ``scores.csv``
                and ``scores.json``; ``registration.png``.
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
        try:
            pair = PairOnGrid(
                *(moving, fixed, mask, matrix),
                spacing=spacing,
                divisor=math.lcm(self.divisor, int(getattr(network, "divisor", 1))),
                normalise=self.normalise,
            )
            answer = pair.answer(network, steps)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise UserError(
                f"{fixed.path}: the memory does not hold its {fixed.data.size:,} voxels; give"
                f" --spacing={MEMORY_SIDE:g}, or more than the spacing now"
            ) from None
        told += [*pair.told(fixed), *answer.notes]

        output.mkdir(exist_ok=True)
        forward, backward = both_ways(answer, moving, fixed, matrix)
        warped = warped_image(moving, forward)
        write_volume(output / "warped.nii.gz", warped, fixed, moving.dtype)
        scores = judged(pair, answer.forward)
        if moving_labels is not None:
            labels = warped_labels(moving_labels, forward)
            write_volume(
                *(output / "warped_labels.nii.gz", labels, fixed, moving_labels.dtype), labels=True
            )
            if fixed_labels is not None:
                before = warped_labels(moving_labels, composed(None, forward.grid, after=matrix))
                scores |= judged_labels((labels, before), fixed_labels)
        for name, field, like in (("", forward, fixed), ("inverse_", backward, moving)):
            write_field(output / f"{name}displacement.nii.gz", field, like)
            write_field(output / f"{name}displacement.npz", field, like)
        if not np.array_equal(matrix, np.eye(4)):
            write_itk(output / "affine.txt", matrix)
        write_scores(output, scores)
        draw_pair(
            pair.batch(),
            pair.padded_flow(answer.forward),
            plot or output / "registration.png",
            f"{moving.path.name} to {fixed.path.name}",
        )
        return "; ".join([f"{output}: {in_words(scores)}", *told])

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
