"""A walk over a stretch of the epoch order: which cells arrive before each window, and in which order they leave.

Nothing here reads or waits, and no window needs those before it: a walk can begin anywhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cellfeed._joinids import IntArray, expand
from cellfeed.plan.epoch import EpochOrder
from cellfeed.plan.permutation import Purpose, permutation, random_bits
from cellfeed.plan.schedule import Schedule, schedule

PHASE_BITS = 20
"""Bits of the number by which the slices of a chunk are shifted, so that small chunks do not all leave at once."""


@dataclass(frozen=True, eq=False)
class Fetch:
    """Cells that are read together.

    Attributes
    ----------
    positions
        int64, shape (n,): ascending.
    leaves
        int64, shape (n,): how many windows after the one before which it arrives a cell leaves.
    is_real
        bool, shape (n,): False where a cell repeats another, to even out the ranks (``rank_remainder="pad"``).
    """

    positions: IntArray
    leaves: IntArray
    is_real: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Window:
    """Cells that leave together, shuffled.

    Attributes
    ----------
    fetches
        What is to be read before.
    order
        int64, shape (n,): the order of leaving. The cells that leave in this window are numbered by fetch, and
        within an fetch by position.
    gone
        So many of them have left before a restore.
    """

    fetches: tuple[Fetch, ...]
    order: IntArray
    gone: int = 0


class ShardWindows:
    """A stretch of the epoch order in windows.

    Parameters
    ----------
    plan
        Of the epoch.
    start, stop
        Cells of the epoch order.
    """

    def __init__(self, plan: EpochOrder, start: int, stop: int) -> None:
        self.plan = plan
        self.start = start
        self.stop = stop

    @cached_property
    def _reach(self) -> tuple[int, int]:
        """Chunks of the epoch order that have cells in the stretch: half-open."""
        if self.stop <= self.start:
            return 0, 0
        offset = self.plan.epoch_offset(self.start)
        first = int(np.searchsorted(self.plan.starts, self.start - offset, side="right")) - 1
        return first, int(np.searchsorted(self.plan.starts, self.stop - offset, side="left"))

    @cached_property
    def chunks(self) -> IntArray:
        """int64, shape (n,): the chunks of the stretch, in their order."""
        return self.plan.chunk_order[slice(*self._reach)]

    @cached_property
    def _bounds(self) -> tuple[IntArray, IntArray]:
        """First and last position of each chunk; at the edges those that belong to the stretch."""
        low, high = self.plan.bounds[self.chunks], self.plan.bounds[self.chunks + 1]
        if len(low):
            first, end = self._reach
            offset = self.plan.epoch_offset(self.start)
            low[0] += max(0, self.start - offset - int(self.plan.starts[first]))
            high[-1] -= max(0, int(self.plan.starts[end]) - (self.stop - offset))
        return low, high

    @cached_property
    def schedule(self) -> Schedule:
        """When the chunks arrive and leave."""
        return schedule(len(self.chunks), self.plan.mixing)

    def __len__(self) -> int:
        """Windows of the walk."""
        return self.schedule.n_windows

    @cached_property
    def _phases(self) -> IntArray:
        """What shifts the slices of each chunk: below ``1 << PHASE_BITS``."""
        n_chunks = len(self.plan.bounds) - 1
        bits = random_bits(n_chunks, self.plan.seed, Purpose.SLICES, self.plan.epoch) >> np.uint64(64 - PHASE_BITS)
        return bits.astype(np.int64)[self.chunks]

    @cached_property
    def _ends(self) -> IntArray:
        """The window behind the last one in which each chunk would leave, were there as many; ascending."""
        return self.schedule.leave + self.schedule.slices

    @cached_property
    def _totals(self) -> IntArray:
        """int64, shape (n_chunks + 1,): cells of the chunks before each chunk of the stretch, and of all."""
        low, high = self._bounds
        return np.concatenate(([0], np.cumsum(high - low)))

    def _alive(self, k: int) -> IntArray:
        """Chunks, as places, of which some cells leave in window ``k``."""
        first = np.searchsorted(self._ends, k, side="right")
        return np.arange(first, np.searchsorted(self.schedule.leave, k, side="right"))

    def _left(self, chunks: IntArray, k: int) -> IntArray:
        """Cells of each chunk that have left before window ``k``."""
        sizes = self._totals[chunks + 1] - self._totals[chunks]
        if k >= len(self):
            return sizes
        n_slices, j = self.schedule.slices[chunks], np.maximum(k - self.schedule.leave[chunks], 0)
        # In the random order of a chunk's cells, the first one that is in slice j or behind it: see _slices.
        shift = self._phases[chunks] * n_slices - j * (sizes << PHASE_BITS)
        left = np.clip(-(shift // (n_slices << PHASE_BITS)), 0, sizes)
        return np.where(j == 0, 0, np.where(j < n_slices, left, sizes))

    def chunks_leaving(self, k: int) -> tuple[IntArray, IntArray]:
        """Chunks, as places, of which cells leave in window ``k``, and how many: int64, shape (n,) each."""
        chunks = self._alive(k)
        return chunks, self._left(chunks, k + 1) - self._left(chunks, k)

    def held_parts(self, k: int) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """Chunks, as indices of the plan's, that are there when window ``k`` begins, and which part of each is left."""
        first, end = self._ends.searchsorted(k, side="right"), self.schedule.arrive.searchsorted(k, side="right")
        chunks = np.arange(first, end)
        n_left = self._totals[chunks + 1] - self._totals[chunks] - self._left(chunks, k)
        numbers = self.chunks[chunks]
        return numbers, n_left / (self.plan.bounds[numbers + 1] - self.plan.bounds[numbers])

    def arriving(self, k: int) -> IntArray:
        """Chunks, as indices of the plan's, that arrive before window ``k`` and not earlier."""
        first, end = self.schedule.arrive.searchsorted([k, k + 1])
        return self.chunks[first:end]

    def first_cell(self, k: int) -> int:
        """Cells of the stretch that have left before window ``k``."""
        if k >= len(self):
            return int(self._totals[-1])
        chunks = self._alive(k)
        gone = int(self._totals[np.searchsorted(self._ends, k, side="right")])
        return gone + int(self._left(chunks, k).sum())

    def find(self, n: int) -> int:
        """Window from which the next cell leaves once ``n`` have left; the number of windows if none is left."""
        return bisect_right(range(len(self) + 1), n, key=self.first_cell) - 1

    def windows(self, left: int = 0) -> Iterator[Window]:
        """Yield the windows from which cells leave once ``left`` have left."""
        first = self.find(left)
        for k in range(first, len(self)):
            fetches = self.fetches(k, since=0 if k == first else k)
            yield Window(fetches, self._order(k), gone=left - self.first_cell(k) if k == first else 0)

    def fetches(self, k: int, *, since: int) -> tuple[Fetch, ...]:
        """Return what arrived before window ``k``, not earlier than before window ``since``, and has not left."""
        made = self.schedule
        begin, end = np.searchsorted(made.arrive, [since, k + 1])
        begin = max(begin, np.searchsorted(self._ends, k, side="right"))
        when = np.unique(made.arrive[begin:end])
        return tuple(self._fetch(int(a), k) for a in when)

    def _fetch(self, when: int, k: int) -> Fetch:
        """Cells that arrive before window ``when`` and leave in window ``k`` or later, counted from ``k``."""
        positions, leaves, chunk = self._cells(when)
        stays = leaves >= k
        return Fetch(positions[stays], leaves[stays] - k, self._is_real[chunk[stays]])

    @cached_property
    def _is_real(self) -> npt.NDArray[np.bool_]:
        offset = self.plan.epoch_offset(self.start)
        first, end = self._reach
        real: npt.NDArray[np.bool_] = self.plan.starts[first:end] + offset < self.plan.n_cells
        return real

    def _cells(self, when: int) -> tuple[IntArray, IntArray, IntArray]:
        """Positions that arrive before a window, ascending; when they leave; their chunks, as places."""
        made, (low, high) = self.schedule, self._bounds
        begin, end = np.searchsorted(made.arrive, [when, when + 1])
        by_position = begin + np.argsort(low[begin:end], kind="stable")
        positions, chunk = expand(low[by_position], high[by_position])
        chunk = by_position[chunk]
        leaves = made.leave[chunk]
        if (made.slices[begin:end] > 1).any():
            leaves = np.minimum(leaves + self._slices(chunk, when), len(self) - 1)
        return positions, leaves, chunk

    def _slices(self, chunk: IntArray, when: int) -> IntArray:
        """Return the slice of each cell: the cells of a chunk, in random order, in equal parts."""
        order = permutation(len(chunk), self.plan.seed, Purpose.SLICES, self.plan.epoch, self.start, when)
        by_chunk = order[np.argsort(chunk[order], kind="stable")]
        sorted_chunks = chunk[by_chunk]
        starts = np.flatnonzero(np.diff(sorted_chunks, prepend=-1))
        sizes = np.diff(np.append(starts, len(chunk)))
        place = np.empty(len(chunk), np.int64)
        place[by_chunk] = np.arange(len(chunk)) - np.repeat(starts, sizes)
        n = np.empty(len(chunk), np.int64)
        n[by_chunk] = np.repeat(sizes, sizes)
        return ((place << PHASE_BITS) + self._phases[chunk]) * self.schedule.slices[chunk] // (n << PHASE_BITS)

    def _order(self, k: int) -> IntArray:
        n = self.first_cell(k + 1) - self.first_cell(k)
        if self.plan.shuffle:
            return permutation(n, self.plan.seed, Purpose.WINDOW, self.plan.epoch, self.start, k)
        chunks = [chunk[leaves == k] for _, leaves, chunk in map(self._cells, self._arrived(k))]
        return np.argsort(np.concatenate([*chunks, np.empty(0, np.int64)]), kind="stable")

    def _arrived(self, k: int) -> list[int]:
        """When the chunks arrived that leave in window ``k``."""
        chunks, n = self.chunks_leaving(k)
        arrived: list[int] = np.unique(self.schedule.arrive[chunks[n > 0]]).tolist()
        return arrived

    def held(self, left: int) -> tuple[IntArray, npt.NDArray[np.bool_], int]:
        """Tell what is held once ``left`` cells have left.

        Returns
        -------
        Positions in the order in which they would leave, whether they are real, and the cell of the epoch order from
        which on nothing has arrived.
        """
        k = self.find(left)
        fetches = self.fetches(k, since=0)
        positions, is_real = [], []
        for after in range(int(max((a.leaves.max(initial=-1) for a in fetches), default=-1)) + 1):
            leaving = np.concatenate([a.positions[a.leaves == after] for a in fetches])
            real = np.concatenate([a.is_real[a.leaves == after] for a in fetches])
            order = self._order(k + after)
            order = order[order < len(leaving)]  # those that arrive later come behind in the numbering
            order = order[left - self.first_cell(k) :] if after == 0 else order
            positions.append(leaving[order])
            is_real.append(real[order])
        n_arrived = int(np.searchsorted(self.schedule.arrive, k, side="right"))
        first, _ = self._reach
        end = min(self.stop, int(self.plan.starts[first + n_arrived]) + self.plan.epoch_offset(self.start))
        return np.concatenate(positions), np.concatenate(is_real), end
