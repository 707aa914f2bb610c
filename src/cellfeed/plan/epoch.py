"""The order of the cells in one epoch: a pure function of the chunks, the seed, the epoch number and the world.

An epoch is one keyed permutation of the chunks, in which chunks of low and high nnz alternate. The chunks in that
order, one after another, form the *epoch order*. Ranks, then workers, take equal *shards* of the epoch order, so that
each rank gets chunks from everywhere in the store. A shard is divided into *windows*: chunks that are read and
shuffled together. This module does no IO and keeps no random generator, so each window can be computed without the
windows before it.
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
"""Number of nnz classes among which the chunks alternate. With 16, eight ranks of eight chunks each are less even."""

MAX_RANKS, MAX_WORKERS, MAX_READERS = 1 << 16, 1 << 10, 1 << 18
"""Limits for ranks, workers per rank, and their product: a mistaken number must not lead to hours of planning."""


def check_size(world_size: int, num_workers: int) -> None:
    """Raise :class:`PlanError` if a world is too large to be planned."""
    if world_size > MAX_RANKS or num_workers > MAX_WORKERS or world_size * num_workers > MAX_READERS:
        raise PlanError(
            f"world_size={world_size} with num_workers={num_workers} is more than can be planned: up to {MAX_RANKS:,} "
            f"ranks, {MAX_WORKERS:,} workers per rank, and {MAX_READERS:,} workers in total"
        )


@dataclass(frozen=True)
class World:
    """The place of an iterator: a rank, and a worker process of that rank."""

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
    """Return ``rank`` and ``world_size`` as integers, or ``None`` for both if neither is given."""
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
    """The order of one epoch over the chunks of a selection.

    Parameters
    ----------
    bounds
        int64, shape (n_chunks + 1,): strictly ascending positions that divide the selection into chunks.
    seed, epoch
        Key of all random orders of the epoch.
    shuffle
        ``False`` keeps the order of the joinids.
    batch_size
        Cells per minibatch.
    shuffle_plan
        How many chunks are fetched per window, and into how many slices each chunk is divided.
    drop_last
        Whether the last minibatch of a rank is left out if it is short.
    rank_remainder
        Treatment of the cells that do not divide evenly among the ranks. ``"drop"`` leaves out fewer than
        ``world_size`` cells, different ones in each epoch. ``"pad"`` repeats cells from the beginning of the epoch
        at its end. With ``"uneven"``, ranks may differ by one cell, and so by one minibatch.
    chunk_nnz
        float64, shape (n_chunks,): nnz of each chunk, or ``None`` if it is unknown. If it is given, every shard, and
        so every rank, gets nearly the same nnz per cell.
    cells
        int64, shape (n_cells,): the position of the cell behind each number in ``bounds``, if cells come several times
        or not at all; ascending within a chunk. ``None`` if each cell comes once.
    """

    bounds: IntArray
    seed: int
    epoch: int
    shuffle: bool
    batch_size: int
    shuffle_plan: ShufflePlan
    drop_last: bool = False
    rank_remainder: Remainder = "drop"
    chunk_nnz: npt.NDArray[np.float64] | None = None
    cells: IntArray | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells in the epoch; copies of a cell count one by one."""
        return int(self.bounds[-1])

    @cached_property
    def chunk_order(self) -> IntArray:
        """int64, shape (n_chunks,): the chunks in the order of the epoch; repeated if ``rank_remainder="pad"``."""
        n_chunks = len(self.bounds) - 1
        order = np.arange(n_chunks, dtype=np.int64)
        if self.shuffle:
            order = permutation(n_chunks, self.seed, Purpose.CHUNKS, self.epoch)
        if self.shuffle and self.chunk_nnz is not None and n_chunks:
            sizes = np.diff(self.bounds)
            excess = self.chunk_nnz - sizes * (self.chunk_nnz.sum() / self.n_cells)  # nnz above the mean of such chunks
            order = interleave_by_weight(order, excess, N_STRATA)
        return np.concatenate((order, order)) if self.rank_remainder == "pad" else order

    @cached_property
    def starts(self) -> IntArray:
        """int64, shape (len(chunk_order) + 1,): first cell of each chunk in the epoch order, then the end."""
        sizes = np.diff(self.bounds)[self.chunk_order]
        return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)

    @property
    def cells_held(self) -> int:
        """Approximate number of cells in the pool when a window begins."""
        return max(1, int(self.shuffle_plan.chunks_held * self.n_cells / max(len(self.bounds) - 1, 1)))

    def rank_shards(self, n_cells: int, world_size: int) -> IntArray:
        """Divide ``n_cells`` consecutive cells among ranks.

        Returns
        -------
        int64, shape (world_size, 2): half-open shards. With ``rank_remainder="pad"`` they may end after the last
        cell, by fewer than ``world_size`` cells.
        """
        rank = np.arange(world_size, dtype=np.int64)
        if self.rank_remainder == "uneven":
            starts, stops = n_cells * rank // world_size, n_cells * (rank + 1) // world_size
        else:
            size = -(-n_cells // world_size) if self.rank_remainder == "pad" else n_cells // world_size
            starts, stops = rank * size, (rank + 1) * size
        if self.drop_last:
            stops = stops - (stops - starts) % self.batch_size
        return np.stack((starts, stops), axis=1)

    def worker_shards(self, n_cells: int, num_workers: int) -> IntArray:
        """Divide the cells of a rank among its workers: whole minibatches, except for the last minibatch of the rank.

        Returns
        -------
        int64, shape (num_workers, 2): half-open shards.
        """
        edges = -(-n_cells // self.batch_size) * np.arange(num_workers + 1, dtype=np.int64) // num_workers
        edges = np.minimum(edges * self.batch_size, n_cells)
        return np.stack((edges[:-1], edges[1:]), axis=1)

    def n_minibatches(self, world: World) -> int:
        """Return the exact number of minibatches that a rank, or one of its workers, yields."""
        start, stop = self.shard(world)
        return -(-(stop - start) // self.batch_size)

    def shard(self, world: World) -> tuple[int, int]:
        """Return the half-open shard of the epoch order that one worker yields."""
        begin, end = self.rank_shards(self.n_cells, world.world_size)[world.rank].tolist()
        start, stop = self.worker_shards(end - begin, world.num_workers)[world.worker].tolist()
        return begin + start, begin + stop

    def epoch_offset(self, start: int) -> int:
        """Return the number of cells in the complete repetitions of the epoch order before cell ``start``.

        It is 0 unless ``rank_remainder="pad"`` repeats cells.
        """
        return start // max(self.n_cells, 1) * self.n_cells


def chunk_bounds(n_cells: int, chunk_size: int) -> IntArray:
    """Return the bounds of chunks of equal size; the last chunk may be shorter.

    Examples
    --------
    >>> chunk_bounds(5, 2).tolist()
    [0, 2, 4, 5]
    """
    return np.append(np.arange(0, n_cells, chunk_size, dtype=np.int64), n_cells)
