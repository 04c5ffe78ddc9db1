"""What stands beside a network: the volumes as they come, and classical registration."""

import time
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domains.medical.pairs import PairBatch

SyNMetric = Literal["meansquares", "CC"]

ITERATIONS = (160, 80, 40)
"""Steps of SyN, from the coarsest of three levels, as TransMorph's benchmark takes them."""


class Identity:
    """Displace nothing."""

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Give displacements (B, 3, D, H, W) of zero."""
        return torch.zeros_like(batch.fixed).expand(-1, 3, -1, -1, -1).contiguous(), batch.fixed


class SyN:
    """Symmetric normalisation of ANTs (Avants et al., Medical Image Analysis 2008).

    Without an affine stage. With more than one thread two runs may differ in the last digits.

    Args:
        metric: ``meansquares``, as in the benchmark of TransMorph, which fails on very small
            volumes; or ``CC``, a local correlation over 5 x 5 x 5 voxels, which takes longer.
    """

    def __init__(self, metric: SyNMetric = "meansquares") -> None:
        self.metric = metric
        self.seconds = 0.0
        self.pairs = 0

    @property
    def figures(self) -> dict[str, float]:
        """The seconds of a pair."""
        return {"seconds_per_pair": self.seconds / self.pairs} if self.pairs else {}

    def __call__(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Give displacements (B, 3, D, H, W), each pair at its true size."""
        flow = torch.zeros_like(batch.fixed).expand(-1, 3, -1, -1, -1).contiguous()
        start = time.perf_counter()
        for at, (d, h, w) in enumerate(batch.sizes.tolist()):
            moving, fixed = (
                part[at, 0, :d, :h, :w].cpu().numpy() for part in (batch.moving, batch.fixed)
            )
            sides = batch.spacing[at].tolist()
            flow[at, :, :d, :h, :w] = torch.from_numpy(self._register(moving, fixed, sides))
        self.seconds += time.perf_counter() - start
        self.pairs += len(batch.sizes)
        return flow, batch.fixed

    def _register(
        self, moving: NDArray[np.float32], fixed: NDArray[np.float32], spacing: list[float]
    ) -> NDArray[np.float32]:
        """Register two arrays (D, H, W); the displacements (3, D, H, W) are in voxels."""
        import ants

        images = [ants.from_numpy(part, spacing=spacing) for part in (fixed, moving)]
        with TemporaryDirectory() as folder:
            found = ants.registration(
                *images,
                type_of_transform="SyNOnly",
                initial_transform="identity",
                syn_metric=self.metric,
                syn_sampling=2 if self.metric == "CC" else 32,
                reg_iterations=ITERATIONS,
                random_seed=1,
                outprefix=f"{folder}/",
            )
            warp = next(name for name in found["fwdtransforms"] if name.endswith(".nii.gz"))
            field = ants.image_read(warp).numpy()  # (D, H, W, 3), in mm along the grid's axes
        flow: NDArray[np.float32] = np.moveaxis(field / np.array(spacing), -1, 0).astype(np.float32)
        return flow


def syn_missing() -> bool:
    """Say whether ANTs is not installed."""
    return find_spec("ants") is None
