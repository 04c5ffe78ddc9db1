"""Pairs of volumes of benchmark sets, and pairs made by random warps."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import data as catalogue
from core.array_cache import cached
from core.batch_plan import BatchPlan, Plan
from core.data_module import Baseline, DataModule
from core.errors import UserError
from core.splits import split
from domains.medical import pictures
from domains.medical.baselines import Identity, SyN, SyNMetric, syn_missing
from domains.medical.pairs import Collate, Pair, padded
from domains.medical.preprocessing import Affine, RegistrationFiles
from domains.medical.scan_pairs import EveryPair, ScanPairs, in_a_ring
from domains.medical.scans import Normalise, Scan, centred, survey
from domains.medical.synthetic import HELD_OUT, WarpedPairs
from domains.medical.volumes import read_labels, read_volume

_PARTS = (0.7, 0.1, 0.2)
"""Shares of the patients of a benchmark set without a published split."""


class PairData(DataModule):
    """What all data of pairs share.

    A subclass sets the three data sets and ``label_names`` in :meth:`read`; what it does to files
    before stands in ``affine``, ``spacing`` and ``normalise``.

    Args:
        syn: judge SyN of ANTs too, by this metric, where antspyx is installed.
        draw: pairs of an epoch; None takes all.
        loader: batch_size, eval_batch_size, num_workers and seed.
    """

    train_set: Dataset[Pair]  # type: ignore[assignment]
    val_set: Dataset[Pair]  # type: ignore[assignment]
    test_set: Dataset[Pair]  # type: ignore[assignment]
    affine: Affine = "none"
    spacing: float | None = None
    normalise: Normalise = "minmax"

    def __init__(
        self, syn: SyNMetric | None, draw: int | None, loader: tuple[int, int, int, int | None]
    ) -> None:
        super().__init__(*loader)
        self.syn = syn
        self.draw = draw
        self.collate: Collate = Collate()
        self.label_names: dict[int, str] = {}
        self.notes: list[str] = []
        self._ready = False

    def read(self) -> None:
        """Set ``train_set``, ``val_set``, ``test_set`` and ``label_names``."""
        raise NotImplementedError(f"{type(self).__name__} must define read()")

    def setup(self, stage: str | None = None) -> None:
        """Find and check every volume; done once.

        Raises:
            UserError: naming the file that does not fit.
        """
        if not self._ready:
            self.read()
            if self.syn and syn_missing():
                self.notes.append("no SyN: antspyx is not installed; pip install 'pleiad[peers]'")
            self._ready = True

    def check(self, network: nn.Module) -> None:
        """Pad volumes to what the network divides, and say so."""
        self.collate.divisor = int(getattr(network, "divisor", 1))
        size = self._size()
        if (wanted := padded(size, self.collate.divisor)) != size:
            told = (" x ".join(map(str, each)) for each in (size, wanted))
            self.notes.append(
                f"volumes of {' voxels are filled up to '.join(told)}, multiples of"
                f" {self.collate.divisor}, for the network"
            )

    @property
    def preprocessing(self) -> Any:
        """How a pair of files is brought to the network."""
        if not self._ready:
            return None
        return RegistrationFiles(self.affine, self.spacing, self.collate.divisor, self.normalise)

    def plan(self) -> Plan:
        """Draw some of the pairs for each epoch, where there are more."""
        try:
            count = len(self.train_set)  # type: ignore[arg-type]
            draw = None if self.draw is None or self.draw >= count else self.draw
            return BatchPlan(count, self.batch_size, draw=draw)
        except ValueError as error:
            raise UserError(f"data: {error}") from None

    def summary(self) -> list[str]:
        """Say what was read and what is made of it."""
        self.setup()
        counts = ", ".join(
            f"{len(part):,} for {what}"  # type: ignore[arg-type]
            for part, what in (
                (self.train_set, "training"),
                (self.val_set, "validation"),
                (self.test_set, "the test"),
            )
        )
        size = " x ".join(map(str, self._size()))
        lines = [f"pairs: {counts}; {size} voxels"]
        if self.label_names:
            names = list(self.label_names.values())
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            lines.append(f"{len(names)} labels: {shown}")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def baselines(self) -> dict[str, Baseline]:
        """Give the volumes as they come, and SyN where it is asked for."""
        found: dict[str, Baseline] = {"identity": Identity()}
        if self.syn and not syn_missing():
            found["SyN"] = SyN(self.syn)
        return found

    def pictures(self, predictions: Path, folder: Path) -> list[Path]:
        """Draw volumes, displacements and scores."""
        return pictures.draw(predictions, folder, list(self.label_names.values()))

    def _size(self) -> list[int]:
        """Give the largest sides of the test's volumes."""
        return list(self.test_set[0].fixed.shape)


class RegistrationData(PairData):
    """Pairs of different patients of a benchmark set; the patients of the test are held out.

    ``hippocampus``: crops of 1 mm around one hippocampus with two labels, aligned by their middles.
    The set names no patients, but numbers 2 n - 1 and 2 n are one patient's: their intensities
    agree, and their labels overlap by 0.70 where those of other neighbours do by 0.55. Patients are
    divided by a hash, 70, 10 and 20 of 100. Training draws from all pairs of crops; each crop of
    validation and test is registered to one other, of another patient.

    Args:
        dataset: the set.
        pairs_per_epoch: training pairs of an epoch, others each time.
        normalise: each volume to [0, 1] by ``minmax``, or by two ``percentile`` s.
        syn: judge SyN of ANTs too, by ``meansquares`` or ``CC``, where antspyx is installed; up to
            minutes a pair.
        batch_size: pairs in a training batch, over all processes together.
        eval_batch_size: pairs in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes what is drawn; None takes the run's seed.
    """

    linked: ClassVar[tuple[str, ...]] = ("size",)

    def __init__(
        self,
        dataset: Literal["hippocampus"] = "hippocampus",
        pairs_per_epoch: int = 200,
        normalise: Literal["minmax", "percentile"] = "minmax",
        syn: SyNMetric | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(syn, pairs_per_epoch, (batch_size, eval_batch_size, num_workers, seed))
        self.dataset = dataset
        self.normalise = normalise
        self.affine = "centre"
        self.spacing = 1.0
        self.patients: dict[str, list[str]] = {}
        self._scans: list[Scan] = []

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """State the sides of the volumes for a network that has learnt positions."""
        ranges = catalogue.entry(config.get("dataset", "hippocampus")).facts["size_range"]
        return {"size": padded([high for _, high in ranges], 32)}

    @property
    def facts(self) -> dict[str, Any]:
        """The set, its setting, licence and citation."""
        entry = catalogue.entry(self.dataset)
        return {
            "dataset": self.dataset,
            "setting": {"pairs": "inter-patient"},
            "licence": entry.licence,
            "citation": entry.citation,
            "notes": self.notes,
        }

    def read(self) -> None:
        """Find the patients, divide them and pair them."""
        entry = catalogue.entry(self.dataset)
        folder = catalogue.locate(self.dataset)
        scans = [
            Scan(path.name.removesuffix(".nii.gz"), path, folder / "labelsTr" / path.name)
            for path in sorted((folder / "imagesTr").glob("*.nii.gz"))
        ]
        high, wide, deep = (most for _, most in entry.facts["size_range"])
        grids = [centred(survey(scan).grid, (high, wide, deep)) for scan in scans]
        numbers = [int(scan.id.rpartition("_")[2]) for scan in scans]
        frame = pd.DataFrame(
            {"id": [scan.id for scan in scans], "patient": [(n + 1) // 2 for n in numbers]}
        )
        made = split(frame, "group:patient", ids="id", fractions=_PARTS)
        parts = [
            sorted(rows.tolist(), key=lambda row: (-(numbers[row] % 2), row))  # odd ones first
            for rows in (made.train, made.val, made.test)
        ]
        pairs: list[Sequence[tuple[int, int]]] = [EveryPair(parts[0])]
        pairs += [in_a_ring(part) for part in parts[1:]]
        self.train_set, self.val_set, self.test_set = (
            ScanPairs(scans, own, grids, normalise=self.normalise) for own in pairs
        )
        self.label_names = {
            value: name for value, name in enumerate(entry.facts["classes"]) if value
        }
        self._scans = scans

    def fingerprint(self) -> str:
        """Identify the scans."""
        return fingerprint_of(self._scans)


class WarpData(PairData):
    """One scan of a benchmark set and its own random warps, so that only the warp is to be found.

    The scan is resampled to a cube. Moving is the scan warped by the exponential of a velocity,
    linear between control points of a normal distribution; fixed is the scan. Training draws new
    warps in every epoch; those of validation and test never change.

    Args:
        dataset: ``voxelmorph``, a T1 scan of a brain with 30 judged labels.
        side: of the cube, in voxels.
        points: control points along an axis.
        amplitude: their standard deviation, in voxels.
        warps_per_epoch: training pairs of an epoch.
        val_warps: pairs of the validation.
        test_warps: pairs of the test.
        syn: judge SyN of ANTs too, by ``meansquares`` or ``CC``, where antspyx is installed; up to
            minutes a pair.
        batch_size: pairs in a training batch, over all processes together.
        eval_batch_size: pairs in a batch of validation and test; never changes a result.
        num_workers: processes that load data; never changes a result.
        seed: fixes what is drawn for training; None takes the run's seed.
    """

    linked: ClassVar[tuple[str, ...]] = ("size",)

    def __init__(
        self,
        dataset: Literal["voxelmorph"] = "voxelmorph",
        side: int = 32,
        points: int = 5,
        amplitude: float = 2.0,
        warps_per_epoch: int = 100,
        val_warps: int = 4,
        test_warps: int = 4,
        syn: SyNMetric | None = None,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(syn, None, (batch_size, eval_batch_size, num_workers, seed))
        if side < 8 or points < 2 or amplitude < 0:
            raise UserError(
                f"data.side={side} must be at least 8, data.points={points} at least 2 and"
                f" data.amplitude={amplitude} not below 0"
            )
        if min(warps_per_epoch, val_warps, test_warps) < 1:
            raise UserError("data.warps_per_epoch, val_warps and test_warps must be at least 1")
        self.dataset = dataset
        self.side = side
        self.points = points
        self.amplitude = amplitude
        self.counts = {"train": warps_per_epoch, "val": val_warps, "test": test_warps}

    @classmethod
    def sizes(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """State the side for a network that has learnt positions."""
        return {"size": padded([int(config.get("side", 32))], 32)[0]}

    @property
    def facts(self) -> dict[str, Any]:
        """The set, its setting, licence and citation."""
        entry = catalogue.entry(self.dataset)
        return {
            "dataset": self.dataset,
            "setting": {"warps": f"{self.points}^3 of {self.amplitude:g}", "side": self.side},
            "licence": entry.licence,
            "citation": entry.citation,
            "notes": self.notes,
        }

    def read(self) -> None:
        """Read the scan and draw the warps that are held out."""
        volume, labels, spacing, values = cube(catalogue.locate(self.dataset), self.side)
        same: dict[str, Any] = {"points": self.points, "amplitude": self.amplitude}
        self.train_set, self.val_set, self.test_set = (
            WarpedPairs(*(volume, labels, spacing, count), seed=HELD_OUT.get(part), **same)
            for part, count in self.counts.items()
        )
        self.label_names = {value: str(value) for value in values}

    def fingerprint(self) -> str:
        """Identify the scan and how it is warped."""
        return repr(sorted(self.facts["setting"].items())) + self.dataset


@lru_cache(maxsize=1)
def cube(folder: Path, side: int) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Read VoxelMorph's scan on a cube of ``side`` voxels, in [0, 1], corner onto corner.

    Returns:
        the scan and its labels (side, side, side), its spacing (3,) and the judged labels.
    """
    path = folder / "test_scan.npz"

    def make() -> dict[str, Any]:
        image, labels = read_volume(path), read_labels(path)
        whole = torch.from_numpy(image.data)[None, None]
        small = F.interpolate(whole, (side,) * 3, mode="trilinear", align_corners=True)[0, 0]
        small = (small - small.min()) / (small.max() - small.min())
        coarse = F.interpolate(
            torch.from_numpy(labels.data.astype(np.float32))[None, None], (side,) * 3
        )[0, 0]
        sides = (np.array(whole.shape[2:]) - 1) / (side - 1) * image.spacing
        return {"image": small.numpy(), "labels": coarse.numpy().astype(np.int64), "sides": sides}

    stat = path.stat()
    found = cached(["cube of a scan", 1, str(path), stat.st_mtime_ns, stat.st_size, side], make)
    with np.load(folder / "labels.npz", allow_pickle=False) as judged:
        values = tuple(int(value) for value in judged["labels"])
    return (
        torch.from_numpy(found["image"]),
        torch.from_numpy(found["labels"]),
        torch.from_numpy(found["sides"]).float(),
        values,
    )


def fingerprint_of(scans: Sequence[Scan]) -> str:
    """Identify scans by the names, sizes and times of their files."""
    return hashlib.sha256(repr([scan.stamps for scan in scans]).encode()).hexdigest()[:32]
