"""Cells into tokens: genes by the rank of their expression, and its bins.

A gene's expression is its count, as if the cell had 10,000 in all, divided by the gene's median
over the cells of a corpus that express it; a gene without a median is left as it is (Theodoris et
al., Transfer learning enables predictions in network biology, Nature 2023). Neither ranks nor bins
depend on how deep a cell was sequenced.
Sizes: N cells, G genes, L tokens of the cell with the most.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, csr_matrix
from torch import Tensor

from core.errors import UserError
from core.openers import read_json, read_text

TOTAL = 10_000
"""The counts that a cell is taken to have."""
PADDING, MASK = "<pad>", "<mask>"
ABSENT = -1
"""The token of a gene that the vocabulary has not."""


class CellTokens(NamedTuple):
    """N cells: what :class:`domains.biology.networks.teddy.Teddy` reads, in its order.

    Attributes:
        ids: (N, L) int64, the most expressed gene first, padded at the end.
        mask: (N, L) True on genes, False on padding.
        values: (N, L) int64 bins from 1 up, 0 on padding; None where only ranks are wanted.
    """

    ids: Tensor
    mask: Tensor
    values: Tensor | None = None


class CellTokenizer:
    """Numbers for the genes of cells.

    Args:
        tokens: the vocabulary in order: names of genes, :data:`PADDING` and :data:`MASK` anywhere
            among them.
        medians: the median of genes by their names; others are left unscaled.
        length: keep so many of the most expressed genes of a cell.
        bins: give the bins of expression too, from 1 to one less than ``bins``; None gives none.

    Raises:
        UserError: if a special token is missing, a token is there twice, or a number will not do.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        medians: Mapping[str, float] | None = None,
        length: int = 2048,
        bins: int | None = None,
    ) -> None:
        self.tokens = tuple(tokens)
        self.medians = dict(medians or {})
        self.length = length
        self.bins = bins
        self._ids = {token: number for number, token in enumerate(self.tokens)}
        if len(self._ids) < len(self.tokens):
            twice = next(t for n, t in enumerate(self.tokens) if self._ids[t] != n)
            raise UserError(f"the vocabulary of genes has {twice!r} twice")
        for special in (PADDING, MASK):
            if special not in self._ids:
                raise UserError(f"the vocabulary of genes has no {special!r}")
        for name, median in self.medians.items():
            if not 0 < median < np.inf:
                raise UserError(f"gene {name!r}: its median {median} must be above 0")
        if length < 1 or (bins is not None and bins < 2):
            raise UserError(f"length={length} must be at least 1 and bins={bins} at least 2")
        self.padding = self._ids[PADDING]
        self.mask = self._ids[MASK]

    def __len__(self) -> int:
        """Count the tokens of the vocabulary."""
        return len(self.tokens)

    @classmethod
    def build(
        cls,
        genes: Sequence[str],
        medians: Mapping[str, float] | None = None,
        length: int = 2048,
        bins: int | None = None,
    ) -> "CellTokenizer":
        """Number the genes of a data set, after the special tokens."""
        return cls((PADDING, MASK, *genes), medians, length, bins)

    @classmethod
    def from_published(
        cls, folder: Path, medians: Path | None = None, length: int = 2048
    ) -> "CellTokenizer":
        """Read ``vocab.txt``, a token a line, and ``added_tokens.json``, which has the last word.

        Args:
            folder: that of a published TEDDY.
            medians: a JSON file that maps genes to their medians.
            length: keep so many of the most expressed genes of a cell.

        Raises:
            UserError: naming the file and what is wrong in it.
        """
        numbers = dict(enumerate(read_text(folder / "vocab.txt").splitlines()))
        added = folder / "added_tokens.json"
        if added.is_file():
            for token, number in read_json(added).items():
                numbers[int(number)] = token
        if missing := set(range(len(numbers))).difference(numbers):
            raise UserError(f"{added}: no token has the number {min(missing)}")
        tokens = [numbers[number] for number in range(len(numbers))]
        return cls(tokens, None if medians is None else read_json(medians), length)

    def columns(self, genes: Sequence[str]) -> NDArray[np.int64]:
        """Give the token (G,) of each gene, :data:`ABSENT` where there is none."""
        return np.array([self._ids.get(gene, ABSENT) for gene in genes], np.int64)

    def scales(self, genes: Sequence[str]) -> NDArray[np.float64]:
        """Give the median (G,) of each gene, 1 where there is none."""
        return np.array([self.medians.get(gene, 1.0) for gene in genes])

    def tokenize(
        self,
        counts: csr_array | csr_matrix,
        columns: NDArray[np.int64],
        scales: NDArray[np.float64],
    ) -> CellTokens:
        """Tokenize a block of cells.

        Genes of equal expression keep the order of their columns. Genes that are not expressed, or
        not in the vocabulary, give no token; but all genes count in a cell's total.

        Args:
            counts: (N, G) raw counts.
            columns: (G,) as :meth:`columns` gave for the genes.
            scales: (G,) as :meth:`scales` gave for them.
        """
        counts = counts if counts.has_sorted_indices else counts.sorted_indices()
        cells = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        ids = columns[counts.indices]
        kept = (counts.data > 0) & (ids != ABSENT)
        values = per_total(counts)[kept] / scales[counts.indices[kept]]
        cells, ids = cells[kept], ids[kept]
        number = np.bincount(cells, minlength=counts.shape[0])
        place = np.arange(len(cells)) - np.repeat(number.cumsum() - number, number)
        shape = (counts.shape[0], max(int(number.max(initial=0)), 1))
        expressed = np.full(shape, -np.inf)
        expressed[cells, place] = values
        tokens = np.full(shape, self.padding, np.int64)
        tokens[cells, place] = ids
        order = np.argsort(-expressed, axis=1, kind="stable")
        tokens = np.take_along_axis(tokens, order[:, : self.length], 1)
        mask = np.arange(tokens.shape[1]) < number[:, None]
        found = None
        if self.bins is not None:
            ordered = np.take_along_axis(expressed, order, 1)
            found = torch.from_numpy(binned(ordered, number, self.bins)[:, : self.length])
        return CellTokens(torch.from_numpy(tokens), torch.from_numpy(mask), found)

    def to_json(self) -> dict[str, Any]:
        """Return all that was fitted."""
        return {
            "tokens": list(self.tokens),
            "medians": self.medians,
            "length": self.length,
            "bins": self.bins,
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "CellTokenizer":
        """Take what :meth:`to_json` gave."""
        return cls(saved["tokens"], saved["medians"], saved["length"], saved["bins"])


def per_total(counts: csr_array | csr_matrix) -> NDArray[np.float64]:
    """Scale the stored counts (n,) of (N, G) to :data:`TOTAL` a cell, in the order of storage."""
    data = counts.data.astype(np.float64)
    cells = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    totals = np.bincount(cells, data, counts.shape[0])
    totals[totals == 0] = 1  # of a cell that stores nothing but zeros
    scaled: NDArray[np.float64] = data / totals[cells] * TOTAL
    return scaled


def binned(ordered: NDArray[np.float64], number: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """Give the bins of expression within each cell: as many values in each as can be.

    Args:
        ordered: (N, L) expression, the largest first, and -inf after them.
        number: (N,) values of each cell.
        bins: bins, of which 0 is for what is not expressed.

    Returns:
        (N, L), from 1 for the least to ``bins - 1``; 0 after a cell's values. Equal values share
        the bin of the middle one of them.
    """
    place = np.arange(ordered.shape[1])
    changes = ordered[:, 1:] != ordered[:, :-1]
    edge = np.ones((len(ordered), 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.hstack([edge, changes]), place, 0), 1)
    last = np.where(np.hstack([changes, edge]), place, place[-1])
    last = np.minimum.accumulate(last[:, ::-1], 1)[:, ::-1]
    above = (first + last + 1) / 2  # values above the middle of the equal ones
    share = 1 - above / np.maximum(number, 1)[:, None]
    found = 1 + np.floor(share * (bins - 1)).astype(np.int64)
    return np.where(place < number[:, None], found, 0)


def nonzero_medians(counts: csr_array | csr_matrix) -> NDArray[np.float64]:
    """Give each gene's median (G,) over the cells of ``counts`` (N, G) that express it.

    Expression is that of :func:`per_total`. A gene that none expresses has NaN. Give cells of
    training alone: medians of others would tell of the test.
    """
    values = per_total(counts)
    kept = values > 0
    genes, values = counts.indices[kept], values[kept]
    order = np.lexsort((values, genes))
    number = np.bincount(genes, minlength=counts.shape[1])
    start = number.cumsum() - number
    ordered = np.append(values[order], np.nan)
    low = np.where(number > 0, start + (number - 1) // 2, len(values))
    high = np.where(number > 0, start + number // 2, len(values))
    medians: NDArray[np.float64] = (ordered[low] + ordered[high]) / 2
    return medians
