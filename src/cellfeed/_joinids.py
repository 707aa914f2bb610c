"""The joinids of a selection, compactly, and the arithmetic of runs of them.

A *position* counts the cells of a selection from 0; a *joinid* is the store's own ``soma_joinid``. A *run*
is a half-open range of joinids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cellfeed.errors import SelectionError

IntArray = npt.NDArray[np.int64]

MAX_COLUMN_RANGES = 4
"""More ranges of columns than this are read as one: each is compared with every tile of every row-block."""


@dataclass(frozen=True, eq=False)
class JoinIds:
    """Ascending, distinct joinids, kept as offsets from the first: 4 bytes a cell where they fit.

    Positions index it; ``joinids[positions]`` gives int64 joinids of the shape of ``positions``.
    """

    base: int
    offsets: npt.NDArray[np.uint32] | IntArray

    @classmethod
    def from_sorted(cls, joinids: IntArray) -> JoinIds:
        """Take ascending joinids; duplicates are a :class:`SelectionError`."""
        if len(joinids) == 0:
            return cls(0, np.empty(0, np.uint32))
        base = int(joinids[0])
        span = int(joinids[-1]) - base
        offsets = np.subtract(joinids, base, dtype=np.int64)
        compact = offsets.astype(np.uint32) if span < 2**32 else offsets
        if not bool(np.all(compact[1:] > compact[:-1])):
            raise SelectionError("obs holds a soma_joinid more than once; a cell could not be told from another")
        return cls(base, compact)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, positions: IntArray | slice) -> IntArray:
        return self.offsets[positions].astype(np.int64) + self.base

    def take(self, positions: IntArray) -> JoinIds:
        """Keep the joinids at ascending positions."""
        return JoinIds(self.base, self.offsets[positions])

    def row_block_bounds(self, extent: int) -> IntArray:
        """Cut the positions where the joinids pass from one row-block of the array to the next.

        Parameters
        ----------
        extent
            Rows in a row-block: the tile extent of the array's first dimension.

        Returns
        -------
        int64, shape (n_row_blocks_met + 1,): ascending positions, from 0 to ``len(self)``.

        Examples
        --------
        >>> JoinIds.from_sorted(np.array([0, 1, 5, 9])).row_block_bounds(4).tolist()
        [0, 2, 3, 4]
        """
        n = len(self)
        if n == 0:
            return np.zeros(1, np.int64)
        first = self.base // extent
        last = (self.base + int(self.offsets[-1])) // extent
        if last - first > n:  # cells far apart: fewer comparisons than row-blocks
            blocks = self[:] // extent
            starts = np.flatnonzero(np.diff(blocks)) + 1
        else:
            edges = np.arange(first + 1, last + 1) * extent - self.base
            # Same dtype on both sides: NumPy would copy the joinids to widen them.
            starts = np.searchsorted(self.offsets, edges.astype(self.offsets.dtype))
        return np.unique(np.concatenate(([0], starts, [n]))).astype(np.int64)


def in_order(joinids: IntArray) -> tuple[IntArray, IntArray]:
    """Return the order in which joinids ascend, and those that come more than once.

    Examples
    --------
    >>> [part.tolist() for part in in_order(np.array([7, 3, 7]))]
    [[1, 0, 2], [7]]
    """
    order = np.argsort(joinids, kind="stable")
    ascending = joinids[order]
    return order, ascending[1:][ascending[1:] == ascending[:-1]]


def expand(low: IntArray, high: IntArray) -> tuple[IntArray, IntArray]:
    """Return all integers of half-open ranges, end to end, and the range that each belongs to.

    Examples
    --------
    >>> [part.tolist() for part in expand(np.array([3, 8]), np.array([5, 9]))]
    [[3, 4, 8], [0, 0, 1]]
    """
    sizes = high - low
    which = np.repeat(np.arange(len(low)), sizes)
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) - before[which] + low[which], which


def runs_of(joinids: IntArray) -> IntArray:
    """Gather ascending joinids into runs.

    Returns
    -------
    int64, shape (n_runs, 2): half-open ``[start, stop)``, ascending, not touching each other.

    Examples
    --------
    >>> runs_of(np.array([3, 4, 5, 9])).tolist()
    [[3, 6], [9, 10]]
    """
    if len(joinids) == 0:
        return np.empty((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(joinids) != 1)
    starts = joinids[np.concatenate(([0], breaks + 1))]
    stops = joinids[np.concatenate((breaks, [len(joinids) - 1]))] + 1
    return np.stack((starts, stops), axis=1)


def merge_runs(runs: IntArray, *, max_gap: int) -> IntArray:
    """Join neighbouring runs that at most ``max_gap`` unwanted joinids keep apart.

    A few rows too many cost a copy; a range too many costs a comparison with every tile.

    Examples
    --------
    >>> merge_runs(np.array([[3, 6], [9, 10], [20, 21]]), max_gap=3).tolist()
    [[3, 10], [20, 21]]
    """
    if len(runs) == 0:
        return runs
    apart = runs[1:, 0] - runs[:-1, 1] > max_gap
    starts = runs[np.concatenate(([True], apart)), 0]
    stops = runs[np.concatenate((apart, [True])), 1]
    return np.stack((starts, stops), axis=1)


def read_bounds(joinids: IntArray, *, extent: int, max_row_blocks: int, max_rows: int) -> IntArray:
    """Divide ascending joinids into reads that never cut a row-block in two.

    A row-block that two reads share would be decoded twice. A read takes whole row-blocks until it
    has ``max_row_blocks`` of them or the next would bring it over ``max_rows`` wanted rows; it takes
    at least one.

    Returns
    -------
    int64, shape (n_reads + 1,): indices into ``joinids``, from 0 to its length.

    Examples
    --------
    >>> read_bounds(np.array([0, 1, 5, 9]), extent=4, max_row_blocks=2, max_rows=100).tolist()
    [0, 3, 4]
    """
    n = len(joinids)
    edges = [0, *(np.flatnonzero(np.diff(joinids // extent)) + 1).tolist(), n]
    bounds = [0]
    blocks = 0
    for previous, edge in zip(edges[:-1], edges[1:], strict=True):
        if blocks and (blocks == max_row_blocks or edge - bounds[-1] > max_rows):
            bounds.append(previous)
            blocks = 0
        blocks += 1
    return np.array([*bounds, n] if n else [0], np.int64)


def column_ranges(var_joinids: IntArray, *, extent: int, n_columns: int) -> IntArray | None:
    """Return the ranges of columns that hold all wanted genes, in whole bands of the array's tiles.

    A tile is read whole or not at all, so a range that ends inside a band saves nothing and costs a comparison
    of every value. A few ranges are worth their price, many are not: then the span of all of them is returned.

    Returns
    -------
    int64, shape (n_ranges, 2): half-open; ``None`` where every band holds a wanted gene.

    Examples
    --------
    >>> column_ranges(np.array([0, 5, 21]), extent=10, n_columns=60).tolist()
    [[0, 10], [20, 30]]
    """
    bands = np.unique(var_joinids // extent)
    if len(bands) == 0 or len(bands) == -(-n_columns // extent):
        return None
    ranges = runs_of(bands) * extent
    if len(ranges) > MAX_COLUMN_RANGES:
        ranges = np.array([[ranges[0, 0], ranges[-1, 1]]])
    return np.minimum(ranges, n_columns)
