"""The windows of a shard: which cells are fetched before each window, and in which order the window yields cells.

This module does no IO. A window does not depend on the windows before it, so iteration can begin at any cell.
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
from cellfeed.plan.slices import PHASE_BITS, cells_before_slice, slice_of


@dataclass(frozen=True, eq=False)
class Fetch:
    """Cells that are read together.

    Attributes
    ----------
    positions
        int64, shape (n_cells,): ascending; repeated if a cell has several copies.
    window_offset
        int64, shape (n_cells,): number of windows between the fetch and the window that yields a cell.
    is_real
        bool, shape (n_cells,): False if a cell repeats another one because of ``rank_remainder="pad"``.
    """

    positions: IntArray
    window_offset: IntArray
    is_real: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Window:
    """Cells that are shuffled and yielded together.

    Attributes
    ----------
    fetches
        Cells to read before this window.
    order
        int64, shape (n_cells,): permutation of the cells of this window, which are numbered by fetch and, within a
        fetch, by position.
    n_skipped
        Cells at the beginning of ``order`` that were yielded before a resume.
    """

    fetches: tuple[Fetch, ...]
    order: IntArray
    n_skipped: int = 0


class ShardWindows:
    """The windows of a shard.

    Chunks are numbered from 0 within the shard, except where a method returns "the selection's chunks".

    Parameters
    ----------
    epoch_order
        Order of the epoch.
    start, stop
        First cell of the shard in the epoch order, and the cell after the last one.
    """

    def __init__(self, epoch_order: EpochOrder, start: int, stop: int) -> None:
        self.epoch_order = epoch_order
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        """Return the number of windows."""
        return self.schedule.n_windows

    # ------------------------------------------------------------------ chunks

    @cached_property
    def _chunk_range(self) -> tuple[int, int]:
        """Half-open range of the chunks in the epoch order that have cells in the shard."""
        if self.stop <= self.start:
            return 0, 0
        offset, starts = self.epoch_order.epoch_offset(self.start), self.epoch_order.starts
        first = int(np.searchsorted(starts, self.start - offset, side="right")) - 1
        return first, int(np.searchsorted(starts, self.stop - offset, side="left"))

    @cached_property
    def chunks(self) -> IntArray:
        """int64, shape (n_chunks,): the selection's chunk behind each chunk of the shard."""
        return self.epoch_order.chunk_order[slice(*self._chunk_range)]

    @cached_property
    def _bounds(self) -> tuple[IntArray, IntArray]:
        """int64, shape (n_chunks,) each: half-open positions of each chunk, cut at both ends of the shard."""
        order = self.epoch_order
        low, high = order.bounds[self.chunks], order.bounds[self.chunks + 1]
        if len(low):
            first, end = self._chunk_range
            offset = order.epoch_offset(self.start)
            low[0] += max(0, self.start - offset - int(order.starts[first]))
            high[-1] -= max(0, int(order.starts[end]) - (self.stop - offset))
        return low, high

    @cached_property
    def _starts(self) -> IntArray:
        """int64, shape (n_chunks + 1,): cells of the shard before each chunk, and of the whole shard."""
        low, high = self._bounds
        return np.concatenate(([0], np.cumsum(high - low)))

    @cached_property
    def _is_real(self) -> npt.NDArray[np.bool_]:
        """Bool, shape (n_chunks,): False for chunks that padding repeats."""
        order, (first, end) = self.epoch_order, self._chunk_range
        is_real: npt.NDArray[np.bool_] = order.starts[first:end] + order.epoch_offset(self.start) < order.n_cells
        return is_real

    @cached_property
    def schedule(self) -> Schedule:
        """The windows in which chunks are fetched and yielded."""
        return schedule(len(self.chunks), self.epoch_order.shuffle_plan)

    @cached_property
    def _end_window(self) -> IntArray:
        """int64, shape (n_chunks,): first window after each chunk's last slice, ignoring the shard's end; ascending."""
        return self.schedule.first_window + self.schedule.n_slices

    @cached_property
    def _phases(self) -> IntArray:
        """int64, shape (n_chunks,): phase of the slices of each chunk."""
        order = self.epoch_order
        bits = random_bits(len(order.bounds) - 1, order.seed, Purpose.SLICES, order.epoch)
        return (bits >> np.uint64(64 - PHASE_BITS)).astype(np.int64)[self.chunks]

    # ------------------------------------------------------------------ counts

    def _chunks_in(self, k: int) -> IntArray:
        """Return the chunks that have a slice in window ``k``."""
        first = np.searchsorted(self._end_window, k, side="right")
        return np.arange(first, np.searchsorted(self.schedule.first_window, k, side="right"))

    def _n_done(self, chunks: IntArray, k: int) -> IntArray:
        """Return how many cells of each chunk are yielded before window ``k``."""
        sizes = self._starts[chunks + 1] - self._starts[chunks]
        if k >= len(self):
            return sizes
        slices_done = k - self.schedule.first_window[chunks]
        return cells_before_slice(slices_done, sizes, self.schedule.n_slices[chunks], self._phases[chunks])

    def chunks_leaving(self, k: int) -> tuple[IntArray, IntArray]:
        """Return the chunks that have a slice in window ``k``, and the cells of each slice: int64, shape (n,) each."""
        chunks = self._chunks_in(k)
        return chunks, self._n_done(chunks, k + 1) - self._n_done(chunks, k)

    def held_parts(self, k: int) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """Return the selection's chunks in the pool when window ``k`` begins, and the fraction of each: shape (n,)."""
        first = self._end_window.searchsorted(k, side="right")
        chunks = np.arange(first, self.schedule.fetch_window.searchsorted(k, side="right"))
        n_left = self._starts[chunks + 1] - self._starts[chunks] - self._n_done(chunks, k)
        numbers, bounds = self.chunks[chunks], self.epoch_order.bounds
        return numbers, n_left / (bounds[numbers + 1] - bounds[numbers])

    def chunks_fetched(self, k: int) -> IntArray:
        """Return the selection's chunks that are fetched before window ``k`` and after window ``k - 1`` begins."""
        first, end = self.schedule.fetch_window.searchsorted([k, k + 1])
        return self.chunks[first:end]

    def first_cell(self, k: int) -> int:
        """Return how many cells of the shard are yielded before window ``k``."""
        if k >= len(self):
            return int(self._starts[-1])
        n_complete = self._starts[np.searchsorted(self._end_window, k, side="right")]
        return int(n_complete) + int(self._n_done(self._chunks_in(k), k).sum())

    def find(self, n_done: int) -> int:
        """Return the window of the next cell after ``n_done`` cells; ``len(self)`` if no cell is left."""
        return bisect_right(range(len(self) + 1), n_done, key=self.first_cell) - 1

    # ------------------------------------------------------------------ windows

    def windows(self, n_done: int = 0) -> Iterator[Window]:
        """Yield the windows with the cells that are left after ``n_done`` cells."""
        first = self.find(n_done)
        for k in range(first, len(self)):
            fetches = self.fetches(k, since=0 if k == first else k)
            yield Window(fetches, self._order(k), n_skipped=n_done - self.first_cell(k) if k == first else 0)

    def fetches(self, k: int, *, since: int) -> tuple[Fetch, ...]:
        """Return the cells fetched for windows ``since`` to ``k``, without those yielded before window ``k``."""
        fetch_window = self.schedule.fetch_window
        begin, end = np.searchsorted(fetch_window, [since, k + 1])
        begin = max(begin, np.searchsorted(self._end_window, k, side="right"))
        return tuple(self._fetch(int(window), k) for window in np.unique(fetch_window[begin:end]))

    def _fetch(self, fetch_window: int, k: int) -> Fetch:
        """Return the cells fetched for a window and yielded in window ``k`` or later; offsets count from ``k``."""
        positions, window, chunk = self._cells(fetch_window)
        is_left = window >= k
        return Fetch(positions[is_left], window[is_left] - k, self._is_real[chunk[is_left]])

    def _cells(self, fetch_window: int) -> tuple[IntArray, IntArray, IntArray]:
        """Return the ascending positions fetched for a window, the window that yields each cell, and its chunk."""
        made, (low, high) = self.schedule, self._bounds
        begin, end = np.searchsorted(made.fetch_window, [fetch_window, fetch_window + 1])
        by_position = begin + np.argsort(low[begin:end], kind="stable")  # (n_fetched_chunks,)
        positions, source = expand(low[by_position], high[by_position])  # (n_cells,) each
        chunk = by_position[source]
        window = made.first_window[chunk]
        if (made.n_slices[begin:end] > 1).any():
            window = np.minimum(window + self._slices(positions, chunk, fetch_window), len(self) - 1)
        return positions, window, chunk

    def _slices(self, positions: IntArray, chunk: IntArray, fetch_window: int) -> IntArray:
        """Return the slice of each cell: int64, shape (n_cells,). The cells of each chunk are shuffled first."""
        order = self._permutation(len(chunk), Purpose.SLICES, fetch_window)
        by_chunk = order[np.argsort(chunk[order], kind="stable")]  # (n_cells,): grouped by chunk, random within
        starts = np.flatnonzero(np.diff(chunk[by_chunk], prepend=-1))  # (n_chunks,)
        sizes = np.diff(np.append(starts, len(chunk)))
        place, size = np.empty(len(chunk), np.int64), np.empty(len(chunk), np.int64)  # of each cell, and of its chunk
        place[by_chunk] = np.arange(len(chunk)) - np.repeat(starts, sizes)
        size[by_chunk] = np.repeat(sizes, sizes)
        return slice_of(place, size, self.schedule.n_slices[chunk], self._phases[chunk])

    def _permutation(self, n: int, purpose: Purpose, k: int) -> IntArray:
        return permutation(n, self.epoch_order.seed, purpose, self.epoch_order.epoch, self.start, k)

    def _order(self, k: int) -> IntArray:
        """Return the order in which window ``k`` yields its cells: random, or that of the joinids."""
        if self.epoch_order.shuffle:
            return self._permutation(self.first_cell(k + 1) - self.first_cell(k), Purpose.WINDOW, k)
        parts = [chunk[window == k] for _, window, chunk in map(self._cells, self._fetched_for(k))]
        return np.argsort(np.concatenate([*parts, np.empty(0, np.int64)]), kind="stable")

    def _fetched_for(self, k: int) -> list[int]:
        """Return the windows before which cells of window ``k`` are fetched, ascending."""
        chunks, n_cells = self.chunks_leaving(k)
        fetch_windows: list[int] = np.unique(self.schedule.fetch_window[chunks[n_cells > 0]]).tolist()
        return fetch_windows

    def held(self, n_done: int) -> tuple[IntArray, npt.NDArray[np.bool_], int]:
        """Return the content of the pool after ``n_done`` cells.

        Returns
        -------
        The positions, in the order in which they would be yielded, shape (n_cells,); whether they are real, shape
        (n_cells,); and the first cell of the epoch order that is not fetched.
        """
        k = self.find(n_done)
        fetches = self.fetches(k, since=0)
        positions, is_real = [], []
        for offset in range(int(max((f.window_offset.max(initial=-1) for f in fetches), default=-1)) + 1):
            here = [f.window_offset == offset for f in fetches]
            window_positions = np.concatenate([f.positions[at] for f, at in zip(fetches, here, strict=True)])
            window_is_real = np.concatenate([f.is_real[at] for f, at in zip(fetches, here, strict=True)])
            order = self._order(k + offset)
            order = order[order < len(window_positions)]  # cells of later fetches have higher numbers
            order = order[n_done - self.first_cell(k) :] if offset == 0 else order
            positions.append(window_positions[order])
            is_real.append(window_is_real[order])
        n_fetched = int(np.searchsorted(self.schedule.fetch_window, k, side="right"))
        starts, (first, _) = self.epoch_order.starts, self._chunk_range
        end = min(self.stop, int(starts[first + n_fetched]) + self.epoch_order.epoch_offset(self.start))
        return np.concatenate(positions), np.concatenate(is_real), end
