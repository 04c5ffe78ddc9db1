"""A user's own scans, bound to no benchmark."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from core.errors import UserError
from core.split_plan import PARTS, Split
from core.splits import split
from domains.medical.baselines import SyNMetric
from domains.medical.data import PairData, fingerprint_of
from domains.medical.linear import aligned
from domains.medical.scan_files import Found, find_scans, stem_of
from domains.medical.scan_pairs import EveryPair, ScanPairs, in_a_ring
from domains.medical.scans import Grid, Scan, Survey, cubic, grid_of, survey
from domains.medical.volumes import read_volume

LARGE = 3_000_000
"""Voxels from which on larger ones are advised."""
MANY = 20
"""Scans from which on a bar shows how many were read."""


class OwnRegistrationData(PairData):
    """Your own scans: every one to every other, to an atlas, within a subject, or as a CSV lists.

    Moving is resampled onto the grid of fixed, in the world that the affines of both files name,
    once; it lies in the cache folder then.

    Args:
        train: a folder of scans, with label maps of the same name in a folder ``labels`` beside
            ``images``, or ``NAME_seg`` beside ``NAME``; or a CSV with the columns ``moving`` and
            ``fixed``, or ``image``, and perhaps ``labels``, ``mask`` (``moving_labels``, ...) and
            others to split by.
        val: the same for validation; without it scans of ``train`` are taken.
        test: the same for the test.
        atlas: a scan that all others are registered to; its label map is ``atlas_labels``.
        atlas_labels: the label map of the atlas.
        atlas_moves: register the atlas to each scan instead.
        pairs: where no CSV lists pairs and there is no atlas: ``between`` all scans, or ``within``
            those of one subject, such as of two modalities or times.
        split: how ``train`` is divided where a file is not given: ``group:subject`` (the name up to
            the first ``_``, or that column), ``group:NAME``, ``column:NAME``, ``random``, or a
            ``splits.parquet`` of another run. Of a CSV of pairs, the subject is that of moving.
        val_fraction: share of scans, or listed pairs, for validation, where no file is given.
        test_fraction: share for the test, where no file is given.
        labels: the values of labels that are judged, comma-separated; None for all.
        spacing: side of the cubic voxels that volumes are resampled to, in mm; None keeps those of
            fixed, or takes cubes of their volume.
        normalise: each volume to [0, 1] by ``minmax``, or by two ``percentile`` s.
        affine: ``auto`` aligns each pair by a rigid map and then by twelve parameters, once;
            ``none`` takes the world of the files as it is.
        pairs_per_epoch: training pairs of an epoch, others each time; all, where there are fewer.
        syn: judge SyN of ANTs too, by ``meansquares`` or ``CC``, where antspyx is installed; up to
            minutes a pair.
        batch_size: pairs in a training batch, over all processes together.
        eval_batch_size: pairs in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes what is drawn; None takes the run's seed.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        atlas: str | None = None,
        atlas_labels: str | None = None,
        atlas_moves: bool = False,
        pairs: Literal["between", "within"] = "between",
        split: str = "group:subject",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        labels: str | None = None,
        spacing: float | None = None,
        normalise: Literal["minmax", "percentile"] = "percentile",
        affine: Literal["auto", "none"] = "auto",
        pairs_per_epoch: int = 200,
        syn: SyNMetric | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(syn, pairs_per_epoch, (batch_size, eval_batch_size, num_workers, seed))
        if spacing is not None and spacing <= 0:
            raise UserError(f"data.spacing={spacing} must be above 0, in mm")
        if atlas_labels is not None and atlas is None:
            raise UserError(f"data.atlas_labels={atlas_labels} needs data.atlas")
        self.files = [train, val, test]
        self.atlas = (atlas, atlas_labels)
        self.atlas_moves = atlas_moves
        self.pairs = pairs
        self.rule = split
        self.fractions = (val_fraction, test_fraction)
        self.judged = labels
        self.spacing = spacing
        self.normalise = normalise
        self.affine = affine
        self._split: Split | None = None
        self._scans: list[Scan] = []

    @property
    def facts(self) -> dict[str, Any]:
        """The file's name; no published setting."""
        return {"dataset": Path(self.files[0] or "").name, "setting": {}, "notes": self.notes}

    def keep(self, folder: Path) -> None:
        """Write which scans train, validate and test, where a folder had to be divided."""
        if self._split is not None:
            self._split.save(folder / "splits.parquet")

    def fingerprint(self) -> str:
        """Identify the scans."""
        return fingerprint_of(self._scans)

    def read(self) -> None:
        """Find, check and pair the scans."""
        found = [find_scans(Path(path)) if path else None for path in self.files]
        parts = self._divided(found)
        scans = list(dict.fromkeys(itertools.chain(*(own.scans for own in found if own))))
        number = {scan: at for at, scan in enumerate(scans)}
        atlas = None
        if self.atlas[0] is not None:
            path = Path(self.atlas[0])
            own_labels = Path(self.atlas[1]) if self.atlas[1] else None
            atlas = len(scans)
            scans.append(Scan(stem_of(path), path, own_labels))
        if sum(scan.labels is None for scan in scans) not in (0, len(scans)):
            self.notes.append("not all scans have labels: pairs without them count in no overlap")
        surveys = [
            survey(scan)
            for scan in track(
                scans,
                "reading scans",
                console=Console(stderr=True),
                transient=True,
                disable=len(scans) < MANY or not Console(stderr=True).is_terminal,
            )
        ]
        for own in surveys:
            self.notes += [repair for repair in own.repairs if repair not in self.notes]
        listed = [
            self._paired(own, number, atlas, part, number[parts[0].scans[0]])
            for own, part in zip(parts, PARTS, strict=True)
        ]
        grids = [cubic(own.grid, self.spacing) for own in surveys]
        self._tell(grids, surveys)
        self.train_set, self.val_set, self.test_set = (
            PlacedPairs(scans, own, grids, surveys, self.normalise, self.affine == "auto")
            for own in listed
        )
        self.label_names = {value: str(value) for value in self._labels(surveys)}
        self._scans = scans

    def _divided(self, found: Sequence[Found | None]) -> list[Found]:
        """Give the scans, or listed pairs, of each part."""
        first = found[0]
        assert first is not None
        shares = [
            0.0 if own else share for own, share in zip(found[1:], self.fractions, strict=True)
        ]
        if min(self.fractions) <= 0 or sum(shares) >= 1:
            raise UserError(
                f"data.val_fraction={self.fractions[0]} and data.test_fraction={self.fractions[1]}"
                " must be shares that leave scans to train on"
            )
        if not sum(shares):
            return [own for own in found if own]
        frame = pd.DataFrame(_rows(first))
        made = split(frame, self.rule, ids="id", fractions=(1 - sum(shares), shares[0], shares[1]))
        self.notes += made.notes
        self._split = made
        taken = [_taken(first, rows.tolist()) for rows in (made.train, made.val, made.test)]
        return [taken[0], found[1] or taken[1], found[2] or taken[2]]

    def _paired(
        self, found: Found, number: Mapping[Scan, int], atlas: int | None, part: str, partner: int
    ) -> Sequence[tuple[int, int]]:
        """Pair the scans of a part; its only one with a ``partner`` of training."""
        own = [number[scan] for scan in found.scans]
        pairs: Sequence[tuple[int, int]]
        if found.pairs is not None:
            pairs = [(own[moving], own[fixed]) for moving, fixed in found.pairs]
        elif atlas is not None:
            pairs = [(atlas, at) if self.atlas_moves else (at, atlas) for at in own]
        elif self.pairs == "within":
            subjects = [scan.facts["subject"] for scan in found.scans]
            pairs = [
                (own[a], own[b])
                for a, b in itertools.permutations(range(len(own)), 2)
                if subjects[a] == subjects[b]
            ]
        elif part == "train":
            pairs = EveryPair(own)
        elif len(own) == 1:
            pairs = [(own[0], partner)]
            self.notes.append(f"{part} has one scan, which is registered to one of training")
        else:
            pairs = in_a_ring(own)
        if not len(pairs):
            wanted = "two scans of one subject" if self.pairs == "within" else "two scans"
            raise UserError(
                f"{self.files[0]}: no pair is left for {part}, which needs {wanted}"
                f" (it has {len(own)}); add scans, or set data.val_fraction, data.test_fraction,"
                " data.atlas or data.split"
            )
        return pairs

    def _labels(self, surveys: Sequence[Survey]) -> list[int]:
        """Give the labels that are judged."""
        there = sorted({value for own in surveys for value in own.labels})
        if self.judged is None:
            return there
        try:
            wanted = [int(word) for word in self.judged.split(",")]
        except ValueError:
            raise UserError(
                f"data.labels={self.judged}: write whole numbers, such as 17,53"
            ) from None
        if lacking := [value for value in wanted if value not in there]:
            raise UserError(
                f"data.labels={self.judged}: no label map holds {lacking[0]}; they hold"
                f" {', '.join(map(str, there)) or 'none'}"
            )
        return wanted

    def _tell(self, grids: Sequence[Grid], surveys: Sequence[Survey]) -> None:
        """Say what becomes of voxels that are not cubes, and of very many."""
        changed = [own for own, new in zip(surveys, grids, strict=True) if own.grid != new]
        if changed and self.spacing is None:
            sides = " x ".join(f"{side:.3g}" for side in changed[0].grid.spacing)
            self.notes.append(
                f"{len(changed):,} scans have voxels that are not cubes, such as {sides} mm: they"
                " are resampled to cubes of the same volume; data.spacing sets another"
            )
        if self.affine == "auto":
            self.notes.append(
                "each pair is aligned linearly when it is first read, and that is kept;"
                " --data.affine=none leaves it out"
            )
        largest = max(int(np.prod(grid.shape)) for grid in grids)
        if largest > LARGE:
            self.notes.append(
                f"volumes of up to {largest:,} voxels need much memory; --data.spacing=2 takes"
                " voxels of 2 mm"
            )


class PlacedPairs(ScanPairs):
    """Pairs in one world; files that do not say where they lie are laid voxel onto voxel.

    Args:
        scans: all of them.
        pairs: numbers of moving and fixed.
        grids: of each scan, where it is fixed.
        surveys: of each scan.
        normalise: see :func:`domains.medical.scans.placed`.
        linear: align each pair first, when it is read; what was found is kept.

    Raises:
        UserError: if such files have different shapes.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        pairs: Sequence[tuple[int, int]],
        grids: Sequence[Grid],
        surveys: Sequence[Survey],
        normalise: Literal["minmax", "percentile"],
        linear: bool = False,
    ) -> None:
        super().__init__(scans, pairs, grids, normalise=normalise)
        self.surveys = surveys
        self.linear = linear
        if all(own.placed for own in surveys):
            return
        for moving, fixed in pairs:
            one, other = surveys[moving], surveys[fixed]
            if not (one.placed and other.placed) and one.native_shape != other.native_shape:
                missing = moving if not one.placed else fixed
                raise UserError(
                    f"{scans[missing].image}: does not say where it lies, and"
                    f" {scans[moving].image} and {scans[fixed].image} have"
                    f" {_times(one.native_shape)} and {_times(other.native_shape)} voxels; give"
                    " files with an affine"
                )

    def there(self, moving: int, fixed: int) -> Grid:
        """Give the grid of fixed in the world of moving."""
        one, other, grid = self.surveys[moving], self.surveys[fixed], self.grids[fixed]
        if self.linear:
            across = _aligned(self.scans[moving], self.scans[fixed])
            return grid_of(across @ grid.matrix, grid.shape)
        if one.placed and other.placed:
            return grid
        across = np.array(one.native) @ np.linalg.inv(np.array(other.native))
        return grid_of(across @ grid.matrix, grid.shape)


@lru_cache(maxsize=4096)
def _aligned(moving: Scan, fixed: Scan) -> NDArray[np.float64]:
    found = aligned(read_volume(moving.image), read_volume(fixed.image)).matrix
    return found.astype(np.float64)


def _rows(found: Found) -> list[dict[str, str]]:
    """Give what a split may go by, one row a pair or scan."""
    if found.pairs is None:
        return [{**scan.facts, "id": scan.id} for scan in found.scans]
    return [
        {**facts, "id": f"{found.scans[moving].id} to {found.scans[fixed].id}"}
        for facts, (moving, fixed) in zip(found.facts, found.pairs, strict=True)
    ]


def _taken(found: Found, rows: Sequence[int]) -> Found:
    """Give the pairs, or scans, of some rows."""
    if found.pairs is None:
        return Found([found.scans[row] for row in rows])
    return found._replace(pairs=[found.pairs[row] for row in rows])


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
