"""The windows of a shard of an epoch in which cells come several times: copies of a cell leave far apart.

The copies of a chunk are dealt to its slices, and the cells of a window to the minibatches that it fills, as
:func:`cellfeed.plan.copies.deal` describes. So a cell is twice in a minibatch only in two cases: it has more copies in
a window than this window fills minibatches; or the last minibatch that a window begins has too few cells that do not
leave in the next window, which completes it.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cellfeed._joinids import IntArray
from cellfeed.plan.copies import deal
from cellfeed.plan.epoch import EpochOrder
from cellfeed.plan.permutation import Purpose, random_bits
from cellfeed.plan.schedule import MAX_SLICES
from cellfeed.plan.slices import slice_of
from cellfeed.plan.windows import ShardWindows

Fetched = tuple[IntArray, IntArray, IntArray]
"""Positions of cells, the window that yields each, and its chunk: int64, shape (n_cells,) each."""


def windows_of_shard(order: EpochOrder, start: int, stop: int) -> ShardWindows:
    """Return the windows of the cells from ``start`` to ``stop`` of an epoch order."""
    return (ShardWindows if order.cells is None else CopyWindows)(order, start, stop)


class CopyWindows(ShardWindows):
    """The windows of a shard whose numbers of cells are those of copies; see :attr:`EpochOrder.cells`."""

    @cached_property
    def _fetched(self) -> dict[int, Fetched]:
        """Cells by the window before which they are fetched: those of windows that were computed last."""
        return {}

    def _cells(self, fetch_window: int) -> Fetched:
        if fetch_window not in self._fetched:
            assert self.epoch_order.cells is not None
            copies, window, chunk = super()._cells(fetch_window)
            cells = self.epoch_order.cells[copies]
            order = np.argsort(cells, kind="stable")  # several chunks may have copies of the same cells
            self._fetched[fetch_window] = cells[order], window[order], chunk[order]
        return self._fetched[fetch_window]

    def _slices(self, positions: IntArray, chunk: IntArray, fetch_window: int) -> IntArray:
        """Return the slice of each copy: the copies of each chunk are dealt to its slices."""
        assert self.epoch_order.cells is not None
        starts = np.flatnonzero(np.diff(chunk, prepend=-1))  # (n_chunks,): chunks are not interleaved
        sizes = np.diff(np.append(starts, len(chunk)))
        place = np.arange(len(chunk)) - np.repeat(starts, sizes)
        slices = slice_of(place, np.repeat(sizes, sizes), self.schedule.n_slices[chunk], self._phases[chunk])
        group = np.repeat(np.arange(len(starts)), sizes)
        dealt = deal(
            self.epoch_order.cells[positions],
            group * MAX_SLICES + slices,
            self._bits(len(chunk), Purpose.SLICES, fetch_window),
            rank_of_copy=group,
            rank_of_place=group,
        )
        return slices[dealt]

    def _order(self, k: int) -> IntArray:
        """Return the order in which window ``k`` yields its cells: they are dealt to minibatches."""
        cells, batch_size = self._leaving(k), self.epoch_order.batch_size
        first = self.first_cell(k)
        minibatch = (first + np.arange(len(cells))) // batch_size
        end = first + len(cells)
        by_cell = np.argsort(cells, kind="stable")
        # The next window completes the last minibatch: it gets cells that neither return there nor are repeated here.
        is_late = (minibatch == end // batch_size) & (k + 1 < len(self))
        ranks = self._ranks(cells[by_cell], self._leaving(k + 1)) if is_late.any() else np.zeros(len(cells), np.int64)
        bits = self._bits(len(cells), Purpose.WINDOW, k)
        dealt = deal(cells[by_cell], minibatch, bits, rank_of_copy=ranks, rank_of_place=is_late)
        order = np.empty(len(cells), np.int64)
        order[dealt] = by_cell
        return order

    @staticmethod
    def _ranks(cells: IntArray, next_cells: IntArray) -> IntArray:
        """Return 0 for a cell that is also in the next window, 1 for one that is repeated, and 2 for others."""
        is_repeated = np.zeros(len(cells), np.bool_)
        is_repeated[1:] = cells[1:] == cells[:-1]
        is_repeated[:-1] |= is_repeated[1:]
        return np.where(np.isin(cells, next_cells), 0, np.where(is_repeated, 1, 2))

    def _leaving(self, k: int) -> IntArray:
        """Return the cells that window ``k`` yields, numbered as in its order."""
        fetched_for = self._fetched_for(k)
        for fetch_window in [number for number in self._fetched if number < min(fetched_for, default=0)]:
            del self._fetched[fetch_window]
        fetched = [self._cells(fetch_window) for fetch_window in fetched_for]
        return np.concatenate([*(cells[window == k] for cells, window, _ in fetched), np.empty(0, np.int64)])

    def _bits(self, n: int, purpose: Purpose, k: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
        order = self.epoch_order
        return random_bits(2 * n, order.seed, purpose, order.epoch, self.start, k).reshape(2, n)
