"""Batches as a pure function of seed and epoch, so that a run resumes on the very next batch.

A plan says which items form the batches of an epoch. Nothing random is drawn while loading: the
order follows from ``(seed, epoch)`` alone, an item's augmentation from ``(seed, epoch, index)``,
and the split of a batch among processes from the rank. One and two processes therefore see the same
global batches.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler


def mix_seed(*numbers: int) -> int:
    """Mix integers into one 63-bit seed; a change of any number changes all its bits.

    Example:
        >>> mix_seed(1, 2) == mix_seed(1, 2), mix_seed(1, 2) == mix_seed(2, 1)
        (True, False)
    """
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class PlannedIndex(int):
    """An item's index with the seed for its augmentation; a plain ``int`` to every data set."""

    seed: int

    def __new__(cls, index: int, seed: int) -> "PlannedIndex":
        """Make the index with its seed."""
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker process with the seed."""
        return PlannedIndex, (int(self), self.seed)

    def generator(self) -> torch.Generator:
        """Return a generator seeded for this item in this epoch."""
        return torch.Generator().manual_seed(self.seed)


class Plan(ABC):
    """The batches of every epoch, as a pure function of seed and epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the batches of an epoch, the same in every epoch."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Give what the batches depend on besides seed and epoch; a resumed run must match it."""

    @abstractmethod
    def check(self, world_size: int) -> None:
        """Make sure that each batch can be shared among so many processes.

        Raises:
            ValueError: naming the numbers.
        """

    @abstractmethod
    def global_batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the batches of all processes together, from batch ``start`` on."""

    def __call__(self, seed: int, epoch: int, world_size: int = 1) -> list[list[list[int]]]:
        """List the batches of an epoch as ``[batch][rank][item]``, equal counts a rank."""
        return [
            [_share(batch, rank, world_size) for rank in range(world_size)]
            for batch in self.global_batches(seed, epoch)
        ]

    def iterate(
        self, seed: int, epoch: int, *, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> Iterator[list[int]]:
        """Yield one rank's batches of an epoch from batch ``start`` on.

        Raises:
            ValueError: if the batches cannot be shared evenly.
        """
        self.check(world_size)
        for batch in self.global_batches(seed, epoch, start):
            yield _share(batch, rank, world_size)


def _share(batch: list[int], rank: int, world_size: int) -> list[int]:
    """Give every rank the same count; a short last batch is filled up from its own start."""
    missing = -len(batch) % world_size
    repeats = -(-missing // len(batch)) if missing else 0
    return (batch + (batch * repeats)[:missing])[rank::world_size]


class BatchPlan(Plan):
    """Batches of one size.

    Args:
        length: how many items the data set has.
        batch_size: items in a global batch, that is over all processes together.
        shuffle: a new order each epoch; otherwise the order of the data set.
        drop_last: leave out the last, incomplete batch.
        draw: how many of the items an epoch takes, others each time; None takes all.

    Raises:
        ValueError: if a number is below 1, or not even one batch can be formed.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        draw: int | None = None,
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(f"length={length} and batch_size={batch_size} must be at least 1")
        if drop_last and length < batch_size:
            raise ValueError(
                f"batch_size={batch_size} is larger than the {length} items there are;"
                f" set it to {length} or less"
            )
        if draw is not None and not batch_size <= draw <= length:
            raise ValueError(
                f"draw={draw} must lie between batch_size={batch_size} and length={length}"
            )
        self.length = length
        self.draw = draw
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        items = self.length if self.draw is None else self.draw
        return (items if self.drop_last else items + self.batch_size - 1) // self.batch_size

    def settings(self) -> dict[str, Any]:
        """Give the size of a batch, and of a draw where there is one."""
        drawn = {} if self.draw is None else {"draw": self.draw}
        return {"batch_size": self.batch_size, **drawn}

    def check(self, world_size: int) -> None:
        """Make sure that a batch can be shared evenly."""
        if self.batch_size % world_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible among {world_size} processes"
            )

    def global_batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Yield the batches of all processes together, from batch ``start`` on."""
        if self.draw is not None:  # without a list of all items, of which there may be millions
            chooser = np.random.default_rng(mix_seed(seed, epoch))
            chosen = chooser.choice(self.length, self.draw, replace=False, shuffle=self.shuffle)
            order = torch.from_numpy(chosen if self.shuffle else np.sort(chosen))
        elif self.shuffle:
            generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
            order = torch.randperm(self.length, generator=generator)
        else:
            order = torch.arange(self.length)
        for number in range(start, len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size].tolist()


class PlannedBatchSampler(Sampler[list[int]]):
    """Feed a :class:`Plan` to a ``DataLoader``, from any position.

    The sampler names itself as its ``sampler`` because Lightning announces a new epoch only there.

    Args:
        plan: the batches.
        seed: fixes the order.
        rank: which process this is.
        world_size: how many there are.
    """

    def __init__(self, plan: Plan, seed: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.plan = plan
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0
        self.sampler = self

    def set_position(self, epoch: int, start: int) -> None:
        """Continue with batch ``start`` of ``epoch``."""
        self.epoch, self.start = epoch, start

    def set_epoch(self, epoch: int) -> None:
        """Begin ``epoch``, unless it is the one already under way."""
        if epoch != self.epoch:
            self.set_position(epoch, 0)

    def __len__(self) -> int:
        """Count the batches of a whole epoch, wherever the sampler starts."""
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield lists of indices, each with its augmentation seed."""
        epoch, start = self.epoch, self.start
        batches = self.plan.iterate(
            self.seed, epoch, rank=self.rank, world_size=self.world_size, start=start
        )
        for batch in batches:
            yield [PlannedIndex(i, mix_seed(self.seed, epoch, i)) for i in batch]


class PlannedLoader(DataLoader[Any]):
    """A ``DataLoader`` whose position its data module keeps.

    Lightning asks a loader for a state before it believes that training can resume inside an epoch;
    the position itself is in the data module's state, which Lightning restores in time for every
    scheduler.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the data module keeps the position."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty state."""
