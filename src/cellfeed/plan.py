"""Which cell leaves when: a pure function of the selection's chunks, the seed, the epoch and the world.

An epoch is one keyed permutation of the chunks. Laid end to end in that order the chunks form the *epoch
order*, a line of cells. Ranks, then workers, take equal stretches of that line, so that no rank keeps a
region of the store. A stretch is walked in *windows*: some chunks that are read and shuffled together.
Nothing here reads, waits or draws from a generator: any window can be had without those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from cellfeed.errors import PlanError
from cellfeed.joinids import IntArray
from cellfeed.keyed import Purpose, permutation

Remainder = Literal["drop", "pad", "uneven"]

RAMP = (4, 2)
"""The first windows of a ramp: whole windows divided by these."""


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


@dataclass(frozen=True, eq=False)
class Window:
    """Cells that are read together, and the order in which they leave.

    Attributes
    ----------
    arrivals
        int64, shape (n,): positions to read, ascending.
    order
        int64, shape (n,): indices into ``arrivals``, in the order of leaving.
    is_real
        bool, shape (n,), parallel to ``arrivals``: False where a cell repeats another, to even out the
        ranks (``remainder="pad"``).
    """

    arrivals: IntArray
    order: IntArray
    is_real: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EpochPlan:
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
    ramp
        Begin with windows of a quarter and a half of ``chunks_per_window``: the first minibatch is there sooner.
    drop_last
        Leave out the last minibatch of a rank where it is not full.
    chunks_per_window
        Whole chunks that are read and shuffled together.
    remainder
        What becomes of the cells that do not divide evenly over the ranks. ``"drop"``: fewer than one
        minibatch a rank is left out, other cells each epoch. ``"pad"``: cells of the epoch's beginning
        repeat at its end. ``"uneven"``: ranks may differ by one cell, and so by one minibatch.
    """

    bounds: IntArray
    seed: int
    epoch: int
    shuffle: bool
    batch_size: int
    chunks_per_window: int
    drop_last: bool = False
    remainder: Remainder = "drop"
    ramp: bool = False

    @property
    def n_cells(self) -> int:
        """Cells in the selection."""
        return int(self.bounds[-1])

    @cached_property
    def chunk_order(self) -> IntArray:
        """int64, shape (n_chunks,), twice that to pad: the chunks in the order of the epoch."""
        n_chunks = len(self.bounds) - 1
        order = (
            permutation(n_chunks, self.seed, Purpose.CHUNKS, self.epoch)
            if self.shuffle
            else np.arange(n_chunks, dtype=np.int64)
        )
        return np.concatenate((order, order)) if self.remainder == "pad" else order

    @cached_property
    def starts(self) -> IntArray:
        """int64, shape (len(chunk_order) + 1,): where each chunk begins in the epoch order."""
        sizes = np.diff(self.bounds)[self.chunk_order]
        return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)

    def rank_stretch(self, world: World) -> tuple[int, int]:
        """Half-open stretch of the epoch order that belongs to a rank, whatever its workers."""
        n, size = self.n_cells, world.world_size
        if self.remainder == "uneven":
            return n * world.rank // size, self._whole(n * world.rank // size, n * (world.rank + 1) // size)
        share = -(-n // size) if self.remainder == "pad" else n // size
        return world.rank * share, self._whole(world.rank * share, (world.rank + 1) * share)

    def _whole(self, start: int, stop: int) -> int:
        return stop - (stop - start) % self.batch_size if self.drop_last else stop

    def n_minibatches(self, world: World) -> int:
        """Minibatches that a rank, or one worker of it, yields: exact, and known before any read."""
        start, stop = self.stretch(world)
        return -(-(stop - start) // self.batch_size)

    def stretch(self, world: World) -> tuple[int, int]:
        """Half-open stretch of one worker: whole minibatches of its rank, the last one's rest apart."""
        start, stop = self.rank_stretch(world)
        n_minibatches = -(-(stop - start) // self.batch_size)
        first, last = (n_minibatches * w // world.num_workers for w in (world.worker, world.worker + 1))
        return start + first * self.batch_size, min(start + last * self.batch_size, stop)

    def windows(self, world: World) -> Windows:
        """Return the windows of one worker's stretch."""
        return Windows(self, *self.stretch(world))


@dataclass(frozen=True)
class Windows(Sequence[Window]):
    """The windows over one stretch of the epoch order; each is computed when it is asked for."""

    plan: EpochPlan
    start: int
    stop: int

    @cached_property
    def _lap(self) -> int:
        """Cells of the whole epoch that padding has gone through before ``start``."""
        return self.start // max(self.plan.n_cells, 1) * self.plan.n_cells

    @cached_property
    def _first_chunk(self) -> int:
        return int(np.searchsorted(self.plan.starts, self.start - self._lap, side="right")) - 1

    @cached_property
    def _end_chunk(self) -> int:
        return int(np.searchsorted(self.plan.starts, self.stop - self._lap, side="left"))

    def __len__(self) -> int:
        if self.stop <= self.start:
            return 0
        n_chunks, k = self._end_chunk - self._first_chunk, 0
        while k < len(RAMP) and self._chunks_before(k) < n_chunks:
            k += 1
        return k + max(0, -(-(n_chunks - self._chunks_before(k)) // self.plan.chunks_per_window))

    def _chunks_before(self, k: int) -> int:
        """Chunks of the stretch in the windows before window ``k``."""
        whole = self.plan.chunks_per_window
        if not self.plan.ramp:
            return k * whole
        return sum(-(-whole // part) for part in RAMP[:k]) + max(0, k - len(RAMP)) * whole

    def first_cell(self, k: int) -> int:
        """Cells of the stretch that have left before window ``k``."""
        if k <= 0:
            return 0
        chunk = min(self._first_chunk + self._chunks_before(k), self._end_chunk)
        return min(int(self.plan.starts[chunk]) + self._lap, self.stop) - self.start

    def __getitem__(self, k: int) -> Window:  # type: ignore[override]
        if not 0 <= k < len(self):
            raise IndexError(k)
        plan = self.plan
        first = self._first_chunk + self._chunks_before(k)
        end = min(self._first_chunk + self._chunks_before(k + 1), self._end_chunk)
        chunks = plan.chunk_order[first:end]
        low, high = plan.bounds[chunks], plan.bounds[chunks + 1]
        # A chunk on the edge of the stretch is shared with the neighbour: each takes its own cells.
        starts = plan.starts[first : end + 1] + self._lap
        low[0] += max(0, self.start - int(starts[0]))
        high[-1] -= max(0, int(starts[-1]) - self.stop)
        is_real = starts[:-1] < plan.n_cells
        by_position = np.argsort(low)
        arrivals, chunk = _expand(low[by_position], high[by_position])
        n = len(arrivals)
        order = (
            permutation(n, plan.seed, Purpose.WINDOW, plan.epoch, self.start, k)
            if plan.shuffle
            else np.argsort(by_position[chunk], kind="stable")
        )
        return Window(arrivals, order, is_real[by_position][chunk])


def _expand(low: IntArray, high: IntArray) -> tuple[IntArray, IntArray]:
    """All integers of half-open ranges end to end, and the range that each belongs to."""
    sizes = high - low
    chunk = np.repeat(np.arange(len(low)), sizes)
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) - before[chunk] + low[chunk], chunk


def chunk_bounds(n_cells: int, chunk_size: int) -> IntArray:
    """Cut positions into chunks of equal size, the last one shorter where it must be.

    Examples
    --------
    >>> chunk_bounds(5, 2).tolist()
    [0, 2, 4, 5]
    """
    return np.append(np.arange(0, n_cells, chunk_size, dtype=np.int64), n_cells)
