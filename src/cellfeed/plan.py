"""Which cell leaves when: a pure function of the selection's chunks, the seed, the epoch and the world.

An epoch is one keyed permutation of the chunks, shallow and deep ones in turn. Laid end to end in that order the
chunks form the *epoch order*, a line of cells. Ranks, then workers, take equal stretches of that line, so that no rank
keeps a region of the store. A stretch is walked in *windows*: some chunks that are read and shuffled together. Nothing
here reads, waits or draws from a generator: any window can be had without those before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from cellfeed.errors import PlanError
from cellfeed.joinids import IntArray
from cellfeed.keyed import Purpose, permutation, stratified

Remainder = Literal["drop", "pad", "uneven"]

RAMP = (4, 2)
"""The first windows of a ramp: whole windows divided by these."""


N_STRATA = 8
"""Classes of depth from which chunks come in turn. With 16, eight ranks of eight chunks each come out less even."""


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

    def leavers(self, low: int, high: int) -> Window:
        """Return a window of those cells alone that leave from place ``low`` to ``high``, in the same order."""
        order = self.order[low:high]
        stays = np.zeros(len(self.arrivals), np.bool_)
        stays[order] = True
        return Window(self.arrivals[stays], (np.cumsum(stays) - 1)[order], self.is_real[stays])


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
        Begin with windows of a quarter and a half of ``chunks_per_window``: the first minibatch is there sooner. Not
        done where two windows hold all chunks.
    drop_last
        Leave out the last minibatch of a rank where it is not full.
    chunks_per_window
        Whole chunks that are read and shuffled together.
    remainder
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
    chunks_per_window: int
    drop_last: bool = False
    remainder: Remainder = "drop"
    ramp: bool = False
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
            order = stratified(order, excess, N_STRATA)
        return np.concatenate((order, order)) if self.remainder == "pad" else order

    @cached_property
    def starts(self) -> IntArray:
        """int64, shape (len(chunk_order) + 1,): where each chunk begins in the epoch order."""
        sizes = np.diff(self.bounds)[self.chunk_order]
        return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)

    @property
    def cells_per_window(self) -> int:
        """Cells of a window, about."""
        return max(1, self.n_cells * self.chunks_per_window // max(len(self.bounds) - 1, 1))

    @cached_property
    def ramps(self) -> bool:
        """Whether walks begin with smaller windows: not where two windows hold all, which is the better shuffle."""
        return self.ramp and len(self.bounds) - 1 > 2 * self.chunks_per_window

    def rank_shares(self, n_cells: int, world_size: int) -> IntArray:
        """Divide a line of cells among ranks.

        Returns
        -------
        int64, shape (world_size, 2): half-open stretches; to pad they end behind the last cell, by fewer than there
        are ranks.
        """
        rank = np.arange(world_size, dtype=np.int64)
        if self.remainder == "uneven":
            starts, stops = n_cells * rank // world_size, n_cells * (rank + 1) // world_size
        else:
            share = -(-n_cells // world_size) if self.remainder == "pad" else n_cells // world_size
            starts, stops = rank * share, (rank + 1) * share
        if self.drop_last:
            stops = stops - (stops - starts) % self.batch_size
        return np.stack((starts, stops), axis=1)

    def worker_shares(self, n_cells: int, num_workers: int) -> IntArray:
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
        begin, end = self.rank_shares(self.n_cells, world.world_size)[world.rank].tolist()
        start, stop = self.worker_shares(end - begin, world.num_workers)[world.worker].tolist()
        return begin + start, begin + stop

    def windows(self, world: World) -> Windows:
        """Return the windows of one worker's stretch."""
        return Windows(self, *self.stretch(world))

    def lap(self, start: int) -> int:
        """Cells of the whole epoch that padding has gone through before ``start``."""
        return start // max(self.n_cells, 1) * self.n_cells

    def window(self, start: int, stop: int) -> Window:
        """Return the cells of a stretch of the epoch order as one window."""
        lap = self.lap(start)
        first = int(np.searchsorted(self.starts, start - lap, side="right")) - 1
        end = int(np.searchsorted(self.starts, stop - lap, side="left"))
        chunks = self.chunk_order[first:end]
        low, high = self.bounds[chunks], self.bounds[chunks + 1]
        # A chunk on the edge of the stretch is shared with the neighbour: each takes its own cells.
        starts = self.starts[first : end + 1] + lap
        low[0] += max(0, start - int(starts[0]))
        high[-1] -= max(0, int(starts[-1]) - stop)
        is_real = starts[:-1] < self.n_cells
        by_position = np.argsort(low)
        arrivals, chunk = _expand(low[by_position], high[by_position])
        order = (
            permutation(len(arrivals), self.seed, Purpose.WINDOW, self.epoch, start)
            if self.shuffle
            else np.argsort(by_position[chunk], kind="stable")
        )
        return Window(arrivals, order, is_real[by_position][chunk])


@dataclass(frozen=True)
class Windows(Sequence[Window]):
    """The windows over one stretch of the epoch order; each is computed when it is asked for."""

    plan: EpochPlan
    start: int
    stop: int

    @cached_property
    def _lap(self) -> int:
        return self.plan.lap(self.start)

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
        if not self.plan.ramps:
            return k * whole
        return sum(-(-whole // part) for part in RAMP[:k]) + max(0, k - len(RAMP)) * whole

    def find(self, n: int) -> int:
        """Window from which the next cell leaves once ``n`` have left."""
        return bisect_right(range(len(self)), n, key=self.first_cell) - 1

    def first_cell(self, k: int) -> int:
        """Cells of the stretch that have left before window ``k``."""
        if k <= 0:
            return 0
        chunk = min(self._first_chunk + self._chunks_before(k), self._end_chunk)
        return min(int(self.plan.starts[chunk]) + self._lap, self.stop) - self.start

    def __getitem__(self, k: int) -> Window:  # type: ignore[override]
        if not 0 <= k < len(self):
            raise IndexError(k)
        return self.plan.window(self.start + self.first_cell(k), self.start + self.first_cell(k + 1))


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
