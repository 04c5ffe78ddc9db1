"""The derived set of early exits: how good each exit is on each example, kept in a file.

It is made once from a trained parent; every wish of cost (``beta``) reads its targets from it
without another pass of the network. Yao et al., Efficient Transformer Encoders for
Mask2Former-style Models, 2024.

Sizes: N examples, E exits, D features.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from core.errors import UserError
from core.openers import write_atomic

KIND = "pleiad derived set 1"
TIE = 1e-7
"""Utilities that differ by less are equal: the resolution of a quality in single precision."""


@dataclass(frozen=True, eq=False)
class Derived:
    """The quality of each exit on each example, and what a gate sees of the example.

    Attributes:
        ids: the names of the N examples, each once.
        depths: layers that each of the E exits runs, rising.
        quality: (N, E) float64, the higher the better; best as shares of one.
        features: (N, D) float32, from before the layers.
        source: tells the parent and the data; whoever reads the file can compare it.

    Raises:
        ValueError: if they do not fit together, or hold what is not finite.
    """

    ids: tuple[str, ...]
    depths: tuple[int, ...]
    quality: Tensor
    features: Tensor
    source: str = ""

    def __post_init__(self) -> None:
        """Check sizes and values."""
        count = len(self.ids)
        if not count or len(set(self.ids)) != count:
            raise ValueError(f"{count} ids, {len(set(self.ids))} of them different; give each once")
        if not self.depths or any(low >= high for low, high in pairwise((0, *self.depths))):
            raise ValueError(f"depths={list(self.depths)} must rise from 1 on")
        if self.quality.shape != (count, len(self.depths)):
            raise ValueError(
                f"quality {list(self.quality.shape)} must be"
                f" {count} examples x {len(self.depths)} exits"
            )
        if self.features.dim() != 2 or len(self.features) != count or not self.features.shape[1]:
            raise ValueError(f"features {list(self.features.shape)} must be {count} rows")
        object.__setattr__(self, "quality", self.quality.detach().cpu().double().contiguous())
        object.__setattr__(self, "features", self.features.detach().cpu().float().contiguous())
        for name, values in (("quality", self.quality), ("features", self.features)):
            bad = (~values.isfinite()).any(1).nonzero()[:, 0]
            if len(bad):
                raise ValueError(f"the {name} of {self.ids[int(bad[0])]!r} is not finite")

    @classmethod
    def gather(
        cls,
        batches: Iterable[tuple[Sequence[str], Tensor, Tensor]],
        depths: Sequence[int],
        source: str = "",
    ) -> "Derived":
        """Join batches of ids, quality (B, E) and features (B, D).

        An example whose quality is NaN at an exit, such as a photo without a segment, is left out.

        Raises:
            ValueError: if no example is left, or they do not fit together.
        """
        ids: list[str] = []
        quality, features = [], []
        for names, values, seen in batches:
            known = ~values.isnan().any(1)
            ids += [name for name, kept in zip(names, known.tolist(), strict=True) if kept]
            quality.append(values[known].detach().cpu().double())
            features.append(seen[known].detach().cpu().float())
        if not ids:
            raise ValueError("there is no example whose quality is known at every exit")
        return cls(tuple(ids), tuple(depths), torch.cat(quality), torch.cat(features), source)

    def utility(self, beta: float) -> Tensor:
        """Give quality less cost (N, E): ``beta`` is the price of a layer, in units of quality.

        The first exit costs one layer: only differences matter.

        Raises:
            ValueError: if ``beta`` is negative or not finite.
        """
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta={beta} must be a finite number, at least 0")
        layers = torch.tensor(self.depths, dtype=torch.float64) - self.depths[0] + 1
        return self.quality - beta * layers

    def targets(self, beta: float) -> Tensor:
        """Give the exit (N,) of highest utility, the first of equal ones; int64 from 0."""
        utility = self.utility(beta)
        best = utility >= utility.amax(1, keepdim=True) - TIE
        return best.int().argmax(1)  # the first of equal values

    def soft_targets(self, beta: float, tau: float = 0.02) -> Tensor:
        """Give shares (N, E) of the exits, one in sum for each example.

        Args:
            beta: the price of a layer.
            tau: temperature; at 1 qualities between 0 and 1 give nearly equal shares.

        Raises:
            ValueError: if ``tau`` is not above 0.
        """
        if not tau > 0:
            raise ValueError(f"tau={tau} must be above 0")
        return (self.utility(beta) / tau).softmax(1)  # over exits: over examples beta cancels

    def histogram(self, beta: float) -> Tensor:
        """Count the examples (E,) whose target is each exit."""
        return torch.bincount(self.targets(beta), minlength=len(self.depths))

    def save(self, path: Path) -> None:
        """Write a file that is whole or absent."""
        tensors = {"features": self.features, "quality": self.quality}
        facts = json.dumps({"ids": self.ids, "depths": self.depths, "source": self.source})
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _digest(facts, tensors)
        write_atomic(path, save(tensors, {"kind": KIND, "facts": facts, "sha256": digest}))

    @classmethod
    def load(cls, path: Path, source: str | None = None) -> "Derived":
        """Read what :meth:`save` wrote; nothing is executed.

        Args:
            path: the file.
            source: what it must have been made from; None takes any.

        Raises:
            UserError: if the file is missing, damaged, of another kind or of another source.
        """
        if not path.is_file():
            raise UserError(f"{path}: no such derived set; make it from the trained parent first")
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or no derived set ({error}); make it anew") from None
        if told.get("kind") != KIND:
            kind = told.get("kind") or "another safetensors file"
            raise UserError(f"{path}: is no derived set of early exits ({kind}, not {KIND})")
        facts = told.get("facts", "")
        if told.get("sha256") != _digest(facts, tensors):
            raise UserError(f"{path}: damaged (its content has another SHA-256); make it anew")
        read = json.loads(facts)
        if source is not None and read["source"] != source:
            raise UserError(
                f"{path}: was made from another parent or other data ({read['source']!r}, not"
                f" {source!r}); make it anew"
            )
        return cls(tuple(read["ids"]), tuple(read["depths"]), source=read["source"], **tensors)


def _digest(facts: str, tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        found.update(f"{name} {list(tensors[name].shape)} {tensors[name].dtype}".encode())
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()
