"""Which cell leaves when: a pure function of the selection's chunks, the seed, the epoch and the world.

An epoch is one keyed permutation of the chunks, shallow and deep ones in turn. Laid end to end in that order the
chunks form the *epoch order*, a line of cells. Ranks, then workers, take equal stretches of that line, so that no rank
keeps a region of the store. A stretch is walked in *windows*: some chunks that are read and shuffled together. Nothing
here reads, waits or draws from a generator: any window can be had without those before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from cellfeed._checks import is_integer
from cellfeed._joinids import IntArray
from cellfeed.errors import PlanError
from cellfeed.plan.permutation import Purpose, interleave_by_weight, permutation
from cellfeed.plan.schedule import ShufflePlan

Remainder = Literal["drop", "pad", "uneven"]

N_STRATA = 8
"""Classes of depth from which chunks come in turn. With 16, eight ranks of eight chunks each come out less even."""


MAX_RANKS, MAX_WORKERS, MAX_READERS = 1 << 16, 1 << 10, 1 << 18
"""Ranks, workers of each, and their product: more of them take longer to plan than a mistake should."""


def check_size(world_size: int, num_workers: int) -> None:
    """Refuse a world that nobody has."""
    if world_size > MAX_RANKS or num_workers > MAX_WORKERS or world_size * num_workers > MAX_READERS:
        raise PlanError(
            f"world_size={world_size} with num_workers={num_workers} is more than can be planned: up to {MAX_RANKS:,} "
            f"ranks, {MAX_WORKERS:,} workers of each, and {MAX_READERS:,} in all"
        )


@dataclass(frozen=True)
class World:
    """Where an iterator runs: one of the ranks, and in it one of the worker processes."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        for name, index, size in (
            ("rank", self.rank, self.world_size),
            ("worker", self.worker, self.num_workers),
        ):
            if size < 1 or not 0 <= index < size:
                raise PlanError(f"{name}={index} of {size} is impossible: it must be from 0 to {size - 1}")
        check_size(self.world_size, self.num_workers)


def check_ranks(rank: object, world_size: object) -> tuple[int, int] | tuple[None, None]:
    """Return explicit ranks as they are, or refuse those that cannot be."""
    if (rank is None) != (world_size is None):
        raise PlanError(f"rank={rank!r} and world_size={world_size!r} go together: give both or neither")
    if rank is None:
        return None, None
    for name, value in (("rank", rank), ("world_size", world_size)):
        if not is_integer(value):
            raise PlanError(f"{name}={value!r} must be an integer")
    world = World(int(rank), int(world_size))  # type: ignore[call-overload]
    return world.rank, world.world_size


@dataclass(frozen=True)
class EpochOrder:
    """The plan of one epoch over the chunks of a selection.

    Parameters
    ----------
    bounds
        int64, shape (n_chunks + 1,): strictly ascending positions that cut the selection into chunks.
    seed, epoch
        The key of every order in the plan.
    shuffle
        ``False`` keeps joinid order.
    batch_size
        Cells in a minibatch.
    drop_last
        Leave out the last minibatch of a rank where it is not full.
    mixing
        How many chunks arrive a window, and in how many slices they leave.
    rank_remainder
        What becomes of the cells that do not divide evenly over the ranks. ``"drop"``: fewer than one
        minibatch a rank is left out, other cells each epoch. ``"pad"``: cells of the epoch's beginning
        repeat at its end. ``"uneven"``: ranks may differ by one cell, and so by one minibatch.
    values
        shape (n_chunks,): stored values of each chunk. Given, every stretch of the epoch order, and with it every
        rank, has nearly as many for each of its cells. ``None`` if they are not known.
    """

    bounds: IntArray
    seed: int
    epoch: int
    shuffle: bool
    batch_size: int
    mixing: ShufflePlan
    drop_last: bool = False
    rank_remainder: Remainder = "drop"
    values: npt.NDArray[np.float64] | None = None

    @property
    def n_cells(self) -> int:
        """Cells in the selection."""
        return int(self.bounds[-1])

    @cached_property
    def chunk_order(self) -> IntArray:
        """int64, shape (n_chunks,), twice that to pad: the chunks in the order of the epoch."""
        n_chunks = len(self.bounds) - 1
        order = np.arange(n_chunks, dtype=np.int64)
        if self.shuffle:
            order = permutation(n_chunks, self.seed, Purpose.CHUNKS, self.epoch)
        if self.shuffle and self.values is not None and n_chunks:
            sizes = np.diff(self.bounds)
            excess = self.values - sizes * (self.values.sum() / self.n_cells)
            order = interleave_by_weight(order, excess, N_STRATA)
        return np.concatenate((order, order)) if self.rank_remainder == "pad" else order

    @cached_property
    def starts(self) -> IntArray:
        """int64, shape (len(chunk_order) + 1,): where each chunk begins in the epoch order."""
        sizes = np.diff(self.bounds)[self.chunk_order]
        return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)

    @property
    def cells_held(self) -> int:
        """Cells that are held when a window begins, about."""
        return max(1, int(self.mixing.held * self.n_cells / max(len(self.bounds) - 1, 1)))

    def rank_shards(self, n_cells: int, world_size: int) -> IntArray:
        """Divide a line of cells among ranks.

        Returns
        -------
        int64, shape (world_size, 2): half-open stretches; to pad they end behind the last cell, by fewer than there
        are ranks.
        """
        rank = np.arange(world_size, dtype=np.int64)
        if self.rank_remainder == "uneven":
            starts, stops = n_cells * rank // world_size, n_cells * (rank + 1) // world_size
        else:
            share = -(-n_cells // world_size) if self.rank_remainder == "pad" else n_cells // world_size
            starts, stops = rank * share, (rank + 1) * share
        if self.drop_last:
            stops = stops - (stops - starts) % self.batch_size
        return np.stack((starts, stops), axis=1)

    def worker_shards(self, n_cells: int, num_workers: int) -> IntArray:
        """Divide a rank's cells among its workers: whole minibatches, the last one's rest apart.

        Returns
        -------
        int64, shape (num_workers, 2): half-open stretches.
        """
        edges = -(-n_cells // self.batch_size) * np.arange(num_workers + 1, dtype=np.int64) // num_workers
        edges = np.minimum(edges * self.batch_size, n_cells)
        return np.stack((edges[:-1], edges[1:]), axis=1)

    def n_minibatches(self, world: World) -> int:
        """Minibatches that a rank, or one worker of it, yields: exact, and known before any read."""
        start, stop = self.stretch(world)
        return -(-(stop - start) // self.batch_size)

    def stretch(self, world: World) -> tuple[int, int]:
        """Half-open stretch of the epoch order that belongs to one worker."""
        begin, end = self.rank_shards(self.n_cells, world.world_size)[world.rank].tolist()
        start, stop = self.worker_shards(end - begin, world.num_workers)[world.worker].tolist()
        return begin + start, begin + stop

    def epoch_offset(self, start: int) -> int:
        """Cells of the whole epoch that padding has gone through before ``start``."""
        return start // max(self.n_cells, 1) * self.n_cells


def chunk_bounds(n_cells: int, chunk_size: int) -> IntArray:
    """Cut positions into chunks of equal size, the last one shorter where it must be.

    Examples
    --------
    >>> chunk_bounds(5, 2).tolist()
    [0, 2, 4, 5]
    """
    return np.append(np.arange(0, n_cells, chunk_size, dtype=np.int64), n_cells)
